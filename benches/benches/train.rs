//! One optimiser step of preference training: pairs a second and peak memory of packed against not, cached against live
//! reference, recomputation on and off, dense against chunked head.
//!
//! ```sh
//! cargo bench --profile dev --workspace --bench train             # criterion
//! cargo bench --profile dev --workspace --bench train -- --table  # the table of benches/results/train.md
//! TRAIN_BENCH_SIZES=small,prefix-96 TRAIN_BENCH_WAYS=default TRAIN_BENCH_ROUNDS=3 cargo bench … -- --table
//! ```
//!
//! A step is what the trainer does, pictures' features at hand: log-probabilities of the reference unless they are
//! cached, forward and backward of the policy over the micro-batches, clipping, AdamW. `small` is the tiny LLaVA of the
//! examples with the settings of its config; `prefix-N` a LLaVA with random weights whose rows begin with N tokens of
//! picture and prompt.
//!
//! The table alternates the ways within one process, several rounds, and reports medians, by the clock and in processor
//! seconds of all threads, and the median of the paired ratios to the first way. Memory is that of a child process that
//! does two steps of one way alone: the growth of its peak resident memory (VmHWM) since before the model was made, and
//! the most bytes that it held at a time, beside the plan's.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aspo_benches::{peak, serve, served};
use aspo_data::{EncodedAnswer, EncodedPair, HostBatch, ImageLoader, ImageProcessor, ImageSource};
use aspo_loss::{ChunkOptions, Logps, PairLayout, PreferenceBatch, ResponseLayout, dense_log_probs};
use aspo_models::lora::{LoraConfig, attach, without_adapters};
use aspo_models::{
    Ids, ImageFeatures, Llava, LlavaConfig, LoadOptions, ModelConfig, ModelInput, PictureShape, Pretrained,
    VisionLanguageModel,
};
use aspo_train::{
    MicroBatch, Plan, Reference, ReferenceRow, TrainConfig, VisionFeatures, accumulate, adamw,
    clip_grad_norm, peak_memory, totals,
};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::{AdamW, GradientsAccumulator, GradientsParams, Optimizer};
use burn::prelude::*;
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use peak_alloc::PeakAlloc;

type A = Autodiff<Flex>;

/// Counts the bytes held by the whole process, so that a peak can be told apart from what the allocator keeps.
#[global_allocator]
static HELD: PeakAlloc = PeakAlloc;

/// How a step is done; the default is the trainer's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Way {
    unpacked: bool,
    cached: bool,
    recompute: bool,
    dense: bool,
}

/// The default, and what differs from it.
const WAYS: [(&str, Way); 7] = {
    const DEFAULT: Way = Way { unpacked: false, cached: false, recompute: false, dense: false };
    [
        ("default", DEFAULT),
        ("unpacked", Way { unpacked: true, ..DEFAULT }),
        ("cached", Way { cached: true, ..DEFAULT }),
        ("recompute", Way { recompute: true, ..DEFAULT }),
        ("dense", Way { dense: true, ..DEFAULT }),
        ("unpacked+recompute", Way { unpacked: true, recompute: true, ..DEFAULT }),
        ("cached+recompute", Way { cached: true, recompute: true, ..DEFAULT }),
    ]
};

/// Model and shapes of a step.
#[derive(Debug, Clone, Copy)]
struct Size {
    name: &'static str,
    /// Side of the picture in patches of the model with random weights; none is the tiny LLaVA of the examples.
    patches: Option<usize>,
    /// Tokens of the prompt beside the picture's, and of each answer.
    text: usize,
    answer: usize,
    /// Pairs of a micro-batch, and micro-batches.
    pairs: usize,
    batches: usize,
    rank: usize,
}

const SIZES: [Size; 4] = {
    const MIDDLE: Size =
        Size { name: "", patches: None, text: 32, answer: 64, pairs: 2, batches: 1, rank: 32 };
    [
        Size { name: "small", patches: None, text: 23, answer: 56, pairs: 8, batches: 2, rank: 16 },
        Size { name: "prefix-96", patches: Some(8), ..MIDDLE },
        Size { name: "prefix-288", patches: Some(16), ..MIDDLE },
        Size { name: "prefix-608", patches: Some(24), ..MIDDLE },
    ]
};

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets/llava")
}

