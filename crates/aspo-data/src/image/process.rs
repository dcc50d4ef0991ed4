//! Resize, crop or pad, normalise: what `CLIPImageProcessor`, LLaVA's pad-to-square and `BlipImageProcessor` do.

use std::path::Path;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde_json::Value;

use super::decode::RgbImage;
use crate::error::{Error, Result};

/// CLIP's channel means (of values in 0..1).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// CLIP's channel deviations.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How a picture that is not square becomes so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fit {
    /// Shortest edge to `shortest_edge`, then the centre `size`x`size` (CLIP; llava-1.5-hf).
    #[default]
    Crop,
    /// Set on a square of the mean colour first, then resized (LLaVA's `image_aspect_ratio: pad`).
    Pad,
    /// Both sides resized to `size` (BLIP, InstructBLIP).
    Squash,
}

/// From an RGB picture to the vision tower's input.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Side of the result in pixels. Default 336.
    pub size: u32,
    /// Length of the shortest edge before the centre crop, at least `size`; used by [`Fit::Crop`] only. Default 336.
    pub shortest_edge: u32,
    /// Crop, pad or squash. Default crop.
    pub fit: Fit,
    /// Subtracted from each channel (values in 0..1). Default [`CLIP_MEAN`].
    pub mean: [f32; 3],
    /// Divides each channel after that. Default [`CLIP_STD`].
    pub std: [f32; 3],
}

impl Default for ImageProcessor {
    fn default() -> Self {
        Self::clip(336)
    }
}

