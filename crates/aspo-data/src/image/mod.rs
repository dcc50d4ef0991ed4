//! Pictures to the tensors that CLIP expects.
//!
//! [`decode`] goes by content, never by name, and refuses what is too large before any pixel is decoded.
//! [`ImageProcessor::pixels`] resizes as Pillow does, to the bit, cuts, crops or pads as the checkpoint's processor says,
//! and normalises; [`ImageProcessor::shape`] tells the sizes before a pixel is decoded. [`ImageLoader`] does both for the images of a folder, several at a time within a fixed memory budget.

mod decode;
mod layout;
mod loader;
mod place;
mod process;
mod resample;
mod settings;

pub use decode::{
    DecodeOptions, MAX_DECODED_BYTES, MAX_FILE_BYTES, MAX_SIDE, RgbImage, decode, decode_with, decoded_bytes,
};
pub use layout::ImageShape;
pub use loader::{ImageLoader, MAX_BYTES_IN_FLIGHT};
#[cfg(feature = "parquet")]
pub(crate) use place::Places;
pub use process::{CLIP_MEAN, CLIP_STD, Fit, ImageProcessor, PIXEL_RULES, Pixels};
pub use resample::{Filter, resize};
