//! What a model is asked, and the one interface through which it answers.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::answer::{AnswerRow, Answers};
use crate::error::{AnswerError, Error, Result};
use crate::file;

/// Asks for one word (POPE, GQA).
pub const SHORT_SUFFIX: &str = "\nAnswer the question using a single word or phrase.";
/// Asks for the letter of an option (ScienceQA, MMBench, SEED-Bench).
pub const LETTER_SUFFIX: &str = "\nAnswer with the option's letter from the given choices directly.";
/// Asks for the letter of an option, in Chinese (MMBench-CN).
pub const LETTER_SUFFIX_CN: &str = "\n请直接回答选项字母。";

/// A question's id, a number in some benchmarks and a text in others. Equal if they read the same.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

/// A question's id; `7` and `"7"` are the same id, written back as it was read.
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Anything that answers questions about images: a loaded model, a file of recorded answers, a test.
pub trait Answer {
    /// The name recorded with each answer.
    fn model_id(&self) -> String;

    /// One text for each question of the batch, in its order. Greedy decoding, so that it can be repeated.
    ///
    /// # Errors
    /// Whatever kept the model from answering; the run stops, and goes on from there when it is started again.
    fn answer(&mut self, batch: &[Question]) -> Result<Vec<String>, AnswerError>;
}

impl Answer for Answers {
    fn model_id(&self) -> String {
        Answers::model_id(self)
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<String>, AnswerError> {
        let text = |q: &Question| self.get(&q.id).map(|row| row.text.clone());
        batch
            .iter()
            .map(|q| {
                text(q).ok_or_else(|| format!("{} has no answer to {}", self.path().display(), q.id).into())
            })
            .collect()
    }
}

/// Asks `model` every question, `batch` at a time, and writes LLaVA's answer file to `path` in the questions' order.
///
/// While it runs the answers are in `path` + `.partial`; a run that was stopped goes on after the last whole line there.
/// The file is the same to the byte however often it was stopped, as long as the model answers the same.
/// `progress` hears how many questions are answered.
///
/// # Errors
/// A partial file of other questions or another model, a failing model, a file that cannot be written.
pub fn ask(
    model: &mut dyn Answer,
    questions: &[Question],
    path: &Path,
    batch: usize,
    mut progress: impl FnMut(usize),
) -> Result<Answers> {
    let model_id = model.model_id();
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let io = |source| Error::Io { path: partial.clone(), source };

    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut out = OpenOptions::new().create(true).append(true).open(&partial).map_err(io)?;
    let (done, bytes) = resume(&partial, questions, &model_id)?;
    out.set_len(bytes).map_err(io)?;
    progress(done);

    let mut at = done;
    for batch in questions[done..].chunks(batch.max(1)) {
        let failed = |source| Error::Answer { id: batch[0].id.to_string(), source };
        let texts = model.answer(batch).map_err(failed)?;
        if texts.len() != batch.len() {
            return Err(failed(format!("{} texts for {} questions", texts.len(), batch.len()).into()));
        }
        for (question, text) in batch.iter().zip(texts) {
            out.write_all(line(question, &text, &model_id).as_bytes()).map_err(io)?;
        }
        out.flush().map_err(io)?;
        at += batch.len();
        progress(at);
    }
    out.sync_all().map_err(io)?;
    std::fs::rename(&partial, path).map_err(|source| Error::Io { path: path.into(), source })?;
    Answers::read(path)
}

fn line(question: &Question, text: &str, model_id: &str) -> String {
    let row = AnswerRow {
        prompt: Some(question.recorded_prompt.clone()),
        answer_id: Some(format!("{model_id}-{}", question.id)),
        model_id: Some(model_id.to_owned()),
        metadata: Some(json!({})),
        ..AnswerRow::new(question.id.clone(), text)
    };
    let mut line = serde_json::to_string(&row).expect("an answer row is plain data");
    line.push('\n');
    line
}

/// How many answers a partial file holds, and up to which byte they are whole.
fn resume(partial: &Path, questions: &[Question], model_id: &str) -> Result<(usize, u64)> {
    let bytes = std::fs::read(partial).map_err(|source| Error::Io { path: partial.into(), source })?;
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let text = String::from_utf8_lossy(&bytes[..whole]);
    let mut done = 0;
    for (at, line) in text.lines().enumerate() {
        let other =
            |found: String, expected: String| Error::OtherRun { path: partial.into(), found, expected };
        let value = serde_json::from_str(line).map_err(|e| Error::Malformed {
            path: partial.into(),
            row: at + 1,
            message: e.to_string(),
        })?;
        let row: AnswerRow = file::typed(partial, at + 1, value)?;
        let Some(question) = questions.get(at) else {
            return Err(other(
                format!("{} or more answers", at + 1),
                format!("{} questions", questions.len()),
            ));
        };
        if row.question_id.as_ref() != Some(&question.id)
            || row.prompt.as_ref() != Some(&question.recorded_prompt)
        {
            let found = row.question_id.map_or_else(|| "no id".to_owned(), |id| format!("question {id}"));
            return Err(other(found, format!("question {}", question.id)));
        }
        if row.model_id.as_deref() != Some(model_id) {
            return Err(other(
                format!("model {:?}", row.model_id.unwrap_or_default()),
                format!("model {model_id:?}"),
            ));
        }
        done = at + 1;
    }
    Ok((done, whole as u64))
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
