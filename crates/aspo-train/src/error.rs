//! What can go wrong in a run: where, what was found, what to do.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A folder or file that the config names is not there.
    #[error("option `{option}`: {path} is not there; {remedy}", path = path.display())]
    Missing {
        /// The option.
        option: &'static str,
        /// The path it gives.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// A config file that cannot be read as one.
    #[error("{path}: {why}", path = path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line and the keys that exist.
        why: String,
    },
    /// An option with a value that cannot be honoured, alone or beside the others.
    #[error("option `{option}`: {found}; {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// The value, or the clash.
        found: String,
        /// What to do.
        remedy: String,
    },
    /// A checkpoint or cache that does not belong to this run, or is damaged.
    #[error("{path}: {why}", path = path.display())]
    Stored {
        /// The file or folder.
        path: PathBuf,
        /// What does not fit, and what to do.
        why: String,
    },
    /// A loss or gradient that is not a number: the run has ended before it could spoil the weights.
    #[error("step {step}: the {what} is {found} (pairs {pairs}); last good checkpoint: {checkpoint}; lower learning_rate or look at these pairs", pairs = pairs.join(", "))]
    NotFinite {
        /// Optimiser step, from 1.
        step: usize,
        /// `loss`, `gradient norm` or `loss of pairs held out`.
        what: &'static str,
        /// Its value.
        found: f64,
        /// Ids of the pairs of the step.
        pairs: Vec<String>,
        /// The newest checkpoint, or `none yet`.
        checkpoint: String,
    },
    /// What another process of the run has met.
    #[error("rank {rank}: {text}")]
    Rank {
        /// Its number.
        rank: usize,
        /// Its message.
        text: String,
    },
    /// Pairs, images or tokens.
    #[error(transparent)]
    Data(#[from] aspo_data::Error),
    /// Checkpoints and models.
    #[error(transparent)]
    Model(#[from] aspo_models::Error),
    /// The loss.
    #[error(transparent)]
    Loss(#[from] aspo_loss::Error),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn option(option: &'static str, found: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Option { option, found: found.to_string(), remedy: remedy.into() }
    }

    pub(crate) fn stored(path: impl Into<PathBuf>, why: impl Into<String>) -> Self {
        Self::Stored { path: path.into(), why: why.into() }
    }
}
