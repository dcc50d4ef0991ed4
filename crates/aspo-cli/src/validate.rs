//! `aspo validate`: an account of preference pairs: rows, faults by kind, lengths, sentences, duplicates; with `--model` in that
//! model's own tokens, with `--html` as a page that shows pairs as the model sees them.
//!
//! Ends with 0 when every row is sound (rows with equal answers are dropped and counted, as in training), with 1 when
//! there are faults, with 2 when a file cannot be read, or not to its end.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aspo_data::validate::{Report, ValidateOptions, validate};
use aspo_data::{Encoder, Format, OnFault, Pairing, Source, Template, Tokenizer};
use aspo_models::{Architecture, OnArchitecture, Pretrained, on_architecture};
use aspo_train::{Sight, TrainConfig};
use burn::tensor::backend::Backend;
use clap::Parser;

use crate::backend::{Device, OnBackend};
use crate::checkpoint::{Known, template};
use crate::{Failure, note, page, say};

/// Checks preference pairs.
#[derive(Parser)]
pub struct ValidateArgs {
    /// JSON lists, JSON lines or parquet, plain, gzip or zstd; folders of such files, or patterns.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// trl, seva, rlaif-v, llama-factory, ms-swift, openai, ha-dpo or ratings; recognised where not given.
    #[arg(long)]
    format: Option<Format>,
    /// For files whose columns have other names: `chosen=better_answer`.
    #[arg(long, value_name = "NAME=COLUMN", value_parser = column)]
    column: Vec<(String, String)>,
    /// Make pairs of each answer against each that has a lower score, not of the best against the worst.
    #[arg(long)]
    all_ratings: bool,
    /// Folder of the images: every image is looked for.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Decode every image.
    #[arg(long)]
    decode: bool,
    /// Checkpoint folder of a model, for its own tokens: its tokenizer, its way to be asked, its image processor.
    #[arg(long, requires = "images", conflicts_with = "image_tokens")]
    model: Option<PathBuf>,
    /// A tokenizer.json, for lengths in tokens and truncation.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// How prompts are written, for lengths in tokens [default: as --model was taught, else vicuna_v1]
    #[arg(long)]
    template: Option<Template>,
    /// Tokens of one image [default: 576]
    #[arg(long)]
    image_tokens: Option<usize>,
    /// Longest sequence in tokens [default: 2048, or what --model was made for]
    #[arg(long)]
    max_length: Option<usize>,
    /// Stop at the first fault.
    #[arg(long)]
    strict: bool,
    /// Print the account as JSON.
    #[arg(long)]
    json: bool,
    /// Write a page with the account and the first pairs, as the model sees them.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Pairs on the page.
    #[arg(long, default_value_t = 12)]
    samples: usize,
}

fn column(text: &str) -> Result<(String, String), String> {
    let (ours, theirs) = text.split_once('=').ok_or("write NAME=COLUMN")?;
    Ok((ours.trim().to_owned(), theirs.trim().to_owned()))
}

/// Prints the account. The exit code is 0, 1 where there are faults, 2 where a file cannot be read, or not to its end.
pub fn run(arguments: &ValidateArgs) -> ExitCode {
    account(arguments).unwrap_or_else(|error| {
        note!("error: {error}");
        ExitCode::from(2)
    })
}

