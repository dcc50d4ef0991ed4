//! Checkpoints: reports, layouts, precisions, shards, and the way back.

use std::path::Path;

use aspo_models::checkpoint::Layout;
use aspo_models::{
    Checkpoint, Clip, ClipConfig, Error, ImageFeatures, InstructBlip, LanguageModel, Llama, LlamaConfig,
    Llava, LlavaConfig, LlavaOnevision, LoadOptions, ModelConfig, ModelInput, PictureShape, Precision,
    Pretrained, QwenVl, SaveOptions, SmolVlm, stable_ids,
};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_flex::Flex;

use crate::support::{fixtures, models, on_backends, scale, values, worst};

on_backends!(oracle_models_return_to_the_byte, half_precision_files_load_and_stay_close);

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
    for (kind, case) in models() {
        match kind.as_str() {
            "clip" => returns::<B, Clip<B>>(&case),
            "llama" => returns::<B, Llama<B>>(&case),
            "llava" => returns::<B, Llava<B>>(&case),
            "instructblip" => returns::<B, InstructBlip<B>>(&case),
            "qwen2_vl" | "qwen2_5_vl" => returns::<B, QwenVl<B>>(&case),
            "idefics3" | "smolvlm" => returns::<B, SmolVlm<B>>(&case),
            "llava_onevision" => returns::<B, LlavaOnevision<B>>(&case),
            other => unreachable!("{other} is not among the models"),
        }
    }
}

fn text<B: Backend>() -> ModelInput<B> {
    ModelInput::from_rows(&[vec![1, 5, 9, 30, 7], vec![1, 8, 3]], 0, &Default::default())
}

