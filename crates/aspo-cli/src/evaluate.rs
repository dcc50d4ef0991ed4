//! `aspo evaluate`: a benchmark's figures from recorded answers, from a model on this machine, or by a judge.
//!
//! - recorded answers: `--answers FILE` (several files: one table of several models);
//! - a model on this machine: `--model FOLDER --out FILE`, which writes the answers and then scores them. Pictures and
//!   prompts are made as in training, unless told otherwise; a picture that cannot be read stops the run by its name;
//! - recorded judgements: `--judgements FILE…`, with or without the answers they are of;
//! - a judge: `--judge MODEL --judge-address URL --judge-out FOLDER`, which asks it about the answers.
//!
//! `--json` prints one JSON object with every figure under its name, and nothing else. `--table FILE` keeps the headline
//! figures of all models so far and prints them in the paper's shape, `--markdown` in Markdown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aspo_eval::choice::Letters;
use aspo_eval::judge::{Judge, JudgeConfig, total_usage};
use aspo_eval::table::Table;
use aspo_eval::{Answers, Benchmark, Report};
use aspo_train::Ranks;
use clap::Parser;

use crate::ask::{ModelArgs, answer_with_model};
use crate::together::together;
use crate::{Failure, note, out, say};

/// Scores a model on a benchmark of the paper.
#[derive(Parser)]
pub struct EvaluateArgs {
    /// pope, gqa, science-qa, seed-bench, mmbench, llava-bench, mm-vet or shr.
    #[arg(long, required_unless_present = "table", requires = "data")]
    benchmark: Option<Benchmark>,
    /// The benchmark's folder or file, as published.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Recorded answers, one file for each model.
    #[arg(long, num_args = 1.., conflicts_with = "model")]
    answers: Vec<PathBuf>,
    #[command(flatten)]
    asked: ModelArgs,
    /// Recorded judgements: review files (llava-bench), grade files (mm-vet), judgement files (shr).
    #[arg(long, num_args = 1.., conflicts_with = "judge")]
    judgements: Vec<PathBuf>,
    /// The judge's model name, at an OpenAI-compatible endpoint.
    #[arg(long, requires_all = ["judge_address", "judge_out"])]
    judge: Option<String>,
    /// The endpoint, with or without `/v1` or `/v1/chat/completions`.
    #[arg(long, requires = "judge")]
    judge_address: Option<String>,
    /// The environment variable with the endpoint's key.
    #[arg(long, default_value = "OPENAI_API_KEY", requires = "judge")]
    judge_key_env: String,
    /// Where prompts, replies and judgements are written.
    #[arg(long, requires = "judge")]
    judge_out: Option<PathBuf>,
    /// How often everything is judged.
    #[arg(long, default_value_t = 1, requires = "judge")]
    judge_runs: usize,
    /// The judge's temperature, instead of the published one.
    #[arg(long, requires = "judge")]
    judge_temperature: Option<f64>,
    /// How often a failed request is tried again.
    #[arg(long, default_value_t = 5, requires = "judge")]
    judge_retries: u32,
    /// How long one request may take, in seconds.
    #[arg(long, default_value_t = 120, requires = "judge")]
    judge_timeout: u64,
    /// Requests under way at once.
    #[arg(long, default_value_t = 4, requires = "judge")]
    judge_concurrency: usize,
    /// The endpoint's prices for a million tokens of prompt and of reply, to print the cost.
    #[arg(long, num_args = 2, requires = "judge")]
    judge_prices: Vec<f64>,
    /// Reads MMBench's answers by letters alone, not as its evaluation does today.
    #[arg(long)]
    strict: bool,
    /// Writes MMBench's upload table (xlsx) of the answers; needs a build with `--features upload`.
    #[arg(long)]
    upload: Option<PathBuf>,
    /// Keeps headline figures of all models so far; alone, prints them.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Prints the table in Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Prints every figure as one JSON object; with several models, by their names.
    #[arg(long)]
    json: bool,
}

/// Prints figures, and keeps them where `--table` says.
///
/// # Errors
/// Whatever cannot be read, asked or scored, and a model of which no answer could be read.
pub fn run(args: &EvaluateArgs) -> Result<(), Failure> {
    together(|ranks| run_on(ranks, args))
}

fn run_on(ranks: &Ranks, args: &EvaluateArgs) -> Result<(), Failure> {
    if !ranks.is_first() {
        // The first scores what all have answered.
        if let (Some(benchmark), Some(data), (Some(model), Some(out))) =
            (args.benchmark, &args.data, (&args.asked.model, &args.asked.out))
        {
            answer_with_model(&args.asked, benchmark, data, model, out, ranks)?;
        }
        return Ok(());
    }
    let mut table = match &args.table {
        Some(path) if path.exists() => Table::read(path)?,
        _ => Table::default(),
    };
    let reports = match (args.benchmark, &args.data) {
        (Some(benchmark), Some(data)) => evaluate(ranks, args, benchmark, data)?,
        _ => Vec::new(),
    };
    for (model, report) in &reports {
        for headline in &report.headlines {
            table.set(model, *headline);
        }
    }
    if let (Some(path), false) = (&args.table, reports.is_empty()) {
        table.write(path)?;
    }
    match reports.as_slice() {
        [(_, report)] if args.json => say!("{:#}", report.figures),
        many if args.json => {
            let all: serde_json::Map<_, _> =
                many.iter().map(|(m, r)| (m.clone(), r.figures.clone())).collect();
            say!("{:#}", serde_json::Value::Object(all));
        }
        _ if args.markdown => out::print(format_args!("{}", table.markdown())),
        [(_, report)] if args.table.is_none() => out::print(format_args!("{}", report.text())),
        _ => out::print(format_args!("{}", table.text())),
    }
    // Said last, and with the exit code: a run of which nothing could be read has no result.
    for (model, report) in &reports {
        if let Some(headline) = report.headlines.iter().find(|headline| headline.percent.is_none()) {
            let what = if report.benchmark.is_judged() { "judgement" } else { "answer" };
            return Err(
                format!("no {what} of {model} could be read: {} has no figure", headline.column).into()
            );
        }
    }
    Ok(())
}

