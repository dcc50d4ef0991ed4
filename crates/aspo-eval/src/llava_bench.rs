//! LLaVA-Bench (In-the-Wild): 60 open questions, judged beside GPT-4's answers.
//!
//! Published files: `questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl`, and review files
//! (`reviews/*.jsonl`). Judged as LLaVA's `eval_gpt_review_bench.py`, scored as `summarize_gpt_review.py`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file::{self, Record};
use crate::judge::{Reply, Request, Usage};
use crate::question::{self, Id, Question};
use crate::reply::{after_thinking, number, words};
use crate::spread::{mean, spread};

const NAME: &str = "llava-bench";
/// From the lowest to the highest score.
const SCALE: std::ops::RangeInclusive<f64> = 0.0..=10.0;
const CATEGORIES: [&str; 3] = ["conv", "detail", "complex"];
const SYSTEM: &str = "You are a helpful and precise assistant for checking the quality of the answer.";
/// The rule of `rule.json`, the same for all three categories.
const RULE: &str = "We would like to request your feedback on the performance of two AI assistants in response to the \
user question displayed above. The user asks the question on observing an image. For your reference, the visual content \
in the image is represented with a few sentences describing the image. \nPlease rate the helpfulness, relevance, \
accuracy, level of details of their responses. Each assistant receives an overall score on a scale of 1 to 10, where a \
higher score indicates better overall performance.\nPlease first output a single line containing only two values \
indicating the scores for Assistant 1 and 2, respectively. The two scores are separated by a space.\nIn the subsequent \
line, please provide a comprehensive explanation of your evaluation, avoiding any potential bias and ensuring that the \
order in which the responses were presented does not affect your judgment.";

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Id,
    image: String,
    text: String,
    category: String,
}

#[derive(Deserialize)]
struct ContextRow {
    image: String,
    caption: Value,
}

/// LLaVA-Bench's files.
#[derive(Debug)]
pub struct LlavaBench {
    folder: PathBuf,
    questions: Vec<Question>,
    images: Vec<String>,
    categories: Vec<&'static str>,
}

/// One judgement, with the fields of a published review file and, behind them, what is needed to repeat it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Review {
    /// The place in the file, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The question.
    pub question_id: Id,
    /// The reference answer's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer1_id: Option<Value>,
    /// The judged answer's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer2_id: Option<Value>,
    /// `llava_bench_conv`, `llava_bench_detail` or `llava_bench_complex`.
    pub category: String,
    /// The judge's raw reply.
    pub content: String,
    /// The two scores as recorded: reference, model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuple: Option<(f64, f64)>,
    /// The prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_model: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// What it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// The figures of one category, or of all questions, in one run, over the judgements that could be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct CategoryScores {
    /// 100 · mean of the model's scores / mean of the reference's; none if no judgement could be read.
    pub score: Option<f64>,
    /// The reference's mean score, times 10.
    pub reference: Option<f64>,
    /// The model's mean score, times 10.
    pub model: Option<f64>,
    /// Judgements.
    pub total: usize,
    /// Those without two scores in them; they are left out. (The published script takes them for -1, -1.)
    pub unreadable: usize,
}

/// The figures of one judge run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunScores {
    /// Over all questions.
    #[serde(flatten)]
    pub all: CategoryScores,
    /// By category: conv, detail, complex.
    pub by_category: BTreeMap<String, CategoryScores>,
    /// Replies that the published rule reads and whose recorded `tuple` says something else; the record counts.
    pub disagreeing: usize,
}

/// LLaVA-Bench's figures over all judge runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LlavaBenchScores {
    /// The headline: the mean of the runs' scores; none if no judgement could be read.
    pub score: Option<f64>,
    /// The standard deviation over the runs.
    pub spread: Option<f64>,
    /// The mean over the runs by category.
    pub by_category: BTreeMap<String, Option<f64>>,
    /// Questions.
    pub total: usize,
    /// Unreadable replies in all runs.
    pub unreadable: usize,
    /// Each run.
    pub runs: Vec<RunScores>,
}

