//! Twenty steps of LoRA preference training on the tiny LLaVA, against PEFT and PyTorch.
//!
//! The objectives are written out here in a few lines; the tested part is the model, its adapters and gradients.

use std::path::Path;

use aspo_models::lora::{load_adapter, save_adapter, without_adapters};
use aspo_models::{
    ImageFeatures, Llava, LoadOptions, ModelInput, Picture, Pretrained, VisionLanguageModel,
    recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData, activation};

use crate::support::{Expected, on_backends, oracle, oracle_llava, values, worst};

on_backends!(oracle_trajectories, oracle_trajectories_recomputed);

const BETA: f64 = 0.1;
const ALPHA: f64 = 0.5;

fn oracle_trajectories<B: Backend>() {
    follow_all::<Autodiff<B>>(false);
}

fn oracle_trajectories_recomputed<B: Backend>() {
    follow_all::<Autodiff<B>>(true);
}

fn follow_all<B: AutodiffBackend>(recompute: bool) {
    let all = oracle("trajectories", "trajectory.safetensors");
    let name = |case: &Path| case.file_name().unwrap().to_str().unwrap().to_owned();
    // Those whose objective is written out below.
    let known = ["dpo", "aspo_total_weight", "aspo_reward_ratio"];
    let cases: Vec<_> = all.iter().filter(|case| known.contains(&name(case).as_str())).collect();
    assert!(all.is_empty() || !cases.is_empty(), "none of {known:?}");
    for case in cases {
        let batch = Expected::open(case.with_file_name("batch.safetensors"));
        follow::<B>(case, &name(case), &batch, recompute);
    }
}

/// Both responses of each pair in one batch: chosen rows, then rejected rows.
struct Pairs<B: Backend> {
    input: ModelInput<B>,
    /// `[rows, tokens]` sentence ids, -1 outside the response.
    sentences: Vec<Vec<i64>>,
    ids: Vec<Vec<i64>>,
    similarity: Vec<Vec<f64>>,
    counts: Vec<usize>,
}

fn pairs<B: Backend>(batch: &Expected, model: &Llava<B>) -> Pairs<B> {
    let mut ids = Vec::new();
    let mut sentences = Vec::new();
    let mut mask = Vec::new();
    let wide = batch.ints("rejected_input_ids").1[1].max(batch.ints("chosen_input_ids").1[1]);
    for side in ["chosen", "rejected"] {
        for (name, fill, into) in [
            ("input_ids", 0, &mut ids),
            ("sentence_ids", -1, &mut sentences),
            ("attention_mask", 0, &mut mask),
        ] {
            let (flat, shape) = batch.ints(&format!("{side}_{name}"));
            for row in flat.chunks(shape[1]) {
                let mut row = row.to_vec();
                row.resize(wide, fill);
                into.push(row);
            }
        }
    }
    let tensor = |rows: &[Vec<i64>]| {
        Tensor::<B, 2, Int>::from_data(
            TensorData::new(rows.concat(), [rows.len(), wide]),
            &Default::default(),
        )
    };
    let features = model.vision_features(&Picture::each(batch.float_tensor("pixel_values"))).unwrap();
    let input =
        ModelInput::new(tensor(&ids), tensor(&mask)).with_images([features.clone(), features].concat());
    let (similarity, shape) = batch.floats("similarity");
    Pairs {
        input,
        sentences,
        ids,
        similarity: similarity.chunks(shape[1]).map(<[f64]>::to_vec).collect(),
        counts: batch.ints("sentence_counts").0.into_iter().map(|c| c as usize).collect(),
    }
}

impl<B: Backend> Pairs<B> {
    /// `[rows]` log-probabilities of chosen sentence `k` (or of whole responses) and tokens counted.
    fn select(&self, keep: impl Fn(usize, i64) -> bool) -> Tensor<B, 2> {
        let mask: Vec<f32> = self
            .sentences
            .iter()
            .enumerate()
            .flat_map(|(row, s)| {
                s[1..].iter().map(|&k| f32::from(u8::from(k >= 0 && keep(row, k)))).collect::<Vec<_>>()
            })
            .collect();
        let shape = [self.sentences.len(), self.sentences[0].len() - 1];
        Tensor::from_data(TensorData::new(mask, shape), &Default::default())
    }