/// Every model's name and figures.
fn evaluate(
    ranks: &Ranks,
    args: &EvaluateArgs,
    benchmark: Benchmark,
    data: &Path,
) -> Result<Vec<(String, Report)>, Failure> {
    if args.upload.is_some() && benchmark != Benchmark::MmBench {
        return Err("--upload is for mmbench alone".into());
    }
    if args.upload.is_some() && !cfg!(feature = "upload") {
        return Err("option `upload`: not in this build; build with `--features upload`".into());
    }
    if args.strict && benchmark != Benchmark::MmBench {
        return Err("--strict is for mmbench alone: the others have but one rule".into());
    }
    let mut answers = args.answers.iter().map(Answers::read).collect::<aspo_eval::Result<Vec<_>>>()?;
    if let (Some(model), Some(out)) = (&args.asked.model, &args.asked.out) {
        answers.extend(answer_with_model(&args.asked, benchmark, data, model, out, ranks)?);
    }
    if args.asked.name.is_some() && answers.len() > 1 {
        return Err("--name is for one model: several answer files keep their own names".into());
    }
    let name = |own: String| args.asked.name.clone().unwrap_or(own);
    if benchmark.is_judged() {
        if answers.len() > 1 {
            return Err("judged benchmarks take one model at a time: collect several with --table".into());
        }
        let answers = answers.pop();
        let files = match (&args.judge, &answers) {
            (Some(_), None) => return Err("a judge needs answers: give --answers or --model".into()),
            (Some(judge), Some(answers)) => have_judged(args, benchmark, data, judge, answers)?,
            (None, _) if args.judgements.is_empty() => {
                return Err(format!("{} is judged: give --judgements, or --judge", benchmark.name()).into());
            }
            (None, _) => args.judgements.clone(),
        };
        let report = benchmark.score_judgements(data, &files, answers.as_ref())?;
        let stem = files[0].file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(vec![(name(answers.map_or(stem, |a| a.model_id())), report)]);
    }
    if args.judge.is_some() || !args.judgements.is_empty() {
        return Err(format!("{} has no judge: give --answers or --model", benchmark.name()).into());
    }
    if answers.is_empty() {
        return Err("nothing to score: give --answers, or --model with --out".into());
    }
    if let (Some(path), [one]) = (&args.upload, answers.as_slice()) {
        aspo_eval::mmbench::MmBench::open(data)?.write_upload(one, path)?;
    }
    let letters = if args.strict { Letters::Strict } else { Letters::Published };
    let mut reports: Vec<(String, Report)> = Vec::new();
    for answers in &answers {
        // Files of one model (or of none) are told apart by their own names.
        let mut own = name(answers.model_id());
        if reports.iter().any(|(other, _)| *other == own) {
            own = answers.path().display().to_string();
        }
        reports.push((own, benchmark.score_with(data, answers, letters)?));
    }
    Ok(reports)
}

fn have_judged(
    args: &EvaluateArgs,
    benchmark: Benchmark,
    data: &Path,
    model: &str,
    answers: &Answers,
) -> Result<Vec<PathBuf>, Failure> {
    let (Some(address), Some(out)) = (&args.judge_address, &args.judge_out) else {
        return Err("a judge needs --judge-address and --judge-out".into());
    };
    let judge = Judge::new(JudgeConfig {
        key_env: args.judge_key_env.clone(),
        temperature: args.judge_temperature,
        retries: args.judge_retries,
        timeout: Duration::from_secs(args.judge_timeout),
        concurrency: args.judge_concurrency,
        ..JudgeConfig::new(address, model)
    })?;
    note!("replies are kept in {} as they come: the same command goes on there", out.display());
    let judged = benchmark.judge(data, answers, &judge, args.judge_runs.max(1), out);
    for line in judge.adapted() {
        note!("the endpoint refuses what was published: asked with {line}");
    }
    let (files, replies) = judged?;
    let blocked: Vec<&str> = replies.iter().filter_map(|reply| reply.blocked.as_deref()).collect();
    if let Some(why) = blocked.first() {
        note!("{} of {} requests got no text, the first for: {why}", blocked.len(), replies.len());
    }
    let usage = total_usage(&replies);
    let cost = match args.judge_prices.as_slice() {
        [prompt, reply] => format!(", {:.2} at these prices", usage.cost(*prompt, *reply)),
        _ => String::new(),
    };
    note!(
        "{} requests, {} tokens of prompts, {} of replies{cost}",
        usage.requests,
        usage.prompt_tokens,
        usage.completion_tokens
    );
    Ok(files)
}
