//! A second checkpoint as the reference.

use std::path::{Path, PathBuf};

use aspo_data::{EncodedPair, ImageLoader, ImageSource, Source, Sources, read_pairs};
use aspo_models::{Llava, LlavaConfig, LoadOptions, ModelConfig, Pretrained};
use aspo_train::{MicroBatch, Plan, ReferenceRow, TrainConfig, VisionFeatures, processor};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use serde_json::json;

use crate::support::{
    World, apart, copy_folder, edited_model, fixtures, on_backends, other_model, whole_run,
};

on_backends!(
    the_model_itself_as_second_checkpoint_is_the_adapter_turned_off,
    another_checkpoint_is_the_reference_through_its_own_eyes,
    cached_rows_of_a_second_checkpoint_train_as_live_ones_do,
    log_probabilities_that_the_rows_bring_train_as_live_ones_do,
);

/// The loss of each step.
fn losses<B: Backend>(config: &TrainConfig) -> Vec<f64> {
    let mut losses = Vec::new();
    whole_run::<B>(config, false, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    losses
}

/// The world's config with another output folder.
fn into(world: &World, name: &str) -> TrainConfig {
    // Adam's quotient makes a step of a gradient that is rounding alone; beside this epsilon it stays rounding.
    let adam_epsilon = 1e-3;
    TrainConfig { output_dir: world.folder.join(name), max_steps: 4, adam_epsilon, ..world.config.clone() }
}

fn refused(config: &TrainConfig) -> String {
    let message = whole_run::<Flex>(config, false, |_| (), |_| ()).unwrap_err().to_string();
    assert!(!message.contains('\n'), "more than one line: {message}");
    message
}

fn the_model_itself_as_second_checkpoint_is_the_adapter_turned_off<B: Backend>() {
    let world = World::new();
    let model = Some(world.config.model.clone());
    for precompute_ref_log_probs in [false, true] {
        let config = |name: &str| TrainConfig {
            precompute_ref_log_probs: Some(precompute_ref_log_probs),
            ..into(&world, &format!("{name}-{precompute_ref_log_probs}"))
        };
        let off = losses::<B>(&config("off"));
        let second = losses::<B>(&TrainConfig { ref_model: model.clone(), ..config("second") });
        // The same operations on the same numbers; flex does not round the same twice where threads share a sum.
        assert!(apart(&off, &second) < 1e-6, "{off:?} and {second:?}");
    }
}

/// Log-probabilities of the answers of all pairs under the checkpoint in a folder, seen through its own tower.
fn rows<B: Backend>(world: &World, model: &Path, pairs: &[&EncodedPair]) -> Vec<ReferenceRow> {
    let device = Default::default();
    let model = Llava::<B>::from_pretrained(model, &LoadOptions::default(), &device).unwrap().0;
    let images = ImageLoader::new(&world.config.images, processor(&world.config.model, 28).unwrap()).unwrap();
    let mut features = VisionFeatures::new(images);
    let batch = MicroBatch::<B>::new(pairs, true, 2, &mut features, &model, &device).unwrap();
    batch.reference(&model, &Default::default()).unwrap()
}

/// The first step of plain DPO by its formula: the policy is still the base model.
fn another_checkpoint_is_the_reference_through_its_own_eyes<B: Backend>() {
    let world = World::new();
    let data = world.data();
    let pairs = data.pairs.get_all(0..data.pairs.len()).unwrap();
    let pairs: Vec<&EncodedPair> = pairs.iter().collect();
    let policy = rows::<B>(&world, &world.config.model, &pairs);
    for prefix in ["language_model.model.layers", "vision_tower", "multi_modal_projector"] {
        let other = world.folder.join(prefix);
        other_model(&other, prefix);
        let reference = rows::<B>(&world, &other, &pairs);
        let sum = |row: &[f32]| row.iter().map(|&value| f64::from(value)).sum::<f64>();
        let loss = |(policy, reference): (&ReferenceRow, &ReferenceRow)| {
            let chosen = sum(&policy.chosen) - sum(&reference.chosen);
            let rejected = sum(&policy.rejected) - sum(&reference.rejected);
            (-world.config.beta * (chosen - rejected)).exp().ln_1p()
        };
        let wanted = policy.iter().zip(&reference).map(loss).sum::<f64>() / pairs.len() as f64;
        let config = TrainConfig {
            loss_type: vec!["sigmoid".into()],
            alpha: 0.5,
            ref_model: Some(other),
            per_device_train_batch_size: 10,
            gradient_accumulation_steps: 1,
            max_steps: 1,
            ..into(&world, &format!("run-{prefix}"))
        };
        let found = losses::<B>(&config)[0];
        // Sums of some forty f32 log-probabilities, rounded by the shape of their batch.
        assert!((found - wanted).abs() < 1e-5, "{prefix}: {found}, not {wanted}");
        assert!((found - 2f64.ln()).abs() > 1e-4, "{prefix}: a reference that is the model gives ln 2");
    }
}

fn cached_rows_of_a_second_checkpoint_train_as_live_ones_do<B: Backend>() {
    let world = World::new();
    let other = world.folder.join("other");
    other_model(&other, "");
    let live = TrainConfig { ref_model: Some(other), ..into(&world, "live") };
    let cached = TrainConfig {
        precompute_ref_log_probs: Some(true),
        output_dir: world.folder.join("cached"),
        ..live.clone()
    };
    let (live, cached) = (losses::<B>(&live), losses::<B>(&cached));
    // Cached rows come from batches of other pairs: padding differs, so the last bits may.
    assert!(apart(&live, &cached) < 1e-5, "{live:?} and {cached:?}");
    let off = losses::<B>(&into(&world, "off"));
    assert!((off[0] - live[0]).abs() > 1e-3, "{off:?} and {live:?}");
}

/// The world's pairs as RLAIF-V writes them, with the log-probabilities that a model gives.
fn with_logps(world: &World, model: &Path, name: &str) -> Source {
    let data = world.data();
    let encoded = data.pairs.get_all(0..data.pairs.len()).unwrap();
    let rows = rows::<Flex>(world, model, &encoded.iter().collect::<Vec<_>>());
    let mut lines = String::new();
    for (index, (pair, row)) in encoded.iter().zip(rows).enumerate() {
        let of = |values: &[f32]| {
            let sum = values.iter().map(|&value| f64::from(value)).sum::<f64>();
            // Positions of the prompt come first, with values that mean nothing.
            let all: Vec<f32> = [-50.0; 3].into_iter().chain(values.iter().copied()).collect();
            [json!(sum), json!(sum / values.len() as f64), json!(all)]
        };
        let six = [of(&row.chosen), of(&row.rejected)].concat();
        // Both ways in which they are written.
        let logps = if index % 2 == 0 { json!(six) } else { json!({ "logps": six }) };
        let ImageSource::Path(image) = &pair.images[0] else { panic!("a path") };
        let question = read_pairs(&world.folder.join("pairs.json")).unwrap();
        let question = question.map(Result::unwrap).find(|own| own.id == pair.id).unwrap().prompt;
        let line = json!({
            "idx": pair.id, "question": question, "chosen": pair.chosen.text, "rejected": pair.rejected.text,
            "image": image, "logps": logps.to_string(),
        });
        lines += &format!("{line}\n");
    }
    let path = world.folder.join(name);
    std::fs::write(&path, lines).unwrap();
    Source { logps: true, ..path.as_path().into() }
}

fn log_probabilities_that_the_rows_bring_train_as_live_ones_do<B: Backend>() {
    let world = World::new();
    let given = with_logps(&world, &world.config.model, "given.jsonl");
    let live = losses::<B>(&into(&world, "live"));
    let data = Sources(vec![given.clone()]);
    let brought =
        TrainConfig { data: data.clone(), precompute_ref_log_probs: None, ..into(&world, "brought") };
    let brought = losses::<B>(&brought);
    // As in the test before.
    assert!(apart(&live, &brought) < 1e-5, "{live:?} and {brought:?}");
    // They are looked at: of an answer that `max_length` cuts, the tokens that are left.
    let cut = |name: &str, data: Sources| TrainConfig { max_length: 60, data, ..into(&world, name) };
    let plain = Sources(vec![Source { logps: false, ..given }]);
    let (whole, cut) = (losses::<B>(&cut("cut-live", plain)), losses::<B>(&cut("cut", data)));
    assert!(apart(&whole, &cut) < 1e-5, "{whole:?} and {cut:?}");
}

#[test]
fn log_probabilities_of_another_model_tokenizer_or_loss_are_refused() {
    let world = World::new();
    let other = world.folder.join("other");
    other_model(&other, "");
    let source = with_logps(&world, &other, "other.jsonl");
    let with = |sources: Vec<Source>| TrainConfig {
        data: Sources(sources),
        precompute_ref_log_probs: None,
        ..into(&world, "out")
    };
    let told = refused(&with(vec![source.clone()]));
    assert!(told.contains("other.jsonl: row 1") && told.contains("a token on average"), "{told}");

    let text = std::fs::read_to_string(&source.path).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut broken = rows.clone();
    let mut six: serde_json::Value = serde_json::from_str(rows[0]["logps"].as_str().unwrap()).unwrap();
    six[1] = json!(six[1].as_f64().unwrap() * 2.0);
    broken[0]["logps"] = json!(six.to_string());
    let write = |name: &str, rows: &[serde_json::Value]| {
        let path = world.folder.join(name);
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        Source { logps: true, ..path.as_path().into() }
    };
    let told = refused(&with(vec![write("tokens.jsonl", &broken)]));
    assert!(told.contains("tokens.jsonl: row 1") && told.contains("another tokenizer or template"), "{told}");
    broken[0]["logps"] = json!("[1, 2");
    let told = refused(&with(vec![write("json.jsonl", &broken)]));
    assert!(told.contains("json.jsonl: row 1") && told.contains("logps"), "{told}");
    broken[0].as_object_mut().unwrap().remove("logps");
    let told = refused(&with(vec![write("without.jsonl", &broken)]));
    assert!(told.contains("without.jsonl: row 1") && told.contains("logps"), "{told}");

    let plain = Source { logps: false, ..source.clone() };
    for (config, word) in [
        (with(vec![source.clone(), plain]), "for all sources or for none"),
        (
            TrainConfig { loss_type: vec!["simpo".into()], alpha: 0.5, ..with(vec![source.clone()]) },
            "reference",
        ),
        (TrainConfig { precompute_ref_log_probs: Some(true), ..with(vec![source]) }, "one of them"),
    ] {
        let told = refused(&config);
        assert!(told.contains(word), "{told}");
    }
}

#[test]
fn kept_rows_are_those_of_one_reference_wherever_its_folder_is() {
    let world = World::new();
    let cache = Some(world.folder.join("cache"));
    let first =
        TrainConfig { precompute_ref_log_probs: Some(true), cache_dir: cache, ..into(&world, "first") };
    let rows = || {
        let files =
            std::fs::read_dir(world.folder.join("cache")).unwrap().map(|entry| entry.unwrap().file_name());
        files.filter(|name| name.to_str().unwrap().starts_with("reference-")).count()
    };
    let own = losses::<Flex>(&first);
    assert_eq!(rows(), 1);
    let other = world.folder.join("other");
    other_model(&other, "language_model.lm_head");
    let second =
        TrainConfig { ref_model: Some(other), output_dir: world.folder.join("second"), ..first.clone() };
    assert_ne!(losses::<Flex>(&second), own);
    assert_eq!(rows(), 2, "another reference has rows of its own");
    // A copy of the model is the same reference.
    let copy = world.folder.join("copy");
    copy_folder(&fixtures().join("models/llava"), &copy);
    let same = TrainConfig { ref_model: Some(copy), output_dir: world.folder.join("same"), ..first.clone() };
    assert_eq!(losses::<Flex>(&same), own);
    assert_eq!(rows(), 2);
}

#[test]
fn a_run_is_not_resumed_with_another_reference() {
    let world = World::new();
    let config = into(&world, "run");
    losses::<Flex>(&config);
    let other = TrainConfig { ref_model: Some(config.model.clone()), ..config };
    let error = whole_run::<Flex>(&other, true, |_| (), |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("other weights (`ref_model`)") && error.contains("resume with the same"),
        "{error}"
    );
}

#[test]
fn a_reference_that_reads_other_tokens_is_named() {
    let world = World::new();
    let other = world.folder.join("other");
    copy_folder(&fixtures().join("models/llava"), &other);
    let config = TrainConfig { ref_model: Some(other.clone()), ..into(&world, "run") };

    // Its own tokenizer gives another id to a letter.
    let tokenizer = std::fs::read_to_string(world.config.tokenizer.as_ref().unwrap()).unwrap();
    let mut swapped: serde_json::Value = serde_json::from_str(&tokenizer).unwrap();
    let vocab = &mut swapped["model"]["vocab"];
    let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
    (vocab["a"], vocab["b"]) = (b.clone(), a.clone());
    std::fs::write(other.join("tokenizer.json"), swapped.to_string()).unwrap();
    let message = refused(&config);
    let (theirs, ours) = (format!("\"a\" the id {b}"), format!("tokenizer the id {a}"));
    for part in ["`ref_model`", "tokenizer.json", &theirs, &ours, "same tokens"] {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
    assert!(!config.output_dir.exists(), "nothing was begun");
    // The same tokens written in another way are the same tokens.
    std::fs::write(other.join("tokenizer.json"), tokenizer + "\n").unwrap();
    losses::<Flex>(&config);

    let cases: [(&str, &str, PathBuf); 2] = [
        ("a vocabulary of 90, the model 131", "words", world.folder.join("words")),
        ("tokens a picture: 1, the model 4", "eyes", world.folder.join("eyes")),
    ];
    edited_model(
        &cases[0].2,
        |config| config["text_config"]["vocab_size"] = json!(90),
        |_, mut shape, values| {
            if shape[0] == 131 {
                shape[0] = 90;
                values.truncate(90 * shape[1]);
            }
            shape
        },
    );
    edited_model(
        &cases[1].2,
        |config| config["vision_config"]["image_size"] = json!(14),
        |name, mut shape, values| {
            if name.ends_with("position_embedding.weight") {
                shape[0] = 2;
                values.truncate(2 * shape[1]);
            }
            shape
        },
    );
    for (told, name, folder) in cases {
        let message = refused(&TrainConfig { ref_model: Some(folder), ..into(&world, name) });
        assert!(message.contains("`ref_model`") && message.contains(told), "{message}");
    }
}

#[test]
fn the_plan_counts_the_weights_of_a_second_checkpoint() {
    let world = World::new();
    let shape = LlavaConfig::load(&world.config.model).unwrap();
    let plan = |config: &TrainConfig| {
        let pairs = &world.data().pairs;
        let device = Default::default();
        Plan::new::<Autodiff<Flex>, Llava<_>>(config, &shape, pairs, &device).unwrap()
    };
    let off = plan(&world.config);
    let live = TrainConfig { ref_model: Some(world.config.model.clone()), ..world.config.clone() };
    let cached = TrainConfig { precompute_ref_log_probs: Some(true), ..live.clone() };
    let (live, cached) = (plan(&live), plan(&cached));
    assert_eq!((off.reference_bytes, live.reference_bytes), (0, off.weight_bytes));
    assert_eq!(live.total_bytes(), off.total_bytes() + off.weight_bytes);
    // Given back before the first step, it is at the peak only if it is larger than what a step takes.
    let step = off.total_bytes() - off.weight_bytes - off.adapter_bytes;
    let base = off.weight_bytes + off.adapter_bytes;
    assert_eq!(cached.total_bytes(), base + step.max(off.weight_bytes));
    assert!(cached.to_string().contains("reference"), "{cached}");
}
