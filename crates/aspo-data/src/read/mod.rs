//! Files of preference pairs, read one row at a time.
//!
//! [`read_pairs`] looks at the first row to tell the format; [`read_pairs_as`] is given it. Memory does not grow with the
//! file. [`Pairs`] is an iterator of `Result<Pair>`, and nothing of a file is lost on the way:
//!
//! - a faulty row is an [`Error::Row`], and the next row follows: a caller may stop there, or count it and go on
//!   ([`Error::is_one_row`]);
//! - where the rest of the file cannot be read (a list without a comma, a file that was cut short, a damaged table), the
//!   last item is an [`Error::File`] with [`FileFault::Broken`], which says from which row on and, for tables, how many
//!   rows are lost. It is never one row;
//! - rows whose two answers are equal are left out and counted, [`Pairs::dropped`];
//! - columns with content that no pair took in are listed, [`Pairs::unread`].
//!
//! ```no_run
//! # fn main() -> aspo_data::Result<()> {
//! let mut pairs = aspo_data::read_pairs(std::path::Path::new("pairs.jsonl"))?;
//! let (mut sound, mut faulty) = (Vec::new(), 0);
//! while let Some(pair) = pairs.next() {
//!     match pair {
//!         Ok(pair) => sound.push(pair),
//!         Err(error) if error.is_one_row() => faulty += 1,
//!         Err(error) => return Err(error),
//!     }
//! }
//! println!("{} pairs, {faulty} faulty rows, {} with equal answers", sound.len(), pairs.dropped().equal);
//! for column in pairs.unread() {
//!     println!("the column `{column}` is not read");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | format | keys | container |
//! |---|---|---|
//! | [`Format::Trl`] | `prompt`, `chosen`, `rejected` as texts or messages; without `prompt` the shared beginning is it | JSON lines, JSON list, parquet |
//! | [`Format::Seva`] | `question`, `chosen`, `reject`, `image_id` | JSON list |
//! | [`Format::RlaifV`] | `question`, `chosen`, `rejected`, `image {bytes, path}`; RLHF-V's `text` holds the first three as JSON | parquet, JSON |
//! | [`Format::LlamaFactory`] | `conversations` or `messages`, `chosen`, `rejected` as one message each; or `chosen_messages`, `rejected_messages`; or `instruction`, `input`, `chosen`, `rejected`, `history` | JSON list |
//! | [`Format::MsSwift`] | `messages` with the chosen answer, `rejected_response` or `rejected_messages`; or `query`, `response`, `rejected_response`, `history` | JSON lines |
//! | [`Format::OpenAi`] | `input {messages}`, `preferred_output`, `non_preferred_output` | JSON lines |
//! | [`Format::HaDpo`] | `{id: {"chosen": […], "rejected": […]}}`; or `image_id`, `question`, `chosen`, `reject`, `correct` | JSON object, JSON list |
//! | [`Format::Ratings`] | `prompt`, and `completions` with a score each, or `responses` and `scores`: VLFeedback's and UltraFeedback's | parquet, JSON |
//! | [`Format::Llava`] | `id`, `image`, `conversations`: instructions without preference, see [`read_conversations`] | JSON list |
//!
//! In every format a `system` column is the system message, and pictures come from `images`, `image` or `image_path` (the
//! first that holds any), or with typed parts: a path relative to the image folder, a `file://` URL, a data URI, base64,
//! or an object with `path` or `bytes`. `<image>` tags keep their places ([`Pair`]); their number is that of the pictures,
//! or there are none. Video and audio are refused, and so are texts that a chat template was already written around.

mod chat;
mod check;
#[cfg(feature = "parquet")]
mod footer;
mod ha_dpo;
mod llama_factory;
mod llava;
mod ms_swift;
mod openai;
#[cfg(feature = "parquet")]
mod parquet;
mod picture;
mod ratings;
mod rlaif;
mod row;
mod rows;
mod seva;
mod source;
mod trl;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, FileFault, Result, RowFault};
use crate::pair::{IMAGE_TAG, Pair};

