//! Stage 0: a tiny CLIP, contrastively on scenes and sentences.

use std::error::Error;

use aspo_models::ModelInput;
use aspo_models::clip::{Clip, ClipConfig, ClipTextConfig, ClipVisionConfig};
use aspo_scenes::{Background, Colour, Place, SIDE, Shape, Size, Verdict, judge};
use aspo_train::{Schedule, clip_grad_norm};
use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::activation::log_softmax;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use super::corpus::{Lesson, most_objects};

/// How long and how fast.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Optimiser steps.
    pub steps: usize,
    /// Scenes in a batch.
    pub batch: usize,
    /// Peak learning rate.
    pub rate: f64,
    /// Seed of weights and batches.
    pub seed: u64,
}

/// The towers: those of clip-vit-large-patch14-336, narrower and shorter.
pub fn config(tokenizer: &Tokenizer) -> ClipConfig {
    ClipConfig {
        text_config: ClipTextConfig {
            vocab_size: tokenizer.get_vocab_size(true),
            hidden_size: 96,
            intermediate_size: 256,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            max_position_embeddings: 77,
            eos_token_id: tokenizer.token_to_id("<|endoftext|>").unwrap_or_default(),
            ..Default::default()
        },
        vision_config: ClipVisionConfig {
            hidden_size: 128,
            intermediate_size: 384,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            image_size: SIDE as usize,
            patch_size: 24,
            ..Default::default()
        },
        projection_dim: 96,
        ..Default::default()
    }
}

/// Sentences as padded ids and mask, `[texts, longest]`.
pub fn tokens<B: Backend>(
    tokenizer: &Tokenizer,
    texts: &[String],
    device: &B::Device,
) -> Result<ModelInput<B>, Box<dyn Error + Send + Sync>> {
    let rows = texts
        .iter()
        .map(|text| Ok(tokenizer.encode(text.as_str(), true)?.get_ids().to_vec()))
        .collect::<Result<Vec<_>, Box<dyn Error + Send + Sync>>>()?;
    let end = tokenizer.token_to_id("<|endoftext|>").unwrap_or_default();
    Ok(ModelInput::from_rows(&rows, end, device))
}

/// Trains the towers. Each step sees `batch` pictures with one true sentence each and, as further negatives, three
/// variants of it that are wrong in one thing. A sentence that happens to be true of another picture of the batch is
/// not counted against that picture. `report(step, loss, share of pictures whose own sentence scores highest)`.
pub fn train<B: Backend>(
    tokenizer: &Tokenizer,
    lessons: &[Lesson],
    pixels: &[Vec<f32>],
    settings: &Settings,
    device: &B::Device,
    mut report: impl FnMut(usize, f32, f32),
) -> Result<Clip<B>, Box<dyn Error + Send + Sync>> {
    let mut model: Clip<Autodiff<B>> = config(tokenizer).init_seeded(settings.seed, device);
    let mut optimiser = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(0.05).init();
    let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
    for step in 0..settings.steps {
        let pool = pool(lessons, step as f64 / settings.steps as f64);
        let batch: Vec<usize> = (0..settings.batch).map(|_| pool[rng.random_range(0..pool.len())]).collect();
        let texts = texts(&batch, lessons, &mut rng);
        let excluded = excluded(&batch, lessons, &texts);
        let n = batch.len();
        let images: Vec<f32> = batch.iter().flat_map(|&index| pixels[index].iter().copied()).collect();
        let side = SIDE as usize;
        let images = Tensor::from_data(TensorData::new(images, [n, 3, side, side]), device);
        let read = tokens(tokenizer, &texts, device)?;
        let texts = model.text_embeds(read.input_ids, read.attention_mask)?;
        let logits = model.logits_per_image(model.image_embeds(images)?, texts);
        let excluded =
            Tensor::<_, 2, Bool>::from_data(TensorData::new(excluded, [n, (1 + VARIANTS) * n]), device);
        let logits = logits.mask_fill(excluded, -1e4);
        let own = Tensor::<_, 2, Int>::from_data(TensorData::new((0..n as i64).collect(), [n, 1]), device);
        let entropy =
            |logits: Tensor<Autodiff<B>, 2>| log_softmax(logits, 1).gather(1, own.clone()).mean().neg();
        let of_texts = logits.clone().slice([0..n, 0..n]).transpose();
        let best: Vec<i64> = logits.clone().inner().argmax(1).to_data().iter().collect();
        let loss = (entropy(logits) + entropy(of_texts)).mul_scalar(0.5);
        let mut gradients = GradientsParams::from_grads(loss.backward(), &model);
        clip_grad_norm(&model, &mut gradients, Some(1.0));
        let rate = Schedule::Cosine.rate(settings.rate, step + 1, 50, settings.steps + 1);
        model = optimiser.step(rate, model, gradients);
        let right = best.iter().zip(0..).filter(|(best, own)| **best == *own).count();
        report(step, loss.into_scalar().elem(), right as f32 / n as f32);
    }
    Ok(burn::module::AutodiffModule::valid(&model))
}

