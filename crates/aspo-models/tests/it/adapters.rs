//! Adapters: files, switching off, merging, PEFT's rules of targeting.

use std::path::{Path, PathBuf};

use aspo_models::lora::{
    Adapter, InitLora, LoraConfig, Names, attach, load_adapter, merge, save_adapter, unmerge,
    without_adapters,
};
use aspo_models::nn::{Linear, Lora};
use aspo_models::{
    EachLinear, GenerateConfig, LanguageModel, Llava, LlavaConfig, LoadOptions, ModelConfig, ModelInput,
    Picture, Precision, Pretrained, SaveOptions, VisionLanguageModel, generate, recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor};
use burn_flex::Flex;

use crate::support::{Expected, fixtures, on_backends, oracle, oracle_llava, relative, scale, values, worst};

on_backends!(
    oracle_adapters_return_to_the_byte,
    oracle_adapters_give_pefts_logits_or_a_named_error,
    an_adapted_head_counts_in_logits_generation_gradients_and_merging,
    modules_saved_whole_are_the_adapters_alone,
    dropout_drops_in_training_alone_and_its_gradients_follow_the_mask,
    a_fresh_adapter_changes_nothing_and_off_equals_the_base,
    merged_equals_factored_and_unmerging_returns,
);

fn trained() -> PathBuf {
    fixtures("trajectories/dpo/adapter_final")
}

fn open<B: Backend>(folder: &Path) -> Llava<B> {
    Llava::from_pretrained(folder, &LoadOptions::default(), &Default::default()).unwrap().0
}

fn llava<B: Backend>() -> Llava<B> {
    open(&fixtures("models/llava"))
}

fn text<B: Backend>() -> ModelInput<B> {
    ModelInput::from_rows(&[vec![1, 5, 9, 30, 7], vec![1, 8, 3]], 0, &Default::default())
}

fn logits<B: Backend>(model: &Llava<B>) -> Vec<f64> {
    values(model.logits(&text()).unwrap())
}

/// The model and the adapter come back from what is written, to the byte.
fn returns<B: Backend>(model: &Llava<B>, adapter: &Adapter, folder: &Path) {
    let out = tempfile::tempdir().unwrap();
    save_adapter(model, adapter, out.path()).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(
            read(folder) == read(out.path()),
            "{}/{file} is not written as it was read",
            folder.display()
        );
    }
}

fn oracle_adapters_return_to_the_byte<B: Backend>() {
    for case in oracle("trajectories", "trajectory.safetensors") {
        for folder in ["adapter_initial", "adapter_final"].map(|name| case.join(name)) {
            let (model, adapter) = load_adapter(open::<B>(&oracle_llava()), &folder).unwrap();
            returns(&model, &adapter, &folder);
        }
    }
}

/// Whether an adapter must be honoured, by its files alone: `true` for plain LoRA with the options that the crate's pages
/// name, `false` for what no reading of it could honour, none where either will do.
fn is_honoured(folder: &Path) -> Option<bool> {
    let read = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&read).unwrap();
    let tensors = Expected::open(folder.join("adapter_model.safetensors"));
    let finite = |name: &String| tensors.floats(name).0.iter().all(|value| value.is_finite());
    let start = config["init_lora_weights"].to_string().trim_matches('"').to_lowercase();
    let starts = ["null", "true", "false", "gaussian", "eva", "orthogonal"];
    if !tensors.names().iter().all(finite) || !starts.contains(&start.as_str()) {
        return Some(false);
    }
    let plain = [
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    ];
    let off =
        [serde_json::json!(null), serde_json::json!(false), serde_json::json!([]), serde_json::json!({})];
    let saved = ["lm_head", "embed_tokens", "multi_modal_projector", "linear_1", "linear_2"];
    let known = config.as_object().unwrap().iter().all(|(name, value)| match name.as_str() {
        "modules_to_save" if value.is_array() => {
            value.as_array().unwrap().iter().all(|name| saved.contains(&name.as_str().unwrap()))
        }
        known => plain.contains(&known) || off.contains(value),
    });
    (known && config["peft_type"] == "LORA").then_some(true)
}

