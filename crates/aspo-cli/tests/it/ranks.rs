//! What several processes make is what one makes: the program under `mpirun`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use aspo_train::MetricFile;
use serde_json::{Value, json};

use crate::{assets, complaint, few_pairs, said};

fn run(folder: &Path, processes: usize, words: &[&str]) -> Output {
    let mut program = Command::new("mpirun");
    program.args(["--allow-run-as-root", "--oversubscribe", "-np", &processes.to_string()]);
    program.arg(env!("CARGO_BIN_EXE_aspo")).args(words).current_dir(folder);
    program.env("ASPO_CACHE", folder.join("cache")).stdin(Stdio::null());
    program.output().expect("mpirun, of `openmpi-bin`")
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Names of committed pictures.
fn pictures(count: usize) -> Vec<String> {
    let folder = std::fs::read_dir(assets("assets/scenes/pairs")).unwrap();
    let mut names: Vec<String> =
        folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names.truncate(count);
    names
}

#[test]
fn ranks_share_the_making_of_pairs() {
    let folder = tempfile::tempdir().unwrap();
    let (model, images) = (assets("assets/llava"), assets("assets/scenes"));
    let ask = |name: &String| {
        json!({ "id": name, "image": format!("pairs/{name}"), "conversations": [
            { "from": "human", "value": "<image>\nDescribe this image in detail." }, { "from": "gpt", "value": "" }] })
    };
    let rows: Vec<Value> = pictures(7).iter().map(ask).collect();
    std::fs::write(folder.path().join("asked.json"), json!(rows).to_string()).unwrap();
    let make = |processes: usize, out: &str| {
        let (model, images) = (model.to_str().unwrap(), images.to_str().unwrap());
        let words = ["pairs", "--model", model, "--questions", "asked.json", "--images", images];
        // Whole answers: of noised pictures the first sentences are often those of the clean ones.
        let more = ["--out", out, "--max-new-tokens", "160", "--batch", "2"];
        let done = run(folder.path(), processes, &[&words[..], &more].concat());
        assert!(said(&done).contains("7 of 7 questions"));
        let once = said(&done).matches("pairs in").count();
        assert_eq!(once, 1, "one process tells");
        read(folder.path().join(out).join("pairs.json"))
    };
    let one = make(1, "one");
    assert!(one.matches("image_id").count() > 2, "{one}");
    assert_eq!(make(3, "three"), one);
}

#[test]
fn ranks_share_the_answers_to_a_benchmark_and_a_fault_of_one_ends_all() {
    let folder = tempfile::tempdir().unwrap();
    let pope = folder.path().join("pope");
    std::fs::create_dir(&pope).unwrap();
    let images = assets("assets/scenes/pairs");
    let split = |names: &[String]| {
        for split in ["random", "popular", "adversarial"] {
            let row = |(at, name): (usize, &String)| {
                json!({ "question_id": at, "image": name, "text": "Is there a circle in the image?",
                        "label": (if at % 2 == 0 { "no" } else { "yes" }) })
                .to_string()
            };
            let rows: Vec<String> = names.iter().enumerate().map(row).collect();
            std::fs::write(pope.join(format!("coco_pope_{split}.json")), rows.join("\n")).unwrap();
        }
    };
    split(&pictures(5));
    let (model, known) = (assets("assets/llava"), images.clone());
    let ask = |processes: usize, images: &Path, out: &str| {
        let words = ["evaluate", "--benchmark", "pope", "--data", "pope", "--json", "--batch", "2"];
        let from = ["--images", images.to_str().unwrap(), "--model", model.to_str().unwrap(), "--out", out];
        run(folder.path(), processes, &[&words[..], &from].concat())
    };
    let one = said(&ask(1, &known, "one.jsonl"));
    assert_eq!(said(&ask(2, &known, "two.jsonl")), one, "figures are told once");
    assert_eq!(read(folder.path().join("two.jsonl")), read(folder.path().join("one.jsonl")));
    // What is finished is read by all, and asked by none.
    assert_eq!(said(&ask(2, &known, "one.jsonl")), one);

    // The third question, the second process's, has a picture that is none.
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    for (at, name) in pictures(5).iter().enumerate() {
        match at {
            2 => std::fs::write(own.join(name), "no picture").unwrap(),
            _ => drop(std::fs::copy(images.join(name), own.join(name)).unwrap()),
        }
    }
    let told = complaint(&ask(2, &own, "faulty.jsonl"), 1);
    assert!(told.contains("rank 1: ") && told.contains(&pictures(3)[2]), "{told}");
}

#[test]
fn ranks_share_similarities_features_and_reference() {
    let folder = tempfile::tempdir().unwrap();
    let pairs = few_pairs(folder.path(), 60);
    let train = |processes: usize, out: &str| {
        let [model, clip, scenes] = ["llava", "clip", "scenes"].map(|name| assets("assets").join(name));
        let cache = folder.path().join(format!("cache-{out}"));
        let config = json!({
            "model": model, "clip": clip, "images": scenes, "data": pairs, "cache_dir": cache,
            "cache_vision_features": true, "precompute_ref_log_probs": true, "bf16": false,
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "max_steps": 2, "logging_steps": 1,
        });
        let config: toml::Value = serde_json::from_value(config).unwrap();
        std::fs::write(folder.path().join("run.toml"), toml::to_string(&config).unwrap()).unwrap();
        said(&run(folder.path(), processes, &["train", "--config", "run.toml", "--out", out]));
        let kept = |kind: &str| {
            let files = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name());
            files.filter(|name| name.to_str().unwrap().starts_with(kind)).count()
        };
        assert_eq!(["similarity", "features", "reference"].map(kept), [1, 1, 1]);
        MetricFile::read(&folder.path().join(out)).unwrap()
    };
    let (one, two) = (train(1, "one"), train(2, "two"));
    assert_eq!(one.len(), 2);
    assert_eq!(two.len(), 2);
    for (one, two) in one.iter().zip(&two) {
        assert_eq!(one.values.keys().collect::<Vec<_>>(), two.values.keys().collect::<Vec<_>>());
        for (name, value) in &one.values {
            // Sums in another order, of numbers up to some hundreds.
            let apart = (value - two.values[name]).abs();
            assert!(
                apart < 1e-5 * value.abs().max(1.0),
                "{name}: {value} of one, {} of two",
                two.values[name]
            );
        }
    }
}
