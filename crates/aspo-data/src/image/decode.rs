//! Encoded bytes to eight-bit RGB, with limits checked before decoding.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use mozjpeg::{ColorSpace, Decompress};

use crate::error::ImageFault;

/// Longest side accepted, in pixels (a JPEG cannot have a longer one).
pub const MAX_SIDE: u32 = 65_535;
/// Most bytes that a picture may take once decoded: 64 million RGB pixels.
pub const MAX_DECODED_BYTES: u64 = 192 << 20;
/// Most bytes that what lies beside the pixels (a colour profile, texts) may take once unpacked.
const MAX_BESIDE_BYTES: u64 = 64 << 20;
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

/// Decodes PNG, JPEG or WebP by content, as `Image.open(..).convert("RGB")` of Pillow does:
/// grey is repeated, palettes are looked up, alpha is dropped, CMYK is converted, of 16 bits the upper 8 are kept (but
/// plain 16-bit grey is clipped to 255, as Pillow clips it), the orientation tag is not applied.
///
/// JPEG goes through libjpeg, as in Pillow: its rounding of upsampled colour is part of what models were trained on, and
/// other decoders differ by up to four steps.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageFault> {
    let format = checked_format(bytes)?;
    guarded(|| {
        if format == ImageFormat::Jpeg {
            return decode_jpeg(open_jpeg(bytes)?);
        }
        let mut decoder = open(bytes, format)?;
        let (width, height) = decoder.dimensions();
        decoder.set_limits(limits()).map_err(fault)?;
        let image = DynamicImage::from_decoder(decoder).map_err(fault)?;
        Ok(RgbImage { width, height, pixels: into_rgb(image) })
    })
}

/// Bytes that the picture will take once decoded, from its header; the checks of [`decode`] that need no pixels.
pub fn decoded_bytes(bytes: &[u8]) -> Result<u64, ImageFault> {
    let format = checked_format(bytes)?;
    guarded(|| match format {
        ImageFormat::Jpeg => Ok(jpeg_bytes(&open_jpeg(bytes)?)),
        _ => Ok(open(bytes, format)?.total_bytes()),
    })
}

fn checked_format(bytes: &[u8]) -> Result<ImageFormat, ImageFault> {
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
    Ok(format)
}

/// Decoders of foreign formats are the likeliest place for a bug to be met; one bad picture must not end a run.
fn guarded<T>(work: impl FnOnce() -> Result<T, ImageFault>) -> Result<T, ImageFault> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(ImageFault::Decode("the decoder failed on this data".to_owned())))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(2 * MAX_DECODED_BYTES);
    limits
}

/// A decoder that has read the header of a picture of acceptable size.
fn open(bytes: &[u8], format: ImageFormat) -> Result<impl ImageDecoder + '_, ImageFault> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The header is read without limits of size, so that the error can tell the size found; but a colour profile, which
    // is unpacked with it, may claim any length.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_BESIDE_BYTES);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(fault)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, decoder.total_bytes())?;
    Ok(decoder)
}

fn check_size(width: u32, height: u32, bytes: u64) -> Result<(), ImageFault> {
    if bytes > MAX_DECODED_BYTES || width > MAX_SIDE || height > MAX_SIDE {
        return Err(ImageFault::TooLarge { width, height, bytes, limit: MAX_DECODED_BYTES });
    }
    if width == 0 || height == 0 {
        return Err(ImageFault::Decode(format!("it is {width}x{height}")));
    }
    Ok(())
}

fn open_jpeg(bytes: &[u8]) -> Result<Decompress<&[u8]>, ImageFault> {
    let decoder = Decompress::new_mem(bytes).map_err(|error| ImageFault::Decode(error.to_string()))?;
    let (width, height) = decoder.size();
    check_size(width as u32, height as u32, jpeg_bytes(&decoder))?;
    Ok(decoder)
}

fn jpeg_bytes(decoder: &Decompress<&[u8]>) -> u64 {
    let (width, height) = decoder.size();
    let channels = if is_cmyk(decoder) { 4 } else { 3 };
    channels * width as u64 * height as u64
}

fn is_cmyk(decoder: &Decompress<&[u8]>) -> bool {
    matches!(decoder.color_space(), ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK)
}

fn decode_jpeg(decoder: Decompress<&[u8]>) -> Result<RgbImage, ImageFault> {
    let fail = |error: std::io::Error| ImageFault::Decode(error.to_string());
    let (width, height) = decoder.size();
    let cmyk = is_cmyk(&decoder);
    let space = if cmyk { ColorSpace::JCS_CMYK } else { ColorSpace::JCS_RGB };
    let mut lines = decoder.to_colorspace(space).map_err(fail)?;
    let mut pixels: Vec<u8> = lines.read_scanlines().map_err(fail)?;
    lines.finish().map_err(fail)?;
    if cmyk {
        // Stored inverted, as Adobe does and Pillow assumes: each colour times its black.
        let times = |colour: u8, black: u8| {
            let product = u32::from(colour) * u32::from(black) + 128;
            ((product + (product >> 8)) >> 8) as u8
        };
        pixels = pixels.chunks_exact(4).flat_map(|ink| [0, 1, 2].map(|i| times(ink[i], ink[3]))).collect();
    }
    if pixels.len() != 3 * width * height {
        return Err(ImageFault::Truncated);
    }
    Ok(RgbImage { width: width as u32, height: height as u32, pixels })
}

fn into_rgb(image: DynamicImage) -> Vec<u8> {
    // Sixteen bits lose their lower half, as in Pillow; `to_rgb8` would round.
    let high = |value: &u16| (value >> 8) as u8;
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        // Not so for plain grey: Pillow clips its mode `I;16`, and what models saw in training is what Pillow made.
        DynamicImage::ImageLuma16(image) => {
            image.as_raw().iter().flat_map(|value| [(*value).min(255) as u8; 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => {
            image.as_raw().chunks_exact(2).flat_map(|pixel| [high(&pixel[0]); 3]).collect()
        }
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => image
            .as_raw()
            .chunks_exact(4)
            .flat_map(|pixel| [high(&pixel[0]), high(&pixel[1]), high(&pixel[2])])
            .collect(),
        other => other.into_rgb8().into_raw(),
    }
}

fn fault(error: image::ImageError) -> ImageFault {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageFault::Truncated
        }
        image::ImageError::Unsupported(_) => ImageFault::Unknown,
        other => ImageFault::Decode(other.to_string()),
    }
}

/// Does the end-of-image marker follow the scans? libjpeg fills a cut picture with grey and goes on.
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