fn oracle_adapters_give_pefts_logits_or_a_named_error<B: Backend>() {
    let base = oracle_llava();
    let inputs = Expected::open(base.join("expected.safetensors"));
    let mask = inputs.ints("attention_mask").0;
    let plain = open::<B>(&base);
    let input = ModelInput::new(inputs.int_tensor("input_ids"), inputs.int_tensor("attention_mask"))
        .with_images(plain.vision_features(&Picture::each(inputs.float_tensor("pixel_values"))).unwrap());
    // The tower may be adapted too.
    let all = |model: &Llava<B>| {
        let features = model.vision_features(&Picture::each(inputs.float_tensor("pixel_values"))).unwrap();
        values(model.logits(&input.clone().with_images(features)).unwrap())
    };
    let before = all(&plain);
    for case in oracle("adapters", "adapter_config.json") {
        let name = case.display();
        let (model, adapter) = match (load_adapter(plain.clone(), &case), is_honoured(&case)) {
            (Ok(_), Some(false)) => panic!("{name}: cannot be honoured, and was loaded"),
            (Ok(loaded), _) => loaded,
            (Err(error), Some(true)) => panic!("{name}: {error}"),
            (Err(error), _) => {
                // An option by its name, or the tensor.
                let (config, told) =
                    (std::fs::read(case.join("adapter_config.json")).unwrap(), error.to_string());
                let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
                let option = config.as_object().unwrap().keys().any(|option| told.contains(option.as_str()));
                assert!(option || told.contains("not finite") && told.contains("lora_"), "{name}: {told}");
                continue;
            }
        };
        let expected = Expected::open(case.join("expected.safetensors"));
        let error = relative(&all(&model), &expected.floats("logits").0, Some(&mask));
        // The oracle's tolerance.
        assert!(error <= 1e-4, "{name}: logits are off by {error:.1e}");

        let mut layers: std::collections::BTreeMap<String, (usize, f64)> =
            serde_json::from_str(&expected.metadata("layers")).unwrap();
        model.clone().each_linear("", &mut |path, linear| {
            let found =
                linear.lora.as_ref().map(|lora| (lora.lora_a.dims()[0], lora.lora_b.dims()[1], lora.scale));
            let want = layers.remove(path);
            let fits = match (found, want) {
                (None, None) => true,
                (Some((a, b, scale)), Some((rank, alpha))) => {
                    (a, b) == (rank, rank) && (scale - alpha).abs() <= 1e-12 * alpha.abs()
                }
                _ => false,
            };
            assert!(fits, "{name}: {path} has {found:?}, not {want:?}");
        });
        assert!(layers.is_empty(), "{name}: without adapter are {layers:?}");

        let warned = expected.metadata("warned").contains("did not match");
        assert!(!warned || !adapter.warnings.is_empty(), "{name}: what matches nothing is told");
        returns(&model, &adapter, &case);
        // Biases stay, as in PEFT; all else is the base's again.
        if adapter.config.bias == "none" {
            assert_eq!(all(&without_adapters(&model)), before, "{name}: off is the base");
        }
        let factored = all(&model);
        let merged = without_adapters(&merge(model));
        assert!(worst(&all(&merged), &factored) <= 1e-4 * scale(&factored), "{name}: merged is factored");
        if case.join("merged").is_dir() {
            let pefts = all(&open::<B>(&case.join("merged")));
            assert!(worst(&pefts, &factored) <= 1e-4 * scale(&factored), "{name}: merged is PEFT's");
        }
    }
}

fn head_config() -> LoraConfig {
    LoraConfig::new(3, 6.0, Names::List(["lm_head", "v_proj"].map(String::from).to_vec()))
}

/// An adapter on the head whose `B` is not zero.
fn with_head<B: Backend>() -> Llava<B> {
    let config =
        LoraConfig { exclude_modules: Some(Names::Pattern(".*vision_tower.*".into())), ..head_config() };
    let mut model = attach(llava::<B>(), &config, 5).unwrap();
    model.each_linear("", &mut |path, linear| {
        if let Some(lora) = linear.lora.as_mut() {
            let [outputs, rank] = lora.lora_b.dims();
            let ramp = Tensor::<B, 1, Int>::arange(0..(outputs * rank) as i64, &Default::default()).float();
            // Of a size with the head's own weight for the head, small elsewhere.
            let size = if path == "lm_head" { 0.3 } else { 0.02 };
            let b = ramp.sin().mul_scalar(size).reshape([outputs, rank]).require_grad();
            lora.lora_b = Param::initialized(lora.lora_b.id, b);
        }
    });
    model
}

