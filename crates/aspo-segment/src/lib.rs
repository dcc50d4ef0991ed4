//! Sentence spans that tile a text exactly, and token-to-sentence ids.
//!
//! A loss that weights an answer sentence by sentence needs every byte of it in exactly one sentence, and every token in
//! exactly one sentence, or the sentences' log-probabilities do not add up to the answer's. This crate keeps that promise:
//! [`split`] gives the spans, [`align`] the ids. It knows nothing of tensors and needs no data files.
//!
//! # Text to sentences
//! ```
//! use aspo_segment::{SplitOptions, split};
//!
//! let answer = "A dog, approx. 3 years old, runs.It is brown!\n\n1. A ball\n2. A tree (green).";
//! let spans: Vec<_> = split(answer, &SplitOptions::default()).collect();
//!
//! let sentences: Vec<&str> = spans.iter().map(|span| &answer[span.clone()]).collect();
//! assert_eq!(
//!     sentences,
//!     ["A dog, approx. 3 years old, runs.", "It is brown!\n\n", "1. A ball\n", "2. A tree (green)."]
//! );
//! // Nothing is lost and nothing said twice: white space belongs to the sentence before it.
//! assert_eq!(sentences.concat(), answer);
//! ```
//!
//! The rules are made for what models write: prose, lists, headings, tables, code, quotations, abbreviations, emoji, glued
//! sentences, and the full stops of many scripts. [`SplitOptions`] tells of the others ([`Rules`]), of hints at the
//! [`Language`], and of a shortest and a longest sentence:
//!
//! ```
//! use aspo_segment::{Rules, SplitOptions, split};
//!
//! let sentences = |text, options| split(text, &options).map(|span| text[span].trim()).collect::<Vec<_>>();
//! let text = "It costs 3.50. Really, with all that comes with it.";
//!
//! let period = SplitOptions { rules: Rules::Period, ..Default::default() };
//! assert_eq!(sentences(text, period), ["It costs 3.", "50.", "Really, with all that comes with it."]);
//! let joined = SplitOptions { rules: Rules::Period, min_length: 4, ..Default::default() };
//! assert_eq!(sentences(text, joined), ["It costs 3.", "50. Really, with all that comes with it."]);
//! let cut = SplitOptions { max_length: 20, ..Default::default() };
//! assert_eq!(sentences(text, cut), ["It costs 3.50.", "Really, with all", "that comes with it."]);
//! ```
//!
//! # Tokens to sentences
//! A tokenizer gives each token's offsets. [`align`] takes them in bytes of the answer; [`byte_offsets`] converts from
//! characters, and [`within`] from those of prompt and answer together:
//!
//! ```
//! use aspo_segment::{Error, SplitOptions, align, byte_offsets, split, within};
//!
//! let (prompt, answer) = ("What is it? ", "Une fée. Yes!");
//! // Of "What is it? Une fée. Yes!</s>" in characters: ▁Une ▁f é e . ▁Yes ! and </s>, marked as special by no width.
//! let characters = [(11, 15), (15, 17), (17, 18), (18, 19), (19, 20), (20, 24), (24, 25), (0, 0)];
//! let bytes = byte_offsets(&format!("{prompt}{answer}"), &characters)?;
//! let offsets = within(prompt.len()..prompt.len() + answer.len(), &bytes)?;
//!
//! let spans: Vec<_> = split(answer, &SplitOptions::default()).collect();
//! assert_eq!(align(answer, &spans, &offsets)?, [0, 0, 0, 0, 0, 1, 1, 1]);
//!
//! // Offsets that do not fit are an error, never a guess.
//! let wrong = align(answer, &spans, &[(0, 5), (7, 14)]);
//! assert!(matches!(wrong, Err(Error::Uncovered { token: 1, at: 5, .. })));
//! # Ok::<(), Error>(())
//! ```
//!
//! # What holds for every text
//! - The spans tile the text, none is empty, and none but the first starts with white space.
//! - A sentence split again, with the same options and no `max_length`, is one sentence: a decision looks at the sentence
//!   so far and at the next word, never at the sentences before.
//! - Time is linear in the text, whatever the lengths asked for, and nothing is allocated: [`Sentences`] is an iterator.
//! - The ids of tokens never decrease.
//!
//! # Where things are
//! `options` says what can be asked. `splitter` walks and minds the lengths, `rules` chooses, `answer` scans for places where a sentence may end, `judge`
//! decides there, from what `look`, `marker`, `abbreviation` (with the lists in `words`) and `chars` see. `align` gives
//! tokens to sentences.

/// Changes whenever a text may be split otherwise: what is kept of split texts is keyed by it.
pub const VERSION: u32 = 1;

mod abbreviation;
mod align;
mod answer;
mod chars;
mod error;
mod judge;
mod look;
mod marker;
mod options;
mod rules;
mod splitter;
mod words;

pub use align::{align, byte_offsets, within};
pub use error::Error;
pub use options::{Language, Rules, SplitOptions};
pub use splitter::{Sentences, split};

/// The examples of the README compile and run too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
