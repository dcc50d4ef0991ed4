//! ScienceQA-IMG: school science with options, over the questions that carry an image.
//!
//! Published files: `llava_test_CQM-A.json` (LLaVA's questions), `pid_splits.json` and `problems.json` (ScienceQA's).
//! Scored as LLaVA's `eval_science_qa.py` does.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::Answers;
use crate::choice::science_qa_letter;
use crate::error::{Error, Result, quote};
use crate::file::{self, Record};
use crate::option::LETTERS;
use crate::option::option_letter;
use crate::question::{self, Id, LETTER_SUFFIX, Question};
use crate::share::Share;

const NAME: &str = "science-qa";

#[derive(Deserialize)]
struct QuestionRow {
    id: Id,
    image: Option<String>,
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: String,
}

#[derive(Deserialize)]
struct Splits {
    test: Vec<Id>,
}

#[derive(Deserialize)]
struct Problem {
    choices: Vec<String>,
}

/// The right letter, and the texts of the options.
#[derive(Debug)]
struct Label {
    letter: char,
    options: Vec<String>,
    multimodal: bool,
}

/// ScienceQA's files.
#[derive(Debug)]
pub struct ScienceQa {
    folder: PathBuf,
    questions: Vec<Question>,
    labels: Vec<Label>,
}

/// ScienceQA's figures, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScienceQaScores {
    /// The headline: accuracy over the questions that carry an image; none if no answer to them could be read.
    pub image_accuracy: Option<f64>,
    /// Right answers among those.
    pub image_correct: usize,
    /// Questions that carry an image.
    pub image_total: usize,
    /// Accuracy over all questions; none if no answer could be read.
    pub accuracy: Option<f64>,
    /// Right answers.
    pub correct: usize,
    /// Questions.
    pub total: usize,
    /// Answers from which no letter could be read by LLaVA's rule, which is strict; they are wrong.
    pub unparsable: usize,
    /// The questions with an image again, their answers read as [MMBench's](option_letter): what the form of the letters
    /// costs.
    pub image_by_mmbench_rule: Share,
}

