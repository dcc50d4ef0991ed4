//! MM-Vet: 218 open questions that need several capabilities at once, graded by a judge.
//!
//! Published files: `mm-vet.json` (questions, answers, capabilities), `llava-mm-vet.jsonl` (LLaVA's questions), and grade
//! files `*-grade-*runs.json`. Judged and scored as MM-Vet's `mm-vet_evaluator.py` does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file::{self, Record};
use crate::judge::{Reply, Request};
use crate::question::{self, Id, Question};
use crate::reply::{self, after_thinking, number};
use crate::spread::{mean, spread};

const NAME: &str = "mm-vet";
const CAPABILITIES: [&str; 6] = ["rec", "ocr", "know", "gen", "spat", "math"];
/// How often a reply that is no grade is asked for again, each time but the first at 0.5 more temperature.
const TRIES: usize = 5;
const TABLE: &str = include_str!("mm_vet_prompt.txt");

#[derive(Deserialize)]
struct DataRow {
    imagename: String,
    question: String,
    answer: String,
    capability: Vec<String>,
}

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Id,
    image: String,
    text: String,
}

/// What MM-Vet's own file adds to a question.
#[derive(Debug)]
struct Truth {
    question: String,
    answer: String,
    capabilities: Vec<String>,
}

/// MM-Vet's files.
#[derive(Debug)]
pub struct MmVet {
    folder: PathBuf,
    questions: Vec<Question>,
    /// By question; empty without `mm-vet.json`.
    truth: Vec<Truth>,
}

/// The grades of one answer, one for each run, with the fields of a published grade file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Grade {
    /// The judge, by run.
    #[serde(default)]
    pub model: Vec<String>,
    /// Its last reply, by run.
    pub content: Vec<String>,
    /// The grade in [0, 1], by run.
    pub score: Vec<f64>,
    /// The prompt, by run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prompt: Vec<String>,
    /// When, by run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub date: Vec<String>,
}

/// MM-Vet's figures, in percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MmVetScores {
    /// The headline: the mean over the runs of the replies that are a grade; none if no reply is.
    pub score: Option<f64>,
    /// The same with 0 for the others, as published.
    pub score_with_unreadable_as_0: Option<f64>,
    /// The standard deviation over the runs.
    pub spread: Option<f64>,
    /// Each run.
    pub runs: Vec<Option<f64>>,
    /// Questions.
    pub total: usize,
    /// Replies that are no grade, in all runs; they are left out.
    pub unreadable: usize,
    /// Replies that the published rule reads and whose recorded `score` says something else; the record counts.
    pub disagreeing: usize,
    /// The mean over the runs by capability: rec, ocr, know, gen, spat, math (where `mm-vet.json` is there).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_capability: BTreeMap<String, Option<f64>>,
    /// The same by the whole set of capabilities that a question needs, as `ocr_spat`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub by_integration: BTreeMap<String, Option<f64>>,
}

impl MmVet {
    /// Reads a folder with `mm-vet.json`, LLaVA's question file, or both, or one of the two files.
    ///
    /// # Errors
    /// Files that are missing or malformed or do not fit each other, a question twice, an unknown capability.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let is = |extension: &str| data.is_file() && data.extension().is_some_and(|e| e == extension);
        let truth_file = if is("json") { Some(data.into()) } else { file::find(&folder, &["mm-vet.json"]) };
        let llava_file =
            if is("jsonl") { Some(data.into()) } else { file::find(&folder, &["llava-mm-vet.jsonl"]) };