impl LlavaBench {
    /// Reads a folder, or the question file in it.
    ///
    /// # Errors
    /// A file that is missing or malformed, a question twice, an unknown category.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let path = match data.is_file() {
            true => data.to_path_buf(),
            false => file::find_or(NAME, &folder, &["questions.jsonl"])?,
        };
        let mut seen = HashSet::new();
        let mut bench = Self { folder, questions: Vec::new(), images: Vec::new(), categories: Vec::new() };
        for Record { row, value } in file::records::<QuestionRow>(&path)? {
            let id = value.question_id;
            if !seen.insert(id.as_str().to_owned()) {
                return Err(Error::DuplicateId { path, row, id: id.to_string() });
            }
            bench.categories.push(category(&path, row, &value.category)?);
            bench.questions.push(Question::new(
                id,
                Some(question::image_name(&path, &value.image)?),
                value.text,
            ));
            bench.images.push(value.image);
        }
        Ok(bench)
    }

    /// Every question; images below `images`, else in `images/`.
    pub fn questions(&self, images: Option<&Path>) -> Vec<Question> {
        question::placed(&self.questions, images, &self.folder, &["images"])
    }

    /// What a judge is asked about these answers, `runs` times over: caption, question, reference and model answer.
    ///
    /// # Errors
    /// `context.jsonl` or `answers_gpt4.jsonl` missing or malformed; answers that are missing or unknown.
    pub fn requests(&self, answers: &Answers, runs: usize) -> Result<Vec<Request>> {
        let path = file::find_or(NAME, &self.folder, &["context.jsonl"])?;
        let mut captions = HashMap::new();
        for Record { row, value } in file::records::<ContextRow>(&path)? {
            let caption = match &value.caption {
                Value::String(text) => text.clone(),
                Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n"),
                other => {
                    let (found, expected) = (quote(&other.to_string()), "a text or a list of texts".into());
                    return Err(Error::Value { path, row, column: "caption", found, expected });
                }
            };
            captions.insert(value.image, caption);
        }
        let references = Answers::read(file::find_or(NAME, &self.folder, &["answers_gpt4.jsonl"])?)?;
        let references = references.matched(&self.questions, |_| false)?;
        let matched = answers.matched(&self.questions, |_| false)?;
        let mut requests = Vec::new();
        for run in 1..=runs {
            for (at, question) in self.questions.iter().enumerate() {
                let caption = captions.get(&self.images[at]).ok_or_else(|| Error::UnknownId {
                    path: path.clone(),
                    row: 0,
                    id: self.images[at].clone(),
                })?;
                let prompt = format!(
                    "[Context]\n{caption}\n\n[Question]\n{}\n\n[Assistant 1]\n{}\n\n[End of Assistant 1]\n\n\
                     [Assistant 2]\n{}\n\n[End of Assistant 2]\n\n[System]\n{RULE}\n\n",
                    question.prompt, references[at].text, matched[at].text
                );
                let id = question.id.as_str().to_owned();
                let tries = vec![(prompt, 0.2)];
                requests.push(Request { id, run, system: Some(SYSTEM), tries, max_tokens: 1024, stop: None });
            }
        }
        Ok(requests)
    }

    /// A judge's replies of one run as a review file.
    ///
    /// # Errors
    /// `answers_gpt4.jsonl` missing or malformed.
    pub fn reviews(&self, answers: &Answers, replies: &[Reply], run: usize) -> Result<Vec<Review>> {
        let references = Answers::read(file::find_or(NAME, &self.folder, &["answers_gpt4.jsonl"])?)?;
        let answer_id = |all: &Answers, id: &Id| all.get(id)?.answer_id.clone().map(Value::String);
        let of_run = |id: &Id| replies.iter().find(|r| r.run == run && r.id == id.as_str());
        let rows = self.questions.iter().zip(&self.categories).enumerate();
        let reviews = rows.filter_map(|(at, (question, category))| {
            let reply = of_run(&question.id)?;
            Some(Review {
                id: Some(at as u64 + 1),
                question_id: question.id.clone(),
                answer1_id: answer_id(&references, &question.id),
                answer2_id: answer_id(answers, &question.id),
                category: format!("llava_bench_{category}"),
                content: reply.text().to_owned(),
                tuple: Some(parse_scores(reply.text()).unwrap_or((-1.0, -1.0))),
                prompt: Some(reply.prompt.clone()),
                judge_model: Some(reply.judge_model.clone()),
                date: Some(reply.date.clone()),
                usage: Some(reply.usage),
            })
        });
        Ok(reviews.collect())
    }

    /// Reads review files, one for each run, and scores them. With `answers`, each review must be of these answers.
    ///
    /// # Errors
    /// Reviews that are malformed, missing, unknown, double, of another category or of another answer.
    pub fn score(&self, files: &[PathBuf], answers: Option<&Answers>) -> Result<LlavaBenchScores> {
        if files.is_empty() {
            return Err(Error::Option("no judge runs: give at least one review file".into()));
        }
        let runs = files.iter().map(|path| self.score_run(path, answers)).collect::<Result<Vec<_>>>()?;
        let scores: Vec<f64> = runs.iter().filter_map(|run| run.all.score).collect();
        let of = |name: &str| runs.iter().filter_map(|run| run.by_category[name].score).collect::<Vec<_>>();
        let names: Vec<String> = runs[0].by_category.keys().cloned().collect();
        Ok(LlavaBenchScores {
            score: mean(&scores),
            spread: spread(&scores),
            by_category: names.into_iter().map(|name| (name.clone(), mean(&of(&name)))).collect(),
            total: self.questions.len(),
            unreadable: runs.iter().map(|run| run.all.unreadable).sum(),
            runs,
        })
    }

    fn score_run(&self, path: &Path, answers: Option<&Answers>) -> Result<RunScores> {
        let reviews = file::records::<Review>(path)?;
        let at_id: HashMap<&str, usize> =
            self.questions.iter().enumerate().map(|(at, q)| (q.id.as_str(), at)).collect();
        // Of each question: nothing yet, or a judgement, which may have no scores.
        let mut pairs: Vec<Option<Option<(f64, f64)>>> = vec![None; self.questions.len()];
        let mut disagreeing = 0;
        for Record { row, value: review } in &reviews {
            let (path, row) = (path.to_path_buf(), *row);
            let id = review.question_id.to_string();
            let Some(&at) = at_id.get(review.question_id.as_str()) else {
                return Err(Error::UnknownId { path, row, id });
            };
            if pairs[at].is_some() {
                return Err(Error::DuplicateId { path, row, id });
            }
            let name = category(&path, row, &review.category)?;
            if name != self.categories[at] {
                let (found, expected) = (name.to_owned(), self.categories[at].to_owned());
                return Err(Error::OtherOrder { path, row, id, found, expected });
            }
            let judged = answers.and_then(|all| all.get(&self.questions[at].id)?.answer_id.as_deref());
            if let (Some(judged), Some(Value::String(reviewed))) = (judged, &review.answer2_id)
                && judged != reviewed
            {
                let (found, expected) =
                    (format!("answer {}", quote(reviewed)), format!("answer {}", quote(judged)));
                return Err(Error::OtherOrder { path, row, id, found, expected });
            }
            let on_scale = |(a, b): &(f64, f64)| SCALE.contains(a) && SCALE.contains(b);
            let recorded = review.tuple.filter(on_scale);
            pairs[at] = Some(match (published_scores(&review.content), recorded) {
                (Some(read), Some(recorded)) => {
                    disagreeing += usize::from(recorded != read);
                    Some(recorded)
                }
                (Some(read), None) => Some(read),
                // What was recorded then is the script's -1, -1.
                (None, _) => parse_scores(&review.content),
            });
        }
        if let Some(first) = pairs.iter().position(Option::is_none) {
            return Err(Error::Missing {
                path: path.into(),
                missing: pairs.iter().filter(|p| p.is_none()).count(),
                total: pairs.len(),
                first: self.questions[first].id.to_string(),
            });
        }
        if let Some(answers) = answers {
            answers.matched(&self.questions, |_| false)?;
        }
        let pairs: Vec<Option<(f64, f64)>> = pairs.into_iter().flatten().collect();
        let by_category = CATEGORIES.iter().filter(|name| self.categories.contains(name)).map(|name| {
            let of = pairs.iter().zip(&self.categories).filter(|(_, c)| *c == name).map(|(pair, _)| *pair);
            ((*name).to_owned(), summarize(&of.collect::<Vec<_>>()))
        });
        Ok(RunScores { by_category: by_category.collect(), all: summarize(&pairs), disagreeing })
    }
}

