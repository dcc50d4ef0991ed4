//! What can go wrong: every variant names the file and row, what was found there, and what to do about it.

use std::path::PathBuf;

/// The error of the answering side (a model that could not run), whatever its type.
pub type AnswerError = Box<dyn std::error::Error + Send + Sync>;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses. Messages are one line each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A benchmark's published file is not where it was looked for.
    #[error("{}: found none of {looked_for}; give the folder (or file) as {benchmark} publishes it", path.display())]
    NotFound {
        /// The benchmark.
        benchmark: &'static str,
        /// The folder or file that was given.
        path: PathBuf,
        /// The published names looked for.
        looked_for: String,
    },

    /// Two files answer to the same name, or a file to two.
    #[error("{}: {found}; give the one file that is meant", path.display())]
    Ambiguous {
        /// The folder or file that was given.
        path: PathBuf,
        /// What was found.
        found: String,
    },

    /// A file ends in the middle of a record.
    #[error("{}, row {row}: the file ends inside a record (truncated); copy or download it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1.
        row: usize,
    },

    /// A record is not of the published shape.
    #[error("{}, row {row}: {message}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1.
        row: usize,
        /// What the parser found.
        message: String,
    },

    /// A file has no records at all.
    #[error("{}: no records in it; give the file as published", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },

    /// A record, or a table, lacks a column.
    #[error("{}, row {row}: column `{column}` is missing; give the file as published", path.display())]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1 (0: the table's header).
        row: usize,
        /// The column.
        column: String,
    },

    /// A value that its column cannot have.
    #[error("{}, row {row}: `{column}` is {found}, expected {expected}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1.
        row: usize,
        /// The column.
        column: &'static str,
        /// What was found, quoted and cut.
        found: String,
        /// What is possible.
        expected: String,
    },

    /// One id, two records.
    #[error("{}, row {row}: id {id} is there twice; keep one record for each id", path.display())]
    DuplicateId {
        /// The file.
        path: PathBuf,
        /// The second of the two records, counted from 1.
        row: usize,
        /// The id.
        id: String,
    },

    /// A category, split or capability that the benchmark does not have.
    #[error("{}, row {row}: unknown category {found}, expected one of {known}", path.display())]
    UnknownCategory {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1 (0: the file's name).
        row: usize,
        /// What was found.
        found: String,
        /// What the benchmark has.
        known: String,
    },

    /// An answer or judgement for a question that the benchmark does not have.
    #[error("{}, row {row}: id {id} is no question of this data; check that both are of the same split", path.display())]
    UnknownId {
        /// The file of answers or judgements.
        path: PathBuf,
        /// The record, counted from 1.
        row: usize,
        /// The id.
        id: String,
    },

    /// Questions without an answer or judgement.
    #[error("{}: {missing} of {total} questions have no record, the first is {first}; finish the run first", path.display())]
    Missing {
        /// The file of answers or judgements.
        path: PathBuf,
        /// How many questions have none.
        missing: usize,
        /// How many questions there are.
        total: usize,
        /// The first question without one.
        first: String,
    },

    /// A record that belongs to another question than the one at its place.
    #[error(
        "{}, row {row}: in another order: the record for {id} is of {found}, the question there is {expected}",
        path.display()
    )]
    OtherOrder {
        /// The file.
        path: PathBuf,
        /// The record, counted from 1.
        row: usize,
        /// The question's id.
        id: String,
        /// What the record is of.
        found: String,
        /// What it should be of.
        expected: String,
    },

    /// As many labels (or scores) as questions (or runs) there must be, and are not.
    #[error("{}: {found} {what}, expected {expected}; use files of one release", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// What is counted.
        what: String,
        /// How many there are.
        found: usize,
        /// How many there must be.
        expected: usize,
    },

    /// A file name, inside a benchmark's file, that leads out of the benchmark's folder.
    #[error("{}: image name {name} leads out of the image folder; correct the file", path.display())]
    UnsafePath {
        /// The file that has the name.
        path: PathBuf,
        /// The name.
        name: String,
    },

    /// A file that was begun with other questions or by another model.
    #[error("{}: begun by another run ({found}, now {expected}); finish that one or give another file", path.display())]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// What this run would write.
        expected: String,
    },

    /// A choice of options that cannot be honoured.
    #[error("{0}")]
    Option(String),

    /// The model failed, or did not give as many texts as it got questions.
    #[error("the model gave no answer to question {id}: {source}")]
    Answer {
        /// The first question of the batch.
        id: String,
        /// What it said.
        source: AnswerError,
    },

    /// The judge's endpoint refused, or stayed unreachable through all retries.
    #[error("judge at {address}, request {id}: {message} ({attempts} attempts)")]
    Judge {
        /// The endpoint's address.
        address: String,
        /// The request.
        id: String,
        /// The last failure.
        message: String,
        /// How many times it was asked.
        attempts: u32,
    },
}

/// A value for a message: quoted, escaped onto one line, cut at 60 characters.
pub(crate) fn quote(text: &str) -> String {
    let cut: String = text.chars().take(60).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}
