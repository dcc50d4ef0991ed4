//! Resizing in Pillow's integer arithmetic: what `Image.resize` makes of an 8-bit picture, to the bit.
//!
//! An output pixel is the mean of the source pixels within reach of the filter, which is widened where the picture
//! shrinks. The weights of each mean are rounded to 22 bits after the point. One axis comes first and is rounded to eight
//! bits, then the other (F: Pillow, `Resample.c`).

use super::decode::{MAX_DECODED_BYTES, RgbImage};
use crate::error::{Error, Result};

/// The kernel of a resize; the numbers are Pillow's and Hugging Face's `resample`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Filter {
    /// Windowed sine, reach 3 (1).
    Lanczos,
    /// Triangle, reach 1 (2).
    Bilinear,
    /// Cubic with `a = -1/2`, reach 2 (3). The default.
    #[default]
    Bicubic,
    /// Mean of the area (4).
    Box,
    /// Hamming's window, reach 1 (5).
    Hamming,
}

impl Filter {
    /// From Pillow's number; `None` for 0 (nearest) and what is no filter.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming]
            .get(usize::try_from(number).ok()?.checked_sub(1)?)
            .copied()
    }

    /// Distance in source pixels beyond which the weight is zero.
    fn reach(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    // The order of the operations is Pillow's too: another one rounds otherwise.
    fn weight(self, x: f64) -> f64 {
        use std::f64::consts::PI;
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match (self, x.abs()) {
            (Self::Box, _) => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            (Self::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Self::Bicubic, x) if x < 1.0 => ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1.0,
            (Self::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            (Self::Hamming, 0.0) => 1.0,
            (Self::Hamming, x) if x < 1.0 => {
                let x = x * PI;
                x.sin() / x * (f64::from(0.54_f32) + f64::from(0.46_f32) * x.cos())
            }
            (Self::Lanczos, _) if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// One axis of a resize: `length` source pixels that lie from `start` on a `canvas`, which is scaled to `output` pixels,
/// of which only `count` from `first` on are wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    pub length: u32,
    pub canvas: u32,
    pub start: u32,
    pub output: u32,
    pub first: u32,
    pub count: u32,
}

impl Axis {
    pub fn whole(length: u32, output: u32) -> Self {
        Self { length, canvas: length, start: 0, output, first: 0, count: output }
    }

    /// The weights of each wanted output pixel.
    fn taps(&self, filter: Filter) -> Vec<Taps> {
        let scale = f64::from(self.canvas) / f64::from(self.output);
        let wide = scale.max(1.0);
        let reach = filter.reach() * wide;
        let mut weights = Vec::new();
        (self.first..self.first + self.count)
            .map(|index| {
                let centre = (f64::from(index) + 0.5) * scale;
                let first = (centre - reach + 0.5).max(0.0) as u32;
                let last = ((centre + reach + 0.5) as u32).min(self.canvas);
                weights.clear();
                weights.extend(
                    (first..last).map(|at| filter.weight((f64::from(at) - centre + 0.5) * (1.0 / wide))),
                );
                let sum: f64 = weights.iter().sum();
                let sum = if sum == 0.0 { 1.0 } else { sum };
                let fixed = |weight: &f64| {
                    let weight = weight / sum * f64::from(1 << BITS);
                    (weight + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
                };
                let picture = self.start..self.start + self.length;
                let mut taps = Taps { start: 0, inside: Vec::new(), outside: 0 };
                for (at, weight) in (first..last).zip(weights.iter().map(fixed)) {
                    match picture.contains(&at) {
                        true if taps.inside.is_empty() && weight == 0 => {}
                        true => {
                            if taps.inside.is_empty() {
                                taps.start = (at - self.start) as usize;
                            }
                            taps.inside.push(weight);
                        }
                        false => taps.outside += weight,
                    }
                }
                taps
            })
            .collect()
    }
}

/// Bits after the point of a weight.
const BITS: u32 = 32 - 8 - 2;
const HALF: i32 = 1 << (BITS - 1);

/// What one output pixel is made of.
struct Taps {
    /// First source pixel.
    start: usize,
    /// Weights from there on.
    inside: Vec<i32>,
    /// Weight of the background around the picture.
    outside: i32,
}

fn to_byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Pillow's `image.resize((width, height), filter)`, to the bit.
///
/// # Errors
/// [`Error::Option`] for a picture whose `pixels` are not `3 · width · height`, and for a size of 0 or above
/// [`MAX_DECODED_BYTES`].
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> Result<RgbImage> {
    image.check()?;
    let bytes = 3 * u64::from(width) * u64::from(height);
    if bytes == 0 || bytes > MAX_DECODED_BYTES {
        let remedy = "use sides of at least 1, and no more than 64 million pixels";
        return Err(Error::Option { name: "size", found: format!("{width}x{height}"), remedy });
    }
    let (columns, rows) = (Axis::whole(image.width, width), Axis::whole(image.height, height));
    Ok(RgbImage { width, height, pixels: resample(image, columns, rows, filter, [0; 3]) })
}

/// The wanted window of a picture on its canvas, scaled. The picture must be [sound](RgbImage::check).
pub(super) fn resample(
    image: &RgbImage,
    columns: Axis,
    rows: Axis,
    filter: Filter,
    background: [u8; 3],
) -> Vec<u8> {
    let (across, down) = (columns.taps(filter), rows.taps(filter));
    let stride = 3 * image.width as usize;
    let lines = image.pixels.chunks_exact(stride);
    if rows_first(columns, rows) {
        // A canvas is wider than its picture only if it is square, and remains so: there is no background here.
        let (left, right) = reach(&across);
        let part: Vec<&[u8]> = lines.map(|line| &line[3 * left..3 * right]).collect();
        let strip = mix_rows(&part, &down, 0, &vec![0; 3 * (right - left)]);
        return mix_columns(strip.chunks_exact(3 * (right - left)), &across, left, background);
    }
    let (top, bottom) = reach(&down);
    let strip = mix_columns(lines.skip(top).take(bottom - top), &across, 0, background);
    // What becomes of a row of background.
    let around: Vec<u8> = across
        .iter()
        .flat_map(|taps| {
            let all = taps.outside + taps.inside.iter().sum::<i32>();
            background.map(|colour| to_byte(HALF + all * i32::from(colour)))
        })
        .collect();
    let strip: Vec<&[u8]> = strip.chunks_exact(3 * across.len()).collect();
    mix_rows(&strip, &down, top, &around)
}

/// Which axis comes first decides roundings. The rule is that of Pillow 13.0, found by trying (it is not in its documents):
/// rows, if they become fewer by more than twice as many as the columns. Older ones begin with the columns always.
fn rows_first(columns: Axis, rows: Axis) -> bool {
    let fewer = |axis: Axis| i64::from(axis.canvas) - i64::from(axis.output);
    fewer(rows) > 0 && fewer(rows) > 2 * fewer(columns)
}

/// The source pixels that any output pixel is made of: the first, and the one behind the last.
fn reach(taps: &[Taps]) -> (usize, usize) {
    let used = || taps.iter().filter(|taps| !taps.inside.is_empty());
    let first = used().map(|taps| taps.start).min().unwrap_or(0);
    (first, used().map(|taps| taps.start + taps.inside.len()).max().unwrap_or(first))
}

/// Scales rows that begin with source pixel `first`.
fn mix_columns<'a>(
    lines: impl ExactSizeIterator<Item = &'a [u8]>,
    across: &[Taps],
    first: usize,
    background: [u8; 3],
) -> Vec<u8> {
    let mut result = vec![0; lines.len() * 3 * across.len()];
    for (line, source) in result.chunks_exact_mut(3 * across.len()).zip(lines) {
        for (pixel, taps) in line.chunks_exact_mut(3).zip(across) {
            let mut sum = background.map(|colour| HALF + taps.outside * i32::from(colour));
            let start = taps.start.saturating_sub(first);
            for (source, weight) in source[3 * start..].chunks_exact(3).zip(&taps.inside) {
                sum[0] += weight * i32::from(source[0]);
                sum[1] += weight * i32::from(source[1]);
                sum[2] += weight * i32::from(source[2]);
            }
            pixel.copy_from_slice(&sum.map(to_byte));
        }
    }
    result
}

/// Mixes whole rows, the first of which is source row `first`, with the row `around` the picture.
fn mix_rows(lines: &[&[u8]], down: &[Taps], first: usize, around: &[u8]) -> Vec<u8> {
    let mut result = vec![0; down.len() * around.len()];
    let mut sums = vec![0; around.len()];
    for (line, taps) in result.chunks_exact_mut(around.len()).zip(down) {
        for (sum, colour) in sums.iter_mut().zip(around) {
            *sum = HALF + taps.outside * i32::from(*colour);
        }
        for (source, weight) in lines.iter().skip(taps.start.saturating_sub(first)).zip(&taps.inside) {
            for (sum, value) in sums.iter_mut().zip(*source) {
                *sum += weight * i32::from(*value);
            }
        }
        for (value, sum) in line.iter_mut().zip(&sums) {
            *value = to_byte(*sum);
        }
    }
    result
}