/// The two scores of a reply, reference and model, 0 to 10. Published is the first line, exactly two numbers by a space or
/// a comma; where that reads nothing, the last line that ends in two numbers alone (behind a colon, or all the numbers of
/// the line), else `Assistant 1: 8` and `Assistant 2: 4` (C). Thinking is passed over.
pub fn parse_scores(reply: &str) -> Option<(f64, f64)> {
    let text = after_thinking(reply);
    published_scores(reply)
        .or_else(|| text.lines().rev().find_map(line_scores))
        .or_else(|| Some((labelled_score(text, 1)?, labelled_score(text, 2)?)))
}

/// By the published script, which gives up with -1, -1.
fn published_scores(reply: &str) -> Option<(f64, f64)> {
    let line = reply.split('\n').next().unwrap_or_default().replace(',', " ");
    let parts: Vec<&str> = line.split(' ').collect();
    let [reference, model] = parts.as_slice() else { return None };
    let score = |text: &str| text.trim().parse::<f64>().ok().filter(|x| SCALE.contains(x));
    Some((score(reference)?, score(model)?))
}

fn score(word: &str) -> Option<f64> {
    number(word, &["/10"]).filter(|x| SCALE.contains(x))
}

/// Two numbers behind the last colon of a line; or, without a colon, at its end, if they are all the numbers in it and not
/// those of the assistants.
fn line_scores(line: &str) -> Option<(f64, f64)> {
    let tail: Vec<&str> = words(line.rsplit([':', '：']).next().unwrap_or_default())
        .filter(|word| !word.eq_ignore_ascii_case("and"))
        .collect();
    if let [reference, model] = tail.as_slice() {
        return Some((score(reference)?, score(model)?));
    }
    let all: Vec<&str> = words(line).collect();
    let [.., before, reference, model] = all.as_slice() else { return None };
    let numbers = all.iter().filter(|word| word.chars().any(|c| c.is_ascii_digit())).count();
    let of_whom = before.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let of_whom = ["assistant", "answer", "response", "model"].iter().any(|name| of_whom.starts_with(name));
    let labelled = line.contains([':', '：']);
    if numbers != 2 || of_whom || labelled { None } else { Some((score(reference)?, score(model)?)) }
}