fn account(arguments: &ValidateArgs) -> Result<ExitCode, Failure> {
    if let Some(images) = arguments.images.as_ref().filter(|images| !images.is_dir()) {
        let what = if images.exists() {
            "a file, where the folder of the images is wanted"
        } else {
            "no such folder"
        };
        return Err(format!("--images {}: {what}", images.display()).into());
    }
    if let Some(tokenizer) = arguments.tokenizer.as_ref().filter(|tokenizer| tokenizer.is_dir()) {
        let what = "a folder: name the tokenizer.json in it";
        return Err(format!("--tokenizer {}: {what}", tokenizer.display()).into());
    }
    let encoder = match (&arguments.model, &arguments.tokenizer) {
        (Some(model), _) => Some(of_model(arguments, model)?),
        (None, None) => None,
        (None, Some(path)) => {
            let template = arguments.template.unwrap_or(Template::VicunaV1);
            let image_tokens = arguments.image_tokens.unwrap_or(576);
            let max_length = Some(arguments.max_length.unwrap_or(2048));
            Some(Encoder { max_length, ..Encoder::new(Tokenizer::from_file(path)?, template, image_tokens) })
        }
    };
    let mut options = ValidateOptions {
        image_root: arguments.images.clone(),
        decode_images: arguments.decode,
        encoder: encoder.as_ref(),
        on_fault: if arguments.strict { OnFault::Stop } else { OnFault::Skip },
        samples: if arguments.html.is_some() { arguments.samples } else { 0 },
        ..ValidateOptions::default()
    };
    let mut reports: Vec<Report> = Vec::new();
    for file in &arguments.files {
        let source = Source {
            format: arguments.format,
            columns: arguments.column.iter().cloned().collect(),
            pairing: if arguments.all_ratings { Pairing::All } else { Pairing::BestWorst },
            ..file.as_path().into()
        };
        let report = validate(&source, &options, progress(file))?;
        options.samples -= report.samples.len();
        if !arguments.json {
            say!("{report}");
        }
        reports.push(report);
    }
    if arguments.json {
        say!(
            "{}",
            match reports.as_slice() {
                [one] => serde_json::to_string_pretty(one)?,
                several => serde_json::to_string_pretty(several)?,
            }
        );
    }
    if let Some(path) = &arguments.html {
        page::write(path, &reports, encoder.as_ref(), arguments.images.as_deref())?;
        note!("page: {}", path.display());
    }
    let broken = reports.iter().any(|report| report.broken.is_some());
    let faulty = reports.iter().any(|report| report.faulty() > 0);
    Ok(ExitCode::from(if broken { 2 } else { u8::from(faulty) }))
}

/// How many rows were read, every few seconds: written over on a terminal.
fn progress(file: &Path) -> impl FnMut(usize) {
    const EVERY: Duration = Duration::from_millis(500);
    let terminal = std::io::stderr().is_terminal();
    let (name, begin) = (file.display().to_string(), Instant::now());
    let mut last = begin;
    move |rows| {
        if last.elapsed() < if terminal { EVERY } else { 20 * EVERY } {
            return;
        }
        last = Instant::now();
        let rate = rows as f64 / begin.elapsed().as_secs_f64();
        match terminal {
            true => eprint!("\r{name}: {rows} rows, {rate:.0} a second \x1b[K\r"),
            false => note!("{name}: {rows} rows, {rate:.0} a second"),
        }
    }
}

/// The encoder of a training of this model.
fn of_model(arguments: &ValidateArgs, model: &Path) -> Result<Encoder, Failure> {
    struct Sees(TrainConfig);

    impl OnBackend for Sees {
        type Output = Result<Encoder, Failure>;

        fn run<B: Backend>(self, device: B::Device) -> Self::Output {
            on_architecture(self.0.model.clone(), SeesOn::<B>(self.0, device))?
        }
    }

    struct SeesOn<B: Backend>(TrainConfig, B::Device);

    impl<B: Backend> OnArchitecture for SeesOn<B> {
        type Output = Result<Encoder, Failure>;

        fn run<A: Architecture>(self, shape: A) -> Self::Output {
            // Nothing is allocated before it is used.
            let model = A::Model::<B>::from_config(&shape, &self.1);
            Ok(aspo_train::encoder(&self.0, &Sight::of(&self.0, &model)?)?)
        }
    }

    let default = TrainConfig::default();
    let positions = Known::of(model)?.positions;
    let config = TrainConfig {
        model: model.to_owned(),
        tokenizer: arguments.tokenizer.clone(),
        images: arguments.images.clone().unwrap_or_default(),
        template: arguments.template.map_or_else(|| Ok(template(model)?.0), Ok::<_, Failure>)?,
        max_length: arguments.max_length.unwrap_or(default.max_length.min(positions)),
        ..default
    };
    Device::default().run(Sees(config))
}
