//! Resize, crop or pad, normalise: what `CLIPImageProcessor`, `LlavaImageProcessor` and `BlipImageProcessor` do.

use super::decode::{DecodeOptions, RgbImage};
use super::resample::{Axis, Filter, resample};
use crate::error::{Error, Result};

/// CLIP's channel means (of values in 0..1).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Raised when the same processor makes other pixels of the same file than before: part of the key of what is kept of them.
pub const PIXEL_RULES: &str = "pixels 2";

/// How a picture that is not square becomes so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Shortest edge to `shortest_edge`, then the centre `size`x`size` (CLIP; llava-1.5-hf).
    #[default]
    Crop,
    /// Set on a square of the mean colour, then as [`Fit::Crop`] (LLaVA's `image_aspect_ratio: pad`).
    Pad,
    /// Both sides resized to `size` (BLIP, InstructBLIP).
    Squash,
}

/// From an encoded picture to the vision tower's input.
///
/// A checkpoint's own is read by [`ImageProcessor::of_checkpoint`].
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Side of the result in pixels. Default 336.
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
    /// What becomes of orientation and transparency.
    pub decode: DecodeOptions,
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
        if self.fit != Fit::Squash && (self.shortest_edge < self.size || self.shortest_edge > 8192) {
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

    /// Values of one picture: 3 · `size` · `size`.
    pub fn len(&self) -> usize {
        3 * (self.size as usize).pow(2)
    }

    /// Never: a checked processor has a size.
    pub fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Resizes, crops or pads and normalises: `[3, size, size]`, channel by channel, row by row.
    ///
    /// Equal to what transformers' processors make with Pillow: the resize to the bit, the division in f32. (Its default
    /// processors use torchvision, whose resize differs from Pillow's by up to 12 steps of 255 on tall pictures.)
    ///
    /// # Errors
    /// [`Error::Option`] for settings that [`ImageProcessor::check`] refuses and for a picture whose `pixels` are not
    /// `3 · width · height`.
    pub fn preprocess(&self, image: &RgbImage) -> Result<Vec<f32>> {
        self.check()?;
        image.check()?;
        let pixels = self.square(image);
        let area = (self.size as usize).pow(2);
        let mut values = vec![0.0; 3 * area];
        for (channel, plane) in values.chunks_exact_mut(area).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            // transformers multiplies by 1/255 in f64, then goes on in f32.
            let table: [f32; 256] =
                std::array::from_fn(|value| ((value as f64 * (1.0 / 255.0)) as f32 - mean) / std);
            for (value, pixel) in plane.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        Ok(values)
    }

    /// The 8-bit picture before normalisation, `size` · `size` · 3 bytes.
    fn square(&self, image: &RgbImage) -> Vec<u8> {
        let (width, height) = (image.width, image.height);
        // LLaVA pads with `int(mean * 255)`.
        let background = self.mean.map(|mean| (f64::from(mean) * 255.0) as u8);
        let canvas = match self.fit {
            Fit::Pad => width.max(height),
            Fit::Crop | Fit::Squash => 0,
        };
        let short = width.min(height).max(canvas);
        let axis = |length: u32| {
            let canvas = length.max(canvas);
            let whole = Axis { canvas, start: (canvas - length) / 2, ..Axis::whole(length, self.size) };
            if self.fit == Fit::Squash {
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
