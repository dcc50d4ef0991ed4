//! Scores a model on a benchmark: `cargo run --release --example evaluate -- --benchmark NAME --data PATH …`
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
use std::process::ExitCode;
use std::time::Duration;

use aspo_data::{Encoder, Fit, ImageLoader, ImageProcessor, ImageSource, Template, Tokenizer};
use aspo_eval::ask::partial;
use aspo_eval::choice::Letters;
use aspo_eval::judge::{Judge, JudgeConfig, total_usage};
use aspo_eval::table::Table;
use aspo_eval::{
    Answer, AnswerError, Answers, Benchmark, Image, Question, Report, Said, Settings, answered, ask,
};
use aspo_examples::answer::{Asked, replies};
use aspo_examples::backend::{Device, OnBackend};
use aspo_examples::checkpoint::{Known, check_processor, is_instruct_blip};
use aspo_examples::{Failure, note, out, say};
use aspo_models::{
    Architecture, LoadOptions, OnArchitecture, PictureShape, Precision, Pretrained, VisionLanguageModel,
    lora, on_architecture,
};
use aspo_train::{folder_hash, processor, qformer_tokenizer, stored_config};
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
    /// Where the model's answers are written. A run that was stopped goes on there, a finished one is not asked again.
    #[arg(long, requires = "model")]
    out: Option<PathBuf>,
    /// How the question is wrapped [default: as the adapter was trained, else by the model's chat template].
    #[arg(long, requires = "model")]
    template: Option<Template>,
    /// Leave pictures as they are stored, whatever their orientation tag (EXIF) says.
    #[arg(long)]
    ignore_orientation: bool,
    /// How pictures become square [default: as in training, by the model's processor file].
    #[arg(long, value_enum, requires = "model")]
    fit: Option<Square>,
    /// Questions answered at once.
    #[arg(long, default_value_t = 8, requires = "model")]
    batch: usize,
    /// The model's name in answers and tables [default: the one the files tell, or the folder of the run or model].
    #[arg(long)]
    name: Option<String>,
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
            note!("error: {}", error.to_string().replace('\n', " "));
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
fn evaluate(args: &Args, benchmark: Benchmark, data: &Path) -> Result<Vec<(String, Report)>, Failure> {
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

/// Has a model answer every question, and writes the answers to `out`. What can be refused is refused before weights are
/// read.
fn answer_with_model(
    args: &Args,
    benchmark: Benchmark,
    data: &Path,
    folder: &Path,
    out: &Path,
) -> Result<Answers, Failure> {
    let questions = benchmark.questions(data, args.images.as_deref())?;
    let is_missing = |image: &&Image| matches!(image, Image::Path(path) if !path.is_file());
    let missing: Vec<&Image> = questions.iter().filter_map(|q| q.image.as_ref()).filter(is_missing).collect();
    if let Some(Image::Path(first)) = missing.first() {
        let (missing, all) = (missing.len(), questions.len());
        let first = first.display();
        return Err(format!(
            "{missing} of {all} pictures are not there, the first is {first}; give --images"
        )
        .into());
    }
    let asking = Asking::new(args, benchmark, folder, &questions, out)?;
    let done = answered(out, &questions, &asking.name, &asking.settings)?;
    let answers = if done == questions.len() {
        note!("all {done} questions are answered in {}: not asked again", out.display());
        Answers::read(out)?
    } else {
        let device = args.device.unwrap_or_default();
        device.check()?;
        device.run(asking)?
    };
    if let cut @ 1.. = answers.cut() {
        let (all, most) = (questions.len(), benchmark.max_new_tokens());
        note!("{cut} of {all} answers were cut at {most} tokens");
    }
    Ok(answers)
}

/// Questions to the model of a folder.
struct Asking<'a> {
    args: &'a Args,
    folder: &'a Path,
    questions: &'a [Question],
    out: &'a Path,
    name: String,
    template: Template,
    processor: ImageProcessor,
    precision: Precision,
    max_new_tokens: usize,
    settings: Settings,
}

impl<'a> Asking<'a> {
    fn new(
        args: &'a Args,
        benchmark: Benchmark,
        folder: &'a Path,
        questions: &'a [Question],
        out: &'a Path,
    ) -> Result<Self, Failure> {
        let known_model = Known::of(folder)?;
        let (template, known) = match args.template {
            Some(template) => (template, "as given".into()),
            None => template(folder, args.adapter.as_deref())?,
        };
        if is_instruct_blip(folder)? != (template == Template::InstructBlip) {
            return Err(format!(
                "option `template`: {template} does not fit the model in {}",
                folder.display()
            )
            .into());
        }
        check_processor(folder)?;
        let mut processor = processor(folder, known_model.image_size)?;
        processor.decode.exif_orientation = !args.ignore_orientation;
        if let Some(square) = args.fit {
            processor = processor.with_fit(match square {
                Square::Pad => Fit::Pad,
                Square::Crop => Fit::Crop,
                Square::Squash => Fit::Squash,
            });
        }
        let fit = format!("{:?}", processor.fit).to_lowercase();
        note!("template {template} ({known}), pictures: {fit} to {} pixels", processor.size);
        let keep = args.device.unwrap_or_default().keeps_precision();
        let precision = if keep { Precision::Keep } else { Precision::F32 };
        let max_new_tokens = benchmark.max_new_tokens();
        let mut settings = Settings::from([
            ("model".into(), folder_hash(folder)?),
            ("template".into(), template.to_string()),
            ("fit".into(), fit),
            ("pictures".into(), processor.rules()),
            ("precision".into(), if keep { "as stored" } else { "f32" }.into()),
            ("max_new_tokens".into(), max_new_tokens.to_string()),
        ]);
        if let Some(adapter) = &args.adapter {
            settings.insert("adapter".into(), folder_hash(adapter)?);
        }
        let name = match &args.name {
            Some(name) => name.clone(),
            None => run_name(args.adapter.as_deref().unwrap_or(folder))?,
        };
        Ok(Self {
            args,
            folder,
            questions,
            out,
            name,
            template,
            processor,
            precision,
            max_new_tokens,
            settings,
        })
    }

