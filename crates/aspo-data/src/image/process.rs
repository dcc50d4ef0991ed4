//! Resize, cut, crop or pad, normalise: what the image processors of CLIP, LLaVA, BLIP, Idefics3, SmolVLM, Qwen2-VL and
//! LLaVA-OneVision do.

use serde::{Deserialize, Serialize};

use super::decode::{DecodeOptions, MAX_DECODED_BYTES, RgbImage};
use super::layout::{ImageShape, best_pinpoint, dynamic_size, first_size, second_size, within};
use super::resample::{Axis, Filter, resample, resize};
use crate::error::{Error, Result};

/// CLIP's channel means (of values in 0..1).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Raised when the same processor makes other pixels of the same file than before: part of the key of what is kept of them.
pub const PIXEL_RULES: &str = "pixels 2";

/// What a picture becomes: one square, or what its own size says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Shortest edge to `shortest_edge`, then the centre `size`x`size` (CLIP; llava-1.5-hf).
    #[default]
    Crop,
    /// Set on a square of the mean colour, then as [`Fit::Crop`] (LLaVA's `image_aspect_ratio: pad`).
    Pad,
    /// Both sides resized to `size` (BLIP, InstructBLIP).
    Squash,
    /// Cut into tiles of `size` pixels, with the whole as one more (Idefics3, SmolVLM).
    Tiles {
        /// Pixels that the longest edge is brought to before.
        longest_edge: u32,
        /// Whether pictures are cut at all; else the whole is all there is.
        split: bool,
    },
    /// Resized to multiples of `size`, which is the edge of what becomes one token (Qwen2-VL).
    Dynamic {
        /// Least and most pixels of the result.
        pixels: [u32; 2],
    },
    /// The whole, then tiles of `size` pixels of the best-fitting of some sizes; of several pictures in a conversation the whole
    /// alone (LLaVA-OneVision).
    AnyRes,
}

/// From an encoded picture to the vision tower's input.
///
/// A checkpoint's own is read by [`ImageProcessor::of_checkpoint`].
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Side of the result, or of a tile, in pixels. Default 336.
    pub size: u32,
    /// Length of the shortest edge before the centre crop, at least `size`; not used by [`Fit::Squash`]. Default 336.
    pub shortest_edge: u32,
    /// Crop, pad or squash. Default crop.
    pub fit: Fit,
    /// Kernel of the resize. Default bicubic.
    pub resample: Filter,
    /// Subtracted from each channel (values in 0..1). Default [`CLIP_MEAN`].
    pub mean: [f32; 3],
    /// Divides each channel after that. Default [`CLIP_STD`].
    pub std: [f32; 3],
    /// Heights and widths that [`Fit::AnyRes`] chooses from. Default none.
    pub pinpoints: Vec<[u32; 2]>,
    /// What becomes of orientation and transparency.
    pub decode: DecodeOptions,
}

/// A preprocessed picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pixels {
    /// `[tiles, 3, height, width]`, normalised: tile by tile, channel by channel, row by row.
    pub values: Vec<f32>,
    /// Its sizes.
    pub shape: ImageShape,
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self::clip(336)
    }
}

impl ImageProcessor {
    /// CLIP's processor for `size`x`size` inputs: shortest edge, centre crop.
    pub fn clip(size: u32) -> Self {
        Self {
            size,
            shortest_edge: size,
            fit: Fit::Crop,
            resample: Filter::Bicubic,
            mean: CLIP_MEAN,
            std: CLIP_STD,
            pinpoints: Vec::new(),
            decode: DecodeOptions::default(),
        }
    }