fn an_adapted_head_counts_in_logits_generation_gradients_and_merging<B: Backend>() {
    let model = with_head::<B>();
    let found = logits(&model);
    let merged = without_adapters(&merge(model.clone()));
    assert!(worst(&found, &logits(&merged)) < 1e-5 * scale(&found), "logits");
    let mut headless = model.clone();
    headless.lm_head.as_mut().unwrap().lora = None;
    assert!(worst(&found, &logits(&headless)) > 0.1 * scale(&found), "the head's adapter matters");
    let config = GenerateConfig { max_new_tokens: 6, eos_token_id: Some(vec![]), ..Default::default() };
    let tokens =
        |model: &Llava<B>, config: &GenerateConfig| generate(model, &text(), config, |_, _| ()).unwrap();
    for config in [config.clone(), GenerateConfig { num_beams: 3, ..config }] {
        assert_eq!(tokens(&model, &config), tokens(&merged, &config));
        assert_ne!(tokens(&model, &config), tokens(&headless, &config));
    }

    // Gradients against finite differences of the merged head: the factors' own formula, from the dense gradient.
    let tracked = with_head::<Autodiff<B>>();
    let loss = |logits: Tensor<Autodiff<B>, 3>| logits.sin().sum();
    let backward = |recompute: bool| {
        if recompute {
            let rows = |hidden: Tensor<Autodiff<B>, 3>| {
                let [batch, tokens, width] = hidden.dims();
                let out = hidden.reshape([batch * tokens, width]).matmul(tracked.head().transpose());
                let vocabulary = out.dims()[1];
                Ok((loss(out.reshape([batch, tokens, vocabulary])), ()))
            };
            recompute_backward(&tracked, &text(), rows).unwrap().grads
        } else {
            let grads = loss(tracked.logits(&text()).unwrap()).backward();
            GradientsParams::from_grads(grads, &tracked)
        }
    };
    let lora = tracked.lm_head.as_ref().unwrap().lora.as_ref().unwrap();
    let hidden = model.hidden(&text()).unwrap();
    let width = hidden.dims()[2];
    let hidden = hidden.reshape([-1, width as i32]);
    // d sin(z) = cos(z) dz, with z = h (W + s B A)ᵀ.
    let slope = model.logits(&text()).unwrap().cos();
    let vocabulary = slope.dims()[2];
    let dense = slope.reshape([-1, vocabulary as i32]).transpose().matmul(hidden).mul_scalar(lora.scale);
    let (a, b) = (lora.lora_a.val().inner(), lora.lora_b.val().inner());
    let want = [values(b.transpose().matmul(dense.clone())), values(dense.matmul(a.transpose()))];
    for recompute in [false, true] {
        let grads = backward(recompute);
        for (id, want) in [lora.lora_a.id, lora.lora_b.id].into_iter().zip(&want) {
            let found = values(grads.get::<B, 2>(id).expect("the head's factors have gradients"));
            // The same products in another order, in f32.
            assert!(worst(&found, want) < 1e-4 * scale(want), "recomputed: {recompute}");
        }
    }
}

fn modules_saved_whole_are_the_adapters_alone<B: Backend>() {
    let base = llava::<B>();
    let before = logits(&base);
    for name in ["save_lm_head", "save_embed_tokens"] {
        let folder = fixtures("adapters").join(name);
        let (model, _) = load_adapter(base.clone(), &folder).unwrap();
        let saved = logits(&model);
        assert!(worst(&saved, &before) > 1e-2 * scale(&before), "{name} changes the model");
        assert_eq!(logits(&without_adapters(&model)), before, "{name}: off is the base");
        let merged = merge(model);
        assert!(
            worst(&logits(&without_adapters(&merged)), &saved) < 1e-5 * scale(&saved),
            "{name}: merged stays"
        );
        let back = without_adapters(&unmerge(merged));
        assert!(worst(&logits(&back), &before) < 1e-5 * scale(&before), "{name}: unmerged returns");
        // A fresh adapter is on the base, not on what another adapter saved.
        let (model, _) = load_adapter(base.clone(), &folder).unwrap();
        assert_eq!(logits(&attach(model, &config(), 0).unwrap()), before, "{name}");
    }
}