    /// `[rows, tokens - 1]` log-probabilities of the next ids.
    fn logps(&self, hidden: Tensor<B, 3>, head: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, tokens, width] = hidden.dims();
        let logits = hidden
            .slice([0..rows, 0..tokens - 1])
            .reshape([rows * (tokens - 1), width])
            .matmul(head.transpose());
        let next: Vec<i64> = self.ids.iter().flat_map(|row| row[1..].to_vec()).collect();
        let next = Tensor::<B, 2, Int>::from_data(
            TensorData::new(next, [rows * (tokens - 1), 1]),
            &Default::default(),
        );
        activation::log_softmax(logits, 1).gather(1, next).reshape([rows, tokens - 1])
    }
}

fn min_max(x: &[f64]) -> Vec<f64> {
    let (low, high) = x.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    x.iter().map(|v| if high - low <= 1e-8 { 0.0 } else { (v - low) / (high - low) }).collect()
}

/// `(loss, margins)` of `[rows, tokens]` log-probabilities of policy and reference (docs/method.md, step 5).
fn objective<B: Backend>(
    name: &str,
    p: &Pairs<B>,
    policy: Tensor<B, 2>,
    reference: Tensor<B, 2>,
) -> (Tensor<B, 1>, Vec<f64>) {
    let pairs = p.counts.len();
    let whole = ((policy.clone() - reference.clone()) * p.select(|_, _| true)).sum_dim(1);
    let rejected = whole.clone().slice(pairs..2 * pairs);
    let chosen = if name == "dpo" {
        whole.slice(0..pairs)
    } else {
        let most = p.counts.iter().copied().max().unwrap();
        let per: Vec<Tensor<B, 2>> = (0..most).map(|k| p.select(move |_, s| s == k as i64)).collect();
        let sum = |x: &Tensor<B, 2>, k: usize| values((x.clone() * per[k].clone()).sum_dim(1));
        let d = policy.clone() - reference.clone();
        let logps: Vec<Vec<f64>> = (0..most).map(|k| sum(&policy, k)).collect();
        let ds: Vec<Vec<f64>> = (0..most).map(|k| sum(&d, k)).collect();
        let counts: Vec<Vec<f64>> = per.iter().map(|m| values(m.clone().sum_dim(1))).collect();
        let mut weights = vec![vec![0f32; most]; pairs];
        for row in 0..pairs {
            let n = p.counts[row];
            let perplexity: Vec<f64> =
                (0..n).map(|k| -(-logps[k][row] / counts[k][row]).min(80.0).exp()).collect();
            let (s, q) = (min_max(&p.similarity[row][..n]), min_max(&perplexity));
            let w: Vec<f64> = (0..n).map(|k| 1.0 + ALPHA * s[k] + (1.0 - ALPHA) * q[k]).collect();
            let total = n as f64 / w.iter().sum::<f64>();
            let scale = if name == "aspo_total_weight" {
                total
            } else {
                let below: f64 = (0..n).map(|k| w[k] * ds[k][row]).sum();
                let above: f64 = (0..n).map(|k| ds[k][row]).sum();
                if (BETA * below).abs() < 1e-8 { total } else { (above / below).clamp(0.5, 1.0) }
            };
            for k in 0..n {
                weights[row][k] = (w[k] * scale) as f32;
            }
        }
        let mut chosen = Tensor::<B, 2>::zeros([pairs, 1], &Default::default());
        for (k, mask) in per.into_iter().enumerate() {
            let column: Vec<f32> = weights.iter().map(|row| row[k]).collect();
            let column = Tensor::from_data(TensorData::new(column, [pairs, 1]), &Default::default());
            chosen = chosen + (d.clone() * mask).sum_dim(1).slice(0..pairs) * column;
        }
        chosen
    };
    let margin = (chosen - rejected).mul_scalar(BETA);
    (activation::log_sigmoid(margin.clone()).mean().neg(), values(margin))
}