    /// The same with another way to the square.
    pub fn with_fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// Are the settings ones that can be honoured?
    ///
    /// # Errors
    /// [`Error::Option`] for the first that cannot.
    pub fn check(&self) -> Result<()> {
        let refuse = |name, found: String, remedy| Err(Error::Option { name, found, remedy });
        if self.size == 0 || self.size > 4096 {
            return refuse("size", self.size.to_string(), "use 1 to 4096 pixels");
        }
        let tiles = |[height, width]: [u32; 2]| {
            let whole = |side: u32| side > 0 && side.is_multiple_of(self.size);
            whole(height) && whole(width) && 3 * u64::from(height) * u64::from(width) <= MAX_DECODED_BYTES
        };
        match self.fit {
            Fit::Tiles { longest_edge: 0, .. } => {
                return refuse("longest_edge", "0".into(), "use 1 or more pixels");
            }
            Fit::Dynamic { pixels: [least, most] } if least > most || most == 0 => {
                return refuse(
                    "min_pixels",
                    format!("{least}, max_pixels {most}"),
                    "give the least and the most",
                );
            }
            Fit::AnyRes if self.pinpoints.is_empty() || !self.pinpoints.iter().all(|&point| tiles(point)) => {
                return refuse(
                    "image_grid_pinpoints",
                    format!("{:?}", self.pinpoints),
                    "give heights and widths that are multiples of `size`, of no more than 64 million pixels",
                );
            }
            _ => {}
        }
        if matches!(self.fit, Fit::Crop | Fit::Pad)
            && (self.shortest_edge < self.size || self.shortest_edge > 8192)
        {
            return refuse(
                "shortest_edge",
                self.shortest_edge.to_string(),
                "use at least `size`, at most 8192 pixels",
            );
        }
        if !self.mean.iter().chain(&self.std).all(|x| x.is_finite()) || self.std.iter().any(|x| *x <= 0.0) {
            return refuse(
                "image_std",
                format!("{:?} {:?}", self.mean, self.std),
                "use finite numbers above 0",
            );
        }
        Ok(())
    }

    /// Everything that decides what pixels become of a file, as text: part of the key of whatever is kept of them.
    pub fn rules(&self) -> String {
        format!("{PIXEL_RULES} {self:?}")
    }

    /// What becomes of a picture of this height and width. `alone` tells whether it is the only picture of its conversation: some
    /// processors do not cut one of several.
    ///
    /// # Errors
    /// [`Error::Option`] for a picture that the processor does not take.
    pub fn shape(&self, size: [u32; 2], alone: bool) -> Result<ImageShape> {
        let refuse = |remedy| {
            let [height, width] = size;
            Err(Error::Option { name: "image", found: format!("{width}x{height} pixels"), remedy })
        };
        if size.contains(&0) {
            return refuse("give a picture with pixels");
        }
        let side = self.size;
        let uncut = ImageShape { tile: [side; 2], grid: [0, 0], size };
        Ok(match self.fit {
            Fit::Crop | Fit::Pad | Fit::Squash | Fit::Tiles { split: false, .. } => uncut,
            Fit::Tiles { longest_edge, split: true } => {
                let [height, width] = second_size(first_size(size, longest_edge), side);
                match [height / side, width / side] {
                    [1, 1] => uncut,
                    grid => ImageShape { grid, ..uncut },
                }
            }
            Fit::Dynamic { pixels } => match dynamic_size(size, side, pixels) {
                Some(tile) => ImageShape { tile, ..uncut },
                None => return refuse("leave it out: one side may be 200 times the other at most"),
            },
            Fit::AnyRes if !alone => uncut,
            Fit::AnyRes => match best_pinpoint(size, &self.pinpoints) {
                Some([height, width]) => ImageShape { grid: [height / side, width / side], ..uncut },
                None => return refuse("name sizes in `image_grid_pinpoints`"),
            },
        })
    }

    /// Whether every picture becomes one square of `size` pixels.
    pub fn is_square(&self) -> bool {
        matches!(self.fit, Fit::Crop | Fit::Pad | Fit::Squash)
    }

    /// Resizes, cuts, crops or pads, and normalises. `alone` is as in [`ImageProcessor::shape`].
    ///
    /// Equal to what transformers' processors make with Pillow: the resize to the bit, the division in f32. (Its default
    /// processors use torchvision, whose resize differs from Pillow's by up to 12 steps of 255 on tall pictures.)
    ///
    /// # Errors
    /// [`Error::Option`] for settings that [`ImageProcessor::check`] refuses, for a picture whose `pixels` are not
    /// `3 · width · height`, and for one that [`ImageProcessor::shape`] refuses.
    pub fn pixels(&self, image: &RgbImage, alone: bool) -> Result<Pixels> {
        self.check()?;
        image.check()?;
        let shape = self.shape([image.height, image.width], alone)?;
        let [height, width] = shape.tile;
        let area = height as usize * width as usize;
        // Sizes that are too large are refused here, before room is made for their values.
        let tiles = self.tiles(image, &shape, alone)?;
        let mut values = Vec::with_capacity(shape.values());
        for tile in tiles {
            for channel in 0..3 {
                let (mean, std) = (self.mean[channel], self.std[channel]);
                // transformers multiplies by 1/255 in f64, then goes on in f32.
                let table: [f32; 256] =
                    std::array::from_fn(|value| ((value as f64 * (1.0 / 255.0)) as f32 - mean) / std);
                let pixels = tile.chunks_exact(3).take(area);
                values.extend(pixels.map(|pixel| table[usize::from(pixel[channel])]));
            }
        }
        Ok(Pixels { values, shape })
    }