/// The lessons of a moment of the training, 0 to 1.
fn pool(lessons: &[Lesson], moment: f64) -> Vec<usize> {
    let fits = |at: &usize| lessons[*at].scene.objects.len() <= most_objects(moment);
    let pool: Vec<usize> = (0..lessons.len()).filter(fits).collect();
    if pool.is_empty() { (0..lessons.len()).collect() } else { pool }
}

/// Mistaken variants of each true sentence.
const VARIANTS: usize = 3;

/// One true sentence for each scene, then [`VARIANTS`] copies of each with one word or phrase exchanged.
fn texts(batch: &[usize], lessons: &[Lesson], rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut texts = Vec::with_capacity((1 + VARIANTS) * batch.len());
    for &index in batch {
        let description = lessons[index].descriptions.choose(rng).map_or("", String::as_str);
        let sentences: Vec<&str> = description.split_inclusive(". ").map(str::trim).collect();
        // Mostly sentences about one object: they tie a shape to a colour and a place.
        let objects = 1..=lessons[index].scene.objects.len();
        let place = if rng.random_bool(0.8) {
            rng.random_range(objects)
        } else {
            rng.random_range(0..sentences.len())
        };
        texts.push(sentences[place.min(sentences.len() - 1)].to_owned());
    }
    for _ in 0..VARIANTS {
        for (row, &index) in batch.iter().enumerate() {
            let mut spoiled = spoil(&texts[row], rng);
            // An exchange may happen to be true as well ("above", "to the left of"): try again, then leave it be.
            for _ in 0..4 {
                if judge(&lessons[index].scene, &spoiled).hallucinated() > 0 {
                    break;
                }
                spoiled = spoil(&texts[row], rng);
            }
            texts.push(spoiled);
        }
    }
    texts
}

/// The sentence with one word or phrase exchanged for another of its kind; half of the time the shape, if it has one.
fn spoil(sentence: &str, rng: &mut ChaCha8Rng) -> String {
    fn words<T: Copy>(all: &[T], word: fn(T) -> &'static str) -> Vec<&'static str> {
        all.iter().map(|&value| word(value)).collect()
    }
    let lower = sentence.to_lowercase();
    let lists = [
        words(Shape::ALL, Shape::word),
        words(Colour::ALL, Colour::word),
        words(Place::ALL, Place::word),
        words(Size::ALL, Size::word),
        words(Background::ALL, Background::word),
        vec!["one", "two", "three", "four"],
        vec!["above", "below", "to the left of", "to the right of"],
    ];
    let said: Vec<(&str, &Vec<&str>)> = lists
        .iter()
        .filter_map(|list| {
            let found = list.iter().filter(|word| lower.contains(**word));
            Some((*found.max_by_key(|word| word.len())?, list))
        })
        .collect();
    let first = if rng.random_bool(0.5) { said.first() } else { said.choose(rng) };
    let Some((word, list)) = first else { return sentence.to_owned() };
    let other = loop {
        match list.choose(rng) {
            Some(other) if other != word => break other,
            _ => {}
        }
    };
    lower.replacen(word, other, 1)
}

/// Row by row, whether a text is true of a picture without being its own.
fn excluded(batch: &[usize], lessons: &[Lesson], texts: &[String]) -> Vec<bool> {
    batch
        .par_iter()
        .enumerate()
        .flat_map_iter(|(row, &index)| {
            let scene = &lessons[index].scene;
            texts.iter().enumerate().map(move |(column, text)| {
                column != row
                    && judge(scene, text).sentences.iter().all(|(_, verdict)| *verdict == Verdict::True)
            })
        })
        .collect()
}
