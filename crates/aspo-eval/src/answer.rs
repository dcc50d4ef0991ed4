//! Recorded answers: LLaVA's JSON lines, and the other shapes in which the benchmarks publish answers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result, quote};
use crate::file::{self, Record};
use crate::question::{Id, Question, core_text};

/// One answer, with the fields of LLaVA's answer files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerRow {
    /// The question's id. A file without ids is in the order of its questions and repeats their text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question_id: Option<Id>,
    /// The question as it was recorded with the answer; where present it is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// What the model wrote.
    pub text: String,
    /// The answer's own id, which judges' reviews repeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_id: Option<String>,
    /// The model's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// Room for notes; LLaVA writes `{}`, [`ask`](crate::ask()) what the answer depends on and whether it was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Value>,
    /// The label, in ScienceQA's result files; where present it is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ground_truth: Option<String>,
    /// Whether the question carries an image, in ScienceQA's result files; where present it is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_multimodal: Option<bool>,
}

const OTHER_NAMES: [(&str, &[&str]); 3] = [
    ("question_id", &["questionId"]),
    ("prompt", &["question"]),
    ("text", &["prediction", "pred", "answer"]),
];

/// ScienceQA's result file, as LLaVA's `eval_science_qa.py` writes it.
#[derive(Deserialize)]
struct ResultFile {
    correct: Vec<Value>,
    incorrect: Vec<Value>,
}

/// A file of recorded answers, in the file's order.
///
/// Answers are matched to questions by id, so their order does not matter.
#[derive(Debug, Clone)]
pub struct Answers {
    path: PathBuf,
    rows: Vec<Record<AnswerRow>>,
    by_id: HashMap<String, usize>,
}