    /// The same for a processor whose pictures all become one square: `[3, size, size]`.
    ///
    /// # Errors
    /// As [`ImageProcessor::pixels`], and for a processor that cuts pictures or keeps their shape.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Vec<f32>> {
        if !self.is_square() {
            let found = format!("{:?}", self.fit);
            let remedy = "give a processor whose pictures become one square by crop, pad or squash";
            return Err(Error::Option { name: "image_processor", found, remedy });
        }
        Ok(self.pixels(image, true)?.values)
    }

    /// The 8-bit tiles before normalisation, in the order in which the models take them.
    fn tiles(&self, image: &RgbImage, shape: &ImageShape, alone: bool) -> Result<Vec<Vec<u8>>> {
        let side = self.size;
        let cut = |picture: &RgbImage| -> Vec<Vec<u8>> {
            let [rows, columns] = shape.grid;
            let places =
                (0..rows).flat_map(|row| (0..columns).map(move |column| [row * side, column * side]));
            places.map(|at| part(picture, at, side)).collect()
        };
        let scaled =
            |image: &RgbImage, [height, width]: [u32; 2]| resize(image, width, height, self.resample);
        Ok(match self.fit {
            Fit::Crop | Fit::Pad | Fit::Squash => vec![self.square(image, self.fit)],
            Fit::Dynamic { .. } => vec![scaled(image, shape.tile)?.pixels],
            Fit::Tiles { longest_edge, split } => {
                let size = [image.height, image.width];
                let first = first_size(size, longest_edge);
                let whole = scaled(image, first)?;
                if !split {
                    return Ok(vec![scaled(&whole, [side; 2])?.pixels]);
                }
                let whole = scaled(&whole, second_size(first, side))?;
                if shape.grid == [0, 0] {
                    return Ok(vec![whole.pixels]);
                }
                let mut tiles = cut(&whole);
                tiles.push(scaled(&whole, [side; 2])?.pixels);
                tiles
            }
            Fit::AnyRes if !alone => vec![self.square(image, Fit::Pad)],
            Fit::AnyRes => {
                let canvas = shape.grid.map(|tiles| tiles * side);
                let mut tiles = vec![scaled(image, [side; 2])?.pixels];
                tiles.extend(cut(&centred(&scaled(image, within(shape.size, canvas))?, canvas)));
                tiles
            }
        })
    }

    /// One square of `size` · `size` · 3 bytes.
    fn square(&self, image: &RgbImage, fit: Fit) -> Vec<u8> {
        let (width, height) = (image.width, image.height);
        // LLaVA pads with `int(mean * 255)`.
        let background = self.mean.map(|mean| (f64::from(mean) * 255.0) as u8);
        let canvas = if fit == Fit::Pad { width.max(height) } else { 0 };
        let short = width.min(height).max(canvas);
        let axis = |length: u32| {
            let canvas = length.max(canvas);
            let whole = Axis { canvas, start: (canvas - length) / 2, ..Axis::whole(length, self.size) };
            if fit == Fit::Squash {
                return whole;
            }
            // transformers' `get_resize_output_image_size`: the long edge is cut to an integer.
            let output = u64::from(self.shortest_edge) * u64::from(canvas) / u64::from(short);
            let output = output.min(u64::from(u32::MAX)) as u32;
            Axis { output, first: (output - self.size) / 2, ..whole }
        };
        resample(image, axis(width), axis(height), self.resample, background)
    }
}

/// A square of a picture, from row and column `at`.
fn part(picture: &RgbImage, [top, left]: [u32; 2], side: u32) -> Vec<u8> {
    let (stride, start, length) = (3 * picture.width as usize, 3 * left as usize, 3 * side as usize);
    let rows = picture.pixels.chunks_exact(stride).skip(top as usize).take(side as usize);
    rows.flat_map(|row| &row[start..start + length]).copied().collect()
}

/// A picture in the middle of a black canvas of this height and width.
fn centred(picture: &RgbImage, [height, width]: [u32; 2]) -> RgbImage {
    let mut canvas = vec![0; 3 * height as usize * width as usize];
    let top = ((height - picture.height) / 2) as usize;
    let left = 3 * ((width - picture.width) / 2) as usize;
    let (stride, length) = (3 * width as usize, 3 * picture.width as usize);
    for (row, source) in canvas.chunks_exact_mut(stride).skip(top).zip(picture.pixels.chunks_exact(length)) {
        row[left..left + length].copy_from_slice(source);
    }
    RgbImage { width, height, pixels: canvas }
}
