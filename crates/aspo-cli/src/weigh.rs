//! `aspo weigh`: how much ASPO makes each sentence of people's answers count, as a page and as lines of JSON.

use std::path::{Path, PathBuf};

use aspo_data::{EncodedPair, ImageLoader, Pair, Source, Template, read_source};
use aspo_models::{
    Architecture, LoadOptions, OnArchitecture, Precision, Pretrained, VisionLanguageModel, lora,
    on_architecture,
};
use aspo_train::{Data, MarkedSentence, Picture, Report, Sight, TrainConfig, VisionFeatures, score, weigh};
use burn::tensor::backend::Backend;
use clap::Parser;

use crate::backend::{Device, OnBackend};
use crate::checkpoint::{Known, asked_by, check_processor};
use crate::generate::{self, Question};
use crate::report::pictures;
use crate::{Failure, note, say};

/// Weighs the sentences of answers as a training would: by how well they fit their picture, and how fluent they are to a model.
#[derive(Parser)]
pub struct WeighArgs {
    /// Checkpoint folder of the model whose perplexity counts
    #[arg(long)]
    model: PathBuf,
    /// Folder of a PEFT adapter
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Checkpoint folder of the CLIP that scores sentences; not needed with --alpha 0
    #[arg(long)]
    clip: Option<PathBuf>,
    /// Preference pairs in any format that is read: both answers are weighed
    #[arg(long, required_unless_present = "answers")]
    data: Option<PathBuf>,
    /// Folder that image paths of the pairs are relative to
    #[arg(long, required_unless_present = "answers")]
    images: Option<PathBuf>,
    /// Answers in place of pairs: a JSONL file of lines with `prompt`, `image` (a path relative to the file, or a list) and
    /// `answer`, as `aspo generate --prompts` prints them
    #[arg(long, conflicts_with_all = ["data", "images"])]
    answers: Option<PathBuf>,
    /// Share of similarity against perplexity, 0 to 1
    #[arg(long, default_value_t = TrainConfig::default().alpha)]
    alpha: f64,
    /// Pairs or answers that are weighed: the first ones
    #[arg(long, default_value_t = 24)]
    count: usize,
    /// How prompts are written [default: as the adapter was trained, else by the model's chat template]
    #[arg(long)]
    template: Option<Template>,
    /// The page that is written
    #[arg(long, default_value = "weights.html")]
    out: PathBuf,
    /// Print a line of JSON for each answer as well
    #[arg(long)]
    json: bool,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

/// Weighs, and writes the page.
///
/// # Errors
/// An option that cannot be honoured; a model, row or picture that cannot be had; a full disk.
pub fn run(args: &WeighArgs) -> Result<(), Failure> {
    let template = match args.template {
        Some(template) => template,
        None => asked_by(&args.model, args.adapter.as_deref())?.0,
    };
    let default = TrainConfig::default();
    let config = TrainConfig {
        model: args.model.clone(),
        clip: args.clip.clone(),
        data: args.file().into(),
        images: args.images.clone().unwrap_or_else(|| ".".into()),
        template,
        alpha: args.alpha,
        max_length: default.max_length.min(Known::of(&args.model)?.positions),
        ..default
    };
    config.validate()?;
    aspo_train::check_paths(&config)?;
    std::iter::once(&args.model).chain(&args.clip).try_for_each(|folder| check_processor(folder))?;
    let device = args.device.unwrap_or_default();
    device.check()?;
    device.run(Job { args, config })
}

impl WeighArgs {
    fn file(&self) -> PathBuf {
        self.data.clone().or_else(|| self.answers.clone()).unwrap_or_default()
    }
}

/// The answers of a file, each as the chosen one of a pair.
fn answers(file: &Path, count: usize) -> Result<Vec<Pair>, Failure> {
    let one = |(row, question): (usize, Question)| {
        let row = row + 1;
        let told = |why: String| Failure::from(format!("{}: answer {row}: {why}", file.display()));
        let answer = question.answer.filter(|answer| !answer.trim().is_empty());
        let answer = answer.ok_or_else(|| told("`answer` is empty; give what is to be weighed".into()))?;
        // The other answer is not looked at, but may not be the same.
        let other = if answer.trim() == "." { "-" } else { "." };
        let mut pair = Pair::new(row.to_string(), &question.prompt, &answer, other);
        for image in &question.image {
            let path = file.parent().unwrap_or(Path::new("")).join(image);
            let bytes =
                std::fs::read(&path).map_err(|error| told(format!("`image` {}: {error}", path.display())))?;
            pair = pair.with_image(bytes);
        }
        Ok(pair)
    };
    generate::read(file)?.into_iter().take(count).enumerate().map(one).collect()
}

struct Job<'a> {
    args: &'a WeighArgs,
    config: TrainConfig,
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
        let Self(Job { args, config }, device) = self;
        let keep = args.device.unwrap_or_default().keeps_precision();
        let precision = if keep { Precision::Keep } else { Precision::F32 };
        let options = LoadOptions { precision, ..LoadOptions::default() };
        let (mut model, _) = A::Model::<B>::from_pretrained(&config.model, &options, &device)?;
        if let Some(adapter) = &args.adapter {
            let (adapted, told) = lora::load_adapter(model, adapter)?;
            told.warnings.iter().for_each(|warning| note!("warning: {warning}"));
            model = adapted;
        }
        let encoder = aspo_train::encoder(&config, &Sight::of(&config, &model)?)?;
        let pairs: Vec<Pair> = match &args.answers {
            Some(file) => answers(file, args.count)?,
            None => read_source(&Source::from(args.file().as_path()))?
                .take(args.count)
                .collect::<Result<_, _>>()?,
        };
        let pairs = pairs.iter().map(|pair| encoder.encode(pair)).collect::<Result<Vec<_>, _>>()?;
        if pairs.is_empty() {
            let (option, what) =
                if args.answers.is_some() { ("answers", "answer") } else { ("data", "pair") };
            return Err(format!("option `{option}`: {} holds no {what}", args.file().display()).into());
        }
        let mut data = Data::new(encoder, pairs, Vec::new());
        if args.alpha > 0.0 {
            score::<B>(&config, &mut data, args.answers.is_none(), &device)?;
        }
        let page = weighed(&config, &data, &model, &device, args)?;
        page.write(&args.out)?;
        note!("page: {}", args.out.display());
        Ok(())
    }
}

