//! A small world on disk: the oracle's tiny LLaVA, a tokenizer of single letters, pictures and pairs.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aspo_data::Template;
use aspo_models::lora::{LoraConfig, load_adapter};
use aspo_models::{Llava, LlavaConfig, LoadOptions, ModelConfig, Pretrained};
use aspo_train::{
    Data, Finished, Output, Ranks, Result, Sight, StepReport, TrainConfig, Trainer, VisionFeatures,
    check_paths, check_ranks, processor, read,
};
use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};
use serde_json::{Value, json};

/// Instantiates generic tests for every CPU backend.
macro_rules! on_backends {
    ($($test:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $test() { super::$test::<burn_flex::Flex>(); })+
        }
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn_ndarray::NdArray>(); })+
        }
    };
}
pub(crate) use on_backends;

/// The oracle's folder: `ASPO_ORACLE`, else the copy beside the tests.
pub fn oracle() -> PathBuf {
    std::env::var_os("ASPO_ORACLE").map_or_else(fixtures, PathBuf::from)
}

/// What is committed with the crate.
pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A tokenizer whose ids fit the tiny LLaVA: letters, `<image>` at 128 as its config says.
fn tokenizer_json() -> Value {
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>", "\u{2581}", "\n"].map(str::to_owned).to_vec();
    vocab.extend((' '..='~').skip(1).map(String::from));
    vocab.extend((vocab.len()..128).map(|id| format!("<unused{id}>")));
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: usize, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>"),
                         special(128, "<image>"), special(129, "<pad>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": false, "ignore_merges": false,
                  "vocab": ids, "merges": []},
    })
}

/// Ten pairs of one to three sentences over five pictures.
const ANSWERS: [(&str, &str); 10] = [
    ("A red dot. It is big.", "A cat."),
    ("Two dots here. One is blue. All is calm.", "Three dogs run. It rains."),
    ("Blue.", "Green it is."),
    ("There is a box. It is empty.", "There is a fox. It is angry. It jumps."),
    ("A line goes up.", "A line."),
    ("Small red spots. A grey wall.", "No spots at all."),
    ("One ball. Two balls.", "A ball and a tree. A man."),
    ("It is dark. One lamp glows.", "It is day."),
    ("Snow. Much snow.", "Sand. Much sand. A camel."),
    ("A door, half open.", "A window."),
];

/// A folder with everything a run reads; `config` points into it.
pub struct World {
    pub folder: PathBuf,
    pub config: TrainConfig,
    _kept: Option<tempfile::TempDir>,
}

impl World {
    pub fn new() -> Self {
        let kept = tempfile::tempdir().unwrap();
        let world = Self::make(kept.path());
        Self { _kept: Some(kept), ..world }
    }

    /// What [`make`](Self::make) made.
    pub fn at(folder: &Path) -> Self {
        let config = TrainConfig {
            model: fixtures().join("models/llava"),
            tokenizer: Some(folder.join("tokenizer.json")),
            data: folder.join("pairs.json").into(),
            images: folder.join("images"),
            output_dir: folder.join("out"),
            template: Template::LlavaHf,
            max_length: 240,
            alpha: 0.0,
            learning_rate: 1e-3,
            per_device_train_batch_size: 2,
            gradient_accumulation_steps: 2,
            num_train_epochs: 2.0,
            // Two epochs would cache it: most tests are about a run that does not.
            precompute_ref_log_probs: Some(false),
            logging_steps: 4,
            save_steps: 1,
            save_total_limit: 0,
            lora: LoraConfig { r: 4, lora_alpha: 8.0, ..TrainConfig::default().lora },
            ..TrainConfig::default()
        };
        Self { folder: folder.into(), config, _kept: None }
    }

    /// The same with another config.
    pub fn with(&self, config: &TrainConfig) -> Self {
        Self { folder: self.folder.clone(), config: config.clone(), _kept: None }
    }

