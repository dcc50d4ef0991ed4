//! Asking a model, and going on after a stop.

use std::collections::BTreeMap;
use std::fs::{OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::answer::{AnswerRow, Answers};
use crate::error::{AnswerError, Error, Result};
use crate::file;
use crate::question::Question;

/// What answers depend on beside the model's name, by name: contents of weights and adapter, template, pictures.
pub type Settings = BTreeMap<String, String>;

/// What a model said to a question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Its text.
    pub text: String,
    /// Whether it was still writing when it had to stop. Kept in the answer's `metadata`.
    pub cut: bool,
}

impl<T: Into<String>> From<T> for Said {
    fn from(text: T) -> Self {
        Self { text: text.into(), cut: false }
    }
}

/// Anything that answers questions about images: a loaded model, a file of recorded answers, a test.
pub trait Answer {
    /// The name recorded with each answer.
    fn model_id(&self) -> String;

    /// What else the answers depend on. It is recorded with each of them, and a run that was stopped goes on only where
    /// all of it is the same. Nothing, by default.
    fn settings(&self) -> Settings {
        Settings::new()
    }

    /// One text for each question of the batch, in its order. Greedy decoding, so that it can be repeated.
    ///
    /// # Errors
    /// Whatever kept the model from answering; the run stops, and goes on from there when it is started again.
    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError>;
}

impl Answer for Answers {
    fn model_id(&self) -> String {
        Answers::model_id(self)
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
        let said =
            |q: &Question| self.get(&q.id).map(|row| Said { text: row.text.clone(), cut: row.is_cut() });
        batch
            .iter()
            .map(|q| {
                said(q).ok_or_else(|| format!("{} has no answer to {}", self.path().display(), q.id).into())
            })
            .collect()
    }
}

/// How many of the questions are answered at `path`, by an earlier run of the same model with the same settings: all of
/// them if that run was finished, the first ones if it was stopped, none if nothing is there. Reads no weights, so that
/// what [`ask`] would refuse can be refused before a model is loaded.
///
/// # Errors
/// A file there that is malformed, or of other questions, another model or other settings: what differs is named.
pub fn answered(path: &Path, questions: &[Question], model_id: &str, settings: &Settings) -> Result<usize> {
    Ok(known(path, questions, model_id, settings)?.0)
}

/// Asks `model` every question, `batch` at a time, and writes LLaVA's answer file to `path` in the questions' order.
///
/// While it runs the answers are in `path` + `.partial`; a run that was stopped goes on after the last whole line there.
/// The file is the same to the byte however often it was stopped, as long as the model answers the same. A finished file
/// of the same run is read, and nothing is asked again. `progress` hears how many questions are answered.
///
/// # Errors
/// What [`answered`] refuses (nothing is overwritten), a failing model, a file that cannot be written.
pub fn ask(
    model: &mut dyn Answer,
    questions: &[Question],
    path: &Path,
    batch: usize,
    mut progress: impl FnMut(usize),
) -> Result<Answers> {
    let (model_id, settings) = (model.model_id(), model.settings());
    let (done, bytes) = known(path, questions, &model_id, &settings)?;
    progress(done);
    if path.exists() {
        return Answers::read(path);
    }
    let partial = partial(path);
    let io = |source| Error::Io { path: partial.clone(), source };
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(io)?;
    }
    let mut out = OpenOptions::new().create(true).append(true).open(&partial).map_err(io)?;
    if let Err(TryLockError::WouldBlock) = out.try_lock() {
        let message =
            format!("{}: another process is writing it; wait, or give another file", partial.display());
        return Err(Error::Option(message));
    }
    out.set_len(bytes).map_err(io)?;

    let mut at = done;
    for batch in questions[done..].chunks(batch.max(1)) {
        let failed = |source| Error::Answer { id: batch[0].id.to_string(), source };
        let said = model.answer(batch).map_err(failed)?;
        if said.len() != batch.len() {
            return Err(failed(format!("{} texts for {} questions", said.len(), batch.len()).into()));
        }
        for (question, said) in batch.iter().zip(said) {
            out.write_all(line(question, &said, &model_id, &settings).as_bytes()).map_err(io)?;
        }
        out.flush().map_err(io)?;
        at += batch.len();
        progress(at);
    }
    out.sync_all().map_err(io)?;
    std::fs::rename(&partial, path).map_err(|source| Error::Io { path: path.into(), source })?;
    Answers::read(path)
}

/// Where answers are while a run goes on.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}

fn line(question: &Question, said: &Said, model_id: &str, settings: &Settings) -> String {
    let mut metadata = serde_json::Map::new();
    if !settings.is_empty() {
        metadata.insert("settings".into(), json!(settings));
    }
    if said.cut {
        metadata.insert("cut".into(), json!(true));
    }
    let row = AnswerRow {
        prompt: Some(question.recorded_prompt.clone()),
        answer_id: Some(format!("{model_id}-{}", question.id)),
        model_id: Some(model_id.to_owned()),
        metadata: Some(Value::Object(metadata)),
        ..AnswerRow::new(question.id.clone(), said.text.as_str())
    };
    let mut line = serde_json::to_string(&row).expect("an answer row is plain data");
    line.push('\n');
    line
}

/// How many answers an earlier run left, and up to which byte of its file they are whole.
fn known(path: &Path, questions: &[Question], model_id: &str, settings: &Settings) -> Result<(usize, u64)> {
    let finished = path.exists();
    let path = if finished { path.to_path_buf() } else { partial(path) };
    if !path.exists() {
        return Ok((0, 0));
    }
    let bytes = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let whole = match finished {
        true => bytes.len(),
        false => bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1),
    };
    let text = String::from_utf8_lossy(&bytes[..whole]);
    let other = |found: String, expected: String| Error::OtherRun { path: path.clone(), found, expected };
    let mut done = 0;
    for (at, line) in text.lines().enumerate() {
        let value = serde_json::from_str(line).map_err(|e| Error::Malformed {
            path: path.clone(),
            row: at + 1,
            message: e.to_string(),
        })?;
        let row: AnswerRow = file::typed(&path, at + 1, value)?;
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
            let found = format!("model {:?}", row.model_id.unwrap_or_default());
            return Err(other(found, format!("model {model_id:?}")));
        }
        let recorded = row.settings();
        let differs =
            recorded.keys().chain(settings.keys()).find(|key| recorded.get(*key) != settings.get(*key));
        if let Some(key) = differs {
            let show =
                |of: &Settings| of.get(key).map_or_else(|| format!("no {key}"), |v| format!("{key} {v}"));
            return Err(other(show(&recorded), show(settings)));
        }
        done = at + 1;
    }
    if finished && done < questions.len() {
        return Err(other(format!("{done} answers"), format!("{} questions", questions.len())));
    }
    Ok((done, whole as u64))
}