impl Size {
    /// The config of the model: eight layers of 512 with LLaMA's vocabulary, and a tower that is never run.
    fn model(self) -> LlavaConfig {
        let Some(patches) = self.patches else {
            return LlavaConfig::load(assets()).expect("the committed model");
        };
        LlavaConfig::from_json(serde_json::json!({
            "model_type": "llava",
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 64, "intermediate_size": 128,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 14 * patches, "patch_size": 14,
            },
            "text_config": {
                "model_type": "llama", "vocab_size": 32_064, "hidden_size": 512, "intermediate_size": 1376,
                "num_hidden_layers": 8, "num_attention_heads": 8,
            },
            "image_token_index": 32_000,
        }))
        .expect("a plain config")
    }

    /// The options that matter to a step and to its plan.
    fn config(self, way: Way) -> TrainConfig {
        TrainConfig {
            loss_type: vec!["sigmoid".into()],
            per_device_train_batch_size: self.pairs,
            gradient_accumulation_steps: self.batches,
            pair_packing: !way.unpacked,
            gradient_checkpointing: way.recompute,
            precompute_ref_log_probs: Some(way.cached),
            learning_rate: 1e-5,
            max_steps: 1,
            lora: LoraConfig {
                r: self.rank,
                lora_alpha: 2.0 * self.rank as f64,
                ..TrainConfig::default().lora
            },
            ..TrainConfig::default()
        }
    }

    /// Pairs with a picture each and answers of any tokens, in four sentences.
    fn pairs(self, model: &LlavaConfig) -> Vec<EncodedPair> {
        let image = model.image_token_index;
        let seen = model.tokens_per_image();
        let token = |n: usize| (3 + (n * 7919) % 500) as u32;
        let answer = |start: usize| EncodedAnswer {
            ids: (0..self.answer).map(|n| token(start + n)).collect(),
            sentences: (0..self.answer).map(|n| (4 * n / self.answer) as u32).collect(),
            spans: (0..4).map(|n| n..n + 1).collect(),
            text: "....".into(),
            ..Default::default()
        };
        let pair = |index: usize| EncodedPair {
            id: index.to_string(),
            images: vec![ImageSource::Path(index.to_string())],
            prompt_ids: [1].into_iter().chain(vec![image; seen]).chain((1..self.text).map(token)).collect(),
            image_spans: std::iter::once(1..1 + seen).collect(),
            chosen: answer(1000 * index),
            rejected: answer(1000 * index + 500),
            ..Default::default()
        };
        (0..self.pairs * self.batches).map(pair).collect()
    }
}

/// A run of steps of one size, as the trainer holds it.
struct Run {
    policy: Option<Llava<A>>,
    optimizer: OptimizerAdaptor<AdamW, Llava<A>, A>,
    pairs: Vec<EncodedPair>,
    features: VisionFeatures,
    cache: Vec<ReferenceRow>,
    size: Size,
    device: burn_flex::FlexDevice,
}

impl Run {
    fn new(size: Size) -> Self {
        let device = Default::default();
        let model = size.model();
        let base: Llava<A> = match size.patches {
            Some(_) => model.init_seeded(0, &device),
            None => Llava::from_pretrained(assets(), &LoadOptions::default(), &device).expect("a model").0,
        };
        let policy = attach(base, &size.config(Way::default()).lora, 0).expect("linear layers exist");
        let pairs = size.pairs(&model);
        let loader = ImageLoader::new(".", ImageProcessor::clip(14)).expect("a processor");
        let mut features = VisionFeatures::new(loader);
        for index in 0..pairs.len() {
            let of = |n: usize| ((n * 37 + index * 11) % 101) as f32 / 50.0 - 1.0;
            let shape = [model.tokens_per_image(), model.vision_config.hidden_size];
            let picture = PictureShape::whole([model.vision_config.image_size; 2]);
            features
                .keep(&index.to_string(), picture, shape, (0..shape[0] * shape[1]).map(of).collect())
                .expect("of this shape");
        }
        let optimizer = adamw(&size.config(Way::default())).init();
        let mut run =
            Self { policy: Some(policy), optimizer, pairs, features, cache: Vec::new(), size, device };
        let reference = without_adapters(&run.policy().valid());
        for part in 0..size.batches {
            let rows = run.batch(part, true).reference(&reference, &ChunkOptions::default());
            run.cache.extend(rows.expect("valid ids"));
        }
        run
    }

