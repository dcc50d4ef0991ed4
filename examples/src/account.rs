//! What a run has done: the table of base and trained model, the report and its pictures.

use std::collections::HashSet;
use std::io::Cursor;
use std::path::Path;

use aspo_data::image::decode;
use aspo_data::{EncodedPair, Encoder, ImageLoader, Pair};
use aspo_models::VisionLanguageModel;
use aspo_models::lora::without_adapters;
use aspo_scenes::{Split, Verdict, judge, load};
use aspo_train::{
    Account, Data, MarkedSentence, MetricFile, Picture, Plan, Report, TrainConfig, VisionFeatures,
    WeighedSentence, human, peak_memory, processor, score, weigh,
};
use burn::tensor::backend::Backend;

use crate::measure::{Measured, Tally};
use crate::pretrain::corpus::INSTRUCTIONS;
use crate::spread::share_change;
use crate::{Failure, say};

/// Both models' figures and the change of each. What is a share of counts over scenes has the change's 95% interval.
pub fn table(before: &Measured, after: &Measured) -> Vec<Vec<String>> {
    type Counts = fn(&Tally) -> [usize; 2];
    let row = |name: &str, of: &dyn Fn(&Measured) -> f64, counts: Option<Counts>| {
        let percent = |value: f64| format!("{:.1}", 100.0 * value);
        let (a, b) = (of(before), of(after));
        let change = counts.map_or_else(
            || format!("{:+.1}", 100.0 * (b - a)),
            |counts| {
                let tallied = |of: &Measured| of.tallies.iter().map(counts).collect::<Vec<_>>();
                share_change(&tallied(before), &tallied(after)).scaled(100.0).to_string()
            },
        );
        vec![name.to_owned(), percent(a), percent(b), change]
    };
    let mut table = vec![["", "base", "trained", "change [95% over scenes]"].map(String::from).to_vec()];
    table.push(row("hallucinated sentences, %", &|m| m.hallucinated, Some(|t| t.sentences)));
    table.push(row("descriptions with a false sentence, %", &|m| m.spoiled, None));
    table.push(row("unreadable sentences, %", &|m| m.unreadable, None));
    table.push(row("objects described rightly, %", &|m| m.described, Some(|t| t.objects)));
    let [a, b] = [before.sentences, after.sentences];
    let length = [format!("{a:.2}"), format!("{b:.2}"), format!("{:+.2}", b - a)];
    table.push([vec!["sentences a description".into()], length.to_vec()].concat());
    for (index, name) in ["random", "popular", "adversarial"].iter().enumerate() {
        table.push(row(&format!("POPE {name}: accuracy, %"), &|m| m.pope[index].accuracy, None));
        table.push(row(&format!("POPE {name}: F1, %"), &|m| m.pope[index].f1, None));
        table.push(row(&format!("POPE {name}: yes-ratio, %"), &|m| m.pope[index].yes_ratio, None));
    }
    table.push(row("POPE mean accuracy, %", &Measured::pope_accuracy, Some(|t| t.questions)));
    table
}

/// On a terminal.
pub fn print_table(table: &[Vec<String>]) {
    say!();
    for row in table {
        say!("{:<38}{:>9}{:>9}  {}", row[0], row[1], row[2], row[3]);
    }
}

/// The report of a finished run, without tables and pictures.
///
/// # Errors
/// Metrics that cannot be read.
pub fn report(
    config: &TrainConfig,
    plan: &Plan,
    account: &Account,
    steps: usize,
    seconds: f64,
) -> Result<Report, Failure> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("model", config.model.display().to_string()),
        fact("pairs", format!("{} in {}", plan.pairs, config.data.display())),
        fact(
            "loss",
            format!(
                "{}, β {}, α {}, scaling {}",
                config.loss_type.join(" + "),
                config.beta,
                config.alpha,
                config.reward_scaling
            ),
        ),
        fact(
            "trainable",
            format!("{} of {} parameters (LoRA, r {})", plan.trainable, plan.parameters, config.lora.r),
        ),
        fact("steps", format!("{steps} of {} pairs, seed {}", plan.global_batch, config.seed)),
        fact("time", format!("{seconds:.0} s")),
        fact("memory planned", human(plan.total_bytes())),
        fact("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    let told = account.lines(config.max_length);
    facts.extend((!told.is_empty()).then(|| fact("left out or cut", told.join("; "))));
    facts.extend(config.ref_model.as_ref().map(|folder| fact("reference", folder.display().to_string())));
    facts.extend(peak_memory().map(|peak| fact("memory at the peak", human(peak))));
    let title = format!("{} on {}", config.loss_type.join(" + "), config.model.display());
    Ok(Report { title, facts, metrics: MetricFile::read(&config.output_dir)?, ..Report::default() })
}

/// Longest side of a picture in a report.
const THUMBNAIL: u32 = 384;