    /// The world in a folder that outlives this value.
    pub fn make(folder: &Path) -> Self {
        std::fs::create_dir_all(folder.join("images")).unwrap();
        std::fs::write(folder.join("tokenizer.json"), tokenizer_json().to_string()).unwrap();
        for picture in 0..5u32 {
            let paint = |x: u32, y: u32| {
                image::Rgb([(x * 9 + 40 * picture) as u8, (y * 7) as u8, (x * y + 60 * picture) as u8])
            };
            let picture_of = image::RgbImage::from_fn(28, 28, paint);
            picture_of.save(folder.join(format!("images/{picture}.png"))).unwrap();
        }
        let world = Self::at(folder);
        world.write_pairs(&ANSWERS);
        world
    }

    /// Replaces the file of pairs.
    pub fn write_pairs(&self, answers: &[(&str, &str)]) {
        let rows: Vec<Value> = answers
            .iter()
            .enumerate()
            .map(|(index, (chosen, rejected))| {
                json!({"question": "What is here?", "chosen": chosen, "reject": rejected,
                       "image_id": format!("{}.png", index % 5)})
            })
            .collect();
        std::fs::write(&self.config.data.0[0].path, Value::from(rows).to_string()).unwrap();
    }

    /// The pairs with one more, in which a `~` stands: see [`spoiled_model`].
    pub fn add_spoiled_pair(&self) {
        self.write_pairs(&[ANSWERS.as_slice(), &[("A ~ here. It is odd.", "Odd.")]].concat());
    }

    /// Encoded pairs.
    pub fn data(&self) -> Data {
        let shape = LlavaConfig::load(&self.config.model).unwrap();
        let mut data = read(&self.config, &sight(&self.config, &shape)).unwrap();
        data.decode_pictures(&self.config, |_, _| ()).unwrap();
        data
    }

    pub fn features(&self) -> VisionFeatures {
        let processor = processor(&self.config.model, 28).unwrap();
        VisionFeatures::new(aspo_data::ImageLoader::new(&self.config.images, processor).unwrap())
    }
}

/// How a LLaVA of this shape sees.
pub fn sight(config: &TrainConfig, shape: &LlavaConfig) -> Sight {
    Sight::of(config, &shape.init::<burn_flex::Flex>(&Default::default())).unwrap()
}

/// The whole run as a program would do it, from paths to adapter. `warn` hears what could be got around.
pub fn whole_run<B: Backend>(
    config: &TrainConfig,
    resume: bool,
    watch: impl FnMut(&StepReport),
    warn: impl FnMut(&str),
) -> Result<Finished<Llava<Autodiff<B>>>> {
    whole_run_on::<B>(config, &Ranks::alone(), resume, watch, warn)
}

/// The same with other processes.
pub fn whole_run_on<B: Backend>(
    config: &TrainConfig,
    ranks: &Ranks,
    resume: bool,
    mut watch: impl FnMut(&StepReport),
    warn: impl FnMut(&str),
) -> Result<Finished<Llava<Autodiff<B>>>> {
    let go_on = |step: &StepReport| {
        watch(step);
        ControlFlow::Continue(())
    };
    stoppable_run::<B>(config, ranks, resume, go_on, warn)
}

/// The same, until `watch` breaks off.
pub fn stoppable_run<B: Backend>(
    config: &TrainConfig,
    ranks: &Ranks,
    resume: bool,
    watch: impl FnMut(&StepReport) -> ControlFlow<()>,
    mut warn: impl FnMut(&str),
) -> Result<Finished<Llava<Autodiff<B>>>> {
    config.validate()?;
    check_paths(config)?;
    check_ranks(config, ranks.size())?;
    let output = Output::open_on(ranks, config, resume)?;
    output.notes().iter().for_each(|note| warn(note));
    let shape = LlavaConfig::load(&config.model)?;
    let mut data = read(config, &sight(config, &shape))?;
    data.decode_pictures(config, |_, _| ())?;
    let device = B::Device::default();
    let base = Llava::<Autodiff<B>>::from_pretrained(&config.model, &LoadOptions::default(), &device)?.0;
    Trainer::new(config.clone(), base, data, output, device).with_ranks(ranks).with_callback(watch).train()
}

