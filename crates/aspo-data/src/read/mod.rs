//! Files of preference pairs, read one row at a time.
//!
//! [`read_pairs`] looks at the first row to tell the format; [`read_pairs_as`] is told. Memory does not grow with the
//! file. A faulty row is an [`Error::Row`] and the next row follows, so that a caller may skip and
//! count or stop at the first.
//!
//! | format | keys | container |
//! |---|---|---|
//! | [`Format::Trl`] | `prompt`, `chosen`, `rejected` as texts or messages; without `prompt` the shared beginning is it; `images` or `image` | JSON lines, JSON list, parquet |
//! | [`Format::Seva`] | `question`, `chosen`, `reject`, `image_id` | JSON list |
//! | [`Format::RlaifV`] | `question`, `chosen`, `rejected`, `image {bytes, path}`; RLHF-V's `text` holds the first three as JSON | parquet, JSON |
//! | [`Format::LlamaFactory`] | `conversations`, `chosen {from, value}`, `rejected`, `images`; or `instruction`, `input`, `chosen`, `rejected` | JSON list |
//! | [`Format::Llava`] | `id`, `image`, `conversations`: instructions without preference, see [`read_conversations`] | JSON list |

mod chat;
#[cfg(feature = "parquet")]
mod footer;
mod llama_factory;
mod llava;
#[cfg(feature = "parquet")]
mod parquet;
mod rlaif;
mod rows;
mod seva;
mod trl;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, FileFault, Result, RowFault};
use crate::files::check_reference;
use crate::pair::{ImageSource, Pair};

pub use llava::{Conversation, Conversations, read_conversations};

/// Longest row of a JSON file in bytes; a longer one is refused without being held.
pub const MAX_ROW_BYTES: usize = 4 << 20;
/// Most images of one row.
pub const MAX_IMAGES: usize = 64;

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
    /// LLaVA's instructions: no preference inside.
    Llava,
}

impl Format {
    /// The format of a row by its keys.
    pub fn of(row: &Map<String, Value>) -> Option<Self> {
        let has = |key| row.contains_key(key);
        match () {
            () if has("reject") => Some(Self::Seva),
            () if has("conversations") && has("chosen") && has("rejected") => Some(Self::LlamaFactory),
            () if has("conversations") => Some(Self::Llava),
            () if has("instruction") && has("chosen") && has("rejected") => Some(Self::LlamaFactory),
            () if has("question") && has("chosen") && has("rejected") => Some(Self::RlaifV),
            () if has("text") && !has("chosen") && (has("image") || has("image_path")) => Some(Self::RlaifV),
            () if has("chosen") && has("rejected") => Some(Self::Trl),
            () => None,
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trl => "trl",
            Self::Seva => "seva",
            Self::RlaifV => "rlaif-v",
            Self::LlamaFactory => "llama-factory",
            Self::Llava => "llava",
        })
    }
}

/// A row of any container: JSON values, and the images that a parquet table carries beside them.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) number: usize,
    pub(crate) keys: Map<String, Value>,
    pub(crate) images: Vec<ImageSource>,
}

type Rows = Box<dyn Iterator<Item = Result<Row>> + Send>;

/// The pairs of a file, one at a time.
pub struct Pairs {
    path: PathBuf,
    format: Format,
    rows: Rows,
    first: Option<Result<Row>>,
    row: usize,
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
    /// The format recognised or given.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Number of the row that the pair given last came from, counted as [`Error::Row`] counts; 0 before the first.
    pub fn row(&self) -> usize {
        self.row
    }
}

/// Reads a file whose format is told by its first sound row.
///
/// # Errors
/// [`Error::File`] when the file is empty, of no known format, no text in UTF-8, or holds no preference.
pub fn read_pairs(path: &Path) -> Result<Pairs> {
    open(path, None)
}

/// Reads a file of a given format.
///
/// # Errors
/// [`Error::File`] when the file is empty, neither JSON nor parquet, or no text in UTF-8.
pub fn read_pairs_as(path: &Path, format: Format) -> Result<Pairs> {
    open(path, Some(format))
}

fn open(path: &Path, format: Option<Format>) -> Result<Pairs> {
    let mut rows = open_rows(path)?;
    let first = rows.next();
    let format = match (&first, format) {
        (_, Some(format)) => format,
        (Some(Ok(row)), None) => Format::of(&row.keys).ok_or_else(|| {
            let keys = key_list(&row.keys);
            Error::file(path, FileFault::Format { keys })
        })?,
        (None, None) => return Err(Error::file(path, FileFault::Empty)),
        // The first row is faulty: look further, in a second pass, so that its fault is still reported.
        (Some(Err(_)), None) => {
            let sound =
                open_rows(path)?.take(1000).find_map(|row| row.ok().and_then(|row| Format::of(&row.keys)));
            match (sound, first) {
                (Some(format), first) => {
                    return Ok(Pairs { path: path.to_owned(), format, rows, first, row: 0 });
                }
                (None, Some(Err(error))) => return Err(error),
                (None, _) => return Err(Error::file(path, FileFault::Empty)),
            }
        }
    };
    if format == Format::Llava {
        let fault = FileFault::Unsupported(
            "LLaVA conversations hold no chosen and rejected answers: read them as instructions and generate pairs".to_owned(),
        );
        return Err(Error::file(path, fault));
    }
    Ok(Pairs { path: path.to_owned(), format, rows, first, row: 0 })
}

