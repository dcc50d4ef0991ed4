//! What a run has done: its report, with pairs of the training weighed by base and trained model.

use std::collections::HashSet;
use std::io::Cursor;

use aspo_data::image::decode;
use aspo_data::{EncodedPair, Encoder, ImageLoader};
use aspo_models::VisionLanguageModel;
use aspo_models::lora::without_adapters;
use aspo_train::{
    Account, Data, MarkedSentence, MetricFile, Picture, Plan, Report, TrainConfig, VisionFeatures, human,
    peak_memory, weigh,
};
use burn::tensor::backend::Backend;

use crate::Failure;

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
        fact("pairs", format!("{} in {}", plan.pairs, config.data)),
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
pub(crate) fn shown(bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
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

/// The pictures of pairs and what is asked about them, without answers.
///
/// # Errors
/// A picture that cannot be had.
pub(crate) fn pictures(
    pairs: &[EncodedPair],
    images: &ImageLoader,
    encoder: &Encoder,
) -> Result<Vec<Picture>, Failure> {
    let picture = |pair: &EncodedPair| {
        let image = |image| shown(images.bytes(image)?.into_owned());
        let seen = pair.images.iter().map(image).collect::<Result<_, _>>()?;
        let of_image = |at: &usize| pair.image_spans.iter().any(|span| span.contains(at));
        let prompt = pair.prompt_ids.iter().enumerate().filter(|(at, _)| !of_image(at));
        let prompt: Vec<u32> = prompt.map(|(_, id)| *id).collect();
        let question = encoder.tokenizer.decode(&prompt, true)?.trim().to_owned();
        Ok(Picture { images: seen, question, answers: Vec::new() })
    };
    pairs.iter().map(picture).collect()
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
    let mut pairs: Vec<EncodedPair> = Vec::new();
    // Each about another picture; not looked for to the end of large data.
    for pair in data.pairs.iter().take(100 * SHOWN) {
        let pair = pair?;
        if pairs.len() < SHOWN && pair.images.first().is_some_and(|image| seen.insert(image.key())) {
            pairs.push(pair);
        }
    }
    let images = ImageLoader::new(&config.images, config.processor(&config.model, trained.image_size())?)?;
    let mut pictures = self::pictures(&pairs, &images, &data.encoder)?;
    let pairs: Vec<&EncodedPair> = pairs.iter().collect();
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
