//! Scores a model on a benchmark: `cargo run --release --example evaluate -- --benchmark NAME --data PATH …`
//!
//! - recorded answers: `--answers FILE` (several files: one table of several models);
//! - a model on this machine: `--model FOLDER --out FILE`, which writes the answers and then scores them;
//! - recorded judgements: `--judgements FILE…`, with or without the answers they are of;
//! - a judge: `--judge MODEL --judge-address URL --judge-out FOLDER`, which asks it about the answers.
//!
//! `--json` prints one JSON object with every figure under its name, and nothing else. `--table FILE` keeps the headline
//! figures of all models so far and prints them in the paper's shape, `--markdown` in Markdown.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use aspo_data::{Encoder, Fit, ImageLoader, ImageSource, Template, Tokenizer};
use aspo_eval::judge::{Judge, JudgeConfig, total_usage};
use aspo_eval::table::Table;
use aspo_eval::{Answer, AnswerError, Answers, Benchmark, Image, Question, Report, ask};
use aspo_examples::Failure;
use aspo_examples::answer::{Asked, answer};
use aspo_examples::backend::{Device, OnBackend};
use aspo_models::config::model_type;
use aspo_models::{
    InstructBlip, InstructBlipConfig, Llava, LoadOptions, ModelConfig, Precision, Pretrained,
    VisionLanguageModel, lora,
};
use aspo_train::{processor, qformer_tokenizer};
use burn::tensor::backend::Backend;
use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(about = "Scores a model on a benchmark of the paper")]
struct Args {
    /// pope, gqa, science-qa, seed-bench, mmbench, llava-bench, mm-vet or shr.
    #[arg(long, required_unless_present = "table", requires = "data")]
    benchmark: Option<Benchmark>,
    /// The benchmark's folder or file, as published.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where its images are, if not where it publishes them.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Recorded answers, one file for each model.
    #[arg(long, num_args = 1.., conflicts_with = "model")]
    answers: Vec<PathBuf>,
    /// A Hugging Face folder of LLaVA-1.5 or InstructBLIP, with `tokenizer.json`, to answer the questions.
    #[arg(long, requires = "out")]
    model: Option<PathBuf>,
    /// A PEFT adapter for the model.
    #[arg(long, requires = "model")]
    adapter: Option<PathBuf>,
    /// Where the model's answers are written. A run that was stopped goes on there.
    #[arg(long, requires = "model")]
    out: Option<PathBuf>,
    /// How the question is wrapped; as LLaVA-1.5 (vicuna_v1) or InstructBLIP were evaluated, if not given.
    #[arg(long, requires = "model")]
    template: Option<Template>,
    /// How pictures become square; as LLaVA-1.5 (pad) or InstructBLIP (squash) were evaluated, if not given.
    #[arg(long, value_enum, requires = "model")]
    fit: Option<Square>,
    /// Questions answered at once.
    #[arg(long, default_value_t = 8, requires = "model")]
    batch: usize,
    /// The model's name in answers and tables, instead of the one the files tell.
    #[arg(long)]
    name: Option<String>,
    /// Recorded judgements: review files (llava-bench), grade files (mm-vet), judgement files (shr).
    #[arg(long, num_args = 1.., conflicts_with = "judge")]
    judgements: Vec<PathBuf>,
    /// The judge's model name, at an OpenAI-compatible endpoint.
    #[arg(long, requires_all = ["judge_address", "judge_out"])]
    judge: Option<String>,
    /// The endpoint, up to and without `/chat/completions`.
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
    /// Writes MMBench's upload table (xlsx) of the answers.
    #[arg(long)]
    upload: Option<PathBuf>,
    /// Keeps headline figures of all models so far; alone, prints them.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Prints the table in Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
    /// Backend of the model, among those compiled in.
    #[arg(long, requires = "model")]
    device: Option<Device>,
    /// Prints every figure as one JSON object; with several models, by their names.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Square {
    /// LLaVA's own way: set on a square of the mean colour.
    Pad,
    /// The way of `llava-hf`: the centre.
    Crop,
    /// Both sides resized.
    Squash,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut table = match &args.table {
        Some(path) if path.exists() => Table::read(path)?,
        _ => Table::default(),
    };
    let reports = match (args.benchmark, &args.data) {
        (Some(benchmark), Some(data)) => evaluate(args, benchmark, data)?,
        _ => Vec::new(),
    };
    for (model, report) in &reports {
        for (column, percent) in &report.headlines {
            table.set(model, column, *percent);
        }
    }
    if let (Some(path), false) = (&args.table, reports.is_empty()) {
        table.write(path)?;
    }
    match reports.as_slice() {
        [(_, report)] if args.json => println!("{:#}", report.figures),
        many if args.json => {
            let all: serde_json::Map<_, _> =
                many.iter().map(|(m, r)| (m.clone(), r.figures.clone())).collect();
            println!("{:#}", serde_json::Value::Object(all));
        }
        _ if args.markdown => print!("{}", table.markdown()),
        [(_, report)] if args.table.is_none() => print!("{}", report.text()),
        _ => print!("{}", table.text()),
    }
    Ok(())
}

