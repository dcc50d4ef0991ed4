//! Language models: tokens a second of reading, writing and a training step, and the memory of a training step with
//! and without recomputation of blocks. `cargo bench -p aspo-benches --bench models`.

use std::hint::black_box;
use std::time::Duration;

use aspo_benches::{peak, serve, served};
use aspo_models::lora::{LoraConfig, Names, attach};
use aspo_models::{
    GenerateConfig, LanguageModel, Llama, LlamaConfig, ModelConfig, ModelInput, generate, recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_flex::Flex;
use criterion::{Criterion, Throughput, criterion_group};
use peak_alloc::PeakAlloc;

type Plain = Flex;
type Tracked = Autodiff<Flex>;

/// Counts the bytes held by the whole process, so that a peak can be told apart from what the allocator keeps.
#[global_allocator]
static HELD: PeakAlloc = PeakAlloc;

fn config(hidden: usize, layers: usize) -> LlamaConfig {
    let json = serde_json::json!({
        "model_type": "llama", "vocab_size": 2048, "hidden_size": hidden, "intermediate_size": hidden * 8 / 3,
        "num_hidden_layers": layers, "num_attention_heads": hidden / 32,
    });
    LlamaConfig::from_json(json).expect("a plain config")
}

fn rows<B: burn::tensor::backend::Backend>(batch: usize, tokens: usize) -> ModelInput<B> {
    let row = |r: usize| (0..tokens).map(|t| ((r * 31 + t * 17) % 2000 + 3) as u32).collect();
    ModelInput::from_rows(&(0..batch).map(row).collect::<Vec<_>>(), 0, &Default::default())
}

fn adapted(config: &LlamaConfig) -> Llama<Tracked> {
    let model = config.init_seeded::<Tracked>(0, &Default::default());
    let lora = LoraConfig::new(16, 32.0, Names::Pattern("all-linear".into()));
    attach(model, &lora, 0).expect("linear layers exist")
}

/// Any loss that needs every hidden state.
fn loss(hidden: Tensor<Tracked, 3>) -> Tensor<Tracked, 1> {
    hidden.square().mean()
}

fn plain_step(model: &Llama<Tracked>, input: &ModelInput<Tracked>) -> GradientsParams {
    let hidden = model.hidden(input).expect("valid input");
    GradientsParams::from_grads(loss(hidden).backward(), model)
}

fn recomputed_step(model: &Llama<Tracked>, input: &ModelInput<Tracked>) -> GradientsParams {
    recompute_backward(model, input, |hidden| Ok((loss(hidden), ()))).expect("valid input").grads
}

fn speed(c: &mut Criterion) {
    for (name, hidden, layers) in [("d128_l4", 128, 4), ("d384_l6", 384, 6)] {
        let config = config(hidden, layers);
        let model = adapted(&config);
        let plain = model.valid();
        let mut group = c.benchmark_group(name);
        group.sample_size(10).measurement_time(Duration::from_secs(5));

        let (batch, tokens) = (8, 128);
        group.throughput(Throughput::Elements((batch * tokens) as u64));
        let input = rows::<Plain>(batch, tokens);
        group.bench_function("prefill", |b| b.iter(|| black_box(plain.hidden(&input).expect("valid input"))));
        let input = rows::<Tracked>(batch, tokens);
        group.bench_function("train_step", |b| b.iter(|| black_box(plain_step(&model, &input))));
        group.bench_function("train_step_recomputed", |b| {
            b.iter(|| black_box(recomputed_step(&model, &input)))
        });

        let (batch, new) = (64, 60);
        group.throughput(Throughput::Elements((batch * new) as u64));
        let input = rows::<Plain>(batch, 16);
        let greedy = GenerateConfig { max_new_tokens: new, eos_token_id: Some(vec![]), ..Default::default() };
        group.bench_function("decode_batch64", |b| {
            b.iter(|| black_box(generate(&plain, &input, &greedy, |_, _| ()).expect("valid input")))
        });
        group.finish();
    }
}

/// Peaks beyond the model itself; printed, as criterion measures time only.
fn memory(_: &mut Criterion) {
    for (hidden, layers, tokens) in [(128, 4, 512), (384, 12, 512), (384, 12, 1024)] {
        let model = adapted(&config(hidden, layers));
        let input = rows::<Tracked>(2, tokens);
        let peak = |step: &dyn Fn() -> GradientsParams| {
            drop(step());
            let before = HELD.current_usage();
            HELD.reset_peak_usage();
            drop(step());
            (HELD.peak_usage() - before) as f64 / 1e6
        };
        let plain = peak(&|| plain_step(&model, &input));
        let recomputed = peak(&|| recomputed_step(&model, &input));
        println!(
            "memory d{hidden}_l{layers}, 2 rows of {tokens}: {plain:.0} MB plain, {recomputed:.0} MB recomputed"
        );
    }
}

criterion_group!(benches, speed, memory);
/// Writing of new tokens by a model of random weights: `tiny` is the language model of the examples' LLaVA, `135m` has the
/// shape of SmolLM-135M.
fn decoding(work: &str) {
    let before = peak();
    let (shape, batch) = work.split_once(',').expect("SHAPE,BATCH");
    let batch = batch.parse().expect("rows");
    let (json, new) = match shape {
        "tiny" => (
            serde_json::json!({
                "model_type": "llama", "vocab_size": 552, "hidden_size": 128, "intermediate_size": 352,
                "num_hidden_layers": 4, "num_attention_heads": 4,
            }),
            64,
        ),
        "135m" => (
            serde_json::json!({
                "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536,
                "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
            }),
            32,
        ),
        other => panic!("no shape `{other}`"),
    };
    let model =
        LlamaConfig::from_json(json).expect("a plain config").init_seeded::<Plain>(0, &Default::default());
    let row = |r: usize| (0..64).map(|t| ((r * 31 + t * 17) % 500 + 3) as u32).collect();
    let rows = (0..batch).map(row).collect::<Vec<_>>();
    let input = ModelInput::from_rows(&rows, 0, &Default::default());
    let greedy = GenerateConfig { max_new_tokens: new, eos_token_id: Some(vec![]), ..Default::default() };
    serve(before, || {
        black_box(generate(&model, &input, &greedy, |_, _| ()).expect("valid input"));
    });
}

fn main() {
    match served() {
        Some(work) => decoding(&work),
        None => benches(),
    }
}