struct Norm<'a>(&'a GradientsParams, f64);
impl<B: AutodiffBackend> ModuleVisitor<B> for Norm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.0.get::<B::InnerBackend, D>(param.id) {
            self.1 += values(grad).iter().map(|g| g * g).sum::<f64>();
        }
    }
}

fn follow<B: AutodiffBackend>(folder: &Path, name: &str, batch: &Expected, recompute: bool) {
    let base = oracle_llava();
    let device = Default::default();
    let (model, _) = Llava::<B>::from_pretrained(&base, &LoadOptions::default(), &device).unwrap();
    let (mut model, adapter) = load_adapter(model, folder.join("adapter_initial")).unwrap();
    let expected = Expected::open(folder.join("trajectory.safetensors"));
    let (losses, margins, norms) =
        (expected.floats("loss").0, expected.floats("margin").0, expected.floats("grad_norm").0);

    let plain = model.valid();
    let inner = pairs(batch, &plain);
    let reference = without_adapters(&plain);
    use aspo_models::LanguageModel;
    let reference = inner.logps(reference.hidden(&inner.input).unwrap(), reference.head());
    let reference = Tensor::<B, 2>::from_inner(reference);
    let tracked = Pairs {
        input: ModelInput {
            image_features: inner
                .input
                .image_features
                .iter()
                .cloned()
                .map(ImageFeatures::from_inner)
                .collect(),
            ..ModelInput::new(inner.input.input_ids.on::<B>(), inner.input.attention_mask.on::<B>())
        },
        sentences: inner.sentences.clone(),
        ids: inner.ids.clone(),
        similarity: inner.similarity.clone(),
        counts: inner.counts.clone(),
    };
    assert!(!losses.is_empty() && losses.len() == norms.len(), "steps to follow");
    assert_eq!(margins.len(), losses.len() * inner.counts.len());
    let config =
        AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.999).with_epsilon(1e-8).with_weight_decay(0.0);
    let mut optimizer = config.init::<B, Llava<B>>();
    for step in 0..losses.len() {
        let head = model.head();
        let loss_of = |hidden| {
            let (loss, margin) =
                objective(name, &tracked, tracked.logps(hidden, head.clone()), reference.clone());
            Ok((loss, margin))
        };
        let (loss, margin, grads) = if recompute {
            let out = recompute_backward(&model, &tracked.input, loss_of).unwrap();
            (values(out.loss)[0], out.extra, out.grads)
        } else {
            let (loss, margin) = loss_of(model.hidden(&tracked.input).unwrap()).unwrap();
            let value = values(loss.clone())[0];
            (value, margin, GradientsParams::from_grads(loss.backward(), &model))
        };
        let mut norm = Norm(&grads, 0.0);
        Module::<B>::visit(&model, &mut norm);
        let norm = norm.1.sqrt();
        // The tolerance the oracle states for losses; margins and norms are of the same order.
        assert!(
            (loss - losses[step]).abs() < 1e-4,
            "{name} step {step}: loss {loss}, expected {}",
            losses[step]
        );
        let want = &margins[step * margin.len()..][..margin.len()];
        assert!(worst(&margin, want) < 1e-3, "{name} step {step}: margins {margin:?}, expected {want:?}");
        assert!(
            (norm - norms[step]).abs() < 1e-3 * norms[step].max(1.0),
            "{name} step {step}: norm {norm}, expected {}",
            norms[step]
        );
        model = optimizer.step(1e-3, model, grads);
    }
    let out = tempfile::tempdir().unwrap();
    save_adapter(&model, &adapter, out.path()).unwrap();
    let found = Expected::open(out.path().join("adapter_model.safetensors"));
    let want = Expected::open(folder.join("adapter_final/adapter_model.safetensors"));
    for tensor in want.names() {
        let worst = worst(&found.floats(&tensor).0, &want.floats(&tensor).0);
        // The oracle's tolerance for final adapters: Adam's sign-like first steps magnify rounding.
        assert!(worst < 1e-3, "{name}: {tensor} ends {worst:.1e} away");
    }
}
