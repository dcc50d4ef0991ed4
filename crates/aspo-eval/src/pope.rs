//! POPE: is there such an object in the image? Yes or no, in three splits.
//!
//! Published files: `llava_pope_test.jsonl` (LLaVA's questions) and `coco_pope_{random,popular,adversarial}.json`
//! (POPE's labels, JSON lines). Scored as LLaVA's `eval_pope.py` does: labels in order within a category.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file::{self, Record};
use crate::question::{self, Id, Image, Question, SHORT_SUFFIX, core_text};
use crate::spread::mean;

const NAME: &str = "pope";

/// The three ways in which POPE draws the objects that are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Any object.
    Random,
    /// Objects that are frequent in the data.
    Popular,
    /// Objects that often come along with those in the image.
    Adversarial,
}

impl Split {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Random, Self::Popular, Self::Adversarial];

    /// Its published name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Popular => "popular",
            Self::Adversarial => "adversarial",
        }
    }

    /// What LLaVA's question file adds to a label's id.
    fn id_offset(self) -> u64 {
        match self {
            Self::Adversarial => 0,
            Self::Random => 10_000_000,
            Self::Popular => 20_000_000,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|split| split.name() == name)
    }
}

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Id,
    image: String,
    text: String,
    category: String,
}

#[derive(Deserialize)]
struct LabelRow {
    question_id: Id,
    image: Option<String>,
    text: String,
    label: String,
}

/// POPE's files.
#[derive(Debug)]
pub struct Pope {
    path: PathBuf,
    questions: BTreeMap<Split, Vec<Question>>,
    labels: BTreeMap<Split, Vec<bool>>,
    /// Whether the questions are those of LLaVA's file.
    asked_by_llava: bool,
}

/// A split's figures, as fractions; none of them where every answer is unparsable.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SplitScores {
    /// Right answers among all.
    pub accuracy: Option<f64>,
    /// Among answers "yes", how many are right.
    pub precision: Option<f64>,
    /// Among objects that are there, how many got a "yes".
    pub recall: Option<f64>,
    /// Harmonic mean of precision and recall.
    pub f1: Option<f64>,
    /// Answers "yes" among all.
    pub yes_ratio: Option<f64>,
    /// Questions.
    pub total: usize,
    /// Right answers.
    pub correct: usize,
    /// Objects there, answered yes.
    pub true_positive: usize,
    /// Objects not there, answered yes.
    pub false_positive: usize,
    /// Objects not there, answered no.
    pub true_negative: usize,
    /// Objects there, answered no.
    pub false_negative: usize,
    /// Answers with neither a yes nor a no in them, which the published rule takes for a yes.
    pub unparsable: usize,
}

/// POPE's figures: one object for each split that is there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PopeScores {
    /// By split.
    #[serde(flatten)]
    pub splits: BTreeMap<Split, SplitScores>,
    /// The headline: the mean of the splits' F1, a fraction; none if a split has none.
    pub mean_f1: Option<f64>,
    /// The mean of the splits' accuracies, a fraction.
    pub mean_accuracy: Option<f64>,
    /// Questions in all splits.
    pub total: usize,
    /// Right answers in all splits.
    pub correct: usize,
    /// Answers with neither a yes nor a no in them, in all splits.
    pub unparsable: usize,
}

impl Pope {
    /// Reads a folder (the label files in it, in `coco/` or in `output/coco/`), or one label file.
    /// Without LLaVA's question file the label files' own questions are asked, under the ids LLaVA gives them.
    ///
    /// # Errors
    /// Files that are missing, malformed, or of different releases: as many labels as questions in each category, and
    /// label by label the same question.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let mut label_files = BTreeMap::new();
        let is_questions = |p: &Path| p.extension().is_some_and(|e| e == "jsonl");
        if data.is_file() && !is_questions(data) {
            label_files.insert(split_of(data)?, data.to_path_buf());
        } else {
            for path in label_paths(&folder)? {
                let split = split_of(&path)?;
                label_files.entry(split).or_insert(path);
            }
        }
        let question_file = if data.is_file() && is_questions(data) {
            Some(data.to_path_buf())
        } else {
            file::find(&folder, &["llava_pope_test.jsonl", "../llava_pope_test.jsonl"])
        };
        let mut questions: BTreeMap<Split, Vec<Question>> = BTreeMap::new();
        let mut seen = HashSet::new();
        if let Some(path) = &question_file {
            for Record { row, value } in file::records::<QuestionRow>(path)? {
                let QuestionRow { question_id, image, text, category } = value;
                let split = Split::parse(&category).ok_or_else(|| unknown_split(path, row, &category))?;
                if !seen.insert(question_id.as_str().to_owned()) {
                    return Err(Error::DuplicateId { path: path.clone(), row, id: question_id.to_string() });
                }
                let image = question::image_name(path, &image)?;
                questions.entry(split).or_default().push(Question::new(question_id, Some(image), text));
            }
        } else if label_files.is_empty() {
            file::find_or(NAME, &folder, &["llava_pope_test.jsonl", "coco_pope_random.json"])?;
        }