/// The number right behind `Assistant N:`, the last time that it is there.
fn labelled_score(text: &str, assistant: usize) -> Option<f64> {
    let lower = text.to_lowercase();
    [' ', '_'].iter().find_map(|space| {
        let label = format!("assistant{space}{assistant}");
        let marks = |c: char| c.is_whitespace() || "*_\"'`".contains(c);
        let value = |at: usize| {
            let rest = lower[at + label.len()..].trim_start_matches(marks).trim_start_matches("score");
            let rest = rest.trim_start_matches(marks).strip_prefix([':', '：', '='])?;
            score(words(rest).next()?)
        };
        lower.rmatch_indices(&label).find_map(|(at, _)| value(at))
    })
}

/// The means of the judgements that could be read.
fn summarize(pairs: &[Option<(f64, f64)>]) -> CategoryScores {
    let (reference, model): (Vec<f64>, Vec<f64>) = pairs.iter().copied().flatten().unzip();
    let unreadable = pairs.len() - reference.len();
    let (reference, model) = (mean(&reference), mean(&model));
    CategoryScores {
        score: reference.zip(model).filter(|(reference, _)| *reference > 0.0).map(|(r, m)| 100.0 * m / r),
        reference: reference.map(|mean| 10.0 * mean),
        model: model.map(|mean| 10.0 * mean),
        total: pairs.len(),
        unreadable,
    }
}

fn category(path: &Path, row: usize, name: &str) -> Result<&'static str> {
    let short = name.strip_prefix("llava_bench_").unwrap_or(name);
    CATEGORIES.into_iter().find(|known| *known == short).ok_or_else(|| Error::UnknownCategory {
        path: path.into(),
        row,
        found: quote(name),
        known: CATEGORIES.join(", "),
    })
}
