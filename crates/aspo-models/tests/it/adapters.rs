//! Adapters: files, switching off, merging, PEFT's rules of targeting.

use std::path::PathBuf;

use aspo_models::lora::{
    LoraConfig, Names, attach, load_adapter, merge, save_adapter, unmerge, without_adapters,
};
use aspo_models::{
    EachLinear, LanguageModel, Llava, LlavaConfig, LoadOptions, ModelConfig, ModelInput, Precision,
    Pretrained, SaveOptions, recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::Flex;

use crate::support::{on_backends, oracle, values};

on_backends!(
    oracle_adapters_return_to_the_byte,
    a_fresh_adapter_changes_nothing_and_off_equals_the_base,
    merged_equals_factored_and_unmerging_returns,
);

fn adapter_folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for objective in std::fs::read_dir(oracle().join("trajectories")).unwrap() {
        let objective = objective.unwrap().path();
        found.extend(
            ["adapter_initial", "adapter_final"]
                .map(|f| objective.join(f))
                .into_iter()
                .filter(|f| f.is_dir()),
        );
    }
    assert!(!found.is_empty());
    found
}

fn llava<B: Backend>() -> Llava<B> {
    Llava::from_pretrained(oracle().join("models/llava"), &LoadOptions::default(), &Default::default())
        .unwrap()
        .0
}

fn text<B: Backend>() -> ModelInput<B> {
    ModelInput::from_rows(&[vec![1, 5, 9, 30, 7], vec![1, 8, 3]], 0, &Default::default())
}

fn logits<B: Backend>(model: &Llava<B>) -> Vec<f64> {
    values(model.logits(&text()).unwrap())
}

fn worst(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn oracle_adapters_return_to_the_byte<B: Backend>() {
    for folder in adapter_folders() {
        let (model, adapter) = load_adapter(llava::<B>(), &folder).unwrap();
        let out = tempfile::tempdir().unwrap();
        save_adapter(&model, &adapter, out.path()).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let (read, written) =
                (std::fs::read(folder.join(file)).unwrap(), std::fs::read(out.path().join(file)).unwrap());
            assert!(read == written, "{}/{file} is not written as it was read", folder.display());
        }
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
    let (trained, _) =
        load_adapter(fresh, adapter_folders().into_iter().find(|f| f.ends_with("adapter_final")).unwrap())
            .unwrap();
    assert!(worst(&logits(&trained), &before) > 1e-3, "a trained adapter must do something");
    assert_eq!(logits(&without_adapters(&trained)), before, "off is the base, exactly");
}

fn merged_equals_factored_and_unmerging_returns<B: Backend>() {
    let base = llava::<B>();
    let before = logits(&base);
    let (model, _) =
        load_adapter(base, adapter_folders().into_iter().find(|f| f.ends_with("adapter_final")).unwrap())
            .unwrap();
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
    let config = LoraConfig::new(2, 4.0, Names::List(vec!["proj".into(), "1.self_attn.q_proj".into()]));
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
    assert!(attach(llava::<Flex>(), &of(r"language_model.*q_proj"), 0).is_err());
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
        ("bias", r#"{"peft_type":"LORA","r":2,"target_modules":["q_proj"],"bias":"all"}"#),
        ("IA3", r#"{"peft_type":"IA3","target_modules":["q_proj"]}"#),
        ("modules_to_save", r#"{"r":2,"target_modules":["q_proj"],"modules_to_save":["lm_head"]}"#),
    ] {
        let config: LoraConfig = serde_json::from_str(json).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

#[test]
fn a_changed_config_is_written_in_pefts_form() {
    let folder = adapter_folders().remove(0);
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
        Llava::<B>::from_pretrained(oracle().join("models/llava"), &options, &Default::default()).unwrap().0;
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
    let scale = single.iter().fold(0f64, |m, v| m.max(v.abs()));
    // Eight bits of mantissa through three layers of random weights.
    assert!(worst(&plain, &single) < 0.1 * scale);
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
    let config = LlavaConfig::load(oracle().join("models/llava")).unwrap();
    let lora = LoraConfig::new(1, 2.0, Names::Pattern("all-linear".into()));
    let model = attach(Llava::<B>::from_config(&config, &Default::default()), &lora, 0).unwrap();
    let mut made = Made(Vec::new(), Vec::new());
    model.visit(&mut made);
    assert!(!made.1.is_empty() && made.1.iter().all(|path| path.contains("lora")), "{:?}", made.1);
}