fn half_precision_files_load_and_stay_close<B: Backend>() {
    let case = fixtures("models/llama");
    let (model, _) = Llama::<B>::from_pretrained(&case, &strict(), &Default::default()).unwrap();
    let want = values(model.logits(&text()).unwrap());
    let scale = scale(&want);
    for (precision, dtype, bound) in
        [(Precision::Bf16, DType::BF16, 0.02), (Precision::F16, DType::F16, 0.0025)]
    {
        let out = tempfile::tempdir().unwrap();
        model.save_pretrained(out.path(), &SaveOptions { precision, ..Default::default() }).unwrap();
        // To single precision everywhere.
        let (single, _) = Llama::<B>::from_pretrained(out.path(), &strict(), &Default::default()).unwrap();
        let found = values(single.logits(&text()).unwrap());
        let error = worst(&found, &want) / scale;
        println!("{precision:?}: {error:.4}");
        // Weights rounded by 2^-9 (bf16) or 2^-12 (f16) each, amplified by random weights: 0.012 and 0.0014 were measured.
        assert!(error < bound, "{precision:?}: {error}");
        // As it is, where the backend has the type, else an error that names it.
        let keep = LoadOptions { precision: Precision::Keep, ..strict() };
        match Llama::<B>::from_pretrained(out.path(), &keep, &Default::default()) {
            Ok((half, _)) => {
                assert_eq!(half.model.norm.weight.val().dtype(), dtype);
                let error = worst(&values(half.logits(&text()).unwrap()), &want) / scale;
                println!("{precision:?} kept: {error:.4}");
                // Values between layers are rounded too: 0.019 and 0.0021.
                assert!(error < 1.6 * bound, "{precision:?} kept: {error}");
            }
            Err(error) => {
                assert!(!B::supports_dtype(&Default::default(), dtype), "{error}");
                assert!(matches!(error, Error::Tensor { .. }), "{error}");
            }
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
    let case = fixtures("models/llava");
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
    let case = fixtures("models/llama");
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
    std::fs::copy(fixtures("models/llama/config.json"), out.path().join("config.json")).unwrap();
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
    assert_eq!((text.key_value_heads(), text.head_width(), text.rope()), (32, 128, (10_000.0, 1.0)));
    assert_eq!((text.rms_norm_eps, config.tokens_per_image()), (1e-5, 576));
    // The whole of it as a module: no parameter is allocated.
    let model = config.init::<Flex>(&Default::default());
    assert_eq!(model.model.language_model.layers.len(), 32);

    let newer = serde_json::json!({
        "model_type": "llama", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "eos_token_id": [2, 7]
    });
    let newer = LlamaConfig::from_json(newer).unwrap();
    assert_eq!((newer.rope().0, newer.eos()), (5e5, vec![2, 7]));
    let older = serde_json::json!({
        "model_type": "llama", "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "num_key_value_heads": null
    });
    assert_eq!(LlamaConfig::from_json(older).unwrap().rope(), (5e5, 2.0));
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
    let config = LlamaConfig::load(fixtures("models/llama")).unwrap();
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
    let case = fixtures("models/llava");
    let (model, _) = Llava::<Flex>::from_pretrained(&case, &strict(), &Default::default()).unwrap();
    let values = Tensor::<Flex, 2>::zeros([4, 32], &Default::default());
    let features = vec![ImageFeatures { values, shape: PictureShape::whole([28, 28]) }];
    let rows = |n: usize| {
        ModelInput::from_rows(&[[vec![1], vec![128; n], vec![7]].concat()], 0, &Default::default())
    };
    assert!(model.embed(&rows(4).with_images(features.clone())).is_ok());
    let error = model.embed(&rows(1).with_images(features)).unwrap_err();
    assert!(matches!(error, Error::ImageTokens { tokens: 1, images: 1, features: 4, .. }), "{error}");
    assert!(model.embed(&rows(4)).is_err(), "image tokens without a picture");
}

#[test]
fn options_of_a_config_that_are_not_honoured_are_refused_by_name() {
    let refuse = |json: serde_json::Value, words: &[&str]| {
        let mut config = serde_json::json!({"model_type": "llama"});
        config.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        let error = LlamaConfig::from_json(config.clone()).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in: {error}");
        let nested = serde_json::json!({"model_type": "llava", "text_config": config});
        assert!(LlavaConfig::from_json(nested).is_err(), "{words:?}, nested");
    };
    use serde_json::json;
    refuse(json!({"rope_scaling": {"rope_type": "linear"}}), &["linear", "factor"]);
    refuse(json!({"rope_scaling": {"factor": 2.0}}), &["factor", "rope_type"]);
    refuse(json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), &["dynamic"]);
    refuse(json!({"rope_parameters": {"rope_type": "default", "beta_fast": 32}}), &["beta_fast"]);
    refuse(json!({"rope_parameters": {"rope_type": "default", "rope_theta": "10000"}}), &["string"]);
    refuse(
        json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
        &["partial_rotary"],
    );
    refuse(
        json!({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 1e4}),
        &["500000", "10000"],
    );
    refuse(json!({"rope_theta": -1.0}), &["rope_theta", "-1"]);
    refuse(json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor", "0.5"]);
    refuse(json!({"attention_dropout": 0.1}), &["attention_dropout", "0.1"]);
    refuse(json!({"sliding_window": 4096}), &["sliding_window", "4096"]);
    refuse(json!({"layer_types": ["full_attention", "sliding_attention"]}), &["layer_types"]);
    let tower = json!({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model", "attention_dropout": 0.1}});
    assert!(
        LlavaConfig::from_json(tower).unwrap_err().to_string().contains("vision_config.attention_dropout")
    );
    let fine = json!({
        "model_type": "llama", "attention_dropout": 0.0, "sliding_window": null, "partial_rotary_factor": 1.0,
        "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4
    });
    let fine = LlamaConfig::from_json(fine).unwrap();
    let written = serde_json::to_value(&fine).unwrap();
    assert_eq!(
        written["rope_scaling"],
        json!({"type": "linear", "factor": 2.0}),
        "in the spelling that was read"
    );
    assert_eq!(LlamaConfig::from_json(written).unwrap(), fine);
}

#[test]
fn a_file_of_several_types_is_loaded_in_one_that_holds_them() {
    // Norms in f32 beside weights in bf16, as some exports have them.
    let bytes = std::fs::read(fixtures("models/llama/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let half = |name: &str| !name.contains("norm");
    let tensors: Vec<(String, Vec<usize>, safetensors::Dtype, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let (name, shape) = (name.to_owned(), view.shape().to_vec());
            match half(&name) {
                // The upper half of an f32 is its bf16, rounded down.
                true => {
                    let halves = view.data().chunks_exact(4).flat_map(|four| [four[2], four[3]]).collect();
                    (name, shape, safetensors::Dtype::BF16, halves)
                }
                false => (name, shape, safetensors::Dtype::F32, view.data().to_vec()),
            }
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, dtype, data)| {
        (name.as_str(), safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let folder = tempfile::tempdir().unwrap();
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(fixtures("models/llama/config.json"), folder.path().join("config.json")).unwrap();
    let keep = LoadOptions { precision: Precision::Keep, ..strict() };
    let (kept, _) = Llama::<Flex>::from_pretrained(folder.path(), &keep, &Default::default()).unwrap();
    let (single, _) = Llama::<Flex>::from_pretrained(folder.path(), &strict(), &Default::default()).unwrap();
    assert_eq!(kept.model.embed_tokens.weight.val().dtype(), DType::F32);
    assert_eq!(values(kept.logits(&text()).unwrap()), values(single.logits(&text()).unwrap()));
}