/// A pattern of file names (`train-*-of-*.parquet`).
pub use glob::Pattern;
pub use llava::{Conversation, Conversations, read_conversations};
use row::{Row, key_list, kind, wrong};
pub use source::{Pairing, Source, Sources, is_pairs, source_files};

/// Longest row of a JSON file in bytes, pictures in base64 included; a longer one is refused without being held.
pub const MAX_ROW_BYTES: usize = 16 << 20;
/// Most images of one row.
pub const MAX_IMAGES: usize = 64;
/// Most columns that are told as unread.
const MAX_UNREAD: usize = 100;

/// A format that people exchange preference pairs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Format {
    /// TRL's columns.
    Trl,
    /// SeVa's JSON list.
    Seva,
    /// RLAIF-V and RLHF-V.
    RlaifV,
    /// LLaMA-Factory's ranking data.
    LlamaFactory,
    /// ms-swift's data for DPO.
    MsSwift,
    /// OpenAI's preference data.
    #[serde(rename = "openai")]
    OpenAi,
    /// HA-DPO's descriptions and POPE questions.
    HaDpo,
    /// Several answers with scores: VLFeedback's.
    Ratings,
    /// LLaVA's instructions: no preference inside.
    Llava,
}

impl Format {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Trl,
        Self::Seva,
        Self::RlaifV,
        Self::LlamaFactory,
        Self::MsSwift,
        Self::OpenAi,
        Self::HaDpo,
        Self::Ratings,
        Self::Llava,
    ];

    /// The format of a row by its keys.
    pub fn of(row: &Map<String, Value>) -> Option<Self> {
        let has = |key| row.contains_key(key);
        let both = has("chosen") && has("rejected");
        let conversation = has("conversations") || has("messages");
        let scored = ["scores", "ratings", "rewards", "ranks"].into_iter().any(has);
        match () {
            () if !both && (has("completions") || has("responses") && scored) => Some(Self::Ratings),
            () if has("reject") && has("correct") => Some(Self::HaDpo),
            () if has("reject") => Some(Self::Seva),
            () if has("chosen_messages") && has("rejected_messages") => Some(Self::LlamaFactory),
            () if has("rejected_response") || has("rejected_messages") => Some(Self::MsSwift),
            () if has("preferred_output") && has("non_preferred_output") => Some(Self::OpenAi),
            // TRL's own sets carry `messages` beside their prompt.
            () if has("prompt") && both && !has("conversations") => Some(Self::Trl),
            () if conversation && both => Some(Self::LlamaFactory),
            () if conversation => Some(Self::Llava),
            () if has("instruction") && both => Some(Self::LlamaFactory),
            () if has("question") && both => Some(Self::RlaifV),
            () if has("text") && !has("chosen") && (has("image") || has("image_path")) => Some(Self::RlaifV),
            () if has("image_id") && both => Some(Self::HaDpo),
            () if both => Some(Self::Trl),
            () => None,
        }
    }

    /// Its name on command lines and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trl => "trl",
            Self::Seva => "seva",
            Self::RlaifV => "rlaif-v",
            Self::LlamaFactory => "llama-factory",
            Self::MsSwift => "ms-swift",
            Self::OpenAi => "openai",
            Self::HaDpo => "ha-dpo",
            Self::Ratings => "ratings",
            Self::Llava => "llava",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.iter().copied().find(|format| format.name() == name).ok_or_else(|| Error::Option {
            name: "format",
            found: format!("{name:?}"),
            remedy: "use trl, seva, rlaif-v, llama-factory, ms-swift, openai, ha-dpo or ratings",
        })
    }
}