    fn policy(&self) -> &Llava<A> {
        self.policy.as_ref().expect("put back after every step")
    }

    fn batch(&mut self, part: usize, packed: bool) -> MicroBatch<Flex> {
        let plain = self.policy().valid();
        let pairs: Vec<&EncodedPair> =
            self.pairs.chunks(self.size.pairs).nth(part).unwrap_or(&[]).iter().collect();
        MicroBatch::new(&pairs, packed, 0, &mut self.features, &plain, &self.device)
            .expect("features are kept")
    }

    fn reference(&self, batch: &MicroBatch<Flex>, part: usize, way: Way) -> Vec<ReferenceRow> {
        if way.cached {
            let own = part * self.size.pairs..(part + 1) * self.size.pairs;
            return self.cache[own].to_vec();
        }
        let reference = without_adapters(&self.policy().valid());
        batch.reference(&reference, &ChunkOptions::default()).expect("valid ids")
    }

    /// One optimiser step.
    fn step(&mut self, way: Way) {
        let config = self.size.config(way);
        let gradients = if way.dense { self.dense(&config, way) } else { self.chunked(&config, way) };
        let policy = self.policy.take().expect("put back after every step");
        self.policy = Some(self.optimizer.step(config.learning_rate, policy, gradients));
    }

    fn chunked(&mut self, config: &TrainConfig, way: Way) -> GradientsParams {
        let policy = self.policy().clone();
        let totals = totals(&self.pairs);
        let batches = (0..self.size.batches).map(|part| {
            let batch = self.batch(part, !way.unpacked);
            let rows = self.reference(&batch, part, way);
            Ok((batch, Some(Reference::Rows(rows))))
        });
        let objective = config.objective().expect("a loss");
        accumulate(&policy, batches, totals, config, &objective, 1, "none").expect("a finite loss").gradients
    }

    /// The same with logits `[answer tokens, vocabulary]`, their softmax and its gradient in one piece: what one writes
    /// without the chunked head.
    fn dense(&mut self, config: &TrainConfig, way: Way) -> GradientsParams {
        let policy = self.policy().clone();
        let mut sum = GradientsAccumulator::<Llava<A>>::new();
        for part in 0..self.size.batches {
            let batch = self.batch(part, !way.unpacked);
            let features = self.features.of_batch(&policy.valid(), &batch.host, &self.device).expect("kept");
            let reference = without_adapters(&policy.valid());
            let rows = dense_scores(&reference, &batch.host, features.clone(), &self.device);
            let reference = Tensor::<A, 1>::from_inner(rows);
            let features = features.into_iter().map(ImageFeatures::from_inner).collect();
            let scores = dense_scores(&policy, &batch.host, features, &self.device);
            let map = map(&batch.host);
            let policy_scores = Logps::joined(&map, scores).expect("the map's tokens");
            let loss = Logps::joined(&map, reference)
                .and_then(|reference| PreferenceBatch::new(policy_scores).with_reference(reference))
                .and_then(|batch| config.objective().expect("a loss").loss(&batch))
                .expect("a finite loss");
            let loss = loss.losses.sum().div_scalar(config.global_batch() as f64);
            sum.accumulate(&policy, GradientsParams::from_grads(loss.backward(), &policy));
        }
        let mut gradients = sum.grads();
        clip_grad_norm::<A, _>(&policy, &mut gradients, Some(config.max_grad_norm));
        gradients
    }

    fn timed(&mut self, way: Way) -> Time {
        let (start, busy) = (Instant::now(), processor_seconds());
        self.step(way);
        Time { wall: start.elapsed().as_secs_f64(), processor: processor_seconds() - busy }
    }
}

