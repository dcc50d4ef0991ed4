//! Stages 1 to 3: a tiny LLaVA on top of the frozen tower of the tiny CLIP.

use std::error::Error;

use aspo_data::{Encoder, Pair, Tokenizer};
use aspo_loss::{ChunkOptions, Labels, LmHead, chunked_log_probs};
use aspo_models::clip::{Clip, ClipConfig};
use aspo_models::llama::LlamaConfig;
use aspo_models::llava::{Llava, LlavaConfig};
use aspo_models::{ImageFeatures, LanguageModel, ModelInput, Picture, PictureShape, VisionLanguageModel};
use aspo_train::{Schedule, clip_grad_norm};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams, Optimizer};
use burn::prelude::*;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

use super::corpus::{INSTRUCTIONS, Lesson, SHORT, most_objects};

/// Anything that can go wrong.
pub type Failure = Box<dyn Error + Send + Sync>;

/// One row to learn: ids with image tokens expanded, and where the answer begins.
struct Row {
    /// Index of the lesson whose picture is shown.
    lesson: usize,
    /// Prompt, then answer closed by `</s>`.
    ids: Vec<u32>,
    /// First answer token.
    start: usize,
}

/// How long and how fast a stage is.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    /// What the progress line calls it.
    pub name: &'static str,
    /// Optimiser steps.
    pub steps: usize,
    /// Descriptions in a batch; a batch of short answers has twice as many rows, half of them yes or no.
    pub batch: usize,
    /// Peak learning rate.
    pub rate: f64,
    /// Whether pictures are shown; without, the rows have no image tokens.
    pub pictures: bool,
    /// Whether the decoder learns, or the projector alone.
    pub decoder: bool,
    /// Whether simple scenes come first ([`most_objects`]).
    pub simple_first: bool,
    /// Steps of four that learn descriptions; the others learn short answers.
    pub descriptions: usize,
    /// Share of "Yes" among the answers to whether something is there.
    pub yes: f64,
}

/// The model: llava-1.5-7b-hf's shape, narrower and shorter.
///
/// # Errors
/// A tokenizer without `<image>`.
pub fn config(clip: &ClipConfig, tokenizer: &Tokenizer) -> Result<LlavaConfig, Failure> {
    let mut config = LlavaConfig {
        vision_config: clip.vision_config.clone(),
        text_config: LlamaConfig {
            vocab_size: tokenizer.vocabulary().next_multiple_of(8),
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            max_position_embeddings: 512,
            ..Default::default()
        },
        image_token_index: tokenizer.image()?,
        ..Default::default()
    };
    config.text_config.pad_token_id = Some(tokenizer.pad());
    Ok(config)
}

/// The model before its first step: seeded weights, CLIP's tower in place.
pub fn start<B: Backend>(config: &LlavaConfig, clip: &Clip<B>, seed: u64, device: &B::Device) -> Llava<B> {
    let mut model: Llava<B> = config.init_seeded(seed, device);
    model.model.vision_tower = clip.vision_model.clone();
    model
}

/// What the frozen tower sees in each picture, `[patches · width]` values a picture.
///
/// # Errors
/// Pictures of another size than the model's.
pub fn features<B: Backend>(
    model: &Llava<B>,
    pixels: &[Vec<f32>],
    device: &B::Device,
) -> Result<Vec<Vec<f32>>, Failure> {
    let mut out = Vec::with_capacity(pixels.len());
    for chunk in pixels.chunks(64) {
        let pixels = aspo_data::batch::pixel_tensor::<B>(chunk, model.image_size(), device)?;
        let seen = model.vision_features(&Picture::each(pixels))?;
        out.extend(seen.into_iter().map(|seen| seen.values.into_data().iter::<f32>().collect::<Vec<_>>()));
    }
    Ok(out)
}