fn dropout_drops_in_training_alone_and_its_gradients_follow_the_mask<B: Backend>() {
    type Ad<B> = Autodiff<B>;
    const WIDTH: usize = 40;
    const ROWS: usize = 50;
    // A, B and scale of one, W of zero: the layer gives back what its dropout lets through.
    let device = Default::default();
    let mut layer = Linear::<Ad<B>>::new(WIDTH, WIDTH, false, &device);
    layer.weight = Param::from_tensor(Tensor::zeros([WIDTH, WIDTH], &device));
    let one = || Param::from_tensor(Tensor::eye(WIDTH, &device));
    layer.lora =
        Some(Lora { lora_a: one(), lora_b: one(), scale: 1.0, merged: false, dropout: 0.25, bf16: false });
    let x = Tensor::<Ad<B>, 1, Int>::arange(1..(ROWS * WIDTH + 1) as i64, &device).float();
    let x = x.div_scalar(100.0).reshape([ROWS, WIDTH]);
    let out = layer.forward(x.clone());
    let (given, kept) = (values(x.clone()), values(out.clone()));
    let dropped = kept.iter().filter(|value| **value == 0.0).count() as f64 / kept.len() as f64;
    // Four standard deviations of a share of 2,000.
    assert!((dropped - 0.25).abs() < 4.0 * (0.25f64 * 0.75 / kept.len() as f64).sqrt(), "{dropped}");
    let wanted: Vec<f64> =
        given.iter().zip(&kept).map(|(x, y)| if *y == 0.0 { 0.0 } else { x / 0.75 }).collect();
    assert!(worst(&kept, &wanted) < 1e-5 * scale(&wanted), "what is kept is scaled up");
    assert_ne!(values(layer.forward(x.clone())), kept, "another draw");
    assert!(
        worst(&values(layer.valid().forward(x.inner())), &given) < 1e-5 * scale(&given),
        "none in evaluation"
    );

    let slope = out.clone().cos().inner();
    let grads = GradientsParams::from_grads(out.clone().sin().sum().backward(), &layer);
    // With factors of one, the gradient of either is the outer product of slope and what was let through.
    let want = values(slope.transpose().matmul(out.inner()));
    let lora = layer.lora.as_ref().unwrap();
    for id in [lora.lora_a.id, lora.lora_b.id] {
        assert!(worst(&values(grads.get::<B, 2>(id).unwrap()), &want) < 1e-4 * scale(&want));
    }
}

fn config() -> LoraConfig {
    LoraConfig::new(4, 8.0, Names::List(["q_proj", "v_proj", "down_proj"].map(String::from).to_vec()))
}

fn a_fresh_adapter_changes_nothing_and_off_equals_the_base<B: Backend>() {
    let base = llava::<B>();
    let before = logits(&base);
    let fresh = attach(base, &config(), 7).unwrap();
    assert_eq!(logits(&fresh), before, "B starts at zero");
    let (trained, _) = load_adapter(fresh, trained()).unwrap();
    assert!(worst(&logits(&trained), &before) > 1e-3, "a trained adapter must do something");
    assert_eq!(logits(&without_adapters(&trained)), before, "off is the base, exactly");
}

fn merged_equals_factored_and_unmerging_returns<B: Backend>() {
    let base = llava::<B>();
    let before = logits(&base);
    let (model, _) = load_adapter(base, trained()).unwrap();
    let factored = logits(&model);
    let merged = merge(model);
    // The issue's own bound for f32; logits are of order one.
    assert!(worst(&logits(&merged), &factored) < 1e-5);
    let out = tempfile::tempdir().unwrap();
    without_adapters(&merged).save_pretrained(out.path(), &SaveOptions::default()).unwrap();
    let plain =
        Llava::<B>::from_pretrained(out.path(), &LoadOptions::default(), &Default::default()).unwrap().0;
    assert_eq!(logits(&plain), logits(&merged), "an exported model is the merged one");
    let back = without_adapters(&unmerge(merged));
    assert!(worst(&logits(&back), &before) < 1e-5);
}

fn adapted(config: &LoraConfig) -> Vec<(String, Vec<usize>, f64)> {
    let mut model = attach(llava::<Flex>(), config, 0).unwrap();
    let mut found = Vec::new();
    model.each_linear("", &mut |path, linear| {
        if let Some(lora) = &linear.lora {
            found.push((path.to_owned(), lora.lora_a.dims().to_vec(), lora.scale));
        }
    });
    found
}