        let mut questions = Vec::new();
        let mut truth = Vec::new();
        if let Some(path) = &truth_file {
            for (at, (id, row)) in file::entries::<DataRow>(path)?.into_iter().enumerate() {
                for name in &row.capability {
                    if !CAPABILITIES.contains(&name.as_str()) {
                        let known = CAPABILITIES.join(", ");
                        return Err(Error::UnknownCategory {
                            path: path.clone(),
                            row: at + 1,
                            found: quote(name),
                            known,
                        });
                    }
                }
                let image = question::image_name(path, &row.imagename)?;
                questions.push(Question::new(llava_id(&id), Some(image), row.question.clone()));
                let set: HashSet<String> = row.capability.into_iter().collect();
                let mut capabilities: Vec<String> = set.into_iter().collect();
                capabilities.sort();
                truth.push(Truth { question: row.question, answer: row.answer, capabilities });
            }
        }
        if let Some(path) = &llava_file {
            let rows = file::records::<QuestionRow>(path)?;
            let mut seen = HashSet::new();
            for Record { row, value } in &rows {
                if !seen.insert(value.question_id.as_str()) {
                    return Err(Error::DuplicateId {
                        path: path.clone(),
                        row: *row,
                        id: value.question_id.to_string(),
                    });
                }
            }
            if truth.is_empty() {
                for Record { value, .. } in rows {
                    let image = question::image_name(path, &value.image)?;
                    questions.push(Question::new(value.question_id, Some(image), value.text));
                }
            } else if rows.len() != questions.len() {
                let (found, expected) = (rows.len(), questions.len());
                return Err(Error::Count { path: path.clone(), what: "questions".into(), found, expected });
            } else if let Some(other) = questions.iter().find(|q| !seen.contains(q.id.as_str())) {
                return Err(Error::Missing {
                    path: path.clone(),
                    missing: 1,
                    total: questions.len(),
                    first: other.id.to_string(),
                });
            }
        }
        if questions.is_empty() {
            file::find_or(NAME, &folder, &["mm-vet.json", "llava-mm-vet.jsonl"])?;
        }
        Ok(Self { folder, questions, truth })
    }

    /// Every question; images below `images`, else in `images/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        question::placed(&self.questions, images, &self.folder, &["images"])
    }

    /// Answers must be to these questions.
    pub(crate) fn check(&self, answers: &Answers) -> Result<()> {
        answers.renamed(llava_id)?.matched(&self.questions, |_| false).map(|_| ())
    }

    /// What a judge is asked about these answers, `runs` times over: the few-shot table, with one row to complete.
    /// A reply that is no grade is asked for up to five times.
    ///
    /// # Errors
    /// No `mm-vet.json`; answers that are missing, unknown, or recorded with another question.
    pub fn requests(&self, answers: &Answers, runs: usize) -> Result<Vec<Request>> {
        if self.truth.is_empty() {
            file::find_or(NAME, &self.folder, &["mm-vet.json"])?;
        }
        let answers = answers.renamed(llava_id)?;
        let matched = answers.matched(&self.questions, |_| false)?;
        let mut requests = Vec::new();
        for run in 1..=runs {
            for ((question, truth), answer) in self.questions.iter().zip(&self.truth).zip(&matched) {
                let expected = truth.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ");
                let prompt = format!("{TABLE}\n{} | {expected} | {} | ", truth.question, answer.text);
                let again = format!("{prompt}\nPredict the correctness of the answer (digit): ");
                let mut tries = vec![(prompt, 0.0)];
                tries.extend((1..TRIES).map(|n| (again.clone(), 0.5 * (n - 1) as f64)));
                let id = question.id.as_str().to_owned();
                requests.push(Request { id, run, system: None, tries, max_tokens: 3, stop: None });
            }
        }
        Ok(requests)
    }

    /// A judge's replies as a grade file.
    pub fn grades(&self, replies: &[Reply]) -> BTreeMap<String, Grade> {
        let mut grades: BTreeMap<String, Grade> = BTreeMap::new();
        let mut sorted: Vec<&Reply> = replies.iter().collect();
        sorted.sort_by_key(|reply| reply.run);
        for reply in sorted {
            let grade = grades.entry(format!("v1_{}", reply.id)).or_default();
            grade.model.push(reply.judge_model.clone());
            grade.content.push(reply.text().to_owned());
            grade.score.push(parse_grade(reply.text()).unwrap_or(0.0));
            grade.prompt.push(reply.prompt.clone());
            grade.date.push(reply.date.clone());
        }
        grades
    }

    /// Reads grade files, each with one or more runs, and scores all runs together.
    ///
    /// # Errors
    /// Grades that are malformed, missing, unknown, double, outside [0, 1], or not as many for each question.
    pub fn score(&self, files: &[PathBuf]) -> Result<MmVetScores> {
        if files.is_empty() {
            return Err(Error::Option("no judge runs: give at least one grade file".into()));
        }
        let at_id: HashMap<&str, usize> =
            self.questions.iter().enumerate().map(|(at, q)| (q.id.as_str(), at)).collect();
        // Grades by run, then by question; a reply that is none is `None`.
        let mut runs: Vec<Vec<Option<f64>>> = Vec::new();
        let (mut unreadable, mut disagreeing) = (0, 0);
        for path in files {
            let grades = file::entries::<Grade>(path)?;
            let count = grades[0].1.score.len();
            let mut of_file = vec![vec![None; self.questions.len()]; count];
            for (at, (id, grade)) in grades.iter().enumerate() {
                let (path, row) = (path.clone(), at + 1);
                let question = match at_id.get(llava_id(id).as_str()) {
                    Some(&question) => question,
                    None => return Err(Error::UnknownId { path, row, id: id.clone() }),
                };
                for found in [grade.score.len(), grade.content.len()] {
                    if found != count || count == 0 {
                        let what = format!("grades of {id}");
                        return Err(Error::Count { path, what, found, expected: count.max(1) });
                    }
                }
                for (run, (content, &score)) in grade.content.iter().zip(&grade.score).enumerate() {
                    if !(0.0..=1.0).contains(&score) {
                        let (found, expected) = (score.to_string(), "a number from 0 to 1".into());
                        return Err(Error::Value { path, row, column: "score", found, expected });
                    }
                    let grade = match published_grade(content) {
                        Some(read) => {
                            disagreeing += usize::from(read != score);
                            Some(score)
                        }
                        // What was recorded then is the evaluator's 0.
                        None => parse_grade(content),
                    };
                    unreadable += usize::from(grade.is_none());
                    if of_file[run][question].replace(grade).is_some() {
                        return Err(Error::DuplicateId { path, row, id: id.clone() });
                    }
                }
            }
            if let Some(first) = of_file[0].iter().position(Option::is_none) {
                return Err(Error::Missing {
                    path: path.clone(),
                    missing: of_file[0].iter().filter(|g| g.is_none()).count(),
                    total: self.questions.len(),
                    first: self.questions[first].id.to_string(),
                });
            }
            runs.extend(of_file.into_iter().map(|run| run.into_iter().flatten().collect()));
        }

        let score_of = |chosen: &dyn Fn(usize) -> bool| -> Vec<Option<f64>> {
            let of_run = |run: &Vec<Option<f64>>| {
                let grades = (0..run.len()).filter(|&at| chosen(at)).filter_map(|at| run[at]);
                mean(&grades.collect::<Vec<_>>()).map(|mean| 100.0 * mean)
            };
            runs.iter().map(of_run).collect()
        };
        let over_runs = |scores: &[Option<f64>]| mean(&scores.iter().flatten().copied().collect::<Vec<_>>());
        let totals = score_of(&|_| true);
        let mut by_capability = BTreeMap::new();
        let mut by_integration = BTreeMap::new();
        for truth in &self.truth {
            for name in &truth.capabilities {
                by_capability.entry(name.clone()).or_insert_with(|| {
                    over_runs(&score_of(&|at| self.truth[at].capabilities.contains(name)))
                });
            }
            by_integration.entry(truth.capabilities.join("_")).or_insert_with(|| {
                over_runs(&score_of(&|at| self.truth[at].capabilities == truth.capabilities))
            });
        }
        let score = over_runs(&totals);
        let sum: f64 = runs.iter().flatten().flatten().sum();
        let all = (runs.len() * self.questions.len()) as f64;
        Ok(MmVetScores {
            score,
            score_with_unreadable_as_0: score.map(|_| 100.0 * sum / all),
            spread: spread(&totals.iter().flatten().copied().collect::<Vec<_>>()),
            runs: totals,
            total: self.questions.len(),
            unreadable,
            disagreeing,
            by_capability,
            by_integration,
        })
    }
}