/// Rows that are sound and yet no pair: left out and counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Dropped {
    /// Both answers are the same text ([`Pair::has_equal_answers`]): nothing is preferred.
    pub equal: usize,
    /// Questions of HA-DPO that the model had answered correctly; HA-DPO leaves them out as well.
    pub correct: usize,
    /// Rows of several answers of which no two have scores as far apart as asked.
    pub tied: usize,
}

/// Every key that a format reads, or that is refused by name: other columns of a table are not decoded.
#[cfg(feature = "parquet")]
const KEYS: &[&str] = &[
    "audio",
    "audios",
    "chosen_messages",
    "chosen",
    "completions",
    "conversations",
    "correct",
    "history",
    "id",
    "idx",
    "image",
    "image_id",
    "image_path",
    "images",
    "input",
    "instruction",
    "logps",
    "messages",
    "non_preferred_output",
    "preferred_output",
    "prompt",
    "query",
    "question",
    "question_id",
    "ranks",
    "ratings",
    "reject",
    "rejected",
    "rejected_audios",
    "rejected_images",
    "rejected_messages",
    "rejected_response",
    "rejected_videos",
    "response",
    "responses",
    "rewards",
    "scores",
    "system",
    "text",
    "video",
    "videos",
];

type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

/// The pairs of a file or of several, one at a time; [the module](self) says what becomes of what is no pair.
pub struct Pairs {
    path: Arc<Path>,
    /// Files that come after it.
    later: VecDeque<PathBuf>,
    /// How they are read.
    source: Source,
    format: Format,
    rows: Rows,
    /// Rows that were looked at to tell the format.
    first: VecDeque<Result<Row>>,
    row: usize,
    /// Pairs of the present row that were not given yet.
    more: VecDeque<Pair>,
    dropped: Dropped,
    unread: BTreeSet<String>,
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairs")
            .field("path", &self.path)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

impl Pairs {
    /// The file that the pair given last came from.
    pub fn path(&self) -> &Arc<Path> {
        &self.path
    }

    /// The format recognised or given, of the present file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of the row in its file that the pair given last came from, counted as [`Error::Row`] counts; 0 before the first.
    pub fn row(&self) -> usize {
        self.row
    }

    /// What was left out so far.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// The columns that held something in a row read so far and that no pair took in, each once.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        self.unread.iter().map(String::as_str)
    }

    /// The pairs of a row; none where it was left out.
    fn read(&mut self, mut row: Row) -> Result<Vec<Pair>, RowFault> {
        row.refuse_other_media()?;
        if self.format == Format::HaDpo && ha_dpo::is_left_out(&mut row) {
            self.dropped.correct += 1;
            return Ok(Vec::new());
        }
        let pairs = match self.format {
            Format::Trl => trl::pair(&mut row).map(|pair| vec![pair]),
            Format::Seva => seva::pair(&mut row).map(|pair| vec![pair]),
            Format::RlaifV => rlaif::pair(&mut row).map(|pair| vec![pair]),
            Format::LlamaFactory | Format::Llava => llama_factory::pair(&mut row).map(|pair| vec![pair]),
            Format::MsSwift => ms_swift::pair(&mut row).map(|pair| vec![pair]),
            Format::OpenAi => openai::pair(&mut row).map(|pair| vec![pair]),
            Format::HaDpo => ha_dpo::pairs(&mut row),
            Format::Ratings => {
                let pairs = ratings::pairs(&mut row, self.source.pairing, self.source.min_margin);
                self.dropped.tied += usize::from(pairs.as_ref().is_ok_and(Vec::is_empty));
                pairs
            }
        };
        let mut pairs = pairs.map_err(|fault| row.of_another_format(fault, self.format))?;
        if self.source.logps {
            let [pair] = pairs.as_mut_slice() else {
                return Err(RowFault::Turns("`logps` are of one pair, the row makes several".to_owned()));
            };
            pair.logps = Some(rlaif::logps(&mut row)?);
        }
        for pair in &mut pairs {
            row.set_system(pair)?;
            row.set_rejected_images(pair)?;
            check::prompt(pair)?;
            for (key, text) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
                if text.trim().is_empty() {
                    return Err(RowFault::Empty { key });
                }
                check::answer(key, text)?;
            }
        }
        for name in row.unread() {
            if self.unread.len() < MAX_UNREAD && !self.unread.contains(name) {
                self.unread.insert(row::short(name));
            }
        }
        let rows = pairs.len();
        pairs.retain(|pair| !pair.has_equal_answers());
        self.dropped.equal += rows - pairs.len();
        Ok(pairs)
    }
}