/// All rows of the lessons by kind, those about fewer objects first: descriptions, whether something is there (it is, it
/// is not), and other short answers.
#[derive(Default)]
struct Rows {
    descriptions: Vec<Row>,
    yes: Vec<Row>,
    no: Vec<Row>,
    others: Vec<Row>,
}

fn rows(
    lessons: &[Lesson],
    encoder: &Encoder,
    pictures: bool,
    rng: &mut ChaCha8Rng,
) -> Result<Rows, Failure> {
    let row = |lesson: usize, question: &str, answer: &str| -> Result<Row, Failure> {
        // Pairs are what an encoder takes; of these only the chosen answer is learned.
        let pair = Pair::new(lesson.to_string(), question, answer, "This is not learned.");
        let pair = if pictures { pair.with_image("") } else { pair };
        let encoded = encoder.encode(&pair)?;
        let start = encoded.prompt_ids.len();
        Ok(Row { lesson, ids: [encoded.prompt_ids, encoded.chosen.ids].concat(), start })
    };
    let mut rows = Rows::default();
    let mut simplest: Vec<usize> = (0..lessons.len()).collect();
    simplest.sort_by_key(|&index| lessons[index].scene.objects.len());
    for index in simplest {
        let lesson = &lessons[index];
        for description in &lesson.descriptions {
            let instruction = INSTRUCTIONS.choose(rng).copied().unwrap_or_default();
            rows.descriptions.push(row(index, instruction, description)?);
        }
        for question in &lesson.questions {
            let kind = match question.answer.as_str() {
                "Yes" => &mut rows.yes,
                "No" => &mut rows.no,
                _ => &mut rows.others,
            };
            kind.push(row(index, &format!("{}{SHORT}", question.question), &question.answer)?);
        }
    }
    Ok(rows)
}

/// Trains one stage by the usual next-token loss over answer tokens. The tower is never touched: `looks` hold what it
/// sees, lesson by lesson, in one or several looks at each picture (as it is, noised, …), one of which is drawn. `report(step, loss)`.
///
/// # Errors
/// Lessons that the encoder refuses.
#[allow(clippy::too_many_arguments)]
pub fn train<B: Backend>(
    model: Llava<B>,
    lessons: &[Lesson],
    looks: &[Vec<Vec<f32>>],
    encoder: &Encoder,
    stage: &Stage,
    seed: u64,
    device: &B::Device,
    mut report: impl FnMut(usize, f32),
) -> Result<Llava<B>, Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows = rows(lessons, encoder, stage.pictures, &mut rng)?;
    let mut model = learner(model, stage);
    let mut optimiser =
        AdamWConfig::new().with_beta_2(0.98).with_epsilon(1e-8).with_weight_decay(0.01).init();
    for step in 0..stage.steps {
        let most =
            if stage.simple_first { most_objects(step as f64 / stage.steps as f64) } else { usize::MAX };
        let mut draw = |pool: &'_ [Row], count: usize| -> Vec<usize> {
            let simple = pool.partition_point(|row| lessons[row.lesson].scene.objects.len() <= most);
            (0..count).map(|_| rng.random_range(0..if simple > 0 { simple } else { pool.len() })).collect()
        };
        let batch: Vec<&Row> = if step * stage.descriptions % 4 < stage.descriptions {
            let drawn = draw(&rows.descriptions, stage.batch);
            drawn.into_iter().map(|at| &rows.descriptions[at]).collect()
        } else {
            let yes = (stage.batch as f64 * stage.yes).round() as usize;
            [(&rows.yes, yes), (&rows.no, stage.batch - yes), (&rows.others, stage.batch)]
                .into_iter()
                .flat_map(|(pool, count)| draw(pool, count).into_iter().map(|at| &pool[at]))
                .collect()
        };
        let batch: Vec<(&Row, &[f32])> = batch
            .into_iter()
            .map(|row| {
                let look = if looks.len() > 1 { rng.random_range(0..looks.len()) } else { 0 };
                (row, looks[look][row.lesson].as_slice())
            })
            .collect();
        let answers: usize = batch.iter().map(|(row, _)| row.ids.len() - row.start).sum();
        // Two halves side by side, whatever the machine has, so that every machine adds in the same order.
        let halves: Vec<Half> = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for rows in batch.chunks(batch.len().div_ceil(2)) {
                // Leaves of its own: graphs that share leaves are walked as one.
                let model = learner(model.valid(), stage);
                threads.push(scope.spawn(move || -> Result<Half, Failure> {
                    let loss = next_token_loss(&model, rows, encoder, stage.pictures, device)?
                        .div_scalar(answers as f32);
                    let gradients = GradientsParams::from_grads(loss.backward(), &model);
                    Ok((gradients, loss.into_scalar().elem()))
                }));
            }
            threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| "a thread panicked")?)
                .collect::<Result<_, Failure>>()
        })?;
        let mut sum = GradientsAccumulator::new();
        let loss = halves.iter().map(|(_, loss)| loss).sum();
        halves.into_iter().for_each(|(gradients, _)| sum.accumulate(&model, gradients));
        let mut gradients = sum.grads();
        clip_grad_norm(&model, &mut gradients, Some(1.0));
        let rate = Schedule::Cosine.rate(stage.rate, step + 1, 50, stage.steps + 1);
        model = optimiser.step(rate, model, gradients);
        report(step, loss);
    }
    Ok(model.valid())
}

