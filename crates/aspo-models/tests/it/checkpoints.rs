//! Checkpoints: reports, layouts, precisions, shards, and the way back.

use std::path::Path;

use aspo_models::checkpoint::Layout;
use aspo_models::{
    Checkpoint, Clip, ClipConfig, Error, InstructBlip, LanguageModel, Llama, LlamaConfig, Llava, LlavaConfig,
    LoadOptions, ModelConfig, ModelInput, Precision, Pretrained, SaveOptions, stable_ids,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::Flex;

use crate::support::{on_backends, oracle, values};

on_backends!(oracle_models_return_to_the_byte, half_precision_files_load_and_stay_close);

fn models() -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(oracle().join("models")).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    found
}

fn strict() -> LoadOptions {
    LoadOptions::default()
}

/// Load, save under the names that were read, and compare every tensor's name, shape and bytes.
fn returns<B: Backend, M: Pretrained<B>>(case: &Path) {
    let (model, report) = M::from_pretrained(case, &strict(), &Default::default()).unwrap();
    let options = SaveOptions { layout: Some(report.layout.clone()), ..Default::default() };
    let out = tempfile::tempdir().unwrap();
    model.save_pretrained(out.path(), &options).unwrap();
    let (before, after) = (Checkpoint::open(case).unwrap(), Checkpoint::open(out.path()).unwrap());
    assert_eq!(before.names().collect::<Vec<_>>(), after.names().collect::<Vec<_>>(), "{}", case.display());
    for name in before.names() {
        assert_eq!(before.shape(name), after.shape(name), "{name}");
        let read = |c: &Checkpoint| c.read(name, Precision::Keep).unwrap().as_bytes().to_vec();
        assert!(read(&before) == read(&after), "{name} has changed");
    }
    if case.join("model.safetensors").is_file() {
        let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
        assert!(bytes(case) == bytes(out.path()), "{}: the whole file, header included", case.display());
        std::fs::File::create(out.path().join("new")).unwrap();
        let of = |name: &str| std::fs::metadata(out.path().join(name)).unwrap().permissions();
        assert_eq!(of("model.safetensors"), of("new"), "read by whom any new file is read");
        std::fs::remove_file(out.path().join("new")).unwrap();
    }
    // What was written is read again, config included; in small shards too.
    let shards = SaveOptions { shard_bytes: 40_000, ..options };
    model.save_pretrained(out.path(), &shards).unwrap();
    assert!(!out.path().join("model.safetensors").exists(), "a file that would shadow the shards is gone");
    let (_, again) = M::from_pretrained(out.path(), &strict(), &Default::default()).unwrap();
    assert_eq!(again.loaded, report.loaded);
    assert!(std::fs::read_dir(out.path()).unwrap().count() > 3, "several shards");
}

fn oracle_models_return_to_the_byte<B: Backend>() {
    for case in models() {
        match aspo_models::config::model_type(&case).unwrap().as_str() {
            "clip" => returns::<B, Clip<B>>(&case),
            "llama" => returns::<B, Llama<B>>(&case),
            "llava" => returns::<B, Llava<B>>(&case),
            "instructblip" => returns::<B, InstructBlip<B>>(&case),
            other => panic!("{other}"),
        }
    }
}

fn text<B: Backend>() -> ModelInput<B> {
    ModelInput::from_rows(&[vec![1, 5, 9, 30, 7], vec![1, 8, 3]], 0, &Default::default())
}

fn half_precision_files_load_and_stay_close<B: Backend>() {
    let case = oracle().join("models/llama");
    let (model, _) = Llama::<B>::from_pretrained(&case, &strict(), &Default::default()).unwrap();
    let want = values(model.logits(&text()).unwrap());
    let scale = want.iter().fold(0f64, |m, v| m.max(v.abs()));
    for (precision, bound) in [(Precision::Bf16, 0.05), (Precision::F16, 0.006)] {
        let out = tempfile::tempdir().unwrap();
        model.save_pretrained(out.path(), &SaveOptions { precision, ..Default::default() }).unwrap();
        // To single precision everywhere.
        let (single, _) = Llama::<B>::from_pretrained(out.path(), &strict(), &Default::default()).unwrap();
        let found = values(single.logits(&text()).unwrap());
        let worst = found.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale;
        // A handful of roundings of 2^-9 (bf16) or 2^-12 (f16) each, amplified by random weights.
        assert!(worst < bound, "{precision:?}: {worst}");
        // As it is, where the backend has the type, else an error that names it.
        let keep = LoadOptions { precision: Precision::Keep, ..strict() };
        match Llama::<B>::from_pretrained(out.path(), &keep, &Default::default()) {
            Ok((half, _)) => {
                let found = half.logits(&text()).unwrap();
                let worst =
                    values(found).iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale;
                assert!(worst < 2.0 * bound, "{precision:?} kept: {worst}");
            }
            Err(error) => assert!(matches!(error, Error::Tensor { .. }), "{error}"),
        }
        if precision == Precision::Bf16 {
            let again = tempfile::tempdir().unwrap();
            single.save_pretrained(again.path(), &SaveOptions { precision, ..Default::default() }).unwrap();
            let bytes = |folder: &Path| std::fs::read(folder.join("model.safetensors")).unwrap();
            assert!(bytes(out.path()) == bytes(again.path()), "bf16 through f32 loses nothing");
        }
    }
}