impl ScienceQa {
    /// Reads a folder, or the question file in it. `pid_splits.json`, where it is, must name the same questions.
    /// The number of options is that of `problems.json`, where it is, else of the lines "A. ", "B. ", … of the question.
    ///
    /// # Errors
    /// Files that are missing or malformed, a question twice, a label that is no option.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let path = match data.is_file() {
            true => data.to_path_buf(),
            false => file::find_or(NAME, &folder, &["llava_test_CQM-A.json"])?,
        };
        let problems: Option<HashMap<String, Problem>> = file::find(&folder, &["problems.json"])
            .map(|path| Ok(file::entries(&path)?.into_iter().collect()))
            .transpose()?;

        let mut questions = Vec::new();
        let mut labels = Vec::new();
        let mut ids = HashSet::new();
        for Record { row, value } in file::records::<QuestionRow>(&path)? {
            let id = value.id;
            if !ids.insert(id.as_str().to_owned()) {
                return Err(Error::DuplicateId { path, row, id: id.to_string() });
            }
            let [human, gpt, ..] = value.conversations.as_slice() else {
                return Err(Error::MissingColumn { path, row, column: "conversations".into() });
            };
            let choices = match problems.as_ref().map(|all| all.get(id.as_str())) {
                Some(Some(problem)) => problem.choices.clone(),
                Some(None) => return Err(Error::UnknownId { path, row, id: id.to_string() }),
                None => options_of(&human.value),
            };
            let bad = |column, text: &str, expected: String| Error::Value {
                path: path.clone(),
                row,
                column,
                found: quote(text),
                expected,
            };
            if choices.is_empty() || choices.len() > LETTERS.len() {
                return Err(bad(
                    "conversations",
                    &human.value,
                    "a question with options \"A. …\" to at most \"E. …\"".into(),
                ));
            }
            let options = &LETTERS[..choices.len()];
            let letter = match gpt.value.chars().next() {
                Some(c) if options.contains(&c) && gpt.value.len() == 1 => c,
                _ => return Err(bad("conversations", &gpt.value, format!("a letter of {options:?}"))),
            };
            let image = value.image.map(|name| question::image_name(&path, &name)).transpose()?;
            let text = human.value.replace("<image>", "");
            let prompt = format!("{}{LETTER_SUFFIX}", text.trim());
            let recorded_prompt = if image.is_some() { format!("<image>\n{prompt}") } else { prompt.clone() };
            let multimodal = human.value.contains("<image>");
            labels.push(Label { letter, options: choices, multimodal });
            questions.push(Question { id, image, prompt, recorded_prompt });
        }
        if let Some(path) = file::find(&folder, &["pid_splits.json"]) {
            check_split(&path, &ids)?;
        }
        Ok(Self { folder, questions, labels })
    }

    /// Every question; images below `images`, else in `images/test/` or `test/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        question::placed(&self.questions, images, &self.folder, &["images/test", "test"])
    }

    /// Scores answers, from LLaVA's answer file or from a result file, whose own verdicts are not trusted.
    ///
    /// # Errors
    /// Answers that are missing, unknown, recorded with another question, or beside another label than the question's.
    pub fn score(&self, answers: &Answers) -> Result<ScienceQaScores> {
        let matched = answers.matched(&self.questions, |_| false)?;
        let (mut all, mut image, mut freely) = (Share::default(), Share::default(), Share::default());
        let (mut unparsable, mut image_unparsable) = (0, 0);
        for ((answer, label), question) in matched.iter().zip(&self.labels).zip(&self.questions) {
            let same_truth = answer.ground_truth.as_ref().is_none_or(|t| *t == label.letter.to_string());
            if !same_truth || answer.is_multimodal.is_some_and(|m| m != label.multimodal) {
                return Err(Error::OtherOrder {
                    path: answers.path().into(),
                    row: answers.row_of(&question.id),
                    id: question.id.to_string(),
                    found: format!("label {:?}, image {:?}", answer.ground_truth, answer.is_multimodal),
                    expected: format!("label {}, image {}", label.letter, label.multimodal),
                });
            }
            let letter = science_qa_letter(&answer.text);
            unparsable += usize::from(letter.is_none());
            let right = letter == Some(label.letter);
            all.count(right);
            if label.multimodal {
                image.count(right);
                image_unparsable += usize::from(letter.is_none());
                freely.count(option_letter(&answer.text, &label.options) == Some(label.letter));
            }
        }
        Ok(ScienceQaScores {
            image_accuracy: image.percent().filter(|_| image_unparsable < image.total),
            image_correct: image.correct,
            image_total: image.total,
            accuracy: all.percent().filter(|_| unparsable < all.total),
            correct: all.correct,
            total: all.total,
            unparsable,
            image_by_mmbench_rule: freely,
        })
    }
}

/// The texts in the lines "A. …", "B. …", … that end a question.
fn options_of(question: &str) -> Vec<String> {
    let lines: Vec<&str> = question.split('\n').collect();
    let Some(first) = lines.iter().rposition(|line| line.starts_with("A. ")) else { return Vec::new() };
    let mut options = Vec::new();
    for line in &lines[first..] {
        let letter = LETTERS.get(options.len());
        let text = letter.and_then(|letter| line.strip_prefix(*letter)?.strip_prefix(". "));
        options.extend(text.map(str::to_owned));
    }
    options
}

/// The questions are those of the test split, each once.
fn check_split(path: &Path, ids: &HashSet<String>) -> Result<()> {
    let splits: Splits = file::document(path)?;
    let mut seen = HashSet::new();
    for (at, id) in splits.test.iter().enumerate() {
        let row = at + 1;
        if !seen.insert(id.as_str()) {
            return Err(Error::DuplicateId { path: path.into(), row, id: id.to_string() });
        }
        if !ids.contains(id.as_str()) {
            return Err(Error::UnknownId { path: path.into(), row, id: id.to_string() });
        }
    }
    if seen.len() != ids.len() {
        let (path, what) = (path.to_path_buf(), "ids of the test split".into());
        return Err(Error::Count { path, what, found: seen.len(), expected: ids.len() });
    }
    Ok(())
}