fn map(host: &HostBatch) -> PairLayout {
    let responses = &host.responses;
    let mut ids = responses.sentence_ids.iter().map(|&id| i64::from(id));
    let rows: Vec<Vec<i64>> =
        responses.token_counts.iter().map(|&count| ids.by_ref().take(count).collect()).collect();
    let (chosen, rejected) = rows.split_at(host.pairs());
    let side = |rows: &[Vec<i64>]| ResponseLayout::from_labels(rows).expect("tiled by sentences");
    PairLayout::from_sides(side(chosen), side(rejected)).expect("as many of either")
}

fn dense_scores<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    host: &HostBatch,
    features: Vec<ImageFeatures<B>>,
    device: &B::Device,
) -> Tensor<B, 1> {
    let ints = |values: &[i32]| Tensor::<B, 1, Int>::from_data(TensorData::from(values), device);
    let grid = |values: Vec<i64>| Ids::new(values, [host.rows, host.length], device);
    let mask = host.attention_mask.iter().map(|&is_token| i64::from(is_token)).collect();
    let ids = host.input_ids.iter().map(|&id| i64::from(id)).collect();
    let mut input = ModelInput::new(grid(ids), grid(mask));
    input.segment_ids = Some(grid(host.segments.iter().map(|&segment| i64::from(segment.max(0))).collect()));
    input.image_features = features;
    let hidden = model.hidden_at(&input, &host.responses.positions).expect("valid input");
    dense_log_probs(hidden.matmul(model.head().transpose()), ints(&host.responses.targets))
        .expect("valid ids")
}

/// What a step took: by the clock, and of all threads together, which other work on the machine disturbs less.
#[derive(Clone, Copy)]
struct Time {
    wall: f64,
    processor: f64,
}

/// Processor seconds of all threads of this process, of user and system (Linux, in hundredths).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// What a child process saw.
struct Memory {
    resident: f64,
    held: f64,
}

const MB: f64 = 1e6;

/// Two steps, the first of which makes the optimiser's moments; bytes since before the model was made.
fn child(size: Size, way: Way) -> Memory {
    let (resident, held) = (peak_memory().unwrap_or(0), HELD.current_usage());
    let mut run = Run::new(size);
    HELD.reset_peak_usage();
    (0..2).for_each(|_| run.step(way));
    Memory {
        resident: (peak_memory().unwrap_or(0) - resident) as f64 / MB,
        held: (HELD.peak_usage() - held) as f64 / MB,
    }
}

fn memory(size: Size, name: &str) -> Memory {
    let exe = std::env::current_exe().expect("a path");
    let case = format!("{},{name}", size.name);
    let out = std::process::Command::new(exe).env("TRAIN_BENCH_CASE", case).output().expect("a child");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or(f64::NAN));
    let mut next = || numbers.next().unwrap_or(f64::NAN);
    Memory { resident: next(), held: next() }
}

