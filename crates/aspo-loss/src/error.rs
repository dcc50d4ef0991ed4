//! What can be wrong with the inputs, said by name.

/// A fault in the inputs or options of a loss. The message names the record and the row, says what was found there
/// and what to do about it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A batch or tensor holds nothing to work on.
    #[error("{what} is empty; give at least one pair with at least one response token on each side")]
    Empty {
        /// The record or tensor.
        what: String,
    },
    /// A response has no token: its log-probability would silently be 0.
    #[error(
        "{what}: row {row} has no response token (no sentence id of 0 or more); drop the pair before it is batched"
    )]
    NoResponse {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
    },
    /// A response that starts at the first token, which no hidden state scores.
    #[error(
        "{what}: row {row} has a response token at position 0, which no hidden state scores; put the prompt, or at least a start token, in front of it with id -1 (ids aligned with shifted labels: use `from_labels`)"
    )]
    FirstToken {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
    },
    /// A sentence id that is neither -1 nor 0, 1, 2, …
    #[error(
        "{what}: row {row}, position {position} has sentence id {found}; use -1 for \"not a response token\" and 0, 1, 2, … for sentences"
    )]
    SentenceId {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
        /// The position in the row, from 0.
        position: usize,
        /// The id found there.
        found: i64,
    },
    /// A sentence between others that owns no token.
    #[error(
        "{what}: row {row} has no token of sentence {sentence} of {sentences}; number the sentences 0, 1, 2, … without gaps"
    )]
    EmptySentence {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
        /// The sentence without tokens, from 0.
        sentence: usize,
        /// The number of sentences that the highest id implies.
        sentences: usize,
    },
    /// Two sizes that have to agree do not.
    #[error("{what}: found {found}, expected {expected} ({why})")]
    Shape {
        /// The tensor or record.
        what: String,
        /// The size found.
        found: String,
        /// The size that fits.
        expected: String,
        /// What it has to fit.
        why: &'static str,
    },
    /// A value that is not a finite number.
    #[error("{what}: row {row}, element {element} is {found}; it has to be finite")]
    NotFinite {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
        /// The element of the row, from 0.
        element: usize,
        /// The value.
        found: f64,
    },
    /// A log-probability above 0: most often a negative log-likelihood that was not negated.
    #[error(
        "{what}: row {row}, element {element} is {found}; log-probabilities are at most 0 (negate negative log-likelihoods)"
    )]
    Positive {
        /// The record.
        what: String,
        /// The row of the batch, from 0.
        row: usize,
        /// The element of the row, from 0.
        element: usize,
        /// The value.
        found: f64,
    },
    /// A label that is no row of the head.
    #[error(
        "{what}: label {found} at position {position} lies outside the vocabulary of {vocab}; \
         select response positions first (padding labels such as -100 are not projected)"
    )]
    Label {
        /// The tensor.
        what: String,
        /// The flat position, from 0.
        position: usize,
        /// The label.
        found: i64,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// An objective needs a record that the batch does not carry.
    #[error("the objective `{objective}` needs {missing}; add it with `{method}`")]
    Missing {
        /// The objective's name.
        objective: String,
        /// The record it needs.
        missing: &'static str,
        /// The method of `PreferenceBatch` that adds it.
        method: &'static str,
    },
    /// An option outside its range, or one that does not go with another.
    #[error("option `{option}` is {found}: {remedy}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// The value.
        found: String,
        /// The range, or what to do.
        remedy: String,
    },
    /// A name that no objective, scaling or weighting has.
    #[error("unknown {what} `{found}`; one of: {known}")]
    Unknown {
        /// What was to be named.
        what: &'static str,
        /// The name found.
        found: String,
        /// The names there are.
        known: String,
    },
}

/// A result of this crate.
pub type Result<T> = core::result::Result<T, Error>;

impl Error {
    pub(crate) fn option(
        option: &'static str,
        found: impl core::fmt::Display,
        remedy: impl Into<String>,
    ) -> Self {
        Error::Option { option, found: found.to_string(), remedy: remedy.into() }
    }

    pub(crate) fn shape(
        what: impl Into<String>,
        found: impl core::fmt::Debug,
        expected: impl core::fmt::Debug,
        why: &'static str,
    ) -> Self {
        Error::Shape {
            what: what.into(),
            found: format!("{found:?}"),
            expected: format!("{expected:?}"),
            why,
        }
    }
}