#[test]
fn names_match_whole_parts_of_a_path() {
    refused(&LoraConfig::new(2, 4.0, Names::List(vec!["proj".into()])), &["target_modules `proj`"]);
    let config = LoraConfig::new(2, 4.0, Names::List(vec!["1.self_attn.q_proj".into()]));
    let found = adapted(&config);
    let paths: Vec<&str> = found.iter().map(|(p, ..)| p.as_str()).collect();
    assert_eq!(
        paths,
        [
            "model.vision_tower.encoder.layers.1.self_attn.q_proj",
            "model.language_model.layers.1.self_attn.q_proj"
        ]
    );
}

#[test]
fn a_pattern_must_match_the_whole_path() {
    let of = |p: &str| LoraConfig::new(2, 4.0, Names::Pattern(p.into()));
    assert_eq!(adapted(&of(r".*language_model.*\.(q|v)_proj")).len(), 6);
    assert!(attach(llava::<Flex>(), &of(r"layers.*q_proj"), 0).is_err());
    assert!(attach(llava::<Flex>(), &of("("), 0).is_err());
}

#[test]
fn all_linear_takes_every_layer_but_the_head() {
    let found = adapted(&LoraConfig::new(2, 4.0, Names::Pattern("all-linear".into())));
    // Three vision layers of six, two projector layers, three decoder layers of seven.
    assert_eq!(found.len(), 3 * 6 + 2 + 3 * 7);
    assert!(found.iter().all(|(path, ..)| !path.contains("lm_head")));
}

#[test]
fn ranks_alphas_exclusions_and_layers_follow_peft() {
    let mut config = LoraConfig::new(4, 8.0, Names::List(vec!["q_proj".into(), "v_proj".into()]));
    config.exclude_modules = Some(Names::Pattern(".*vision_tower.*".into()));
    config.rank_pattern = [("v_proj".to_owned(), 16)].into();
    config.alpha_pattern = [(r"layers\.0\.self_attn\.q_proj".to_owned(), 2.0)].into();
    config.use_rslora = true;
    config.layers_to_transform = serde_json::from_str("[0, 2]").unwrap();
    let found = adapted(&config);
    let show: Vec<(&str, usize, f64)> =
        found.iter().map(|(p, a, s)| (p.rsplit_once("layers.").unwrap().1, a[0], *s)).collect();
    assert_eq!(
        show,
        [
            ("0.self_attn.q_proj", 4, 1.0),
            ("0.self_attn.v_proj", 16, 2.0),
            ("2.self_attn.q_proj", 4, 4.0),
            ("2.self_attn.v_proj", 16, 2.0),
        ]
    );
}

#[test]
fn a_pattern_may_look_ahead_as_llama_factorys_do() {
    let pattern = r"^(?!.*(?:vision_tower|multi_modal_projector)).*(?:q_proj|v_proj).*";
    let found = adapted(&LoraConfig::new(2, 2.0, Names::Pattern(pattern.into())));
    assert!(!found.is_empty());
    assert!(found.iter().all(|(path, ..)| path.contains("language_model") && path.contains("self_attn")));
}

#[test]
fn layers_are_chosen_as_peft_chooses_them() {
    let first = "model.language_model.layers.0.self_attn.q_proj";
    let mut config = LoraConfig::new(2, 2.0, Names::List(vec!["k_proj".into(), first.into()]));
    config.layers_to_transform = serde_json::from_str("1").unwrap();
    config.layers_pattern = Some(Names::Pattern("language_model.layers".into()));
    let paths = |config: &LoraConfig| adapted(config).into_iter().map(|found| found.0).collect::<Vec<_>>();
    // A layer named in full is meant whatever its index; a list of layers has the index right behind its name.
    assert_eq!(paths(&config), [first, "model.language_model.layers.1.self_attn.k_proj"]);
    // An empty list of indices is none.
    config.layers_to_transform = serde_json::from_str("[]").unwrap();
    config.layers_pattern = None;
    assert!(paths(&config).iter().any(|path| path.contains("vision_tower")));
}

#[test]
fn patterns_that_would_fill_the_memory_are_refused() {
    let pattern = r"(?:\w{100}){100}".to_owned();
    let error = LoraConfig::new(2, 2.0, Names::Pattern(pattern));
    let base = llava::<burn_flex::Flex>();
    let error = attach(base, &error, 0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("regular expression"), "{error}");
}

