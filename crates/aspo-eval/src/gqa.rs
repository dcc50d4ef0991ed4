//! GQA test-dev: questions about relations in an image, answered with one word.
//!
//! Published files: `llava_gqa_testdev_balanced.jsonl` (LLaVA's questions) and `testdev_balanced_questions.json` (GQA's
//! own, with the answers). Scored as LLaVA's `convert_gqa_for_eval.py` and GQA's `eval.py` do.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::Answers;
use crate::error::{Error, Result};
use crate::file::{self, Record};
use crate::question::{self, Id, Question, SHORT_SUFFIX};
use crate::share::Share;

const NAME: &str = "gqa";
const QUESTIONS: &[&str] = &["llava_gqa_testdev_balanced.jsonl", "../llava_gqa_testdev_balanced.jsonl"];
const LABELS: &[&str] = &[
    "testdev_balanced_questions.json",
    "data/testdev_balanced_questions.json",
    "data/questions1.2/testdev_balanced_questions.json",
];

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Id,
    image: String,
    text: String,
    answer: Option<String>,
}

#[derive(Deserialize)]
struct LabelRow {
    answer: String,
    question: Option<String>,
    #[serde(rename = "imageId")]
    image_id: Option<String>,
    types: Option<Types>,
}

#[derive(Deserialize)]
struct Types {
    structural: Option<String>,
    semantic: Option<String>,
}

/// GQA's label, and the kinds of question that GQA reports.
#[derive(Debug)]
struct Label {
    answer: String,
    structural: Option<String>,
    semantic: Option<String>,
}

/// GQA's files.
#[derive(Debug)]
pub struct Gqa {
    folder: PathBuf,
    questions: Vec<Question>,
    labels: Vec<Label>,
}

/// GQA's figures, in percent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct GqaScores {
    /// The headline: exact matches among all questions; none if every answer is empty.
    pub accuracy: Option<f64>,
    /// Questions.
    pub total: usize,
    /// Exact matches.
    pub correct: usize,
    /// Answers that are empty.
    pub unparsable: usize,
    /// Accuracy on yes/no and either/or questions (where GQA's own file tells).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub binary: Option<f64>,
    /// Accuracy on open questions (where GQA's own file tells).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<f64>,
    /// Accuracy by the question's structure: query, verify, logical, choose, compare.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_structure: BTreeMap<String, Share>,
    /// Accuracy by what is asked for: obj, attr, cat, rel, global.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_semantic: BTreeMap<String, Share>,
}

impl Gqa {
    /// Reads a folder with LLaVA's question file, GQA's, or both, or one of the two files.
    /// Labels come from GQA's file, else from a column `answer` of the question file.
    ///
    /// # Errors
    /// Files that are missing or malformed, a question twice, a question without a label.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let is = |extension: &str| data.is_file() && data.extension().is_some_and(|e| e == extension);
        let question_file = if is("jsonl") { Some(data.into()) } else { file::find(&folder, QUESTIONS) };
        let label_file = if is("json") { Some(data.into()) } else { file::find(&folder, LABELS) };
        let labelled: Option<BTreeMap<String, LabelRow>> =
            label_file.as_deref().map(|path| Ok(file::entries(path)?.into_iter().collect())).transpose()?;

        let mut questions = Vec::new();
        let mut labels = Vec::new();
        match (&question_file, &labelled) {
            (None, None) => {
                file::find_or(NAME, &folder, &[QUESTIONS[0], LABELS[0]])?;
            }
            (Some(path), _) => {
                let mut seen = HashSet::new();
                for Record { row, value } in file::records::<QuestionRow>(path)? {
                    let id = value.question_id;
                    if !seen.insert(id.as_str().to_owned()) {
                        return Err(Error::DuplicateId { path: path.clone(), row, id: id.to_string() });
                    }
                    let label = match (labelled.as_ref().map(|all| all.get(id.as_str())), value.answer) {
                        (Some(Some(label)), _) => Label::new(label),
                        (_, Some(answer)) => Label { answer, structural: None, semantic: None },
                        (Some(None), None) => {
                            return Err(Error::UnknownId { path: path.clone(), row, id: id.to_string() });
                        }
                        (None, None) => {
                            return Err(Error::MissingColumn {
                                path: path.clone(),
                                row,
                                column: "answer".into(),
                            });
                        }
                    };
                    let image = question::image_name(path, &value.image)?;
                    questions.push(Question::new(id, Some(image), value.text));
                    labels.push(label);
                }
                if let (Some(path), Some(all)) = (label_file, &labelled)
                    && all.len() != labels.len()
                {
                    let (found, expected) = (all.len(), labels.len());
                    return Err(Error::Count { path, what: "labels".into(), found, expected });
                }
            }
            (None, Some(all)) => {
                let path = label_file.as_deref().unwrap_or(&folder);
                for (at, (id, label)) in all.iter().enumerate() {
                    let lacks = |column: &str| Error::MissingColumn {
                        path: path.into(),
                        row: at + 1,
                        column: column.into(),
                    };
                    let text = label.question.as_ref().ok_or_else(|| lacks("question"))?;
                    let image = label.image_id.as_ref().ok_or_else(|| lacks("imageId"))?;
                    let image = question::image_name(path, &format!("{image}.jpg"))?;
                    questions.push(Question::new(Id::text(id), Some(image), format!("{text}{SHORT_SUFFIX}")));
                    labels.push(Label::new(label));
                }
            }
        }
        if questions.is_empty() {
            return Err(Error::Empty { path: question_file.unwrap_or(folder) });
        }
        Ok(Self { folder, questions, labels })
    }

    /// Every question; images below `images`, else in `data/images/` or `images/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        question::placed(&self.questions, images, &self.folder, &["data/images", "images"])
    }

    /// Scores answers: [`normalize`]d, they must equal the label.
    ///
    /// # Errors
    /// Answers that are missing, unknown, or recorded with another question.
    pub fn score(&self, answers: &Answers) -> Result<GqaScores> {
        let matched = answers.matched(&self.questions, |_| false)?;
        let mut all = Share::default();
        let (mut binary, mut open) = (Share::default(), Share::default());
        let mut scores = GqaScores::default();
        for (row, label) in matched.iter().zip(&self.labels) {
            let text = normalize(&row.text);
            let right = text == label.answer;
            all.count(right);
            scores.unparsable += usize::from(text.trim().is_empty());
            if let Some(kind) = &label.structural {
                (if kind == "query" { &mut open } else { &mut binary }).count(right);
                scores.by_structure.entry(kind.clone()).or_default().count(right);
            }
            if let Some(kind) = &label.semantic {
                scores.by_semantic.entry(kind.clone()).or_default().count(right);
            }
        }
        scores.accuracy = all.percent().filter(|_| scores.unparsable < all.total);
        scores.total = all.total;
        scores.correct = all.correct;
        scores.binary = binary.percent();
        scores.open = open.percent();
        Ok(scores)
    }
}

impl Label {
    fn new(row: &LabelRow) -> Self {
        let types = row.types.as_ref();
        Self {
            answer: row.answer.clone(),
            structural: types.and_then(|t| t.structural.clone()),
            semantic: types.and_then(|t| t.semantic.clone()),
        }
    }
}

/// An answer as GQA compares it: without "." at its end, in lower case.
pub fn normalize(text: &str) -> String {
    text.trim_end_matches('.').to_lowercase()
}