impl ImageProcessor {
    /// CLIP's processor for `size`x`size` inputs: shortest edge, centre crop.
    pub fn clip(size: u32) -> Self {
        Self { size, shortest_edge: size, fit: Fit::Crop, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// The same with another way to the square.
    pub fn with_fit(mut self, fit: Fit) -> Self {
        self.fit = fit;
        self
    }

    /// Reads Hugging Face's `preprocessor_config.json` (or `processor_config.json` with `image_processor` in it).
    ///
    /// # Errors
    /// [`Error::Option`] for a setting that is not honoured here: another filter than bicubic, steps switched off,
    /// a crop larger than the shortest edge, sides that differ.
    pub fn from_file(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let value: Value = serde_json::from_slice(&text).map_err(|error| Error::Stored {
            path: path.to_owned(),
            why: format!("not a preprocessor configuration: {error}"),
        })?;
        Self::from_json(value.get("image_processor").unwrap_or(&value))
    }

    /// [`ImageProcessor::from_file`] on the parsed object.
    pub fn from_json(config: &Value) -> Result<Self> {
        let refuse =
            |name, found: &Value, remedy| Err(Error::Option { name, found: found.to_string(), remedy });
        for name in ["do_resize", "do_rescale", "do_normalize"] {
            if config.get(name) == Some(&Value::Bool(false)) {
                return refuse(name, &Value::Bool(false), "only `true` is supported");
            }
        }
        match config.get("resample") {
            None => {}
            Some(value) if value.as_u64() == Some(3) => {}
            Some(value) => return refuse("resample", value, "only 3 (bicubic) is supported"),
        }
        if let Some(factor) = config.get("rescale_factor")
            && !factor.as_f64().is_some_and(|factor| (factor - 1.0 / 255.0).abs() < 1e-9)
        {
            return refuse("rescale_factor", factor, "only 1/255 is supported");
        }
        let null = Value::Null;
        let size = config.get("size").unwrap_or(&null);
        let crop = config.get("crop_size").unwrap_or(&null);
        let do_crop = config.get("do_center_crop").and_then(Value::as_bool).unwrap_or(!crop.is_null());
        let do_pad = config.get("do_pad").and_then(Value::as_bool).unwrap_or(false);
        let mut processor = Self::default();
        let edge =
            |value: &Value| value.as_u64().and_then(|edge| u32::try_from(edge).ok()).filter(|edge| *edge > 0);
        let square = |value: &Value| match edge(value) {
            Some(edge) => Some(edge),
            None => edge(&value["height"]).filter(|height| Some(*height) == edge(&value["width"])),
        };
        let shortest = edge(&size["shortest_edge"]).or_else(|| if do_crop { square(size) } else { None });
        match (shortest, square(size)) {
            (Some(shortest), _) => {
                processor.shortest_edge = shortest;
                processor.size = if do_crop && !crop.is_null() {
                    match square(crop) {
                        Some(side) => side,
                        None => {
                            return refuse("crop_size", crop, "give one side, or equal `height` and `width`");
                        }
                    }
                } else {
                    shortest
                };
                processor.fit = if do_pad { Fit::Pad } else { Fit::Crop };
                if !do_crop && !do_pad {
                    return refuse(
                        "do_center_crop",
                        &Value::Bool(false),
                        "pictures must become square: crop or pad",
                    );
                }
            }
            (None, Some(side)) => {
                processor.size = side;
                processor.shortest_edge = side;
                processor.fit = if do_pad { Fit::Pad } else { Fit::Squash };
            }
            (None, None) => {
                return refuse("size", size, "give `shortest_edge`, or equal `height` and `width`");
            }
        }
        for (name, target) in [("image_mean", &mut processor.mean), ("image_std", &mut processor.std)] {
            if let Some(value) = config.get(name) {
                let numbers: Vec<f32> = value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_f64)
                    .map(|x| x as f32)
                    .collect();
                match <[f32; 3]>::try_from(numbers) {
                    Ok(numbers) => *target = numbers,
                    Err(_) => return refuse(name, value, "give three numbers"),
                }
            }
        }
        processor.check()?;
        Ok(processor)
    }

    /// Are the settings ones that can be honoured?
    pub fn check(&self) -> Result<()> {
        let refuse = |name, found: String, remedy| Err(Error::Option { name, found, remedy });
        if self.size == 0 || self.size > 4096 {
            return refuse("size", self.size.to_string(), "use 1 to 4096 pixels");
        }
        if self.fit == Fit::Crop && (self.shortest_edge < self.size || self.shortest_edge > 8192) {
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
    /// Equal to Pillow and Hugging Face's processor within one 8-bit step.
    pub fn preprocess(&self, image: &RgbImage) -> Vec<f32> {
        let pixels = self.resample(image);
        let area = (self.size as usize).pow(2);
        let mut values = vec![0.0; 3 * area];
        for (channel, plane) in values.chunks_exact_mut(area).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let table: [f32; 256] = std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std);
            for (value, pixel) in plane.iter_mut().zip(pixels.chunks_exact(3)) {
                *value = table[usize::from(pixel[channel])];
            }
        }
        values
    }

    /// The 8-bit picture before normalisation, `size` · `size` · 3 bytes.
    fn resample(&self, image: &RgbImage) -> Vec<u8> {
        let (width, height) = (image.width, image.height);
        let side = width.max(height);
        let background = self.mean.map(|mean| (mean * 255.0) as u8);
        let (columns, rows) = match self.fit {
            Fit::Squash => (Axis::whole(width, self.size), Axis::whole(height, self.size)),
            Fit::Pad => {
                let pad = |length| Axis {
                    canvas: side,
                    start: (side - length) / 2,
                    ..Axis::whole(length, self.size)
                };
                (pad(width), pad(height))
            }
            Fit::Crop => {
                // transformers' `get_resize_output_image_size`: the long edge is cut to an integer.
                let short = width.min(height);
                let scaled = |length: u32| {
                    (u64::from(self.shortest_edge) * u64::from(length) / u64::from(short))
                        .min(u64::from(u32::MAX)) as u32
                };
                let crop = |length| {
                    let output = scaled(length);
                    Axis { first: (output - self.size) / 2, count: self.size, ..Axis::whole(length, output) }
                };
                (crop(width), crop(height))
            }
        };
        let strip = resize_columns(&image.pixels, width, height, columns, background);
        resize_rows(strip, columns.count, rows, background)
    }
}

/// One axis of a resize: `length` source pixels that lie from `start` on a `canvas`, which is scaled to `output` pixels,
/// of which only `count` from `first` on are wanted.
#[derive(Debug, Clone, Copy)]
struct Axis {
    length: u32,
    canvas: u32,
    start: u32,
    output: u32,
    first: u32,
    count: u32,
}

impl Axis {
    fn whole(length: u32, output: u32) -> Self {
        Self { length, canvas: length, start: 0, output, first: 0, count: output }
    }