/// Every model's name and figures.
fn evaluate(args: &Args, benchmark: Benchmark, data: &Path) -> Result<Vec<(String, Report)>, Failure> {
    if args.upload.is_some() && benchmark != Benchmark::MmBench {
        return Err("--upload is for mmbench alone".into());
    }
    let mut answers = args.answers.iter().map(Answers::read).collect::<aspo_eval::Result<Vec<_>>>()?;
    if let (Some(model), Some(out)) = (&args.model, &args.out) {
        answers.push(answer_with_model(args, benchmark, data, model, out)?);
    }
    if args.name.is_some() && answers.len() > 1 {
        return Err("--name is for one model: several answer files keep their own names".into());
    }
    let name = |own: String| args.name.clone().unwrap_or(own);
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
    let mut reports: Vec<(String, Report)> = Vec::new();
    for answers in &answers {
        // Files of one model (or of none) are told apart by their own names.
        let mut own = name(answers.model_id());
        if reports.iter().any(|(other, _)| *other == own) {
            own = answers.path().display().to_string();
        }
        reports.push((own, benchmark.score(data, answers)?));
    }
    Ok(reports)
}

fn have_judged(
    args: &Args,
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
    let (files, replies) = benchmark.judge(data, answers, &judge, args.judge_runs.max(1), out)?;
    let usage = total_usage(&replies);
    let cost = match args.judge_prices.as_slice() {
        [prompt, reply] => format!(", {:.2} at these prices", usage.cost(*prompt, *reply)),
        _ => String::new(),
    };
    eprintln!(
        "{} requests, {} tokens of prompts, {} of replies{cost}",
        usage.requests, usage.prompt_tokens, usage.completion_tokens
    );
    Ok(files)
}

/// Has a model answer every question, and writes the answers to `out`.
fn answer_with_model(
    args: &Args,
    benchmark: Benchmark,
    data: &Path,
    folder: &Path,
    out: &Path,
) -> Result<Answers, Failure> {
    let questions = benchmark.questions(data, args.images.as_deref())?;
    args.device.unwrap_or_default().run(Asking { args, benchmark, folder, questions: &questions, out })
}

/// Questions to the model of a folder.
struct Asking<'a> {
    args: &'a Args,
    benchmark: Benchmark,
    folder: &'a Path,
    questions: &'a [Question],
    out: &'a Path,
}

impl OnBackend for Asking<'_> {
    type Output = Result<Answers, Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        match model_type(self.folder)?.as_str() {
            InstructBlipConfig::MODEL_TYPE => {
                self.ask::<B, InstructBlip<B>>(device, Template::InstructBlip, Fit::Squash)
            }
            _ => self.ask::<B, Llava<B>>(device, Template::VicunaV1, Fit::Pad),
        }
    }
}

impl Asking<'_> {
    fn ask<B: Backend, M: Pretrained<B> + VisionLanguageModel<B>>(
        self,
        device: B::Device,
        template: Template,
        fit: Fit,
    ) -> Result<Answers, Failure> {
        let Self { args, folder, .. } = self;
        let keep = args.device.unwrap_or_default().keeps_precision();
        let precision = if keep { Precision::Keep } else { Precision::F32 };
        let (mut model, _) =
            M::from_pretrained(folder, &LoadOptions { precision, ..Default::default() }, &device)?;
        if let Some(adapter) = &args.adapter {
            model = lora::load_adapter(model, adapter)?.0;
        }
        let fit = match args.fit {
            Some(Square::Pad) => Fit::Pad,
            Some(Square::Crop) => Fit::Crop,
            Some(Square::Squash) => Fit::Squash,
            None => fit,
        };
        let template = args.template.unwrap_or(template);
        let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"))?;
        let mut encoder = Encoder::new(tokenizer, template, model.tokens_per_image());
        if template == Template::InstructBlip {
            encoder.instruction = Some(qformer_tokenizer(folder)?);
        }
        let own_name = args.adapter.as_deref().unwrap_or(folder).file_name().unwrap_or_default();
        let processor = processor(folder, model.image_size())?.with_fit(fit);
        let mut answerer = ModelAnswers {
            name: args.name.clone().unwrap_or_else(|| own_name.to_string_lossy().into_owned()),
            encoder,
            images: ImageLoader::new(".", processor)?,
            max_new_tokens: self.benchmark.max_new_tokens(),
            model,
            device,
        };
        let count = self.questions.len();
        Ok(ask(&mut answerer, self.questions, self.out, args.batch, |done| {
            eprintln!("{done} of {count} questions answered")
        })?)
    }
}

/// A loaded model behind the benchmarks' one interface: greedy, one picture a question.
struct ModelAnswers<B: Backend, M> {
    name: String,
    model: M,
    encoder: Encoder,
    images: ImageLoader,
    max_new_tokens: usize,
    device: B::Device,
}

impl<B: Backend, M: VisionLanguageModel<B>> Answer for ModelAnswers<B, M> {
    fn model_id(&self) -> String {
        self.name.clone()
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<String>, AnswerError> {
        let pixels = batch
            .iter()
            .map(|question| {
                let bytes = match &question.image {
                    Some(Image::Path(path)) => {
                        std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?
                    }
                    Some(Image::Bytes(bytes)) => bytes.clone(),
                    None => return Ok(None),
                };
                Ok(Some(self.images.load(&ImageSource::from(bytes))?))
            })
            .collect::<Result<Vec<_>, AnswerError>>()?;
        let asked: Vec<Asked> = batch
            .iter()
            .zip(&pixels)
            .map(|(question, pixels)| Asked { question: &question.prompt, pixels: pixels.as_deref() })
            .collect();
        answer(&self.model, &self.encoder, &asked, asked.len().max(1), self.max_new_tokens, &self.device)
    }
}
