//! `aspo generate`: a model's answer about pictures, as it comes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use aspo_data::{ImageLoader, ImageSource, Pixels, Template};
use aspo_models::{
    Architecture, GenerateConfig, LoadOptions, OnArchitecture, Precision, Pretrained, VisionLanguageModel,
    lora, on_architecture,
};
use aspo_train::processor;
use burn::tensor::backend::Backend;
use clap::Parser;
use serde::{Deserialize, Deserializer, Serialize};

use crate::answer::{Asked, encoder, stream};
use crate::backend::{Device, OnBackend};
use crate::checkpoint::{asked_by, check_processor, is_instruct_blip};
use crate::{Failure, note, out, say};

/// Asks a model, with an adapter or without, about a picture, and prints its answer as it comes.
#[derive(Parser)]
pub struct GenerateArgs {
    /// Checkpoint folder of the model
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A picture that is asked about; several times for several, none for a question about nothing
    #[arg(long, conflicts_with = "prompts")]
    image: Vec<PathBuf>,
    /// What is asked
    #[arg(required_unless_present = "prompts")]
    prompt: Option<String>,
    /// A JSONL file in place of one question: lines with `prompt` and, where there are pictures, `image` (a path or a list of them,
    /// relative to the file); the same line with `answer` is printed for each
    #[arg(long, conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// How the question is wrapped [default: as the adapter was trained, else by the model's chat template]
    #[arg(long)]
    template: Option<Template>,
    /// Longest answer in tokens
    #[arg(long, alias = "max_new_tokens", default_value_t = GenerateConfig::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Draw tokens at this temperature [default: the likeliest token each time]
    #[arg(long, conflicts_with = "num_beams")]
    temperature: Option<f64>,
    /// Draw from the fewest tokens whose probabilities reach this
    #[arg(long, alias = "top_p", requires = "temperature", default_value_t = GenerateConfig::default().top_p)]
    top_p: f64,
    /// Draw from this many likeliest tokens; 0 is all
    #[arg(long, alias = "top_k", requires = "temperature", default_value_t = GenerateConfig::default().top_k)]
    top_k: usize,
    /// Seed of drawing
    #[arg(long, requires = "temperature", default_value_t = GenerateConfig::default().seed)]
    seed: u64,
    /// Sequences kept side by side; with more than one the answer is printed when it is whole
    #[arg(long, alias = "num_beams", default_value_t = GenerateConfig::default().num_beams)]
    num_beams: usize,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

/// A question, the files of its pictures, and, once it was asked, the answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Question {
    pub prompt: String,
    #[serde(default, deserialize_with = "one_or_several", skip_serializing_if = "Vec::is_empty")]
    pub image: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
}

fn one_or_several<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a path, or a list of paths")]
    enum OneOrSeveral {
        One(PathBuf),
        Several(Vec<PathBuf>),
    }
    Ok(match OneOrSeveral::deserialize(value)? {
        OneOrSeveral::One(path) => vec![path],
        OneOrSeveral::Several(paths) => paths,
    })
}

/// Asks, and prints.
///
/// # Errors
/// A model, adapter, picture or line of the file that cannot be read; an option that means nothing.
pub fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let questions = match (&args.prompts, &args.prompt) {
        (Some(file), _) => read(file)?,
        (None, prompt) => {
            vec![Question {
                prompt: prompt.clone().unwrap_or_default(),
                image: args.image.clone(),
                answer: None,
            }]
        }
    };
    let told = |error: aspo_models::Error| Failure::from(format!("option {error}"));
    config(args).check().map_err(told)?;
    check_processor(&args.model)?;
    let device = args.device.unwrap_or_default();
    device.check()?;
    device.run(Job { args, questions })
}

fn config(args: &GenerateArgs) -> GenerateConfig {
    GenerateConfig {
        max_new_tokens: args.max_new_tokens,
        do_sample: args.temperature.is_some(),
        temperature: args.temperature.unwrap_or(1.0),
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        num_beams: args.num_beams,
        ..GenerateConfig::default()
    }
}

/// The lines of a JSONL file; the paths in them are relative to it.
pub(crate) fn read(file: &Path) -> Result<Vec<Question>, Failure> {
    let told = |error: &dyn std::fmt::Display| Failure::from(format!("{}: {error}", file.display()));
    let lines = BufReader::new(std::fs::File::open(file).map_err(|error| told(&error))?).lines();
    let mut questions = Vec::new();
    for (row, line) in lines.enumerate() {
        let line = line.map_err(|error| told(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        let fault = |error: serde_json::Error| told(&format!("line {}: {error}", row + 1));
        questions.push(serde_json::from_str(&line).map_err(fault)?);
    }
    Ok(questions)
}

struct Job<'a> {
    args: &'a GenerateArgs,
    questions: Vec<Question>,
}

impl OnBackend for Job<'_> {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        on_architecture(&self.args.model, JobOn::<B>(self, device))?
    }
}

struct JobOn<'a, B: Backend>(Job<'a>, B::Device);

impl<B: Backend> OnArchitecture for JobOn<'_, B> {
    type Output = Result<(), Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        let Self(Job { args, questions }, device) = self;
        let folder = &args.model;
        let template = match args.template {
            Some(template) => template,
            None => asked_by(folder, args.adapter.as_deref())?.0,
        };
        if is_instruct_blip(folder)? != (template == Template::InstructBlip) {
            let folder = folder.display();
            return Err(format!("option `template`: {template} does not fit the model in {folder}").into());
        }
        let keep = args.device.unwrap_or_default().keeps_precision();
        let precision = if keep { Precision::Keep } else { Precision::F32 };
        let options = LoadOptions { precision, ..Default::default() };
        let (mut model, _) = A::Model::<B>::from_pretrained(folder, &options, &device)?;
        if let Some(adapter) = &args.adapter {
            let (adapted, told) = lora::load_adapter(model, adapter)?;
            told.warnings.iter().for_each(|warning| note!("warning: {warning}"));
            model = adapted;
        }
        let processor = processor(folder, model.image_size())?;
        let encoder = encoder(&model, folder, template, &processor)?;
        let images = ImageLoader::new(".", processor)?;
        let config = config(args);
        let folder = args.prompts.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        for mut question in questions {
            let alone = question.image.len() == 1;
            let load = |path: &PathBuf| load(&images, &folder.join(path), alone);
            let pictures = question.image.iter().map(load).collect::<Result<Vec<_>, _>>()?;
            let asked = Asked { question: &question.prompt, pictures: &pictures };
            let one = args.prompts.is_none();
            let answer = stream(&model, &encoder, &asked, &config, &device, |text| {
                if one {
                    out::print(format_args!("{text}"));
                }
            })?;
            match one {
                true => say!(),
                false => {
                    question.answer = Some(answer);
                    say!("{}", serde_json::to_string(&question)?);
                }
            }
        }
        Ok(())
    }
}

fn load(images: &ImageLoader, path: &Path, alone: bool) -> Result<Pixels, Failure> {
    let told = |error: &dyn std::fmt::Display| Failure::from(format!("{}: {error}", path.display()));
    let bytes = std::fs::read(path).map_err(|error| told(&error))?;
    images.pixels(&ImageSource::from(bytes), alone).map_err(|error| told(&error))
}