/// The grade of a reply, 0 to 1. Published is the first word; where that is none, the only number of the reply, a last line
/// that is one, or the last that follows "score" or its like (C). Thinking is passed over.
pub fn parse_grade(reply: &str) -> Option<f64> {
    let text = after_thinking(reply);
    let words: Vec<&str> = reply::words(text).collect();
    let grades = words.iter().enumerate().filter_map(|(at, word)| Some((at, number(word, &["/1.0", "/1"])?)));
    let grades: Vec<(usize, f64)> = grades.collect();
    let last_line = || match reply::words(text.lines().next_back()?).collect::<Vec<_>>().as_slice() {
        [word] => number(word, &["/1.0", "/1"]),
        _ => None,
    };
    let labelled = || grades.iter().rev().find(|(at, _)| is_label(&words[..*at])).map(|(_, grade)| *grade);
    let chosen = match grades.as_slice() {
        [(_, only)] => Some(*only),
        _ => last_line().or_else(labelled),
    };
    published_grade(reply).or(chosen.filter(|grade| (0.0..=1.0).contains(grade)))
}

/// By MM-Vet's evaluator: the first word, a number from 0 to 1.
fn published_grade(reply: &str) -> Option<f64> {
    let word = reply.split(' ').next().unwrap_or_default().trim();
    word.parse().ok().filter(|grade| (0.0..=1.0).contains(grade))
}

/// Whether these words end in a name for the number that follows: "score", "grade is", "correctness of the answer is".
fn is_label(words: &[&str]) -> bool {
    let mut words =
        words.iter().rev().map(|word| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase());
    let is_name = |word: &str| ["score", "grade", "correctness", "rating", "digit"].contains(&word);
    match words.next() {
        Some(word) if ["is", "of", "be"].contains(&word.as_str()) => words.take(5).any(|word| is_name(&word)),
        word => word.is_some_and(|word| is_name(&word)),
    }
}

/// MM-Vet's `v1_7` is LLaVA's question 7.
fn llava_id(id: &str) -> Id {
    let short = id.strip_prefix("v1_").unwrap_or(id);
    short.parse().map_or_else(|_| Id::text(short), Id::number)
}