/// Both answers of every pair, by their names; the one answer of each where no pairs were given.
fn weighed<B: Backend, M: VisionLanguageModel<B>>(
    config: &TrainConfig,
    data: &Data,
    model: &M,
    device: &B::Device,
    args: &WeighArgs,
) -> Result<Report, Failure> {
    let pairs = data.pairs.iter().collect::<Result<Vec<EncodedPair>, _>>()?;
    let turned = pairs.iter().map(|pair| EncodedPair { chosen: pair.rejected.clone(), ..pair.clone() });
    let turned: Vec<EncodedPair> = turned.collect();
    let images = ImageLoader::new(&config.images, config.processor(&config.model, model.image_size())?)?;
    let mut shown: Vec<Picture> = pictures(&pairs, &images, &data.encoder)?;
    let mut features = VisionFeatures::new(images);
    let pad = data.encoder.tokenizer.pad();
    let named = match args.answers {
        Some(_) => vec![("answer", &pairs)],
        None => vec![("chosen", &pairs), ("rejected", &turned)],
    };
    for (name, pairs) in named {
        let rows: Vec<&EncodedPair> = pairs.iter().collect();
        let size = config.per_device_train_batch_size;
        for (pairs, shown) in rows.chunks(size).zip(shown.chunks_mut(size)) {
            let weighed = weigh(model, pairs, &mut features, config.alpha, pad, device)?;
            for ((pair, sentences), picture) in pairs.iter().zip(weighed).zip(shown) {
                if args.json {
                    say!("{}", serde_json::json!({ "id": pair.id, "answer": name, "sentences": sentences }));
                }
                let mark = |sentence| MarkedSentence { sentence, hallucinated: false };
                picture.answers.push((name.to_owned(), sentences.into_iter().map(mark).collect()));
            }
        }
    }
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let clip = config.clip.as_ref().map_or("none".to_owned(), |folder| folder.display().to_string());
    let facts = vec![
        fact("model", config.model.display().to_string()),
        fact("similarity by", clip),
        fact("share of similarity, α", config.alpha.to_string()),
        fact(
            if args.answers.is_some() { "answers" } else { "pairs" },
            format!("{} of {}", pairs.len(), config.data),
        ),
    ];
    let pictures = vec![("Answers, their sentences by weight".to_owned(), shown)];
    Ok(Report { title: "Weights of sentences".into(), facts, pictures, ..Report::default() })
}
