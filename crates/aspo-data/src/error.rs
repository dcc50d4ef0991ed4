//! What can go wrong, named: the file, row, image, pair or option, what was found there, and what to do.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do with a row, picture or question that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// Stop at the first.
    #[default]
    Stop,
    /// Leave it out and count it.
    Skip,
}

/// Most faults that an account spells out.
pub const MAX_FAULTS_TOLD: usize = 20;

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// One row of a file is faulty; the rows after it can still be read.
    #[error("{path}: row {row}: {fault}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Row number, from 1: the line of a JSONL file, the element of a JSON list, the row of a parquet table.
        row: usize,
        /// What is wrong with it.
        fault: RowFault,
    },
    /// A file as a whole cannot be read as pairs.
    #[error("{path}: {fault}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: FileFault,
    },
    /// An image reference that would leave the image folder, or cannot be one.
    #[error("image path {reference:?} refused: {why}")]
    ImagePath {
        /// The path as the row gives it.
        reference: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// An image that cannot be used.
    #[error("image {name}: {fault}")]
    Image {
        /// Path or content key of the image.
        name: String,
        /// What is wrong with it.
        fault: ImageFault,
    },
    /// A pair that cannot be encoded.
    #[error("pair {id:?}: {fault}")]
    Pair {
        /// [`Pair::id`](crate::Pair::id).
        id: String,
        /// What is wrong with it.
        fault: PairFault,
    },
    /// A tokenizer that cannot be used.
    #[error("tokenizer {name}: {why}")]
    Tokenizer {
        /// Its file.
        name: String,
        /// What is missing or broken.
        why: String,
    },
    /// An option with a value that cannot be honoured.
    #[error("option `{name}`: {found}; {remedy}")]
    Option {
        /// Its name.
        name: &'static str,
        /// The value found.
        found: String,
        /// A value that works.
        remedy: &'static str,
    },
    /// A stored artefact (cache, generation state) that does not belong to this run or is damaged.
    #[error("{path}: {why}", path = path.display())]
    Stored {
        /// The file.
        path: PathBuf,
        /// What does not fit, and what to do.
        why: String,
    },
    /// A function handed in by the caller (a model, an embedding) failed or answered something of the wrong size.
    #[error("{what}: {why}")]
    Callback {
        /// Which function.
        what: &'static str,
        /// Its message.
        why: String,
    },
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowFault {
    /// Not JSON.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// The bytes are not UTF-8.
    #[error("not UTF-8 (first bad byte at {at} of the row): convert the file to UTF-8")]
    NotUtf8 {
        /// Byte offset within the row.
        at: usize,
    },
    /// The row is longer than [`MAX_ROW_BYTES`](crate::read::MAX_ROW_BYTES).
    #[error("longer than the limit of {limit} bytes: split it or drop it")]
    TooLong {
        /// The limit.
        limit: usize,
    },
    /// The file ends inside the row.
    #[error("the file ends in the middle of this row: it was cut short, copy or download it again")]
    Cut,
    /// A key is not there.
    #[error("`{key}` is missing; the row has: {found}; {remedy}")]
    Missing {
        /// The key.
        key: &'static str,
        /// The keys that are there.
        found: String,
        /// What to do; names the format that the keys belong to, where it is another.
        remedy: String,
    },
    /// A key is there and holds nothing.
    #[error("`{key}` is null; fill it in, or drop the row")]
    Null {
        /// The key.
        key: &'static str,
    },
    /// A key holds the wrong kind of value.
    #[error("`{key}` should be {expected}, found {found}")]
    Type {
        /// The key.
        key: String,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A text that may not be empty is.
    #[error("`{key}` is empty; fill it in, or drop the row")]
    Empty {
        /// The key.
        key: &'static str,
    },
    /// A text that a chat template was already written around, or that holds a tag where none may stand.
    #[error(
        "`{key}` holds {found:?}, which belongs to a chat template: give the bare text, the template is written around it \
         here"
    )]
    Templated {
        /// The key.
        key: &'static str,
        /// The mark found.
        found: String,
    },
    /// Video or audio.
    #[error("`{key}` holds video or audio ({what}), which is not supported: drop the row")]
    Media {
        /// The key.
        key: String,
        /// What was found.
        what: String,
    },
    /// Columns of images that contradict each other.
    #[error("{0}")]
    Images(&'static str),
    /// A conversation whose turns do not alternate user, assistant.
    #[error("conversation: {0}")]
    Turns(String),
    /// `<image>` tags and images do not agree.
    #[error("{tags} <image> tags for {images} images; give one tag for each image, or none")]
    ImageCount {
        /// Tags in the prompt.
        tags: usize,
        /// Images of the row.
        images: usize,
    },
    /// An image reference that may not be followed.
    #[error("image path {reference:?} refused: {why}")]
    ImagePath {
        /// The path as given.
        reference: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The image named by the row is not usable (checked only when asked).
    #[error("image {name}: {fault}")]
    Image {
        /// Path or content key.
        name: String,
        /// What is wrong with it.
        fault: ImageFault,
    },
    /// A column of a parquet table could not be decoded.
    #[error("parquet: {0}")]
    Parquet(String),
}

impl RowFault {
    /// A short name of the kind of fault, for counting.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Json(_) => "json",
            Self::NotUtf8 { .. } => "not-utf8",
            Self::TooLong { .. } => "too-long",
            Self::Cut => "cut",
            Self::Missing { .. } => "missing",
            Self::Null { .. } => "null",
            Self::Type { .. } => "type",
            Self::Empty { .. } => "empty",
            Self::Templated { .. } => "templated",
            Self::Media { .. } => "media",
            Self::Images(_) => "images",
            Self::Turns(_) => "turns",
            Self::ImageCount { .. } => "image-count",
            Self::ImagePath { .. } => "image-path",
            Self::Image { .. } => "image",
            Self::Parquet(_) => "parquet",
        }
    }
}