impl Answers {
    /// Reads answers in any of the published shapes:
    ///
    /// - LLaVA's JSON lines `{"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}`,
    ///   and the upload shapes `{"question_id", "prediction"}` (SEED-Bench), `[{"questionId", "prediction"}]` (GQA);
    /// - `{"id": "text", …}` (MM-Vet, SHR);
    /// - ScienceQA's result file `{"correct": […], "incorrect": […]}`;
    /// - POPE's own JSON lines `{"question", "answer"}`, without ids, in the order of the label file.
    ///
    /// # Errors
    /// A record that is truncated, lacks its text, or repeats an id.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let rows = match file::values(path)?.as_slice() {
            [Record { value: Value::Object(one), .. }]
                if one.contains_key("correct") && one.contains_key("incorrect") =>
            {
                let file: ResultFile = file::document(path)?;
                let rows = file.correct.into_iter().chain(file.incorrect);
                rows.enumerate().map(|(at, value)| Self::row(path, at + 1, value)).collect::<Result<_>>()?
            }
            [Record { value: Value::Object(one), .. }] if is_map(one) => file::entries::<Value>(path)?
                .into_iter()
                .enumerate()
                .map(|(at, (id, text))| match text {
                    Value::String(text) => {
                        Ok(Record { row: at + 1, value: AnswerRow::new(Id::text(id), text) })
                    }
                    other => Err(Error::Value {
                        path: path.into(),
                        row: at + 1,
                        column: "answer",
                        found: quote(&other.to_string()),
                        expected: "a text for each id".into(),
                    }),
                })
                .collect::<Result<_>>()?,
            _ => file::records::<Value>(path)?
                .into_iter()
                .map(|r| Self::row(path, r.row, r.value))
                .collect::<Result<_>>()?,
        };
        Self::index(path.into(), rows)
    }

    /// Answers that are in memory already; `name` stands for the file in messages.
    ///
    /// # Errors
    /// An id that is there twice.
    pub fn from_rows(name: impl Into<PathBuf>, rows: Vec<AnswerRow>) -> Result<Self> {
        let rows = rows.into_iter().enumerate().map(|(at, value)| Record { row: at + 1, value }).collect();
        Self::index(name.into(), rows)
    }

    fn row(path: &Path, row: usize, value: Value) -> Result<Record<AnswerRow>> {
        let Value::Object(mut object) = value else {
            let expected = "an object with question_id and text".into();
            let found = quote(&value.to_string());
            return Err(Error::Value { path: path.into(), row, column: "record", found, expected });
        };
        // The other names under which the benchmarks publish the same columns.
        for (column, names) in OTHER_NAMES {
            if !object.contains_key(column)
                && let Some(value) = names.iter().find_map(|name| object.remove(*name))
            {
                object.insert(column.to_owned(), value);
            }
        }
        let value = Value::Object(object);
        let mut value: AnswerRow = file::typed(path, row, value)?;
        if value.question_id.is_none() && value.prompt.is_none() {
            return Err(Error::MissingColumn { path: path.into(), row, column: "question_id".into() });
        }
        // LLaVA's scorer writes this pair for a question that was never answered.
        if value.prompt.as_deref() == Some("Unknown") && value.text == "FAILED" {
            value.prompt = None;
        }
        Ok(Record { row, value })
    }

    fn index(path: PathBuf, rows: Vec<Record<AnswerRow>>) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::Empty { path });
        }
        let mut by_id = HashMap::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let Some(id) = &row.value.question_id else { continue };
            if by_id.insert(id.as_str().to_owned(), at).is_some() {
                return Err(Error::DuplicateId { path, row: row.row, id: id.to_string() });
            }
        }
        if !by_id.is_empty() && by_id.len() < rows.len() {
            let row = rows.iter().find(|r| r.value.question_id.is_none()).map_or(0, |r| r.row);
            return Err(Error::MissingColumn { path, row, column: "question_id".into() });
        }
        Ok(Self { path, rows, by_id })
    }

    /// The file they were read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The records, in the file's order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &AnswerRow> {
        self.rows.iter().map(|r| &r.value)
    }

    /// The answer to a question, by its id.
    pub fn get(&self, id: &Id) -> Option<&AnswerRow> {
        self.by_id.get(id.as_str()).map(|&at| &self.rows[at].value)
    }

    /// The same answers under other ids.
    pub(crate) fn renamed(&self, name: impl Fn(&str) -> Id) -> Result<Self> {
        let mut rows = self.rows.clone();
        for row in &mut rows {
            if let Some(id) = &mut row.value.question_id {
                *id = name(id.as_str());
            }
        }
        Self::index(self.path.clone(), rows)
    }

    /// The record of a question's answer, counted from 1 (0: none).
    pub(crate) fn row_of(&self, id: &Id) -> usize {
        self.by_id.get(id.as_str()).map_or(0, |&at| self.rows[at].row)
    }

    /// How many answers were [cut](AnswerRow::is_cut).
    pub fn cut(&self) -> usize {
        self.rows().filter(|row| row.is_cut()).count()
    }

    /// The model's name: the records' `model_id`, else the file's name.
    pub fn model_id(&self) -> String {
        match self.rows.first().and_then(|r| r.value.model_id.clone()) {
            Some(name) => name,
            None => self.path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned()),
        }
    }

    /// One answer for each question, in the questions' order.
    ///
    /// `others` says which further ids the benchmark has; answers to them are passed over.
    ///
    /// # Errors
    /// A question without an answer, an answer to no question, an answer recorded with another question's text.
    pub fn matched(&self, questions: &[Question], others: impl Fn(&Id) -> bool) -> Result<Vec<&AnswerRow>> {
        if self.by_id.is_empty() {
            return self.matched_in_order(questions);
        }
        let mut used = 0;
        let mut missing = 0;
        let mut first = None;
        let mut matched = Vec::with_capacity(questions.len());
        for question in questions {
            match self.by_id.get(question.id.as_str()) {
                Some(&at) => {
                    used += 1;
                    let row = &self.rows[at];
                    self.check_prompt(row, question)?;
                    matched.push(&row.value);
                }
                None => {
                    missing += 1;
                    first.get_or_insert(&question.id);
                }
            }
        }
        if used < self.rows.len() {
            let known: std::collections::HashSet<&str> = questions.iter().map(|q| q.id.as_str()).collect();
            for row in &self.rows {
                if let Some(id) = &row.value.question_id
                    && !known.contains(id.as_str())
                    && !others(id)
                {
                    return Err(Error::UnknownId {
                        path: self.path.clone(),
                        row: row.row,
                        id: id.to_string(),
                    });
                }
            }
        }
        match first {
            Some(first) => Err(Error::Missing {
                path: self.path.clone(),
                missing,
                total: questions.len(),
                first: first.to_string(),
            }),
            None => Ok(matched),
        }
    }

    /// Answers without ids: as many as questions, in their order, each with its question's text.
    fn matched_in_order(&self, questions: &[Question]) -> Result<Vec<&AnswerRow>> {
        if self.rows.len() != questions.len() {
            let (path, what) = (self.path.clone(), "answers without ids".into());
            return Err(Error::Count { path, what, found: self.rows.len(), expected: questions.len() });
        }
        for (row, question) in self.rows.iter().zip(questions) {
            self.check_prompt(row, question)?;
        }
        Ok(self.rows.iter().map(|r| &r.value).collect())
    }

    fn check_prompt(&self, row: &Record<AnswerRow>, question: &Question) -> Result<()> {
        let Some(prompt) = &row.value.prompt else { return Ok(()) };
        let (found, expected) = (core_text(prompt), core_text(&question.prompt));
        if found.is_empty() || found.contains(&expected) || expected.contains(&found) {
            return Ok(());
        }
        Err(Error::OtherOrder {
            path: self.path.clone(),
            row: row.row,
            id: question.id.to_string(),
            found: quote(&found),
            expected: quote(&expected),
        })
    }
}

impl AnswerRow {
    /// An answer with nothing but its id and text.
    pub fn new(id: Id, text: impl Into<String>) -> Self {
        Self {
            question_id: Some(id),
            prompt: None,
            text: text.into(),
            answer_id: None,
            model_id: None,
            metadata: None,
            ground_truth: None,
            is_multimodal: None,
        }
    }

    /// What [`ask`](crate::ask()) recorded of the run.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        let recorded = self.metadata.as_ref().and_then(|notes| notes.get("settings")).cloned();
        recorded.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default()
    }

    /// Whether the model was still writing when it had to stop, where the file tells.
    pub fn is_cut(&self) -> bool {
        self.metadata.as_ref().is_some_and(|notes| notes.get("cut") == Some(&Value::Bool(true)))
    }
}

/// One object alone is a map from id to text, unless it has the columns of a record.
fn is_map(object: &serde_json::Map<String, Value>) -> bool {
    !["question_id", "questionId", "question", "text", "prompt"].iter().any(|key| object.contains_key(*key))
}
