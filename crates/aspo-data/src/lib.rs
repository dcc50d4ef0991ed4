//! Preference pairs in the formats people have, images, prompts, noise and encoded batches for vision-language models.
//!
//! One pair travels: a row of a file ([`read`]) becomes a [`Pair`], texts and image references; an [`Encoder`] writes it
//! out in a [`Template`] and makes an [`EncodedPair`], token ids with the image tokens' span and a sentence id for each
//! answer token; a [`HostBatch`] lays several side by side.
//! Meanwhile an [`ImageLoader`] turns the images into the vision tower's input, each once.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use aspo_data::{Encoder, HostBatch, ImageLoader, ImageProcessor, Order, Padding, Template, Tokenizer};
//!
//! # fn main() -> aspo_data::Result<()> {
//! let tokenizer = Tokenizer::from_file(Path::new("llava-1.5-7b-hf/tokenizer.json"))?;
//! let encoder = Encoder::new(tokenizer, Template::VicunaV1, 576);
//! let images = ImageLoader::new("coco/train2017", ImageProcessor::clip(336))?;
//!
//! // The first row that cannot be used stops the work; `read` shows how to count and go on.
//! let mut rows = aspo_data::read_pairs(Path::new("pairs.json"))?;
//! let pairs: Vec<_> = rows.by_ref().map(|pair| encoder.encode(&pair?)).collect::<aspo_data::Result<_>>()?;
//! println!("{} pairs, {} dropped for equal answers", pairs.len(), rows.dropped().equal);
//!
//! let lengths: Vec<usize> = pairs.iter().map(|pair| pair.length()).collect();
//! let mut order = Order::new(&lengths, 8, 16, 42)?;
//! let batch: Vec<_> = order.next_batch().into_iter().map(|index| &pairs[index]).collect();
//! let batch = HostBatch::stacked(&batch, Padding { id: encoder.tokenizer.pad(), multiple_of: 64 })?;
//! let pixels = images.load_all(&batch.images);
//! # Ok(())
//! # }
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`read`], [`write`](mod@write) | TRL, SeVa, RLAIF-V, LLaMA-Factory, ms-swift, OpenAI, HA-DPO, LLaVA; JSON and parquet |
//! | [`validate`](mod@validate) | an account of a file: faults by kind, lengths, duplicates |
//! | [`image`] | decoding within limits, Pillow-equal preprocessing, parallel loading |
//! | [`prompt`], [`tokenizer`], [`encode`] | templates, token ids, sentences, truncation |
//! | [`order`], [`batch`] | batches of like length with a cursor; the arrays of a step, stacked or packed |
//! | [`noise`], [`seva`] | SeVa's noise and the making of pairs with it |
//! | [`similarity`] | sentence-image cosines |
//! | [`set`], [`records`] | encoded pairs by number, out of files that survive a crash, in memory that does not grow with them |
//! | [`files`] | safe paths and whole writes |
//!
//! The feature `parquet` (on by default) reads and writes tables.
//!
//! # Choices
//! Where the sources are silent (C): a pair keeps earlier turns and a system message beside its prompt; images stand
//! where `<image>` tags do, else in front; prompts are never cut, only the ends of answers; a text that spells out a special token is refused; the end token closes every answer that was not truncated; 16-bit
//! grey is clipped as Pillow clips it.

pub mod batch;
mod chat;
pub mod encode;
mod error;
pub mod files;
pub mod image;
pub mod noise;
pub mod order;
mod pair;
pub mod prompt;
pub mod read;
pub mod records;
pub mod set;
pub mod seva;
pub mod similarity;
pub mod tokenizer;
pub mod validate;
pub mod write;

pub use batch::{HostBatch, Padding, Responses};
pub use chat::ChatTemplate;
pub use encode::{EncodedAnswer, EncodedPair, Encoder, ImageTokens, SizedTokens};
pub use error::{Error, FileFault, ImageFault, MAX_FAULTS_TOLD, OnFault, PairFault, Result, RowFault};
pub use image::{Fit, ImageLoader, ImageProcessor, ImageShape, Pixels};
pub use order::{Cursor, Order};
pub use pair::{
    AnswerLogps, IMAGE_TAG, ImageBytes, ImagePlace, ImageSource, Pair, PairLogps, PlaceInFile, Turn,
};
pub use prompt::Template;
pub use read::{Dropped, Format, Pairing, Pairs, Source, Sources, read_pairs, read_pairs_as, read_source};
pub use records::Records;
pub use set::PairSet;
pub use tokenizer::{SpecialTokens, Tokenizer};

/// The examples of the README compile and run too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