#[test]
fn all_ages_of_llava_names_are_read_and_written_back() {
    let case = oracle().join("models/llava");
    let (model, _) = Llava::<Flex>::from_pretrained(&case, &strict(), &Default::default()).unwrap();
    let want = values(model.logits(&text()).unwrap());
    let out = tempfile::tempdir().unwrap();
    for (layout, name) in [
        (Layout::tree(), "model.language_model.layers.0.mlp.up_proj.weight"),
        (
            Layout::hub(<Llava<Flex> as Pretrained<Flex>>::PREFIXES),
            "language_model.model.layers.0.mlp.up_proj.weight",
        ),
    ] {
        let options = SaveOptions { layout: Some(layout.clone()), ..Default::default() };
        model.save_pretrained(out.path(), &options).unwrap();
        assert!(Checkpoint::open(out.path()).unwrap().names().any(|n| n == name), "{name}");
        let (again, _) = Llava::<Flex>::from_pretrained(out.path(), &strict(), &Default::default()).unwrap();
        assert_eq!(values(again.logits(&text()).unwrap()), want);
    }
}

#[test]
fn missing_unused_and_mis_shaped_tensors_are_listed_and_refused() {
    let case = oracle().join("models/llama");
    let mut config = LlamaConfig::load(&case).unwrap();
    config.num_hidden_layers = 2;
    config.mlp_bias = true;
    config.vocab_size = 77;
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(case.join("model.safetensors"), out.path().join("model.safetensors")).unwrap();
    config.save(out.path()).unwrap();
    let load = |options| Llama::<Flex>::from_pretrained(out.path(), &options, &Default::default());
    let Err(Error::Mismatch { report, .. }) = load(strict()) else { panic!("must be refused") };
    assert!(report.missing.contains(&"model.layers.0.mlp.up_proj.bias".to_owned()));
    assert!(report.unused.contains(&"model.layers.2.mlp.up_proj.weight".to_owned()));
    assert!(report.mis_shaped.iter().any(|m| m.path == "lm_head.weight" && m.expected[0] == 77));
    assert_eq!((report.missing.len(), report.unused.len(), report.mis_shaped.len()), (6, 9, 2));
    let text = report.to_string();
    assert!(
        text.contains("up_proj.bias")
            && text.contains("layers.2")
            && text.contains("[131, 48] instead of [77, 48]")
    );
    let lenient = LoadOptions { allow_missing: true, allow_unused: true, allow_mis_shaped: true, ..strict() };
    assert_eq!(load(lenient).unwrap().1.mis_shaped, report.mis_shaped);
}