/// The picture itself where it is small, else a smaller one.
fn shown(bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
    let picture = decode(&bytes)?;
    if picture.width.max(picture.height) <= THUMBNAIL && bytes.len() < 100_000 {
        return Ok(bytes);
    }
    let picture = image::RgbImage::from_raw(picture.width, picture.height, picture.pixels)
        .ok_or("a picture of another size than its pixels")?;
    let scale = f64::from(THUMBNAIL) / f64::from(picture.width().max(picture.height()));
    let side = |side: u32| ((f64::from(side) * scale.min(1.0)).round() as u32).max(1);
    let small = image::imageops::thumbnail(&picture, side(picture.width()), side(picture.height()));
    let mut written = Cursor::new(Vec::new());
    small.write_to(&mut written, image::ImageFormat::Jpeg)?;
    Ok(written.into_inner())
}

/// The first pairs of training that have a picture, each of another: the sentences of the chosen answer as the base and the
/// trained model weigh them.
///
/// # Errors
/// A picture that cannot be had.
pub fn own_pictures<B: Backend, M: VisionLanguageModel<B>>(
    config: &TrainConfig,
    data: &Data,
    trained: &M,
    device: &B::Device,
) -> Result<Vec<Picture>, Failure> {
    const SHOWN: usize = 12;
    let mut seen = HashSet::new();
    let first = data.pairs.iter().filter(|pair| pair.images.first().is_some_and(|image| seen.insert(image)));
    let pairs: Vec<&EncodedPair> = first.take(SHOWN).collect();
    let images = ImageLoader::new(&config.images, config.processor(&config.model, trained.image_size())?)?;
    let mut pictures = Vec::with_capacity(pairs.len());
    for pair in &pairs {
        let image = shown(images.bytes(&pair.images[0])?.into_owned())?;
        let prompt: Vec<u32> = pair
            .prompt_ids
            .iter()
            .enumerate()
            .filter(|(at, _)| !pair.image_spans.iter().any(|span| span.contains(at)))
            .map(|(_, id)| *id)
            .collect();
        let question = data.encoder.tokenizer.decode(&prompt, true)?.trim().to_owned();
        pictures.push(Picture { image, question, answers: Vec::new() });
    }
    let mut features = VisionFeatures::new(images);
    let alpha = if config.clip.is_some() { config.alpha } else { 0.0 };
    let pad = data.encoder.tokenizer.pad();
    let base = without_adapters(trained);
    for (name, model) in [("chosen, base", &base), ("chosen, trained", trained)] {
        let size = config.per_device_train_batch_size;
        for (pairs, pictures) in pairs.chunks(size).zip(pictures.chunks_mut(size)) {
            let weighed = weigh(model, pairs, &mut features, alpha, pad, device)?;
            for (sentences, picture) in weighed.into_iter().zip(pictures) {
                let mark = |sentence| MarkedSentence { sentence, hallucinated: false };
                picture.answers.push((name.to_owned(), sentences.into_iter().map(mark).collect()));
            }
        }
    }
    Ok(pictures)
}

/// A few held-out scenes with both models' descriptions, every sentence weighed and judged.
///
/// # Errors
/// Scenes that cannot be read.
pub fn pictures<B: Backend, M: VisionLanguageModel<B>>(
    config: &TrainConfig,
    encoder: &Encoder,
    models: [(&str, &M, &Measured); 2],
    world: &Path,
    split: Split,
    device: &B::Device,
) -> Result<Vec<Picture>, Failure> {
    const SHOWN: usize = 6;
    let mut scenes = load(world, split)?;
    scenes.truncate(SHOWN);
    let mut pictures = Vec::new();
    for line in &scenes {
        let path = world.join(&line.image);
        let image = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        pictures.push(Picture { image, question: INSTRUCTIONS[0].to_owned(), answers: Vec::new() });
    }
    let here = TrainConfig { images: world.into(), ..config.clone() };
    for (name, model, measured) in models {
        // Empty answers have no sentences to show.
        let told: Vec<usize> =
            (0..scenes.len()).filter(|&index| !measured.texts[index].trim().is_empty()).collect();
        let pairs = told
            .iter()
            .map(|&index| {
                let text = &measured.texts[index];
                // The other answer is not looked at, but may not be the same.
                let other = if text.trim() == "." { "-" } else { "." };
                let pair = Pair::new(index.to_string(), INSTRUCTIONS[0], text, other);
                encoder.encode(&pair.with_image(scenes[index].image.as_str()))
            })
            .collect::<Result<Vec<EncodedPair>, _>>()?;
        let mut data = Data::new(encoder.clone(), pairs, Vec::new());
        if config.clip.is_some() && !data.pairs.is_empty() {
            score::<B>(&here, &mut data, false, device)?;
        }
        let images = ImageLoader::new(world, processor(&config.model, model.image_size())?)?;
        let mut features = VisionFeatures::new(images);
        let rows: Vec<&EncodedPair> = data.pairs.iter().collect();
        let alpha = if config.clip.is_some() { config.alpha } else { 0.0 };
        let weighed = weigh(model, &rows, &mut features, alpha, encoder.tokenizer.pad(), device)?;
        for (&index, sentences) in told.iter().zip(weighed) {
            let mark = |sentence: WeighedSentence| {
                let verdicts = judge(&scenes[index].scene, &sentence.text).sentences;
                let hallucinated = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::False);
                MarkedSentence { sentence, hallucinated }
            };
            pictures[index].answers.push((name.to_owned(), sentences.into_iter().map(mark).collect()));
        }
    }
    Ok(pictures)
}
