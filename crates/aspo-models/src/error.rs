//! The one error type of this crate.

use std::path::PathBuf;

/// What can go wrong with configs, checkpoints, adapters and inputs. Every message names where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read, mapped or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not JSON, or not of the shape we read.
    #[error("{path}: not readable as {what}: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What it was read as.
        what: &'static str,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A safetensors file whose header is cut, oversized, overlapping or otherwise untrue.
    #[error("{path}: not a valid safetensors file: {reason}; download or export it again")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A folder without anything we can load.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The folder or index file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A config field whose value we cannot honour.
    #[error("config field `{field}`: {reason}")]
    Config {
        /// The field, dotted.
        field: String,
        /// What was found and what is possible.
        reason: String,
    },
    /// An architecture this crate does not implement.
    #[error("architecture `{found}` is not implemented; {expected} is what can be read here")]
    Architecture {
        /// `architectures` or `model_type` of the config.
        found: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A tensor of a file cannot be used as it is.
    #[error("{path}: tensor `{name}`: {reason}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// What was found.
        reason: String,
    },
    /// Checkpoint and module do not fit each other.
    #[error("{path}: checkpoint and model do not fit:\n{report}")]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Missing, unused and mis-shaped tensors.
        report: Box<crate::report::LoadReport>,
    },
    /// An adapter config or adapter file that cannot be applied.
    #[error("adapter: {0}")]
    Adapter(String),
    /// The number of image tokens in the ids and of image features differ.
    #[error(
        "the ids hold {tokens} image tokens ({token}) but {images} pictures with {features} features altogether were given; \
         expand each image placeholder to as many tokens as its picture takes, and give the pictures in their order"
    )]
    ImageTokens {
        /// Image tokens found in the ids.
        tokens: usize,
        /// The id of the image token.
        token: u32,
        /// Images given.
        images: usize,
        /// Features of all of them.
        features: usize,
    },
    /// Scores from which no token can be taken.
    #[error(
        "the scores of row {row} after {tokens} new tokens are not finite ({found} for id {id}): the weights or an adapter \
         hold such values, or half precision overflowed; look for them, or load in single precision"
    )]
    NotFinite {
        /// Row of the batch.
        row: usize,
        /// Tokens that were made before.
        tokens: usize,
        /// The first such token.
        id: usize,
        /// Its score.
        found: f32,
    },
    /// An input whose shape or values cannot be used.
    #[error("input `{name}`: {reason}")]
    Input {
        /// The argument.
        name: &'static str,
        /// What was found and what was expected.
        reason: String,
    },
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn input(name: &'static str, reason: impl Into<String>) -> Self {
        Self::Input { name, reason: reason.into() }
    }
}
