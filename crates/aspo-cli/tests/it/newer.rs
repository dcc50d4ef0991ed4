//! Whole runs on models that see pictures in their own shapes: random SmolVLM and Qwen2.5-VL of some million parameters.

use std::path::{Path, PathBuf};

use aspo_models::nn::{Init, initialize};
use aspo_models::{Architecture, OnArchitecture, Pretrained, SaveOptions, on_architecture};
use burn_flex::Flex;
use serde_json::{Value, json};

use crate::{aspo, complaint, said};

fn fixtures(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("tests/fixtures")
}

/// A checkpoint with the files of a tiny one of its family, wider and deeper, its weights drawn from a seed.
fn random_checkpoint(family: &str, folder: &Path) {
    struct Make<'a>(&'a Path);
    impl OnArchitecture for Make<'_> {
        type Output = ();

        fn run<A: Architecture>(self, config: A) {
            let start = |path: &str, _: &[usize]| match path {
                path if path.ends_with("bias") => Init::Constant(0.0),
                path if path.contains("norm") || path.contains("ln_q") => Init::Constant(1.0),
                _ => Init::Normal(0.05),
            };
            let model = initialize(A::Model::<Flex>::from_config(&config, &Default::default()), 7, start);
            model.save_pretrained(self.0, &SaveOptions::default()).unwrap();
        }
    }
    let source = fixtures("aspo-models").join("models").join(family);
    std::fs::create_dir_all(folder).unwrap();
    for name in ["processor_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::write(folder.join(name), std::fs::read(source.join(name)).unwrap()).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    let text = config["text_config"].as_object_mut().unwrap();
    for (key, value) in [("hidden_size", 256), ("intermediate_size", 768), ("num_hidden_layers", 4)] {
        text.insert(key.into(), value.into());
    }
    if text.contains_key("head_dim") {
        text.insert("head_dim".into(), 64.into());
    }
    if let Some(rope) = text.get_mut("rope_parameters").filter(|rope| rope["mrope_section"].is_array()) {
        rope["mrope_section"] = json!([8, 12, 12]);
    }
    text.remove("layer_types");
    if let Some(width) = config["vision_config"].get_mut("out_hidden_size") {
        *width = 256.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    on_architecture(folder, Make(folder)).unwrap();
}

/// Pairs about pictures of unlike shapes, one of them about two.
fn pairs(path: &Path) {
    let row = |prompt: &str, images: &[&str], chosen: &str, rejected: &str| {
        json!({ "prompt": prompt, "images": images, "chosen": chosen, "rejected": rejected }).to_string()
    };
    let rows = [
        row("What is it?", &["wide.png"], "A wide one. It is red.", "A cat. It runs."),
        row("What is it?", &["tall.png"], "A tall one. It is blue, too.", "A dog."),
        row(
            "Compare <image> with <image>.",
            &["wide.png", "square.png"],
            "One is wide. One is not.",
            "Both are tall.",
        ),
        row("And this?", &["tiny.png"], "A small one.", "A large one. It is grey."),
    ];
    std::fs::write(path, rows.join("\n")).unwrap();
}

fn whole_run(family: &str) {
    let kept = tempfile::tempdir().unwrap();
    let folder = kept.path();
    let run = |words: &[&str]| said(&aspo(folder, words));
    random_checkpoint(family, &folder.join("model"));
    pairs(&folder.join("pairs.jsonl"));
    let images = fixtures("aspo-data").join("images");
    let images = images.to_str().unwrap();

    let data =
        ["--model", "model", "--alpha", "0", "--data", "pairs.jsonl", "--images", images, "--max-steps", "3"];
    let fast = ["--learning-rate", "1e-2", "--per-device-train-batch-size", "2", "--set", "lora.r=4"];
    let told = run(&[&["plan"][..], &data, &fast].concat());
    assert!(told.contains("template chat (by chat_template.jinja)") && told.contains("3 steps"), "{told}");
    let other = aspo(folder, &[&["plan"][..], &data, &fast, &["--template", "vicuna_v1"]].concat());
    assert!(String::from_utf8_lossy(&other.stderr).contains("template vicuna_v1, but model was taught"));
    let told = run(&[&["train"][..], &data, &fast, &["--out", "run"]].concat());
    assert!(told.contains("trained 3 steps"), "{told}");
    assert!(folder.join("run/adapter/README.md").exists() && folder.join("run/report.html").exists());
    // Packed or not, cached reference or live, recomputed or not: the same loss at every step but for rounding.
    let losses = |out: &str| -> Vec<f64> {
        let text = std::fs::read_to_string(folder.join(out).join("metrics.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect()
    };
    let slow = [
        "--set",
        "logging_steps=1",
        "--set",
        "lora.r=4",
        "--learning-rate",
        "1e-3",
        "--set",
        "adam_epsilon=1e-3",
    ];
    let plain =
        [&["train"][..], &data, &slow, &["--out", "plain", "--set", "precompute_ref_log_probs=false"]]
            .concat();
    run(&plain);
    let other = ["--set", "pair_packing=false", "--set", "gradient_checkpointing=true"];
    let other =
        [&["train"][..], &data, &slow, &other, &["--out", "other", "--set", "precompute_ref_log_probs=true"]];
    run(&other.concat());
    let (one, two) = (losses("plain"), losses("other"));
    assert_eq!((one.len(), two.len()), (3, 3));
    let apart = one.iter().zip(&two).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(apart < 1e-4, "{one:?} {two:?}");

    let wide = Path::new(images).join("wide.png");
    let tall = Path::new(images).join("tall.png");
    let pictures =
        ["--image", wide.to_str().unwrap(), "--image", tall.to_str().unwrap(), "--max-new-tokens", "12"];
    let question = "Compare <image> with <image>.";
    let adapted =
        run(&[&["generate", "--model", "model", "--adapter", "run/adapter"], &pictures[..], &[question]]
            .concat());
    let told = run(&["merge", "--model", "model", "--adapter", "run/adapter", "--out", "merged"]);
    assert!(told.contains("merged"), "{told}");
    for name in ["chat_template.jinja", "processor_config.json", "tokenizer_config.json"] {
        assert!(folder.join("merged").join(name).exists(), "{name}");
    }
    let merged = run(&[&["generate", "--model", "merged"], &pictures[..], &[question]].concat());
    assert_eq!(merged, adapted);
    let one = [
        &["generate", "--model", "merged", "--image", wide.to_str().unwrap()][..],
        &["Which <image> <image>?"],
    ];
    let told = complaint(&aspo(folder, &one.concat()), 1);
    assert!(told.contains("2 <image> tags for 1 images"), "{told}");

    // Its own answers about clean and noised pictures, as pairs.
    let asked = ["wide.png", "tall.png"].map(|name| {
        json!({ "id": name, "image": name, "conversations": [
            { "from": "human", "value": "<image>\nWhat is it?" }, { "from": "gpt", "value": "" }] })
    });
    std::fs::write(folder.join("asked.json"), json!(asked).to_string()).unwrap();
    let words =
        ["pairs", "--model", "merged", "--questions", "asked.json", "--images", images, "--out", "made"];
    let told = run(&[&words[..], &["--max-new-tokens", "12"]].concat());
    assert!(told.contains("2 of 2 questions"), "{told}");
}

#[test]
fn a_random_smolvlm_goes_from_pairs_to_a_merged_model() {
    whole_run("smolvlm");
}

#[test]
fn a_random_qwen2_5_vl_goes_from_pairs_to_a_merged_model() {
    whole_run("qwen2_5_vl");
}

#[test]
fn a_random_llava_onevision_goes_from_pairs_to_a_merged_model() {
    whole_run("llava_onevision");
}
