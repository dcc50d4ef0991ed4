//! Encoded bytes to eight-bit RGB, with limits checked before decoding.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::error::ImageFault;

/// Longest side accepted, in pixels (a JPEG cannot have a longer one).
pub const MAX_SIDE: u32 = 65_535;
/// Most bytes that a picture may take once decoded: 64 million RGB pixels.
pub const MAX_DECODED_BYTES: u64 = 192 << 20;
/// Most bytes that an encoded picture may have.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// A picture of 8-bit RGB, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Width in pixels, at least 1.
    pub width: u32,
    /// Height in pixels, at least 1.
    pub height: u32,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

/// Decodes PNG, JPEG, WebP, GIF (its first frame) or BMP by content, as `Image.open(..).convert("RGB")` of Pillow does:
/// grey is repeated, palettes are looked up, alpha is dropped, CMYK is converted, of 16 bits the upper 8 are kept
/// (16-bit grey, which Pillow clips to 255, is scaled too: C), the orientation tag is not applied.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageFault> {
    if bytes.is_empty() {
        return Err(ImageFault::Empty);
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ImageFault::FileTooLarge { bytes: bytes.len() as u64, limit: MAX_FILE_BYTES });
    }
    let format = image::guess_format(bytes).map_err(|_| ImageFault::Unknown)?;
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(ImageFault::Truncated);
    }
    // Decoders of foreign formats are the likeliest place for a bug to be met; one bad picture must not end a run.
    catch_unwind(AssertUnwindSafe(|| decode_as(bytes, format)))
        .unwrap_or_else(|_| Err(ImageFault::Decode("the decoder failed on this data".to_owned())))
}

fn decode_as(bytes: &[u8], format: ImageFormat) -> Result<RgbImage, ImageFault> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    // The header is read without limits, so that the error can tell the size found; it allocates next to nothing.
    reader.no_limits();
    let mut decoder = reader.into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    let total = decoder.total_bytes();
    if total > MAX_DECODED_BYTES || width > MAX_SIDE || height > MAX_SIDE {
        return Err(ImageFault::TooLarge { width, height, bytes: total, limit: MAX_DECODED_BYTES });
    }
    if width == 0 || height == 0 {
        return Err(ImageFault::Decode(format!("it is {width}x{height}")));
    }
    decoder.set_limits(limits).map_err(fault)?;
    let image = DynamicImage::from_decoder(decoder).map_err(fault)?;
    Ok(RgbImage { width, height, pixels: into_rgb(image) })
}

fn into_rgb(image: DynamicImage) -> Vec<u8> {
    // Sixteen bits lose their lower half, as in Pillow; `to_rgb8` would round.
    let high = |value: &u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma16(image) => image.as_raw().iter().flat_map(|value| [high(value); 3]).collect(),
        DynamicImage::ImageLumaA16(image) => {
            image.as_raw().chunks_exact(2).flat_map(|pixel| [high(&pixel[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.as_raw().chunks_exact(4).flat_map(|pixel| [high(&pixel[0]), high(&pixel[1]), high(&pixel[2])]).collect()
        }
        other => other.into_rgb8().into_raw(),
    }
}

fn fault(error: image::ImageError) -> ImageFault {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => ImageFault::Truncated,
        image::ImageError::Unsupported(_) => ImageFault::Unknown,
        other => ImageFault::Decode(other.to_string()),
    }
}

/// Does the end-of-image marker follow the scans? The JPEG decoder fills a cut picture with grey and says nothing.
///
/// Segments are skipped by their length, so that the marker of an embedded thumbnail does not count.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // To the next marker: 0xFF (fill bytes repeat it), then neither a stuffed zero nor a restart.
        while at < bytes.len() && bytes[at] != 0xFF {
            at += 1;
        }
        while at < bytes.len() && bytes[at] == 0xFF {
            at += 1;
        }
        let Some(&marker) = bytes.get(at) else { return false };
        at += 1;
        match marker {
            0xD9 => return true,
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => match bytes.get(at..at + 2) {
                Some(length) => at += usize::from(u16::from_be_bytes([length[0], length[1]])).max(2),
                None => return false,
            },
        }
    }
}