/// Reads a file, or all files that a folder or a pattern names ([`source_files`]); the format of each is told by its first sound
/// rows. gzip and zstd are unpacked on the way.
///
/// # Errors
/// [`Error::File`] when the first file is empty, of no known format, no text in UTF-8, or holds no preference; no file. What is wrong
/// with a later file is an item of the iterator.
pub fn read_pairs(path: &Path) -> Result<Pairs> {
    read_source(&path.into())
}

/// Reads files of a given format.
///
/// # Errors
/// [`Error::File`] when the file is empty, neither JSON nor parquet, or no text in UTF-8.
pub fn read_pairs_as(path: &Path, format: Format) -> Result<Pairs> {
    read_source(&Source { format: Some(format), ..path.into() })
}

/// The same with everything that a source says.
///
/// # Errors
/// As [`read_pairs`]; a column of its map that no row has.
pub fn read_source(source: &Source) -> Result<Pairs> {
    let mut files: VecDeque<PathBuf> = source_files(&source.path)?.into();
    let first = files.pop_front().unwrap_or_else(|| source.path.clone());
    Ok(Pairs { later: files, ..open_one(&first, source)? })
}

/// Sound rows of a file that are looked at to tell its format.
const LOOK: usize = 16;

fn open_one(path: &Path, source: &Source) -> Result<Pairs> {
    let (mut rows, unread) = open_rows(path, source)?;
    let (mut first, mut sound) = (VecDeque::new(), 0);
    while sound < LOOK && first.len() < 2 * LOOK {
        let Some(row) = rows.next() else { break };
        sound += usize::from(row.is_ok());
        first.push_back(row);
    }
    if first.is_empty() && source.format.is_none() {
        return Err(Error::file(path, FileFault::Empty));
    }
    // So many faulty rows: look further, in a second pass, so that their faults are still reported.
    let mut further = None;
    if sound == 0 && first.len() == 2 * LOOK {
        further = open_rows(path, source)?.0.take(1000).find_map(Result::ok);
    }
    let looked: Vec<&Row> = first.iter().filter_map(|row| row.as_ref().ok()).chain(&further).collect();
    let lacking = source.columns.keys().find(|ours| !looked.iter().any(|row| row.keys.contains_key(*ours)));
    if let (Some(ours), Some(row)) = (lacking, looked.first()) {
        let (theirs, found) = (&source.columns[ours], key_list(row.keys.keys()));
        let told = format!("`columns`: `{ours}` is to be read from `{theirs}`, but the rows have {found}");
        return Err(Error::file(path, FileFault::Unsupported(told)));
    }
    let format = match (source.format, looked.is_empty()) {
        (Some(format), _) => format,
        (None, false) => format_of(path, &looked)?,
        (None, true) => {
            return Err(first
                .pop_front()
                .and_then(Result::err)
                .unwrap_or_else(|| Error::file(path, FileFault::Empty)));
        }
    };
    if format == Format::Llava {
        let fault = FileFault::Unsupported(
            "conversations without a rejected answer (LLaVA's or OpenAI's instructions): they hold no preference; \
             make pairs from them first, or add `chosen` and `rejected`, or `rejected_response`"
                .to_owned(),
        );
        return Err(Error::file(path, fault));
    }
    Ok(Pairs {
        path: path.into(),
        later: VecDeque::new(),
        source: source.clone(),
        format,
        rows,
        first,
        row: 0,
        more: VecDeque::new(),
        dropped: Dropped::default(),
        unread,
    })
}