#[test]
fn folders_without_readable_weights_say_so() {
    let out = tempfile::tempdir().unwrap();
    std::fs::copy(oracle().join("models/llama/config.json"), out.path().join("config.json")).unwrap();
    let load = || {
        Llama::<Flex>::from_pretrained(out.path(), &strict(), &Default::default()).unwrap_err().to_string()
    };
    assert!(load().contains("model.safetensors"));
    std::fs::write(out.path().join("pytorch_model.bin"), b"x").unwrap();
    assert!(load().contains("pickle"));
    let index = r#"{"weight_map": {"a": "../model.safetensors"}}"#;
    std::fs::write(out.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(load().contains("plain file name"));
    let nowhere =
        Llama::<Flex>::from_pretrained("does/not/exist", &strict(), &Default::default()).unwrap_err();
    assert!(nowhere.to_string().contains("does/not/exist"));
}

#[test]
fn configs_read_both_spellings_and_defaults() {
    let config: LlavaConfig = ModelConfig::from_json(serde_json::json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "torch_dtype": "float16", "vocab_size": 32064
        },
        "tie_word_embeddings": false,
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064
    }))
    .unwrap();
    let text = &config.text_config;
    assert_eq!((text.hidden_size, text.intermediate_size, text.num_hidden_layers), (4096, 11008, 32));
    assert_eq!((text.key_value_heads(), text.head_width(), text.rope().unwrap()), (32, 128, (10_000.0, 1.0)));
    assert_eq!((text.rms_norm_eps, config.tokens_per_image()), (1e-5, 576));
    // The whole of it as a module: no parameter is allocated.
    let model = config.init::<Flex>(&Default::default());
    assert_eq!(model.model.language_model.layers.len(), 32);

    let newer = serde_json::json!({
        "model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "eos_token_id": [2, 7]
    });
    let newer = LlamaConfig::from_json(newer).unwrap();
    assert_eq!((newer.rope().unwrap().0, newer.eos()), (5e5, vec![2, 7]));
    let older = serde_json::json!({
        "model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": null
    });
    assert_eq!(LlamaConfig::from_json(older).unwrap().rope().unwrap(), (5e5, 2.0));
    // The first LLaMA configs write that there is no filler as -1.
    let first =
        serde_json::json!({"model_type": "llama", "pad_token_id": -1, "bos_token_id": 0, "eos_token_id": 1});
    let first = LlamaConfig::from_json(first).unwrap();
    assert_eq!((first.pad_token_id, first.bos_token_id), (None, Some(0)));
    assert!(LlamaConfig::from_json(serde_json::json!({"model_type": "llama", "pad_token_id": -2})).is_err());
    let clip = serde_json::json!({
        "model_type": "clip", "text_config": {"hidden_size": 512}, "text_config_dict": {"hidden_size": 768, "num_attention_heads": 12}
    });
    assert_eq!(ClipConfig::from_json(clip).unwrap().text_config.hidden_size, 768);
}

#[test]
fn unknown_architectures_are_refused_by_name() {
    let refuse = |json: serde_json::Value, name: &str| {
        let error = LlavaConfig::from_json(json).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    };
    refuse(serde_json::json!({"model_type": "qwen2_vl"}), "qwen2_vl");
    refuse(
        serde_json::json!({"model_type": "llava", "architectures": ["LlavaNextForConditionalGeneration"]}),
        "LlavaNext",
    );
    refuse(serde_json::json!({"model_type": "llava", "text_config": {"model_type": "mistral"}}), "mistral");
    refuse(
        serde_json::json!({"model_type": "llava", "vision_config": {"model_type": "siglip_vision_model"}}),
        "siglip",
    );
    refuse(serde_json::json!({"model_type": "llava", "vision_config": {"hidden_act": "mish"}}), "mish");
    refuse(
        serde_json::json!({"model_type": "llava", "text_config": {"rope_scaling": {"rope_type": "yarn"}}}),
        "yarn",
    );
    refuse(serde_json::json!({}), "model_type");
    let blip = aspo_models::InstructBlipConfig::from_json(
        serde_json::json!({"model_type": "instructblip", "text_config": {}}),
    );
    assert!(blip.unwrap_err().to_string().contains("opt"));
}

#[test]
fn ids_come_from_paths_and_seeds_decide_values() {
    struct Ids(Vec<(u64, Vec<f64>)>);
    impl ModuleVisitor<Flex> for Ids {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Flex, D>>) {
            assert_eq!(param.val().dtype(), DType::F32);
            self.0.push((param.id.val(), values(param.val())));
        }
    }
    let config = LlamaConfig::load(oracle().join("models/llama")).unwrap();
    let make = |seed| {
        let mut ids = Ids(Vec::new());
        stable_ids::<Flex, _>(config.init_seeded::<Flex>(seed, &Default::default())).visit(&mut ids);
        ids.0
    };
    assert_eq!(make(1), make(1));
    let (one, two) = (make(1), make(2));
    assert!(one.iter().zip(&two).all(|(a, b)| a.0 == b.0));
    assert!(one.iter().zip(&two).any(|(a, b)| a.1 != b.1));
}

#[test]
fn image_tokens_and_features_must_agree() {
    let case = oracle().join("models/llava");
    let (model, _) = Llava::<Flex>::from_pretrained(&case, &strict(), &Default::default()).unwrap();
    let features = Tensor::<Flex, 3>::zeros([1, 4, 32], &Default::default());
    let rows = |n: usize| {
        ModelInput::from_rows(&[[vec![1], vec![128; n], vec![7]].concat()], 0, &Default::default())
    };
    assert!(model.embed(&rows(4).with_images(features.clone())).is_ok());
    let error = model.embed(&rows(1).with_images(features)).unwrap_err();
    assert!(matches!(error, Error::ImageTokens { tokens: 1, images: 1, per_image: 4, .. }), "{error}");
    assert!(model.embed(&rows(4)).is_err(), "image tokens without a picture");
}