/// JSON or parquet, by content.
fn open_rows(path: &Path) -> Result<Rows> {
    let mut start = [0; 4];
    let read = File::open(path)
        .and_then(|file| file.take(4).read(&mut start))
        .map_err(|source| Error::io(path, source))?;
    if read == 4 && &start == b"PAR1" {
        #[cfg(feature = "parquet")]
        return Ok(Box::new(parquet::ParquetRows::open(path)?));
        #[cfg(not(feature = "parquet"))]
        return Err(Error::file(
            path,
            FileFault::Unsupported("built without the feature `parquet`".to_owned()),
        ));
    }
    let path = path.to_owned();
    let rows = rows::JsonRows::open(&path)?;
    Ok(Box::new(rows.map(move |row| {
        let (number, value) = row?;
        match value {
            Value::Object(keys) => Ok(Row { number, keys, images: Vec::new() }),
            other => Err(Error::row(&path, number, wrong("row", "an object", &other))),
        }
    })))
}

impl Iterator for Pairs {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.first.take().or_else(|| self.rows.next())?;
        Some(row.and_then(|row| {
            let number = row.number;
            self.row = number;
            let pair = match self.format {
                Format::Trl => trl::pair(row),
                Format::Seva => seva::pair(row),
                Format::RlaifV => rlaif::pair(row),
                Format::LlamaFactory | Format::Llava => llama_factory::pair(row),
            };
            pair.and_then(checked).map_err(|fault| Error::row(&self.path, number, fault))
        }))
    }
}

/// What every format must give: texts that are there, tags that agree with the images, references that stay inside.
fn checked(mut pair: Pair) -> Result<Pair, RowFault> {
    take_tags(&mut pair)?;
    for (key, text) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        if text.trim().is_empty() {
            return Err(RowFault::Empty { key });
        }
    }
    if pair.prompt.trim().is_empty() && pair.images.is_empty() {
        return Err(RowFault::Empty { key: "prompt" });
    }
    Ok(pair)
}

/// Takes the `<image>` tags out of the prompt, with the line break after each. LLaVA trims a text it takes a tag from.
fn take_tags(pair: &mut Pair) -> Result<(), RowFault> {
    let images = pair.images.len();
    let tags: usize =
        pair.history.iter().map(|turn| &turn.user).chain([&pair.prompt]).map(|text| count_tags(text)).sum();
    if tags > 0 && tags != images {
        return Err(RowFault::ImageCount { tags, images });
    }
    if images > MAX_IMAGES {
        let found = format!("{images} images");
        return Err(RowFault::Type { key: "images".to_owned(), expected: "at most 64 images", found });
    }
    if tags > 0 {
        for text in pair.history.iter_mut().map(|turn| &mut turn.user).chain([&mut pair.prompt]) {
            if count_tags(text) > 0 {
                *text = text.replace("<image>\n", "").replace("<image>", "").trim().to_owned();
            }
        }
    }
    for image in &pair.images {
        if let ImageSource::Path(path) = image {
            check_reference(path).map_err(|error| match error {
                Error::ImagePath { reference, why } => RowFault::ImagePath { reference, why },
                other => RowFault::Json(other.to_string()),
            })?;
        }
    }
    Ok(())
}

fn count_tags(text: &str) -> usize {
    text.matches("<image>").count()
}

fn key_list(keys: &Map<String, Value>) -> String {
    let mut names: Vec<&str> = keys.keys().map(String::as_str).take(20).collect();
    names.sort_unstable();
    names.join(", ").chars().take(300).collect()
}

fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(text) => format!("the text {:?}", text.chars().take(40).collect::<String>()),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(keys) => format!("an object with {}", key_list(keys)),
    }
}

fn wrong(key: &str, expected: &'static str, found: &Value) -> RowFault {
    RowFault::Type { key: key.to_owned(), expected, found: kind(found) }
}

impl Row {
    fn get(&self, key: &'static str) -> Result<&Value, RowFault> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Err(RowFault::Missing { key, found: key_list(&self.keys) }),
            Some(value) => Ok(value),
        }
    }

    fn text(&self, key: &'static str) -> Result<String, RowFault> {
        match self.get(key)? {
            Value::String(text) => Ok(text.clone()),
            other => Err(wrong(key, "a text", other)),
        }
    }

    fn optional_text(&self, key: &'static str) -> Result<Option<String>, RowFault> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(wrong(key, "a text", other)),
        }
    }

    /// `id`, `question_id` or `idx`, else the row number.
    fn id(&self) -> String {
        ["id", "question_id", "idx"]
            .iter()
            .find_map(|key| match self.keys.get(*key) {
                Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
                Some(Value::Number(number)) => Some(number.to_string()),
                _ => None,
            })
            .unwrap_or_else(|| self.number.to_string())
    }

    /// `images` or `image`: a path, a list of paths, or objects with `path`; or what the container carries.
    fn take_images(&mut self) -> Result<Vec<ImageSource>, RowFault> {
        let mut images = std::mem::take(&mut self.images);
        if !images.is_empty() {
            return Ok(images);
        }
        for key in ["images", "image"] {
            let items = match self.keys.remove(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(items)) => items,
                Some(item) => vec![item],
            };
            for item in items {
                match item {
                    Value::String(path) => images.push(ImageSource::Path(path)),
                    Value::Object(ref object) => match object.get("path") {
                        Some(Value::String(path)) => images.push(ImageSource::Path(path.clone())),
                        _ => return Err(wrong(key, "a path or an object with `path`", &item)),
                    },
                    other => return Err(wrong(key, "a path", &other)),
                }
            }
            break;
        }
        Ok(images)
    }
}