/// The model with gradients wanted of what the stage trains.
fn learner<B: Backend>(model: Llava<B>, stage: &Stage) -> Llava<Autodiff<B>> {
    let mut model: Llava<Autodiff<B>> = model.train::<Autodiff<B>>().map(&mut WithGradients);
    model.model.vision_tower = model.model.vision_tower.no_grad();
    if !stage.decoder {
        model.model.language_model = model.model.language_model.no_grad();
        model.lm_head = model.lm_head.map(Module::no_grad);
    }
    model
}

/// Parameters that come from the plain backend want no gradients until told to.
struct WithGradients;

impl<B: Backend> ModuleMapper<B> for WithGradients {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        param.set_require_grad(true)
    }
}

/// Gradients and loss of half a batch, each divided by the answer tokens of the whole.
type Half = (GradientsParams, f32);

/// Summed over the answer tokens of the rows, each beside what is seen of its picture.
fn next_token_loss<B: Backend>(
    model: &Llava<Autodiff<B>>,
    batch: &[(&Row, &[f32])],
    encoder: &Encoder,
    pictures: bool,
    device: &B::Device,
) -> Result<Tensor<Autodiff<B>, 1>, Failure> {
    let ids: Vec<Vec<u32>> = batch.iter().map(|(row, _)| row.ids.clone()).collect();
    let length = ids.iter().map(Vec::len).max().unwrap_or(0);
    let mut input = ModelInput::from_rows(&ids, encoder.tokenizer.pad(), device);
    if pictures {
        let width = model.config().vision_config.hidden_size;
        let shape = PictureShape::whole([model.image_size(); 2]);
        let rows = model.tokens(&shape);
        let features = batch.iter().map(|(_, seen)| {
            let values = TensorData::new(seen.to_vec(), [rows, width]);
            ImageFeatures { values: Tensor::from_data(values, device), shape }
        });
        input = input.with_images(features.collect());
    }
    let (mut places, mut targets) = (Vec::new(), Vec::new());
    for (index, (row, _)) in batch.iter().enumerate() {
        for at in row.start..row.ids.len() {
            places.push((index * length + at - 1) as i32);
            targets.push(row.ids[at] as i32);
        }
    }
    let hidden = model.hidden_at(&input, &places)?;
    let (head, labels) = (LmHead::hugging_face(model.head()), Labels::new(&targets, device));
    Ok(chunked_log_probs(hidden, &head, labels, &ChunkOptions::default())?.sum().neg())
}
