//! Encoded bytes to eight-bit RGB, with limits checked before decoding.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use mozjpeg::{ColorSpace, Decompress};

use crate::error::{Error, ImageFault, Result};

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

impl RgbImage {
    /// Are there as many bytes as the sides say?
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn check(&self) -> Result<()> {
        let (width, height) = (u64::from(self.width), u64::from(self.height));
        if width * height == 0 || (width * height).checked_mul(3) != Some(self.pixels.len() as u64) {
            return Err(Error::Option {
                name: "image",
                found: format!("{width}x{height} pixels in {} bytes", self.pixels.len()),
                remedy: "give sides of at least 1 and height * width * 3 bytes",
            });
        }
        Ok(())
    }
}

/// What becomes of orientation and transparency. The default is what reaches a model through Hugging Face's `datasets`
/// and the processors of transformers 5; LLaVA's own loader, `Image.open(..).convert("RGB")`, does neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Turn the picture as its orientation tag (EXIF) says, as `datasets` and transformers' `load_image` do. A TIFF is
    /// turned always, as Pillow does when it opens one. Default true.
    pub exif_orientation: bool,
    /// Lay transparent pictures on white, as transformers 5 does in its processors; else alpha is dropped and the colour
    /// under it stays, as in transformers 4. Default true.
    pub white_background: bool,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { exif_orientation: true, white_background: true }
    }
}

/// [`decode_with`] the default options.
///
/// # Errors
/// As [`decode_with`].
pub fn decode(bytes: &[u8]) -> Result<RgbImage, ImageFault> {
    decode_with(bytes, DecodeOptions::default())
}

/// Decodes PNG, JPEG, WebP, GIF, BMP or TIFF by content, as Pillow does: grey is repeated, palettes are looked up, CMYK is
/// converted, of 16 bits the upper 8 are kept (but plain 16-bit grey is clipped to 255, as Pillow clips it), of several
/// frames the first is taken.
///
/// JPEG goes through libjpeg, as in Pillow: its rounding of upsampled colour is part of what models were trained on, and
/// other decoders differ by up to four steps.
///
/// # Errors
/// What is wrong with the data: another format (named where it is known), too large, cut short, damaged. A decoder that
/// panics on damaged data is such an error too, unless the program is built with `panic = "abort"`; the panic's message
/// goes to standard error all the same.
pub fn decode_with(bytes: &[u8], options: DecodeOptions) -> Result<RgbImage, ImageFault> {
    let format = checked_format(bytes)?;
    guarded(|| {
        let mut turn = Orientation::NoTransforms;
        let image = if format == ImageFormat::Jpeg {
            let scan = JpegScan::new(bytes);
            if !scan.whole {
                return Err(ImageFault::Truncated);
            }
            if let (true, Some(exif)) = (options.exif_orientation, scan.exif) {
                turn = Orientation::from_exif_chunk(exif).unwrap_or(turn);
            }
            decode_jpeg(open_jpeg(bytes)?)?
        } else {
            let mut decoder = open(bytes, format)?;
            if options.exif_orientation || format == ImageFormat::Tiff {
                // What cannot be read is no orientation, as with Pillow.
                turn = decoder.orientation().unwrap_or(turn);
            }
            let (width, height) = decoder.dimensions();
            decoder.set_limits(limits()).map_err(fault)?;
            let image = DynamicImage::from_decoder(decoder).map_err(fault)?;
            RgbImage { width, height, pixels: into_rgb(image, options.white_background)? }
        };
        Ok(turned(image, turn))
    })
}

fn turned(image: RgbImage, turn: Orientation) -> RgbImage {
    let RgbImage { width, height, pixels } = image;
    if turn == Orientation::NoTransforms {
        return RgbImage { width, height, pixels };
    }
    let image =
        image::RgbImage::from_raw(width, height, pixels).expect("a decoded picture has all its bytes");
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(turn);
    let (width, height) = (image.width(), image.height());
    RgbImage { width, height, pixels: image.into_bytes() }
}