fn plan(size: Size, way: Way) -> Plan {
    let model = size.model();
    let pairs = size.pairs(&model);
    let device = Default::default();
    Plan::new::<A, Llava<A>>(&size.config(way), &model, &pairs.into(), &device).expect("a plan")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Those that an environment variable names, or all.
fn named<T: Copy>(variable: &str, all: &[T], name: impl Fn(&T) -> &'static str) -> Vec<T> {
    let only = std::env::var(variable).ok();
    let wanted = |item: &&T| only.as_ref().is_none_or(|only| only.split(',').any(|word| word == name(item)));
    all.iter().filter(wanted).copied().collect()
}

fn sizes() -> Vec<Size> {
    named("TRAIN_BENCH_SIZES", &SIZES, |size| size.name)
}

fn ways() -> Vec<(&'static str, Way)> {
    named("TRAIN_BENCH_WAYS", &WAYS, |way| way.0)
}

fn table(rounds: usize) {
    println!(
        "| size | way | seconds | pairs/s | of first | processor s | of first | peak MB | of first | held MB | planned MB |"
    );
    println!("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for size in sizes() {
        let ways = ways();
        let mut run = Run::new(size);
        let mut times: Vec<Vec<Time>> = vec![Vec::new(); ways.len()];
        if rounds > 0 {
            ways.iter().for_each(|way| run.step(way.1));
        }
        for _ in 0..rounds {
            for (way, times) in ways.iter().zip(&mut times) {
                times.push(run.timed(way.1));
            }
        }
        drop(run);
        let mut first = None;
        for ((name, way), own) in ways.iter().zip(&times) {
            let memory = memory(size, name);
            let first = *first.get_or_insert(memory.resident);
            let planned = plan(size, *way).total_bytes() as f64 / MB;
            let of = |get: fn(&Time) -> f64| median(own.iter().map(get).collect());
            let ratio = |get: fn(&Time) -> f64| {
                median(own.iter().zip(&times[0]).map(|(own, first)| get(own) / get(first)).collect())
            };
            println!(
                "| {} | {name} | {:.3} | {:.2} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} | {:.0} | {planned:.0} |",
                size.name,
                of(|time| time.wall),
                (size.pairs * size.batches) as f64 / of(|time| time.wall),
                ratio(|time| time.wall),
                of(|time| time.processor),
                ratio(|time| time.processor),
                memory.resident,
                memory.resident / first,
                memory.held,
            );
        }
    }
}

fn criterion() {
    let mut criterion = Criterion::default().configure_from_args();
    for size in sizes() {
        let mut run = Run::new(size);
        let mut group = criterion.benchmark_group(format!("step/{}", size.name));
        group.throughput(Throughput::Elements((size.pairs * size.batches) as u64));
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(5));
        for (name, way) in ways() {
            group.bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| run.step(way)));
        }
        group.finish();
    }
    criterion.final_summary();
}

/// The step's products of whole layers and no more: what gemm alone would take. Forward of reference and policy and the
/// gradient of the inputs, as many products each; neither adapters nor attention.
fn products(size: Size) -> impl FnMut() {
    let model = size.model();
    let text = &model.text_config;
    let device = Default::default();
    let random = |shape| Tensor::<Flex, 2>::random(shape, burn::tensor::Distribution::Default, &device);
    let (width, inner) = (text.hidden_size, text.intermediate_size);
    let answers = 2 * size.answer;
    let tokens = size.pairs * (model.tokens_per_image() + size.text + answers);
    let (x, wide) = (random([tokens, width]), random([tokens, inner]));
    let weights = [[width, 3 * width], [width, width], [width, 2 * inner], [inner, width]].map(random);
    let (rows, head) = (random([size.pairs * answers, width]), random([width, text.vocab_size]));
    let layers = text.num_hidden_layers;
    move || {
        for _ in 0..3 * size.batches {
            for _ in 0..layers {
                for weight in &weights {
                    let x = if weight.dims()[0] == inner { &wide } else { &x };
                    std::hint::black_box(x.clone().matmul(weight.clone()));
                }
            }
            std::hint::black_box(rows.clone().matmul(head.clone()));
        }
    }
}

/// `SIZE,WAY` or `SIZE,products`.
fn work(work: &str) {
    let before = peak();
    let (size, way) = work.split_once(',').expect("SIZE,WAY");
    let size = SIZES.into_iter().find(|known| known.name == size).expect("a size");
    if way == "products" {
        return serve(before, products(size));
    }
    let (_, way) = WAYS.into_iter().find(|known| known.0 == way).expect("a way");
    let mut run = Run::new(size);
    serve(before, || run.step(way));
}

fn main() {
    if let Some(asked) = served() {
        work(&asked);
    } else if let Ok(case) = std::env::var("TRAIN_BENCH_CASE") {
        let (size, way) = case.split_once(',').expect("size,way");
        let size = SIZES.into_iter().find(|known| known.name == size).expect("a size");
        let (_, way) = WAYS.into_iter().find(|known| known.0 == way).expect("a way");
        let memory = child(size, way);
        println!("{} {}", memory.resident, memory.held);
    } else if std::env::args().any(|argument| argument == "--table") {
        table(std::env::var("TRAIN_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(5));
    } else {
        criterion();
    }
}
