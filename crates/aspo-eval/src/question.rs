//! What a model is asked.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, quote};

/// Asks for one word (POPE, GQA).
pub const SHORT_SUFFIX: &str = "\nAnswer the question using a single word or phrase.";
/// Asks for the letter of an option (ScienceQA, MMBench, SEED-Bench).
pub const LETTER_SUFFIX: &str = "\nAnswer with the option's letter from the given choices directly.";
/// Asks for the letter of an option, in Chinese (MMBench-CN).
pub const LETTER_SUFFIX_CN: &str = "\n请直接回答选项字母。";

/// An id as JSON has it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

/// A question's id, a number in some benchmarks and a text in others; `7` and `"7"` are the same id, written back as it was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Id {
    text: String,
    number: bool,
}

impl From<Written> for Id {
    fn from(written: Written) -> Self {
        match written {
            Written::Number(number) => Self::number(number),
            Written::Text(text) => Self { text, number: false },
        }
    }
}

impl From<Id> for Written {
    fn from(id: Id) -> Self {
        match id.text.parse() {
            Ok(number) if id.number => Self::Number(number),
            _ => Self::Text(id.text),
        }
    }
}

impl Id {
    /// An id that is written as a number.
    pub fn number(number: u64) -> Self {
        Self { text: number.to_string(), number: true }
    }

    /// An id that is written as a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), number: false }
    }

    /// How it reads.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Id {}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text.escape_debug().to_string())
    }
}

/// Where a question's image is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Image {
    /// A file (it need not be there until the question is asked).
    Path(PathBuf),
    /// An encoded image (JPEG or PNG) from inside the benchmark's own file.
    Bytes(Vec<u8>),
}

/// One question of a benchmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its id.
    pub id: Id,
    /// Its image; a few questions of ScienceQA have none.
    pub image: Option<Image>,
    /// The user's turn, suffix included. With an image the model is given `<image>\n` before it.
    pub prompt: String,
    /// What LLaVA's scripts record as `prompt` beside the answer.
    pub recorded_prompt: String,
}

impl Question {
    /// A question about an image, recorded as it is asked.
    pub(crate) fn new(id: Id, image: Option<Image>, prompt: String) -> Self {
        Self { id, image, recorded_prompt: prompt.clone(), prompt }
    }
}

/// An image's name as a benchmark's file gives it: relative and without `..`.
pub(crate) fn image_name(file: &Path, name: &str) -> Result<Image> {
    let relative = Path::new(name);
    if name.is_empty()
        || relative.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir))
    {
        return Err(Error::UnsafePath { path: file.into(), name: quote(name) });
    }
    Ok(Image::Path(relative.into()))
}

/// The questions with their images' names below `images`, else below the first of the published folders that is there.
pub(crate) fn placed(
    questions: &[Question],
    images: Option<&Path>,
    root: &Path,
    published: &[&str],
) -> Vec<Question> {
    let found = || published.iter().map(|name| root.join(name)).find(|path| path.is_dir());
    let folder = match images {
        Some(folder) => folder.to_path_buf(),
        None => found().unwrap_or_else(|| root.join(published[0])),
    };
    let mut questions = questions.to_vec();
    for question in &mut questions {
        if let Some(Image::Path(path)) = &mut question.image {
            *path = folder.join(&path);
        }
    }
    questions
}

/// A question's text without what its asking added, to compare two recordings of one question.
///
/// POPE's published questions write "imange" in 44 places where its label files have "image".
pub(crate) fn core_text(prompt: &str) -> String {
    let mut text = prompt.replace("<image>", "").replace("imange", "image");
    for suffix in [SHORT_SUFFIX, LETTER_SUFFIX, LETTER_SUFFIX_CN] {
        text = text.replace(suffix, "");
    }
    text.trim().to_owned()
}