    fn ask<B: Backend, M: Pretrained<B> + VisionLanguageModel<B>>(
        self,
        device: B::Device,
    ) -> Result<Answers, Failure> {
        let Self { args, folder, questions, .. } = self;
        let options = LoadOptions { precision: self.precision, ..Default::default() };
        let (mut model, _) = M::from_pretrained(folder, &options, &device)?;
        if let Some(adapter) = &args.adapter {
            let (adapted, told) = lora::load_adapter(model, adapter)?;
            told.warnings.iter().for_each(|warning| note!("warning: {warning}"));
            model = adapted;
        }
        let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"))?;
        let mut encoder = Encoder::new(
            tokenizer,
            self.template,
            model.tokens(&PictureShape::whole([model.image_size(); 2])),
        );
        if self.template == Template::InstructBlip {
            encoder.instruction = Some(qformer_tokenizer(folder)?);
        }
        let mut answerer = ModelAnswers {
            name: self.name,
            settings: self.settings,
            encoder,
            images: ImageLoader::new(".", self.processor)?,
            max_new_tokens: self.max_new_tokens,
            model,
            device,
        };
        let (count, mut kept) = (questions.len(), 0);
        out::keep_on()?;
        let asked = ask(&mut answerer, questions, self.out, args.batch, |done| {
            kept = done;
            note!("{done} of {count} questions answered");
        });
        if out::interrupted() && asked.is_err() {
            let place = partial(self.out);
            note!(
                "stopped: {kept} of {count} answers are kept in {}; the same command goes on there",
                place.display()
            );
        }
        out::let_go();
        Ok(asked?)
    }
}

impl OnBackend for Asking<'_> {
    type Output = Result<Answers, Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        on_architecture(self.folder, AskOn::<B>(self, device))?
    }
}

/// Questions, on a device.
struct AskOn<'a, B: Backend>(Asking<'a>, B::Device);

impl<B: Backend> OnArchitecture for AskOn<'_, B> {
    type Output = Result<Answers, Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        self.0.ask::<B, A::Model<B>>(self.1)
    }
}

/// How the adapter's run, else the model, wants to be asked, and how that is known.
fn template(folder: &Path, adapter: Option<&Path>) -> Result<(Template, String), Failure> {
    let run = adapter.map(run_of).transpose()?.flatten();
    match run.and_then(|run| Some((stored_config(&run).ok()?.template, run))) {
        Some((template, run)) => Ok((template, format!("as trained in {}", run.display()))),
        None => aspo_examples::checkpoint::template(folder),
    }
}

/// The run that an adapter's folder is of: a training's output holds `adapter/` and `checkpoint-*/`.
fn run_of(adapter: &Path) -> Result<Option<PathBuf>, Failure> {
    let whole = std::path::absolute(adapter)?;
    let own = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let of_run = own == "adapter" || own.starts_with("checkpoint-");
    Ok(whole.parent().filter(|_| of_run).map(Path::to_path_buf))
}

/// A name for a folder: its own, or its run's where every run's is the same.
fn run_name(folder: &Path) -> Result<String, Failure> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = std::path::absolute(folder)?;
    let own = name(&whole);
    Ok(match run_of(&whole)?.map(|run| name(&run)).filter(|run| !run.is_empty()) {
        None => own,
        Some(run) if own == "adapter" => run,
        Some(run) => format!("{run}-{own}"),
    })
}

/// A loaded model behind the benchmarks' one interface: greedy, one picture a question.
struct ModelAnswers<B: Backend, M> {
    name: String,
    settings: Settings,
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

    fn settings(&self) -> Settings {
        self.settings.clone()
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
        if out::interrupted() {
            return Err("stopped".into());
        }
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
                let place = || match &question.image {
                    Some(Image::Path(path)) => path.display().to_string(),
                    _ => format!("picture of question {}", question.id),
                };
                let pixels = self.images.load(&ImageSource::from(bytes));
                Ok(Some(pixels.map_err(|error| format!("{}: {error}", place()))?))
            })
            .collect::<Result<Vec<_>, AnswerError>>()?;
        let asked: Vec<Asked> = batch
            .iter()
            .zip(&pixels)
            .map(|(question, pixels)| Asked { question: &question.prompt, pixels: pixels.as_deref() })
            .collect();
        let batch = asked.len().max(1);
        let said = replies(&self.model, &self.encoder, &asked, batch, self.max_new_tokens, &self.device)?;
        Ok(said.into_iter().map(|reply| Said { text: reply.text, cut: reply.cut }).collect())
    }
}
