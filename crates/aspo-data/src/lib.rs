//! Preference pairs in the formats people have, images, prompts, noise and encoded batches for vision-language models.

pub mod batch;
pub mod encode;
mod error;
pub mod files;
pub mod image;
pub mod noise;
mod pair;
pub mod prompt;
pub mod read;
pub mod scenes;
pub mod tokenizer;
pub mod write;

pub use batch::{HostBatch, Padding, PairBatch, Responses};
pub use encode::{EncodedAnswer, EncodedPair, Encoder};
pub use error::{Error, FileFault, ImageFault, PairFault, Result, RowFault};
pub use image::{Fit, ImageLoader, ImageProcessor};
pub use pair::{ImageSource, Pair, Turn};
pub use prompt::Template;
pub use read::{Format, read_pairs, read_pairs_as};
pub use tokenizer::{SpecialTokens, Tokenizer};
