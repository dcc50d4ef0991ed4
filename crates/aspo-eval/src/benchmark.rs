//! All benchmarks behind their names: what a program that takes a name on its command line needs.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::answer::Answers;
use crate::choice::Letters;
use crate::error::{Error, Result};
use crate::judge::{Judge, Reply};
use crate::question::Question;
use crate::{file, gqa, llava_bench, mm_vet, mmbench, pope, science_qa, seed_bench, shr};

/// A benchmark, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Benchmark {
    /// [`pope`]
    Pope,
    /// [`gqa`]
    Gqa,
    /// [`science_qa`]
    ScienceQa,
    /// [`seed_bench`]
    SeedBench,
    /// [`mmbench`]
    MmBench,
    /// [`llava_bench`]
    LlavaBench,
    /// [`mm_vet`]
    MmVet,
    /// [`shr`]
    Shr,
}

/// A figure of the paper's table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headline {
    /// The [column](crate::table::COLUMNS).
    pub column: &'static str,
    /// In percent; none if nothing could be read that it could be computed from.
    pub percent: Option<f64>,
    /// Replies of the judge that could not be read, in all runs.
    pub unreadable: usize,
}

/// A model's figures on one benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The benchmark.
    pub benchmark: Benchmark,
    /// The columns it fills in the paper's table.
    pub headlines: Vec<Headline>,
    /// Every figure under its name: the module's scores as JSON.
    pub figures: Value,
}

impl Benchmark {
    /// All of them, in the order of the evaluation chapter.
    pub const ALL: [Self; 8] = [
        Self::Pope,
        Self::Gqa,
        Self::ScienceQa,
        Self::SeedBench,
        Self::MmBench,
        Self::LlavaBench,
        Self::MmVet,
        Self::Shr,
    ];

