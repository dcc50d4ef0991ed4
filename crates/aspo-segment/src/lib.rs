//! Sentence spans that tile a text exactly, and token-to-sentence ids.
//!
//! [`split`] cuts a text into sentences; [`align`] gives every token of it the sentence it belongs to.

mod abbreviation;
mod align;
mod answer;
mod chars;
mod error;
mod judge;
mod look;
mod marker;
mod rules;
mod splitter;
mod words;

pub use align::{align, byte_offsets, within};
pub use error::Error;
pub use splitter::{Language, Rules, Sentences, SplitOptions, split};