/// What is wrong with a file as a whole.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FileFault {
    /// It has no rows.
    #[error("the file is empty: write or download it again")]
    Empty,
    /// Not text in UTF-8.
    #[error("the file is {found}: convert it to UTF-8")]
    Encoding {
        /// What it looks like.
        found: &'static str,
    },
    /// A folder without a file of pairs.
    #[error(
        "it is a folder without a file of pairs (.json, .jsonl, .parquet, the first two also .gz and .zst): name another, or a file"
    )]
    Folder,
    /// Nothing from a row on can be read; what came before is sound.
    #[error(
        "row {row}: {fault}; nothing from this row on was read{}",
        lost.map_or(String::new(), |lost| format!(", {lost} rows are lost"))
    )]
    Broken {
        /// The first row that is lost.
        row: usize,
        /// How many are, where the file tells.
        lost: Option<usize>,
        /// What is wrong there.
        fault: RowFault,
    },
    /// One JSON object that is not a row.
    #[error(
        "the whole file is one JSON object, starting {start:?}: rows are a list `[{{…}}, …]`, or one object a line; take \
         the list out of it"
    )]
    Object {
        /// Its beginning.
        start: String,
    },
    /// Neither a JSON list, nor JSON lines, nor parquet.
    #[error("neither a JSON list, nor one JSON object a line, nor parquet: it starts with {found:?}")]
    Container {
        /// The first bytes.
        found: String,
    },
    /// The keys belong to no format known here.
    #[error(
        "unknown format, keys {keys}; known are trl (prompt, chosen, rejected), seva (question, chosen, reject, image_id), \
         rlaif-v (question, chosen, rejected, image), llama-factory (conversations, messages or instruction, chosen, \
         rejected), ms-swift (messages, rejected_response), openai (input, preferred_output, non_preferred_output), \
         ha-dpo (image_id, chosen, rejected), llava (conversations): rename the keys to those of one"
    )]
    Format {
        /// The keys of the first row.
        keys: String,
    },
    /// A format that is known but cannot give what was asked for.
    #[error("{0}")]
    Unsupported(String),
    /// A parquet file that is damaged.
    #[error("parquet: {0}")]
    Parquet(String),
}