        let mut labels = BTreeMap::new();
        for (split, path) in &label_files {
            let rows = label_rows(path)?;
            if question_file.is_some() {
                check_labels(path, &rows, questions.get(split).map_or(&[], Vec::as_slice))?;
            } else {
                questions.insert(*split, own_questions(path, &rows, *split)?);
            }
            labels.insert(*split, rows.iter().map(|r| r.value.label == "yes").collect());
        }
        Ok(Self { path: folder, questions, labels, asked_by_llava: question_file.is_some() })
    }

    /// Every question, split by split, each in its file's order; images below `images`, else in `val2014/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        let all: Vec<Question> = self.questions.values().flatten().cloned().collect();
        question::placed(&all, images, &self.path, &["val2014", "../val2014"])
    }

    /// Scores answers in every split that has labels.
    ///
    /// # Errors
    /// No labels; answers that are missing, unknown, or recorded with another question.
    pub fn score(&self, answers: &Answers) -> Result<PopeScores> {
        if self.labels.is_empty() {
            file::find_or(NAME, &self.path, &["coco_pope_random.json", "coco/coco_pope_random.json"])?;
        }
        let asked: Vec<Question> =
            self.labels.keys().flat_map(|split| self.questions[split].iter().cloned()).collect();
        let not_scored = |id: &Id| {
            let unlabelled = self.questions.iter().filter(|(split, _)| !self.labels.contains_key(split));
            unlabelled.flat_map(|(_, q)| q).any(|q| q.id == *id)
        };
        // Without LLaVA's question file, a missing split's ids are known by their range alone.
        let absent = |id: &Id| {
            let number: Option<u64> = id.as_str().parse().ok();
            let split = number.map(|n| match n {
                0..10_000_000 => Split::Adversarial,
                10_000_000..20_000_000 => Split::Random,
                _ => Split::Popular,
            });
            !self.asked_by_llava && split.is_some_and(|split| !self.questions.contains_key(&split))
        };
        let unlabelled: HashSet<&str> = answers
            .rows()
            .filter_map(|row| row.question_id.as_ref())
            .filter(|id| absent(id))
            .map(Id::as_str)
            .collect();
        let matched = answers.matched(&asked, |id| unlabelled.contains(id.as_str()) || not_scored(id))?;

        let mut matched = matched.into_iter();
        let mut splits = BTreeMap::new();
        for (split, labels) in &self.labels {
            let texts = matched.by_ref().take(labels.len()).map(|row| row.text.as_str());
            splits.insert(*split, score_split(texts, labels));
        }
        let mean = |figure: fn(&SplitScores) -> Option<f64>| {
            mean(&splits.values().map(figure).collect::<Option<Vec<_>>>()?)
        };
        Ok(PopeScores {
            mean_f1: mean(|s| s.f1),
            mean_accuracy: mean(|s| s.accuracy),
            total: splits.values().map(|s| s.total).sum(),
            correct: splits.values().map(|s| s.correct).sum(),
            unparsable: splits.values().map(|s| s.unparsable).sum(),
            splits,
        })
    }
}

/// Reads an answer as POPE does: the words of the text before the first ".", commas removed, are split on spaces;
/// "no" if `No`, `not` or `no` is among them, else "yes".
pub fn says_yes(text: &str) -> bool {
    !words(text).iter().any(|word| matches!(word.as_str(), "No" | "not" | "no"))
}

fn words(text: &str) -> Vec<String> {
    let sentence = text.split('.').next().unwrap_or_default().replace(',', "");
    sentence.split(' ').map(str::to_owned).collect()
}