    /// The name, as on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pope => "pope",
            Self::Gqa => "gqa",
            Self::ScienceQa => "science-qa",
            Self::SeedBench => "seed-bench",
            Self::MmBench => "mmbench",
            Self::LlavaBench => "llava-bench",
            Self::MmVet => "mm-vet",
            Self::Shr => "shr",
        }
    }

    /// Whether its answers need a judge.
    pub fn is_judged(self) -> bool {
        matches!(self, Self::LlavaBench | Self::MmVet | Self::Shr)
    }

    /// The longest answer, in tokens, that LLaVA's script for this benchmark lets a model give.
    pub fn max_new_tokens(self) -> usize {
        match self {
            Self::Pope | Self::Gqa | Self::SeedBench => 128,
            Self::ScienceQa | Self::MmBench | Self::LlavaBench | Self::MmVet => 1024,
            Self::Shr => 512,
        }
    }

    /// Its questions, from its published files; images below `images`, else where the benchmark publishes them.
    ///
    /// # Errors
    /// Files that are missing or malformed.
    pub fn questions(self, data: &Path, images: Option<&Path>) -> Result<Vec<Question>> {
        match self {
            Self::Pope => Ok(pope::Pope::open(data)?.questions(images)),
            Self::Gqa => Ok(gqa::Gqa::open(data)?.questions(images)),
            Self::ScienceQa => Ok(science_qa::ScienceQa::open(data)?.questions(images)),
            Self::SeedBench => Ok(seed_bench::SeedBench::open(data)?.questions(images)),
            Self::MmBench => mmbench::MmBench::questions(data),
            Self::LlavaBench => Ok(llava_bench::LlavaBench::open(data)?.questions(images)),
            Self::MmVet => Ok(mm_vet::MmVet::open(data)?.questions(images)),
            Self::Shr => shr::Shr::open(data)?.questions(images),
        }
    }

    /// Scores answers by the published rules.
    ///
    /// # Errors
    /// Files or answers that are missing or malformed; a benchmark that needs [judgements](Self::score_judgements).
    pub fn score(self, data: &Path, answers: &Answers) -> Result<Report> {
        self.score_with(data, answers, Letters::default())
    }

    /// Scores answers, MMBench's option letters by one rule or another. The other benchmarks have but one.
    ///
    /// # Errors
    /// As [`score`](Self::score).
    pub fn score_with(self, data: &Path, answers: &Answers, letters: Letters) -> Result<Report> {
        let read = |column, percent| Headline { column, percent, unreadable: 0 };
        let mut report = match self {
            Self::Pope => {
                let scores = pope::Pope::open(data)?.score(answers)?;
                self.report(vec![read("POPE", scores.mean_f1.map(|f1| 100.0 * f1))], &scores)
            }
            Self::Gqa => {
                let scores = gqa::Gqa::open(data)?.score(answers)?;
                self.report(vec![read("GQA", scores.accuracy)], &scores)
            }
            Self::ScienceQa => {
                let scores = science_qa::ScienceQa::open(data)?.score(answers)?;
                self.report(vec![read("SQA-I", scores.image_accuracy)], &scores)
            }
            Self::SeedBench => {
                let scores = seed_bench::SeedBench::open(data)?.score(answers)?;
                self.report(vec![read("SEED-I", scores.accuracy)], &scores)
            }
            Self::MmBench => {
                let scores = mmbench::MmBench::open(data)?.score(answers, letters)?;
                let column = |name: &str| match name {
                    "dev" => Some("MMB-dev"),
                    "test" => Some("MMB-test"),
                    "dev_cn" => Some("MMB-CN"),
                    _ => None,
                };
                let headlines = scores.iter().filter(|(_, scores)| scores.total > 0);
                let headlines = headlines.filter_map(|(name, s)| Some(read(column(name)?, s.accuracy)));
                self.report(headlines.collect(), &scores)
            }
            Self::LlavaBench | Self::MmVet | Self::Shr => {
                return Err(Error::Option(format!(
                    "{} is scored by a judge: give recorded judgements, or a judge's address and model",
                    self.name()
                )));
            }
        };
        report.tell_cut(answers);
        Ok(report)
    }

    /// Scores recorded judgements of the benchmarks that have a judge; with `answers`, they must be of these.
    ///
    /// # Errors
    /// Files that are missing or malformed; a benchmark without a judge.
    pub fn score_judgements(
        self,
        data: &Path,
        files: &[PathBuf],
        answers: Option<&Answers>,
    ) -> Result<Report> {
        let judged = |column, percent, unreadable| vec![Headline { column, percent, unreadable }];
        let mut report = match self {
            Self::LlavaBench => {
                let scores = llava_bench::LlavaBench::open(data)?.score(files, answers)?;
                self.report(judged("LLaVA-W", scores.score, scores.unreadable), &scores)
            }
            Self::MmVet => {
                let bench = mm_vet::MmVet::open(data)?;
                if let Some(answers) = answers {
                    bench.check(answers)?;
                }
                let scores = bench.score(files)?;
                self.report(judged("MM-Vet", scores.score, scores.unreadable), &scores)
            }
            Self::Shr => {
                let scores = shr::Shr::open(data)?.score(files, answers)?;
                let percent = scores.mean_hal_ratio.map(|ratio| 100.0 * ratio);
                self.report(judged("SHR", percent, scores.unreadable), &scores)
            }
            _ => {
                let message = format!("{} has no judge: give answers, not judgements", self.name());
                return Err(Error::Option(message));
            }
        };
        if let Some(answers) = answers {
            report.tell_cut(answers);
        }
        Ok(report)
    }

    /// Has answers judged, `runs` times, and writes into the folder `out` the transcript
    /// (`transcript.jsonl`: prompts, raw replies, model, date, cost) and the judgements in their published format.
    /// What an earlier, stopped run left in the transcript is not asked again. Returns the judgement files and all replies.
    ///
    /// # Errors
    /// Files that are missing or malformed; a judge that cannot be reached; a benchmark without a judge.
    pub fn judge(
        self,
        data: &Path,
        answers: &Answers,
        judge: &Judge,
        runs: usize,
        out: &Path,
    ) -> Result<(Vec<PathBuf>, Vec<Reply>)> {
        let transcript = out.join("transcript.jsonl");
        match self {
            Self::LlavaBench => {
                let bench = llava_bench::LlavaBench::open(data)?;
                let readable = |reply: &str| llava_bench::parse_scores(reply).is_some();
                let replies = judge.ask(&bench.requests(answers, runs)?, &transcript, readable)?;
                let mut files = Vec::new();
                for run in 1..=runs {
                    let mut bytes = Vec::new();
                    for review in bench.reviews(answers, &replies, run)? {
                        serde_json::to_writer(&mut bytes, &review).expect("a review is plain data");
                        bytes.push(b'\n');
                    }
                    files.push(out.join(format!("review-{run}.jsonl")));
                    file::write(&files[run - 1], &bytes)?;
                }
                Ok((files, replies))
            }
            Self::MmVet => {
                let bench = mm_vet::MmVet::open(data)?;
                let readable = |reply: &str| mm_vet::parse_grade(reply).is_some();
                let replies = judge.ask(&bench.requests(answers, runs)?, &transcript, readable)?;
                let path = out.join(format!("grade-{runs}runs.json"));
                write_json(&path, &bench.grades(&replies))?;
                Ok((vec![path], replies))
            }
            Self::Shr => {
                let bench = shr::Shr::open(data)?;
                let replies = judge.ask(&bench.requests(answers, runs)?, &transcript, shr::has_judgement)?;
                let path = out.join("judgement.json");
                write_json(&path, &bench.judgements(answers, &replies))?;
                Ok((vec![path], replies))
            }
            _ => Err(Error::Option(format!(
                "{} has no judge: it is scored from the answers alone",
                self.name()
            ))),
        }
    }

    fn report(self, headlines: Vec<Headline>, scores: &impl Serialize) -> Report {
        let figures = serde_json::to_value(scores).expect("scores are plain data");
        Report { benchmark: self, headlines, figures }
    }
}

impl std::str::FromStr for Benchmark {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|b| b.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            Error::Option(format!("unknown benchmark {name:?}, expected one of {known}"))
        })
    }
}

impl Report {
    /// Adds how many answers had to stop before their end, where the file tells of any.
    fn tell_cut(&mut self, answers: &Answers) {
        if let (cut @ 1.., Value::Object(figures)) = (answers.cut(), &mut self.figures) {
            figures.insert("cut_answers".into(), cut.into());
        }
    }

    /// Every figure on a line of its own, `name.part: value`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        flatten("", &self.figures, &mut text);
        text
    }
}

fn flatten(name: &str, value: &Value, text: &mut String) {
    let below = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(part, value)| flatten(&below(part), value, text)),
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(at, value)| flatten(&below(&(at + 1).to_string()), value, text));
        }
        Value::Number(number) if number.is_f64() => {
            text.push_str(&format!("{name}: {:.4}\n", number.as_f64().unwrap_or_default()));
        }
        other => text.push_str(&format!("{name}: {other}\n")),
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    file::write(path, &serde_json::to_vec_pretty(value).expect("judgements are plain data"))
}
