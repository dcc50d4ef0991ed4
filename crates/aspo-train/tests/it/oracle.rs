//! Twenty steps of preference training on the tiny LLaVA, against PEFT and PyTorch, through the trainer's own step.

use std::path::{Path, PathBuf};

use aspo_data::{EncodedAnswer, EncodedPair, ImageSource};
use aspo_models::lora::{load_adapter, save_adapter, without_adapters};
use aspo_models::{Llava, LoadOptions, Picture, Pretrained, VisionLanguageModel};
use aspo_train::{MicroBatch, Reference, TrainConfig, VisionFeatures, accumulate, adamw, totals};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::Optimizer;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::support::{World, on_backends, oracle};

on_backends!(oracle_trajectories);

/// How a step is cut up must not matter: packing, parts and recomputation.
const WAYS: [(bool, usize, bool); 4] =
    [(true, 4, false), (false, 4, false), (true, 1, true), (false, 2, true)];

fn oracle_trajectories<B: Backend>() {
    let folder = oracle().join("trajectories");
    if std::env::var_os("ASPO_ORACLE").is_some() && !folder.exists() {
        // Other cases may have no trajectories; those committed do.
        return;
    }
    let batch = Tensors::open(&folder.join("batch.safetensors"));
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("trajectory.safetensors").is_file())
        .collect();
    cases.sort();
    assert!(!cases.is_empty(), "no trajectory in {}", folder.display());
    for case in &cases {
        for (packed, part, recompute) in WAYS {
            follow::<B>(case, &batch, packed, part, recompute);
        }
    }
}

/// The options of a case: named after its loss, and the constants that the oracle's README gives.
fn config(case: &Path, packed: bool, recompute: bool) -> TrainConfig {
    let name = case.file_name().unwrap().to_string_lossy().into_owned();
    let (loss, scaling) = match name.strip_prefix("aspo_") {
        Some(scaling) => ("aspo", scaling.to_owned()),
        None => {
            (if name == "dpo" { "sigmoid" } else { name.as_str() }, TrainConfig::default().reward_scaling)
        }
    };
    TrainConfig {
        loss_type: vec![loss.into()],
        reward_scaling: scaling,
        beta: 0.1,
        alpha: 0.5,
        learning_rate: 1e-3,
        max_grad_norm: 0.0,
        pair_packing: packed,
        gradient_checkpointing: recompute,
        clip: Some("the scores are in the batch".into()),
        ..TrainConfig::default()
    }
}

fn follow<B: Backend>(case: &Path, batch: &Tensors, packed: bool, part: usize, recompute: bool) {
    let config = config(case, packed, recompute);
    config.validate().unwrap();
    let objective = config.objective().unwrap();
    let device = B::Device::default();
    let base = oracle().join("models/llava");
    let (base, _) = Llava::<Autodiff<B>>::from_pretrained(&base, &LoadOptions::default(), &device).unwrap();
    let (mut policy, adapter) = load_adapter(base, case.join("adapter_initial")).unwrap();
    let expected = Tensors::open(&case.join("trajectory.safetensors"));
    let [losses, margins, norms] = ["loss", "margin", "grad_norm"].map(|name| expected.floats(name).0);

    assert!(!losses.is_empty() && norms.len() == losses.len(), "{}: no steps", case.display());
    let pairs = encoded(batch);
    let mut features = World::new().features();
    keep_pictures::<B>(&mut features, &policy.valid(), batch);
    let mut optimizer = adamw(&config).init::<Autodiff<B>, _>();
    let what = format!("{} (packed {packed}, parts of {part}, recompute {recompute})", case.display());
    for step in 0..losses.len() {
        let plain = policy.valid();
        let reference = without_adapters(&plain);
        let parts: Vec<&EncodedPair> = pairs.iter().collect();
        let batches = parts.chunks(part).map(|rows| {
            let batch = MicroBatch::new(rows, packed, 0, &mut features, &plain, &device)?;
            let rows = batch.reference(&reference, &Default::default())?;
            Ok((batch, Some(Reference::Rows(rows))))
        });
        let done =
            accumulate(&policy, batches, totals(&pairs), &config, &objective, step + 1, "none").unwrap();
        let loss = done.metrics.get("loss").unwrap();
        // The oracle's margin is what the loss is made of.
        let weighed = objective.aspo().is_some();
        let name = if weighed { "aspo/rewards/margins" } else { "rewards/margins" };
        let margin = done.metrics.get(name).unwrap();
        let wanted: f64 =
            margins[step * pairs.len()..][..pairs.len()].iter().sum::<f64>() / pairs.len() as f64;
        // The oracle's own tolerance for losses; margins and norms are of the same order.
        assert!((loss - losses[step]).abs() < 1e-4, "{what} step {step}: loss {loss}, not {}", losses[step]);
        assert!((margin - wanted).abs() < 1e-3, "{what} step {step}: margin {margin}, not {wanted}");
        let near = 1e-3 * norms[step].max(1.0);
        assert!((done.norm - norms[step]).abs() < near, "{what} step {step}: norm {}", done.norm);
        policy = optimizer.step(config.learning_rate, policy, done.gradients);
    }
    let out = tempfile::tempdir().unwrap();
    save_adapter(&policy, &adapter, out.path()).unwrap();
    let found = Tensors::open(&out.path().join("adapter_model.safetensors"));
    let want = Tensors::open(&case.join("adapter_final/adapter_model.safetensors"));
    assert_eq!(found.names(), want.names());
    for name in want.names() {
        let worst = crate::support::apart(&found.floats(&name).0, &want.floats(&name).0);
        // The oracle's tolerance for final adapters: Adam's sign-like first steps magnify rounding.
        assert!(worst < 1e-3, "{what}: {name} ends {worst:.1e} away");
    }
}