/// A policy whose adapter is not zero: the end of an oracle's trajectory.
pub fn trained_policy<B: Backend>() -> Llava<Autodiff<B>> {
    let base = fixtures().join("models/llava");
    let options = LoadOptions::default();
    let model = Llava::<Autodiff<B>>::from_pretrained(&base, &options, &Default::default()).unwrap().0;
    load_adapter(model, fixtures().join("trajectories/dpo/adapter_final")).unwrap().0
}

/// All gradients in the order of the module, one after the other.
pub fn flat<B: AutodiffBackend, M: Module<B>>(module: &M, gradients: &GradientsParams) -> Vec<f64> {
    struct Flat<'a>(&'a GradientsParams, Vec<f64>);
    impl<B: AutodiffBackend> ModuleVisitor<B> for Flat<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<B::InnerBackend, D>(param.id) {
                self.1.extend(gradient.into_data().iter::<f64>());
            }
        }
    }
    let mut flat = Flat(gradients, Vec::new());
    module.visit(&mut flat);
    flat.1
}

/// Largest difference of numbers that are numbers: `f64::max` would pass over a NaN.
#[track_caller]
pub fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert!(!a.is_empty() && a.len() == b.len(), "{} values beside {}", a.len(), b.len());
    assert!(a.iter().chain(b).all(|value| value.is_finite()), "a value that is no number");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Copies the tiny LLaVA with the row of `~` in its embeddings not a number: whoever reads a `~` gets NaN.
pub fn spoiled_model(target: &Path) {
    let source = fixtures().join("models/llava");
    std::fs::create_dir_all(target).unwrap();
    std::fs::copy(source.join("config.json"), target.join("config.json")).unwrap();
    let mut bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let tilde = tokenizer_json()["model"]["vocab"]["~"].as_u64().unwrap() as usize;
    let (start, width) = {
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name =
            file.names().into_iter().find(|name| name.ends_with("embed_tokens.weight")).unwrap().to_owned();
        let view = file.tensor(&name).unwrap();
        let start = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        (start, 4 * view.shape()[1])
    };
    let nan = f32::NAN.to_le_bytes();
    for (index, byte) in bytes[start + tilde * width..start + (tilde + 1) * width].iter_mut().enumerate() {
        *byte = nan[index % 4];
    }
    std::fs::write(target.join("model.safetensors"), bytes).unwrap();
}

/// Copies the tiny LLaVA with the tensors whose name begins with `prefix` times 1.3: another checkpoint of the same kind.
pub fn other_model(target: &Path, prefix: &str) {
    edited_model(
        target,
        |_| (),
        |name, shape, values| {
            if name.starts_with(prefix) {
                values.iter_mut().for_each(|value| *value *= 1.3);
            }
            shape
        },
    );
}

/// Copies the tiny LLaVA with its config and each of its tensors edited; `tensor` gives the new shape.
pub fn edited_model(
    target: &Path,
    config: impl Fn(&mut Value),
    tensor: impl Fn(&str, Vec<usize>, &mut Vec<f32>) -> Vec<usize>,
) {
    let source = fixtures().join("models/llava");
    std::fs::create_dir_all(target).unwrap();
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    std::fs::write(target.join("config.json"), json.to_string()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let edited: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let floats = view.data().chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
            let mut values: Vec<f32> = floats.collect();
            let shape = tensor(name, view.shape().to_vec(), &mut values);
            (name.to_owned(), shape, values.iter().flat_map(|value| value.to_le_bytes()).collect())
        })
        .collect();
    let views = edited.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data);
        (name.as_str(), view.unwrap())
    });
    safetensors::serialize_to_file(views, None, &target.join("model.safetensors")).unwrap();
}

/// Every file under a folder, by relative path.
pub fn listing(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, into: &mut Vec<String>) {
        let Ok(entries) = std::fs::read_dir(folder) else { return };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
            if path.is_dir() {
                walk(&path, &format!("{name}/"), into);
            } else {
                into.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}

/// Copies a folder with all that is in it.
pub fn copy_folder(from: &Path, to: &Path) {
    for name in listing(from) {
        let target = to.join(&name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&name), target).unwrap();
    }
}