    /// The output pixels to compute, wider than those wanted by the reach of the filter, so that the edges of the window
    /// are what they would be in the full picture: never more is computed than is needed, whatever the aspect ratio.
    fn window(&self) -> (u32, u32) {
        let scale = f64::from(self.canvas) / f64::from(self.output);
        let reach = (2.0 * scale.max(1.0) / scale).ceil() as u32 + 1;
        let first = self.first.saturating_sub(reach);
        let last =
            (u64::from(self.first) + u64::from(self.count) + u64::from(reach)).min(u64::from(self.output));
        (first, last as u32)
    }

    /// Start and length on the canvas of output pixels `first..last`.
    fn source(&self, first: u32, last: u32) -> (f64, f64) {
        let scale = f64::from(self.canvas) / f64::from(self.output);
        let start = f64::from(first) * scale;
        (start, (f64::from(last - first) * scale).min(f64::from(self.canvas) - start))
    }
}

/// Rows that are widened to the canvas at a time.
const BAND: usize = 64;

fn resize_columns(pixels: &[u8], width: u32, height: u32, axis: Axis, background: [u8; 3]) -> Vec<u8> {
    debug_assert_eq!(axis.length, width);
    let (row, wanted) = (3 * width as usize, 3 * axis.count as usize);
    let mut result = Vec::with_capacity(wanted * height as usize);
    let padded = axis.canvas != width;
    let band_rows = if padded { BAND } else { height as usize };
    let mut band = Vec::new();
    for rows in pixels.chunks(row * band_rows) {
        let count = rows.len() / row;
        let source = if padded {
            band.clear();
            for line in rows.chunks_exact(row) {
                band.extend(background.iter().cycle().take(3 * axis.start as usize));
                band.extend_from_slice(line);
                band.extend(background.iter().cycle().take(3 * (axis.canvas - axis.start - width) as usize));
            }
            &band[..]
        } else {
            rows
        };
        let (first, last) = axis.window();
        let (left, span) = axis.source(first, last);
        let resized = resize(
            source,
            (axis.canvas, count as u32),
            (left, 0.0, span, count as f64),
            (last - first, count as u32),
        );
        let skip = 3 * (axis.first - first) as usize;
        for line in resized.chunks_exact(3 * (last - first) as usize) {
            result.extend_from_slice(&line[skip..skip + wanted]);
        }
    }
    result
}

fn resize_rows(strip: Vec<u8>, width: u32, axis: Axis, background: [u8; 3]) -> Vec<u8> {
    let row = 3 * width as usize;
    let source = if axis.canvas == axis.length {
        strip
    } else {
        let mut canvas: Vec<u8> =
            background.iter().copied().cycle().take(row * axis.canvas as usize).collect();
        let start = row * axis.start as usize;
        canvas[start..start + strip.len()].copy_from_slice(&strip);
        canvas
    };
    let (first, last) = axis.window();
    let (top, span) = axis.source(first, last);
    let mut resized =
        resize(&source, (width, axis.canvas), (0.0, top, f64::from(width), span), (width, last - first));
    resized.drain(..row * (axis.first - first) as usize);
    resized.truncate(row * axis.count as usize);
    resized
}

/// Bicubic resize of the box `(left, top, width, height)` of a picture to `to` pixels.
fn resize(pixels: &[u8], size: (u32, u32), area: (f64, f64, f64, f64), to: (u32, u32)) -> Vec<u8> {
    let source = ImageRef::new(size.0, size.1, pixels, PixelType::U8x3)
        .expect("the buffer has the size of the picture");
    let mut target = Image::new(to.0, to.1, PixelType::U8x3);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .crop(area.0, area.1, area.2, area.3)
        .use_alpha(false);
    Resizer::new().resize(&source, &mut target, &options).expect("the box lies within the picture");
    target.into_vec()
}