/// The batch's rows as pairs: what is before the first sentence is the prompt.
fn encoded(batch: &Tensors) -> Vec<EncodedPair> {
    let sides = ["chosen", "rejected"].map(|side| {
        let rows = |name: &str| {
            let (values, shape) = batch.ints(&format!("{side}_{name}"));
            values.chunks(shape[1]).map(<[i64]>::to_vec).collect::<Vec<_>>()
        };
        (rows("input_ids"), rows("sentence_ids"))
    });
    let (similarity, shape) = batch.floats("similarity");
    let counts = batch.ints("sentence_counts").0;
    let answer = |row: usize, side: usize| {
        let (ids, sentences) = (&sides[side].0[row], &sides[side].1[row]);
        let at: Vec<usize> = (0..ids.len()).filter(|&at| sentences[at] >= 0).collect();
        let answer = EncodedAnswer {
            ids: at.iter().map(|&at| ids[at] as u32).collect(),
            sentences: at.iter().map(|&at| sentences[at] as u32).collect(),
            ..EncodedAnswer::default()
        };
        (at[0], answer)
    };
    let pair = |row: usize| {
        let (start, mut chosen) = answer(row, 0);
        let (rejected_start, rejected) = answer(row, 1);
        assert_eq!(start, rejected_start, "both answers follow the same prompt");
        let scores = &similarity[row * shape[1]..][..counts[row] as usize];
        chosen.similarity = scores.iter().map(|&score| score as f32).collect();
        EncodedPair {
            id: row.to_string(),
            images: vec![ImageSource::Path(row.to_string())],
            prompt_ids: sides[0].0[row][..start].iter().map(|&id| id as u32).collect(),
            chosen,
            rejected,
            ..EncodedPair::default()
        }
    };
    (0..counts.len()).map(pair).collect()
}

/// The oracle gives pixels that no picture file can hold: what the tower sees in them is put where pictures' is kept.
fn keep_pictures<B: Backend>(features: &mut VisionFeatures, model: &Llava<B>, batch: &Tensors) {
    let (pixels, shape) = batch.floats("pixel_values");
    let pixels: Vec<f32> = pixels.into_iter().map(|value| value as f32).collect();
    let pixels = Tensor::from_data(TensorData::new(pixels, shape), &Default::default());
    for (row, seen) in model.vision_features(&Picture::each(pixels)).unwrap().into_iter().enumerate() {
        let shape = seen.values.dims();
        let values = seen.values.into_data().iter::<f32>().collect();
        features.keep(&row.to_string(), seen.shape, shape, values).unwrap();
    }
}

/// Tensors of a safetensors file as plain numbers.
struct Tensors(Vec<u8>);

impl Tensors {
    fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn file(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.0).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    fn floats(&self, name: &str) -> (Vec<f64>, Vec<usize>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let values = match view.dtype() {
            safetensors::Dtype::F64 => {
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::F32 => {
                let bytes = view.data().chunks_exact(4);
                bytes.map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            other => panic!("{name} holds {other:?}"),
        };
        (values, view.shape().to_vec())
    }

    fn ints(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        (values, view.shape().to_vec())
    }
}