/// Height and width of the picture once decoded and turned, from its header.
pub(super) fn size(bytes: &[u8], options: DecodeOptions) -> Result<[u32; 2], ImageFault> {
    let format = checked_format(bytes)?;
    guarded(|| {
        let mut turn = Orientation::NoTransforms;
        let [height, width] = if format == ImageFormat::Jpeg {
            if let (true, Some(exif)) = (options.exif_orientation, JpegScan::new(bytes).exif) {
                turn = Orientation::from_exif_chunk(exif).unwrap_or(turn);
            }
            let picture = open_jpeg(bytes)?;
            {
                let (width, height) = picture.size();
                [height as u32, width as u32]
            }
        } else {
            let mut decoder = open(bytes, format)?;
            if options.exif_orientation || format == ImageFormat::Tiff {
                turn = decoder.orientation().unwrap_or(turn);
            }
            let (width, height) = decoder.dimensions();
            [height, width]
        };
        use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
        let lies = matches!(turn, Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH);
        Ok(if lies { [width, height] } else { [height, width] })
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
    match image::guess_format(bytes) {
        Ok(format) if format.reading_enabled() => Ok(format),
        _ => Err(ImageFault::Unknown { found: seen(bytes) }),
    }
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

fn into_rgb(image: DynamicImage, white_background: bool) -> Result<Vec<u8>, ImageFault> {
    // Sixteen bits lose their lower half, as in Pillow; `to_rgb8` would round.
    let high = |value: u16| (value >> 8) as u8;
    let with_alpha = |[red, green, blue, alpha]: [u8; 4]| match white_background {
        true => [red, green, blue].map(|colour| on_white(colour, alpha)),
        false => [red, green, blue],
    };
    Ok(match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => image.as_raw().iter().flat_map(|grey| [*grey; 3]).collect(),
        DynamicImage::ImageLumaA8(image) => {
            image.pixels().flat_map(|pixel| with_alpha([pixel[0], pixel[0], pixel[0], pixel[1]])).collect()
        }
        DynamicImage::ImageRgba8(image) => image.pixels().flat_map(|pixel| with_alpha(pixel.0)).collect(),
        // Not so for plain grey: Pillow clips its mode `I;16`, and what models saw in training is what Pillow made.
        DynamicImage::ImageLuma16(image) => {
            image.as_raw().iter().flat_map(|value| [(*value).min(255) as u8; 3]).collect()
        }
        DynamicImage::ImageLumaA16(image) => image
            .pixels()
            .flat_map(|pixel| {
                let grey = high(pixel[0]);
                with_alpha([grey, grey, grey, high(pixel[1])])
            })
            .collect(),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(|value| high(*value)).collect(),
        DynamicImage::ImageRgba16(image) => {
            image.pixels().flat_map(|pixel| with_alpha(pixel.0.map(high))).collect()
        }
        _ => {
            let why = "its values are floating-point numbers";
            return Err(ImageFault::Decode(why.to_owned()));
        }
    })
}

/// Pillow's `alpha_composite` over opaque white, in its seven bits of extra precision.
fn on_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    let sum = ((colour * alpha + 255 * (255 - alpha)) << 7) + (0x80 << 7);
    ((((sum >> 8) + sum) >> 8) >> 7) as u8
}

fn fault(error: image::ImageError) -> ImageFault {
    match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageFault::Truncated
        }
        other => ImageFault::Decode(other.to_string()),
    }
}

/// What the markers of a JPEG tell.
struct JpegScan<'a> {
    /// The end-of-image marker follows the scans. libjpeg fills a cut picture with grey and goes on.
    whole: bool,
    /// The first EXIF block, from its TIFF header on.
    exif: Option<&'a [u8]>,
}

impl<'a> JpegScan<'a> {
    /// Segments are skipped by their length, so that the markers of an embedded thumbnail do not count.
    fn new(bytes: &'a [u8]) -> Self {
        let mut scan = Self { whole: false, exif: None };
        let mut at = 2;
        loop {
            // To the next marker: 0xFF (fill bytes repeat it), then neither a stuffed zero nor a restart.
            while at < bytes.len() && bytes[at] != 0xFF {
                at += 1;
            }
            while at < bytes.len() && bytes[at] == 0xFF {
                at += 1;
            }
            let Some(&marker) = bytes.get(at) else { return scan };
            at += 1;
            match marker {
                0xD9 => {
                    scan.whole = true;
                    return scan;
                }
                0x00 | 0x01 | 0xD0..=0xD8 => {}
                _ => {
                    let Some(length) = bytes.get(at..at + 2) else { return scan };
                    let end = at + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
                    if marker == 0xE1 && scan.exif.is_none() {
                        let segment = bytes.get(at + 2..end).unwrap_or_default();
                        scan.exif = segment.strip_prefix(b"Exif\0\0");
                    }
                    at = end;
                }
            }
        }
    }
}

/// What bytes that are no picture of ours look like, in words.
fn seen(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).trim_start().to_lowercase();
    let from_four = bytes.get(4..12).unwrap_or_default();
    let known: [(bool, &str); 13] = [
        (from_four.starts_with(b"ftypavi"), "an AVIF picture"),
        (
            [b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf"].iter().any(|mark| from_four.starts_with(*mark)),
            "a HEIC picture",
        ),
        (from_four.starts_with(b"ftyp"), "a video (MP4)"),
        (bytes.starts_with(b"\x1A\x45\xDF\xA3"), "a video (Matroska)"),
        (bytes.starts_with(b"\xFF\x0A") || from_four.starts_with(b"JXL "), "a JPEG XL picture"),
        (from_four.starts_with(b"jP  "), "a JPEG 2000 picture"),
        (bytes.starts_with(b"8BPS"), "a Photoshop file"),
        (bytes.starts_with(b"%PDF"), "a PDF file"),
        (bytes.starts_with(b"PK\x03\x04"), "a zip archive"),
        (
            text.starts_with("version https://git-lfs"),
            "a pointer of Git LFS, not the picture (`git lfs pull` fetches it)",
        ),
        (text.contains("<svg"), "an SVG drawing"),
        (
            text.starts_with("<!doctype html") || text.starts_with("<html"),
            "a web page, as failed downloads leave it",
        ),
        (text.starts_with('{'), "JSON"),
    ];
    match (known.into_iter().find(|(is, _)| *is), image::guess_format(bytes)) {
        (Some((_, name)), _) => name.to_owned(),
        (None, Ok(format)) => format!("a picture of format {format:?}"),
        (None, Err(_)) => format!(
            "no picture, it starts with {:?}",
            bytes.escape_ascii().to_string().chars().take(24).collect::<String>()
        ),
    }
}