/// The format of most of these rows; of equally many, that of the first.
fn format_of(path: &Path, rows: &[&Row]) -> Result<Format> {
    let formats: Vec<Format> = rows.iter().filter_map(|row| Format::of(&row.keys)).collect();
    let count = |format: &Format| formats.iter().filter(|other| *other == format).count();
    let Some(most) = formats.iter().map(count).max() else { return Err(no_format(path, rows[0])) };
    Ok(*formats.iter().find(|format| count(format) == most).expect("one has the most"))
}

fn no_format(path: &Path, row: &Row) -> Error {
    let list = row
        .keys
        .iter()
        .find(|(_, value)| value.as_array().is_some_and(|items| items.first().is_some_and(Value::is_object)));
    Error::file(
        path,
        match list {
            Some((key, _)) if row.number == 1 => FileFault::Object { start: format!("{{\"{key}\": [{{…") },
            _ => FileFault::Format { keys: key_list(row.keys.keys()) },
        },
    )
}

/// The keys under the names that `columns` gives them; a key that has such a name by itself is not meant.
fn renamed(mut keys: Map<String, Value>, columns: &BTreeMap<String, String>) -> Map<String, Value> {
    let taken: Vec<_> = columns.iter().map(|(ours, theirs)| (ours, keys.remove(theirs))).collect();
    for (ours, value) in taken {
        match value {
            Some(value) => drop(keys.insert(ours.clone(), value)),
            None => drop(keys.remove(ours)),
        }
    }
    keys
}

/// JSON or parquet, by content, and the columns that are not looked at.
fn open_rows(path: &Path, source: &Source) -> Result<(Rows, BTreeSet<String>)> {
    let mut start = [0; 4];
    let read = File::open(path)
        .and_then(|file| file.take(4).read(&mut start))
        .map_err(|source| Error::io(path, source))?;
    if read == 4 && &start == b"PAR1" {
        #[cfg(feature = "parquet")]
        {
            let rows = parquet::ParquetRows::open(path, source)?;
            let unread = rows.unread().take(MAX_UNREAD).map(row::short).collect();
            return Ok((Box::new(rows), unread));
        }
        #[cfg(not(feature = "parquet"))]
        return Err(Error::file(
            path,
            FileFault::Unsupported("built without the feature `parquet`".to_owned()),
        ));
    }
    let (path, columns) = (path.to_owned(), source.columns.clone());
    let rows = rows::JsonRows::new(&path, source::text(&path)?)?;
    let rows = rows.map(move |row| {
        let (number, value) = row?;
        match value {
            Value::Object(keys) => Ok(Row::new(number, renamed(keys, &columns), BTreeMap::new())),
            other => Err(Error::row(&path, number, wrong("row", "an object", &other))),
        }
    });
    Ok((Box::new(rows), BTreeSet::new()))
}

impl Iterator for Pairs {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(pair) = self.more.pop_front() {
                return Some(Ok(pair));
            }
            let row = match self.first.pop_front().or_else(|| self.rows.next()) {
                Some(Ok(row)) => row,
                Some(Err(error)) => return Some(Err(error)),
                None => match open_one(&self.later.pop_front()?, &self.source) {
                    Ok(Self { path, format, rows, first, unread, .. }) => {
                        (self.path, self.format, self.rows, self.first) = (path, format, rows, first);
                        self.unread.extend(unread);
                        continue;
                    }
                    Err(error) => return Some(Err(error)),
                },
            };
            self.row = row.number;
            match self.read(row) {
                Ok(pairs) => self.more = pairs.into(),
                Err(fault) => return Some(Err(Error::row(&*self.path, self.row, fault))),
            }
        }
    }
}

fn count_tags(text: &str) -> usize {
    text.matches(IMAGE_TAG).count()
}