/// What is wrong with an image.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageFault {
    /// No bytes.
    #[error("the file is empty: write or download it again")]
    Empty,
    /// The bytes are no picture of a kind that is read, whatever the name says.
    #[error("it is {found}; what is read is PNG, JPEG, WebP, GIF, BMP and TIFF: convert it")]
    Unknown {
        /// What they look like.
        found: String,
    },
    /// More pixels than [`MAX_DECODED_BYTES`](crate::image::MAX_DECODED_BYTES) allows; nothing was decoded.
    #[error("{width}x{height} needs {bytes} bytes decoded, the limit is {limit}: scale it down first")]
    TooLarge {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Bytes after decoding.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The file itself is larger than [`MAX_FILE_BYTES`](crate::image::MAX_FILE_BYTES).
    #[error("the file has {bytes} bytes, the limit is {limit}: save the picture smaller")]
    FileTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The data ends early.
    #[error("the picture is cut short: its end is missing, download it again")]
    Truncated,
    /// The decoder refused the data.
    #[error("cannot be decoded: {0}; save it again")]
    Decode(String),
    /// The checkpoint's image processor does not take it.
    #[error("{0}")]
    Refused(String),
    /// The image could not be read from disk.
    #[error("cannot be read: {0}")]
    Io(String),
}

/// What is wrong with a pair at encoding time.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PairFault {
    /// The prompt leaves no room for a single answer token within `max_length`.
    #[error(
        "the prompt takes {prompt} tokens, `max_length` {max_length} leaves no room for an answer: raise it, or drop the pair"
    )]
    NoRoom {
        /// Prompt tokens, image tokens included.
        prompt: usize,
        /// The option.
        max_length: usize,
    },
    /// An answer is empty or white space.
    #[error("the {side} answer is empty: drop the pair")]
    Empty {
        /// `chosen` or `rejected`.
        side: &'static str,
    },
    /// Both answers are the same tokens, as far as `max_length` keeps them.
    #[error(
        "both answers are the same tokens, as far as `max_length` keeps them: raise it, or drop the pair"
    )]
    Equal,
    /// A text contains a token that has a meaning of its own, such as `</s>`.
    #[error("the {place} contains the special token {token:?}: remove it from the text")]
    SpecialToken {
        /// `prompt`, `chosen answer`, …
        place: &'static str,
        /// The token.
        token: String,
    },
    /// `<image>` tags and images do not agree.
    #[error("{tags} <image> tags for {images} images; give one tag for each image, or none")]
    ImageCount {
        /// Tags in the prompt.
        tags: usize,
        /// Images of the pair.
        images: usize,
    },
    /// `<image>` within the text, for a model that reads its pictures before all text.
    #[error(
        "an <image> tag within the text, which template {template} cannot place: set it in front, or leave it out"
    )]
    Placed {
        /// The template.
        template: crate::Template,
    },
    /// The checkpoint's chat template does not render the conversation.
    #[error("the chat template does not take it: {0}")]
    Template(String),
    /// The row's `logps` are of another number of tokens than the answer has here.
    #[error(
        "`logps` are of {known} tokens, the answer has {tokens} here: they are of another tokenizer or template; read the file \
         without `logps`"
    )]
    Logps {
        /// Tokens of the row's answer.
        known: usize,
        /// Tokens of the answer as encoded.
        tokens: usize,
    },
    /// Sentence spans and token offsets do not fit each other.
    #[error("sentences: {0}")]
    Sentences(String),
    /// The tokenizer failed on the text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    pub(crate) fn row(path: impl Into<PathBuf>, row: usize, fault: RowFault) -> Self {
        Self::Row { path: path.into(), row, fault }
    }

    pub(crate) fn file(path: impl Into<PathBuf>, fault: FileFault) -> Self {
        Self::File { path: path.into(), fault }
    }

    pub(crate) fn pair(id: &str, fault: PairFault) -> Self {
        Self::Pair { id: id.to_owned(), fault }
    }

    /// True where only this row or pair is lost and the work can go on with the next. Never true where more may be lost
    /// ([`FileFault::Broken`]).
    pub fn is_one_row(&self) -> bool {
        matches!(self, Self::Row { .. } | Self::Pair { .. } | Self::Image { .. } | Self::ImagePath { .. })
    }
}