#[test]
fn what_is_not_honoured_is_refused_by_name() {
    for (field, json) in [
        ("use_dora", r#"{"peft_type":"LORA","r":2,"target_modules":["q_proj"],"use_dora":true}"#),
        ("bias", r#"{"peft_type":"LORA","r":2,"target_modules":["q_proj"],"bias":"some"}"#),
        ("pissa_niter_4", r#"{"r":2,"target_modules":["q_proj"],"init_lora_weights":"pissa_niter_4"}"#),
        ("target_parameters", r#"{"r":2,"target_modules":["q_proj"],"target_parameters":["experts"]}"#),
        ("IA3", r#"{"peft_type":"IA3","target_modules":["q_proj"]}"#),
        ("layers_pattern", r#"{"r":2,"target_modules":["q_proj"],"layers_pattern":"layers"}"#),
    ] {
        let config: LoraConfig = serde_json::from_str(json).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn a_changed_config_is_written_in_pefts_form() {
    let folder = trained();
    let mut config = LoraConfig::load(&folder).unwrap();
    config.r = 64;
    let out = tempfile::tempdir().unwrap();
    config.save(out.path()).unwrap();
    let read = std::fs::read_to_string(folder.join("adapter_config.json")).unwrap();
    let written = std::fs::read_to_string(out.path().join("adapter_config.json")).unwrap();
    assert_eq!(written, read.replace("\"r\": 4,", "\"r\": 64,"));
}

#[test]
fn seeds_decide_the_start() {
    let start = |seed| {
        let mut model = attach(llava::<Flex>(), &config(), seed).unwrap();
        let mut all: Vec<f64> = Vec::new();
        model.each_linear("", &mut |_, l| {
            if let Some(lora) = &l.lora {
                all.extend(values::<burn_flex::Flex, 2>(Tensor::clone(&lora.lora_a)));
            }
        });
        all
    };
    assert_eq!(start(1), start(1));
    assert_ne!(start(1), start(2));
}

#[test]
fn single_precision_factors_train_over_a_half_precision_base() {
    type B = burn::backend::Autodiff<Flex>;
    let options = LoadOptions { precision: Precision::Bf16, ..Default::default() };
    let base =
        Llava::<B>::from_pretrained(fixtures("models/llava"), &options, &Default::default()).unwrap().0;
    let model = attach(base, &config(), 1).unwrap();
    let plain = values(model.valid().logits(&text()).unwrap());
    let out = recompute_backward(&model, &text(), |hidden| Ok((hidden.cast(DType::F32).square().mean(), ())))
        .unwrap();
    let mut model = model;
    let mut seen = 0;
    model.each_linear("", &mut |path, linear| {
        assert_eq!(linear.weight.val().dtype(), DType::BF16, "{path}");
        let Some(lora) = &linear.lora else { return };
        if !path.contains("vision_tower") {
            let grad =
                out.grads.get::<Flex, 2>(lora.lora_b.id).unwrap_or_else(|| panic!("{path} has no gradient"));
            assert_eq!((grad.dtype(), lora.lora_b.val().dtype()), (DType::F32, DType::F32));
            assert!(values(grad).iter().any(|g| *g != 0.0), "{path}");
            seen += 1;
        }
    });
    assert_eq!(seen, 3 * 3);
    let single = logits(&llava::<Flex>());
    // Eight bits of mantissa through three layers of random weights.
    let error = worst(&plain, &single) / scale(&single);
    println!("bf16: {error:.4}");
    // 0.044 was measured.
    assert!(error < 0.06, "{error}");
}

#[test]
fn attaching_to_a_model_without_weights_makes_none() {
    struct Made(Vec<String>, Vec<String>);
    impl ModuleVisitor<B> for Made {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if param.is_initialized() {
                self.1.push(self.0.join("."));
            }
        }
    }
    type B = Autodiff<Flex>;
    let config = LlavaConfig::load(fixtures("models/llava")).unwrap();
    let lora = LoraConfig::new(1, 2.0, Names::Pattern("all-linear".into()));
    let model = attach(Llava::<B>::from_config(&config, &Default::default()), &lora, 0).unwrap();
    let mut made = Made(Vec::new(), Vec::new());
    model.visit(&mut made);
    assert!(!made.1.is_empty() && made.1.iter().all(|path| path.contains("lora")), "{:?}", made.1);
}

#[track_caller]
fn refused(config: &LoraConfig, parts: &[&str]) {
    let error = attach(llava::<Flex>(), config, 0).map(|_| ()).unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} in: {error}");
}

#[test]
fn what_of_our_own_config_matches_nothing_is_an_error() {
    let names = |names: &[&str]| Names::List(names.iter().map(|name| (*name).to_owned()).collect());
    let good = LoraConfig::new(2, 4.0, names(&["q_proj"]));
    refused(
        &LoraConfig { target_modules: Some(names(&["gate_proj", "up_porj"])), ..good.clone() },
        &["up_porj", "up_proj"],
    );
    refused(
        &LoraConfig { exclude_modules: Some(names(&["vision_towr"])), ..good.clone() },
        &["exclude_modules `vision_towr`"],
    );
    refused(
        &LoraConfig { exclude_modules: Some(Names::Pattern(".*visoin.*".into())), ..good.clone() },
        &["exclude_modules", "visoin"],
    );
    refused(
        &LoraConfig { rank_pattern: [("v_proj".into(), 4)].into(), ..good.clone() },
        &["rank_pattern `v_proj`"],
    );
    refused(
        &LoraConfig { alpha_pattern: [("q_porj".into(), 4.0)].into(), ..good.clone() },
        &["alpha_pattern `q_porj`"],
    );
    let layers = serde_json::from_str("[0, 77]").unwrap();
    refused(&LoraConfig { layers_to_transform: layers, ..good.clone() }, &["layers_to_transform 77"]);
    assert_eq!(adapted(&good).len(), 6);
}

#[test]
fn what_is_not_trained_is_refused_by_name() {
    let good = LoraConfig::new(2, 4.0, Names::List(vec!["q_proj".into()]));
    let start = |name: &str| Some(InitLora::Named(name.into()));
    for name in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "orthogonal", "eva"] {
        refused(&LoraConfig { init_lora_weights: start(name), ..good.clone() }, &["init_lora_weights", name]);
    }
    refused(
        &LoraConfig { init_lora_weights: Some(InitLora::Plain(false)), ..good.clone() },
        &["init_lora_weights"],
    );
    refused(
        &LoraConfig { modules_to_save: Some(vec!["lm_head".into()]), ..good.clone() },
        &["modules_to_save"],
    );
    refused(&LoraConfig { bias: "all".into(), ..good.clone() }, &["bias"]);
    refused(&LoraConfig { r: usize::MAX, ..good.clone() }, &["r: a rank of"]);
    let mut dora = good.clone();
    dora.extra.insert("use_dora".into(), true.into());
    refused(&dora, &["use_dora"]);
    let mut unheard = good.clone();
    unheard.extra.insert("use_something_new".into(), true.into());
    refused(&unheard, &["use_something_new"]);
    refused(&LoraConfig { lora_dropout: 0.1, ..head_config() }, &["lora_dropout", "lm_head"]);
    let whole = Names::Pattern(".*q_proj".into());
    let layers = serde_json::from_str("1").unwrap();
    refused(
        &LoraConfig { layers_to_transform: layers, target_modules: Some(whole), ..good },
        &["layers_to_transform"],
    );
}

#[test]
fn a_gaussian_start_has_the_deviation_of_pefts() {
    let config = LoraConfig {
        init_lora_weights: Some(InitLora::Named("gaussian".into())),
        ..LoraConfig::new(4, 8.0, Names::Pattern("all-linear".into()))
    };
    let mut model = attach(llava::<Flex>(), &config, 1).unwrap();
    let (mut squares, mut count) = (0.0, 0usize);
    model.each_linear("", &mut |_, linear| {
        let Some(lora) = &linear.lora else { return };
        let a = values(lora.lora_a.val());
        squares += a.iter().map(|a| a * a).sum::<f64>();
        count += a.len();
        assert!(values(lora.lora_b.val()).iter().all(|b| *b == 0.0));
    });
    let deviation = (squares / count as f64).sqrt();
    // Four standard errors of a deviation from so many draws.
    assert!((deviation - 0.25).abs() < 4.0 * 0.25 / (2.0 * count as f64).sqrt(), "{deviation} of {count}");
}

#[test]
fn names_of_an_older_age_mean_the_same_layers() {
    let names = |names: &[&str]| Names::List(names.iter().map(|name| (*name).to_owned()).collect());
    let of = |targets: Names, exclude: Option<Names>, key: &str| {
        let config = LoraConfig {
            exclude_modules: exclude,
            rank_pattern: [(key.to_owned(), 3)].into(),
            ..LoraConfig::new(2, 4.0, targets)
        };
        adapted(&config)
    };
    let new = of(
        Names::Pattern(r"model\.language_model\.layers\..*\.(q_proj|v_proj)".into()),
        Some(names(&["model.language_model.layers.1.self_attn.v_proj"])),
        r"language_model\.layers\.0\..*q_proj",
    );
    let old = of(
        Names::Pattern(r"language_model\.model\.layers\..*\.(q_proj|v_proj)".into()),
        Some(names(&["language_model.model.layers.1.self_attn.v_proj"])),
        r"language_model\.model\.layers\.0\..*q_proj",
    );
    assert_eq!((new.len(), new[0].1[0], new[1].1[0]), (5, 3, 2));
    assert_eq!(new, old);
    let tower = |name: &str| of(names(&[name, "v_proj"]), None, name).len();
    assert_eq!(tower("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj"), 7);
}

#[test]
fn patterns_keep_their_order_through_a_file() {
    let mut config = LoraConfig::new(4, 8.0, Names::List(vec!["q_proj".into()]));
    config.rank_pattern = [("q_proj".to_owned(), 2), ("layers.0.self_attn.q_proj".to_owned(), 7)].into();
    config.alpha_pattern = [("z".to_owned(), 1.5), ("a".to_owned(), 3.0)].into();
    let out = tempfile::tempdir().unwrap();
    config.save(out.path()).unwrap();
    let read = LoraConfig::load(out.path()).unwrap();
    assert_eq!((&read.rank_pattern, &read.alpha_pattern), (&config.rank_pattern, &config.alpha_pattern));
    config.alpha_pattern = Default::default();
    assert!(adapted(&config).iter().all(|(_, a, _)| a[0] == 2), "the first that matches counts");
}

/// One tensor of a copy of a fixture's adapter, edited.
fn edited(edit: impl Fn(&str, &mut Vec<u8>), config: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let (from, to) = (trained(), tempfile::tempdir().unwrap());
    let bytes = std::fs::read(from.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            edit(name, &mut data);
            (name.to_owned(), view.shape().to_vec(), data)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &to.path().join("adapter_model.safetensors")).unwrap();
    let mut json = serde_json::from_slice(&std::fs::read(from.join("adapter_config.json")).unwrap()).unwrap();
    config(&mut json);
    std::fs::write(to.path().join("adapter_config.json"), json.to_string()).unwrap();
    to
}

#[test]
fn values_that_are_not_finite_are_refused_at_loading() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let spoil = |name: &str, data: &mut Vec<u8>| {
            if name.contains("layers.1.self_attn.v_proj.lora_B") {
                data[8..12].copy_from_slice(&bad.to_le_bytes());
            }
        };
        let folder = edited(spoil, |_| ());
        let error = load_adapter(llava::<Flex>(), folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("value 2 is") && error.contains("layers.1.self_attn.v_proj.lora_B"),
            "{error}"
        );
    }
}

#[test]
fn what_of_a_loaded_adapter_matches_nothing_is_a_warning() {
    let folder = edited(
        |_, _| (),
        |json| {
            json["exclude_modules"] = serde_json::json!(["vision_towr"]);
            json["alpha_pattern"] = serde_json::json!({"q_porj": 3});
        },
    );
    let (_, adapter) = load_adapter(llava::<Flex>(), folder.path()).unwrap();
    let told = adapter.warnings.join("\n");
    assert!(adapter.warnings.len() == 2 && told.contains("vision_towr") && told.contains("q_porj"), "{told}");
    let (_, adapter) = load_adapter(llava::<Flex>(), trained()).unwrap();
    assert!(adapter.warnings.is_empty(), "{:?}", adapter.warnings);
}

#[test]
fn modules_to_save_that_cannot_be_kept_are_refused_by_name() {
    for (name, why) in
        [("norm", "only linear layers"), ("lm_haed", "names no module"), ("q_proj", "target_modules")]
    {
        let folder = edited(|_, _| (), |json| json["modules_to_save"] = serde_json::json!([name]));
        let error = load_adapter(llava::<Flex>(), folder.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("modules_to_save `{name}`")) && error.contains(why), "{error}");
    }
    let folder = edited(|_, _| (), |json| json["modules_to_save"] = serde_json::json!(["lm_head"]));
    let error = load_adapter(llava::<Flex>(), folder.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight is missing"), "{error}");
}
