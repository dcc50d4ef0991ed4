//! SEED-Bench, its image part: four options, one letter.
//!
//! Published file: `SEED-Bench.json`. Scored as LLaVA's `convert_seed_for_submission.py` does, over `data_type` image.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file;
use crate::option::option_letter;
use crate::question::{self, Id, LETTER_SUFFIX, Question};
use crate::share::Share;

const NAME: &str = "seed-bench";

#[derive(Deserialize)]
struct File {
    questions: Vec<serde_json::Value>,
    question_type: Option<BTreeMap<String, u64>>,
}

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Id,
    question_type_id: u64,
    data_type: String,
    data_id: String,
    question: String,
    choice_a: String,
    choice_b: String,
    choice_c: String,
    choice_d: String,
    answer: String,
}

#[derive(Debug)]
struct Label {
    /// The right letter.
    letter: String,
    /// The kind of question.
    kind: String,
    options: [String; 4],
}

/// SEED-Bench's file.
#[derive(Debug)]
pub struct SeedBench {
    folder: PathBuf,
    questions: Vec<Question>,
    labels: Vec<Label>,
    /// Ids of questions about videos, which are not asked.
    videos: HashSet<String>,
}

/// SEED-Bench's figures, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeedBenchScores {
    /// The headline: accuracy over the questions about images; none if no answer is a letter.
    pub accuracy: Option<f64>,
    /// Right answers.
    pub correct: usize,
    /// Questions about images.
    pub total: usize,
    /// Answers that are none of the four letters and nothing else, as LLaVA's rule wants it; they are wrong.
    pub unparsable: usize,
    /// The same with answers read as [MMBench's](option_letter): what the form of the letters costs.
    pub by_mmbench_rule: Share,
    /// By the kind of question.
    pub by_category: BTreeMap<String, Share>,
}

impl SeedBench {
    /// Reads a folder, or the file in it.
    ///
    /// # Errors
    /// A file that is missing or malformed, a question twice, an unknown kind of question or data, an answer not A–D.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let path = match data.is_file() {
            true => data.to_path_buf(),
            false => file::find_or(NAME, &folder, &["SEED-Bench.json"])?,
        };
        let file: File = file::document(&path)?;
        let names: Option<BTreeMap<u64, String>> =
            file.question_type.map(|map| map.into_iter().map(|(name, id)| (id, name)).collect());

        let mut seen = HashSet::new();
        let (mut questions, mut labels, mut videos) = (Vec::new(), Vec::new(), HashSet::new());
        for (at, value) in file.questions.into_iter().enumerate() {
            let row = at + 1;
            // A question about a video names frames and segments, so only its id and kind are read.
            let column = |name: &str| value.get(name).and_then(serde_json::Value::as_str).map(str::to_owned);
            if column("data_type").as_deref() == Some("video") {
                let id: Id = match value.get("question_id") {
                    Some(id) => file::typed(&path, row, id.clone())?,
                    None => return Err(Error::MissingColumn { path, row, column: "question_id".into() }),
                };
                if !seen.insert(id.as_str().to_owned()) {
                    return Err(Error::DuplicateId { path, row, id: id.to_string() });
                }
                videos.insert(id.as_str().to_owned());
                continue;
            }
            let q: QuestionRow = file::typed(&path, row, value)?;
            if q.data_type != "image" {
                let found = quote(&q.data_type);
                return Err(Error::UnknownCategory { path, row, found, known: "image, video".into() });
            }
            if !seen.insert(q.question_id.as_str().to_owned()) {
                return Err(Error::DuplicateId { path, row, id: q.question_id.to_string() });
            }
            if !["A", "B", "C", "D"].contains(&q.answer.as_str()) {
                let (found, expected) = (quote(&q.answer), "A, B, C or D".into());
                return Err(Error::Value { path, row, column: "answer", found, expected });
            }
            let kind = match names.as_ref().map(|names| names.get(&q.question_type_id)) {
                Some(Some(name)) => name.clone(),
                None => q.question_type_id.to_string(),
                Some(None) => {
                    let known: Vec<String> = names.iter().flatten().map(|(id, _)| id.to_string()).collect();
                    let found = q.question_type_id.to_string();
                    return Err(Error::UnknownCategory { path, row, found, known: known.join(", ") });
                }
            };
            let prompt = format!(
                "{}\nA. {}\nB. {}\nC. {}\nD. {}{LETTER_SUFFIX}",
                q.question, q.choice_a, q.choice_b, q.choice_c, q.choice_d
            );
            let image = question::image_name(&path, &q.data_id)?;
            questions.push(Question::new(q.question_id, Some(image), prompt));
            let options = [q.choice_a, q.choice_b, q.choice_c, q.choice_d];
            labels.push(Label { letter: q.answer, kind, options });
        }
        if questions.is_empty() {
            return Err(Error::Empty { path });
        }
        Ok(Self { folder, questions, labels, videos })
    }

    /// Every question about an image; images below `images`, else in `SEED-Bench-image/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        question::placed(&self.questions, images, &self.folder, &["SEED-Bench-image"])
    }

    /// Scores answers: the text must equal the letter. Answers about videos are passed over.
    ///
    /// # Errors
    /// Answers that are missing, unknown, or recorded with another question.
    pub fn score(&self, answers: &Answers) -> Result<SeedBenchScores> {
        let matched = answers.matched(&self.questions, |id| self.videos.contains(id.as_str()))?;
        let (mut all, mut freely) = (Share::default(), Share::default());
        let mut by_category: BTreeMap<String, Share> = BTreeMap::new();
        let mut unparsable = 0;
        for (answer, label) in matched.iter().zip(&self.labels) {
            let right = answer.text == label.letter;
            unparsable += usize::from(!["A", "B", "C", "D"].contains(&answer.text.as_str()));
            all.count(right);
            by_category.entry(label.kind.clone()).or_default().count(right);
            let letter = option_letter(&answer.text, &label.options);
            freely.count(letter.is_some_and(|letter| label.letter == letter.to_string()));
        }
        let Share { correct, total } = all;
        let accuracy = all.percent().filter(|_| unparsable < total);
        Ok(SeedBenchScores { accuracy, correct, total, unparsable, by_mmbench_rule: freely, by_category })
    }
}