fn score_split<'a>(texts: impl Iterator<Item = &'a str>, labels: &[bool]) -> SplitScores {
    let mut s = SplitScores { total: labels.len(), ..SplitScores::default() };
    for (text, &label) in texts.zip(labels) {
        let yes = says_yes(text);
        match (yes, label) {
            (true, true) => s.true_positive += 1,
            (true, false) => s.false_positive += 1,
            (false, false) => s.true_negative += 1,
            (false, true) => s.false_negative += 1,
        }
        s.unparsable += usize::from(yes && !words(text).iter().any(|word| word.eq_ignore_ascii_case("yes")));
    }
    s.correct = s.true_positive + s.true_negative;
    if s.unparsable == s.total {
        return s;
    }
    // A share of nothing is 0 (C); the published script would stop with a division by zero.
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    let precision = share(s.true_positive, s.true_positive + s.false_positive);
    let recall = share(s.true_positive, s.true_positive + s.false_negative);
    s.accuracy = Some(share(s.correct, s.total));
    s.precision = Some(precision);
    s.recall = Some(recall);
    s.f1 = Some(if s.true_positive == 0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) });
    s.yes_ratio = Some(share(s.true_positive + s.false_positive, s.total));
    s
}

fn unknown_split(path: &Path, row: usize, found: &str) -> Error {
    let known = Split::ALL.map(Split::name).join(", ");
    Error::UnknownCategory { path: path.into(), row, found: quote(found), known }
}

/// The split that a label file's name tells: what follows the last `_`.
fn split_of(path: &Path) -> Result<Split> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = stem.rsplit('_').next().unwrap_or_default();
    Split::parse(name).ok_or_else(|| unknown_split(path, 0, name))
}

/// `coco_pope_*.json` in the first published place that has any.
fn label_paths(folder: &Path) -> Result<Vec<PathBuf>> {
    for place in [folder.to_path_buf(), folder.join("coco"), folder.join("output/coco")] {
        if !place.is_dir() {
            continue;
        }
        let entries =
            std::fs::read_dir(&place).map_err(|source| Error::Io { path: place.clone(), source })?;
        let mut paths: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.starts_with("coco_pope_") && name.ends_with(".json")
            })
            .collect();
        if !paths.is_empty() {
            paths.sort();
            return Ok(paths);
        }
    }
    Ok(Vec::new())
}

fn label_rows(path: &Path) -> Result<Vec<Record<LabelRow>>> {
    let rows = file::records::<LabelRow>(path)?;
    let mut seen = HashSet::new();
    for Record { row, value } in &rows {
        if !seen.insert(value.question_id.as_str()) {
            return Err(Error::DuplicateId {
                path: path.into(),
                row: *row,
                id: value.question_id.to_string(),
            });
        }
        if value.label != "yes" && value.label != "no" {
            let (found, expected) = (quote(&value.label), "yes or no".into());
            return Err(Error::Value { path: path.into(), row: *row, column: "label", found, expected });
        }
    }
    Ok(rows)
}

/// As many labels as questions, and label by label the same question about the same image.
fn check_labels(path: &Path, labels: &[Record<LabelRow>], questions: &[Question]) -> Result<()> {
    if labels.len() != questions.len() {
        let (path, what) = (path.to_path_buf(), "labels".into());
        return Err(Error::Count { path, what, found: labels.len(), expected: questions.len() });
    }
    for (Record { row, value }, question) in labels.iter().zip(questions) {
        let (found, expected) = (core_text(&value.text), core_text(&question.prompt));
        let image = match &question.image {
            Some(Image::Path(path)) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            _ => String::new(),
        };
        let labelled = value.image.as_deref().map(|name| name.rsplit('/').next().unwrap_or_default());
        if found != expected || labelled.is_some_and(|name| name != image) {
            return Err(Error::OtherOrder {
                path: path.into(),
                row: *row,
                id: question.id.to_string(),
                found: format!("{} of {}", quote(&found), quote(labelled.unwrap_or_default())),
                expected: format!("{} of {}", quote(&expected), quote(&image)),
            });
        }
    }
    Ok(())
}

fn own_questions(path: &Path, rows: &[Record<LabelRow>], split: Split) -> Result<Vec<Question>> {
    rows.iter()
        .map(|Record { row, value }| {
            let id = value.question_id.as_str().parse::<u64>().map_err(|_| Error::Value {
                path: path.into(),
                row: *row,
                column: "question_id",
                found: quote(value.question_id.as_str()),
                expected: "a number".into(),
            })?;
            let name = value.image.as_deref().ok_or_else(|| Error::MissingColumn {
                path: path.into(),
                row: *row,
                column: "image".into(),
            })?;
            let image = question::image_name(path, name)?;
            let prompt = format!("{}{SHORT_SUFFIX}", value.text);
            Ok(Question::new(Id::number(split.id_offset() + id), Some(image), prompt))
        })
        .collect()
}
