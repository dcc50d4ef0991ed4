//! Pairs to files: the writers that match [`crate::read`].
//!
//! Every writer makes the file under a temporary name and renames it when it is whole. What a format cannot hold (a
//! conversation in SeVa's, image bytes in JSON) is an error, never left out.

mod json;
#[cfg(feature = "parquet")]
mod parquet;

use std::path::Path;

use crate::error::{Error, FileFault, Result};

pub(crate) use json::seva_row;
pub use json::{write_conversations, write_llama_factory, write_seva, write_trl_jsonl};
#[cfg(feature = "parquet")]
pub use parquet::{write_rlaif_parquet, write_trl_parquet};

pub(crate) fn unsupported(path: &Path, id: &str, what: &str) -> Error {
    Error::file(
        path,
        FileFault::Unsupported(format!("pair {id:?} has {what}, which this format cannot hold")),
    )
}

/// Refuses a pair with other images for its rejected answer.
pub(crate) fn no_other_images(path: &Path, pair: &crate::Pair) -> Result<()> {
    match pair.rejected_images.is_empty() {
        true => Ok(()),
        false => Err(unsupported(path, &pair.id, "rejected images")),
    }
}

/// Refuses a pair that is a conversation, for formats of single questions.
pub(crate) fn single_question(path: &Path, pair: &crate::Pair) -> Result<()> {
    no_other_images(path, pair)?;
    match (&pair.system, pair.history.is_empty()) {
        (None, true) => Ok(()),
        (Some(_), _) => Err(unsupported(path, &pair.id, "a system message")),
        (None, false) => Err(unsupported(path, &pair.id, "earlier turns")),
    }
}
