//! What is wrong is told in one line with its place and the remedy, and nothing is left half-written.

use std::path::Path;

use aspo_data::{OnFault, Template};
use aspo_models::{LlavaConfig, ModelConfig};
use aspo_train::{OnNonFinite, Result, TrainConfig, check_ranks, read};
use burn_flex::Flex;
use serde_json::{Value, json};

use crate::support::{World, listing, sight, spoiled_model, whole_run};

/// Runs what must fail and gives its message.
fn refused(config: &TrainConfig) -> String {
    told(whole_run::<Flex>(config, false, |_| (), |_| ()))
}

fn told<T>(result: Result<T>) -> String {
    let message = result.err().expect("this must be refused").to_string();
    assert!(!message.contains('\n'), "more than one line: {message}");
    message
}

#[track_caller]
fn assert_tells(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

fn from_toml(text: &str) -> Result<TrainConfig> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    TrainConfig::from_toml(&path)
}

#[test]
fn a_key_that_does_not_exist_is_named_with_its_line() {
    let message = told(from_toml("beta = 0.1\nlerning_rate = 1e-5\n"));
    assert_tells(&message, &["run.toml", "line 2", "lerning_rate", "learning_rate"]);
    let message = told(from_toml("beta = 0.1\n\n[lora]\nrank = 8\n"));
    assert_tells(&message, &["run.toml", "line 4", "rank", "lora_alpha"]);
}

#[test]
fn a_value_of_another_type_is_named_with_its_line() {
    assert_tells(&told(from_toml("seed = 1\nbeta = \"much\"\n")), &["run.toml", "line 2", "f64"]);
    assert_tells(
        &told(from_toml("lr_scheduler_type = \"polynomial\"\n")),
        &["line 1", "polynomial", "cosine"],
    );
    assert_tells(&told(from_toml("max_length = -1\n")), &["line 1", "-1"]);
    assert_tells(&told(from_toml("beta = = 1\n")), &["run.toml", "line 1"]);
    let absent = TrainConfig::from_toml(Path::new("/nowhere/run.toml"));
    assert_tells(&told(absent), &["/nowhere/run.toml", "No such file"]);
}

#[test]
fn options_that_cannot_be_honoured_are_refused_before_anything_is_read() {
    let world = World::new();
    let base = TrainConfig { model: "/nowhere".into(), ..world.config.clone() };
    let alpha = TrainConfig::default().alpha;
    let other_loss = |loss: &str| TrainConfig { loss_type: vec![loss.into()], alpha, ..base.clone() };
    let cases: [(&[&str], TrainConfig); 22] = [
        (&["`max_steps`", "0", "`num_train_epochs`"], TrainConfig { max_steps: 0, ..base.clone() }),
        (&["`max_steps`", "-2", "-1"], TrainConfig { max_steps: -2, ..base.clone() }),
        (&["`clip`", "similarity", "`alpha = 0`"], TrainConfig { alpha: 0.5, ..base.clone() }),
        (&["alpha", "1.5"], TrainConfig { alpha: 1.5, ..base.clone() }),
        (&["beta", "-0.1"], TrainConfig { beta: -0.1, ..base.clone() }),
        (&["dpoo", "sigmoid"], TrainConfig { loss_type: vec!["dpoo".into()], ..base.clone() }),
        (
            &["loss_weights", "2 weights for 1"],
            TrainConfig { loss_weights: Some(vec![1.0; 2]), ..base.clone() },
        ),
        (
            &["half_weight", "total_weight"],
            TrainConfig { reward_scaling: "half_weight".into(), ..base.clone() },
        ),
        (&["`learning_rate`", "NaN"], TrainConfig { learning_rate: f64::NAN, ..base.clone() }),
        (&["`warmup_ratio`", "3", "0 to 1"], TrainConfig { warmup_ratio: 3.0, ..base.clone() }),
        (&["`per_device_train_batch_size`"], TrainConfig { per_device_train_batch_size: 0, ..base.clone() }),
        (&["`gradient_accumulation_steps`"], TrainConfig { gradient_accumulation_steps: 0, ..base.clone() }),
        (&["`max_grad_norm`", "-1"], TrainConfig { max_grad_norm: -1.0, ..base.clone() }),
        (&["`num_train_epochs`"], TrainConfig { num_train_epochs: 0.0, ..base.clone() }),
        (
            &["`gradient_checkpointing`", "lora_dropout"],
            TrainConfig {
                gradient_checkpointing: true,
                lora: aspo_models::LoraConfig { lora_dropout: 0.1, ..base.lora.clone() },
                ..base.clone()
            },
        ),
        (
            &["`precompute_ref_log_probs`", "no reference"],
            TrainConfig { precompute_ref_log_probs: Some(true), ..other_loss("sft") },
        ),
        (
            &["`eval_data`", "eval_steps is 0"],
            TrainConfig { eval_data: Some("more.json".into()), ..base.clone() },
        ),
        (&["`discopop_tau`", "0.1", "`discopop`"], TrainConfig { discopop_tau: Some(0.1), ..base.clone() }),
        (
            &["`alpha`", "0.25, but sigmoid does not honour it", "`aspo`"],
            TrainConfig { alpha: 0.25, ..other_loss("sigmoid") },
        ),
        (
            &["`weigh`", "both, but sigmoid + sft does not honour it", "leave it out"],
            TrainConfig {
                weigh: "both".into(),
                loss_type: vec!["sigmoid".into(), "sft".into()],
                ..other_loss("sft")
            },
        ),
        (&["ld_alpha", "1.5"], TrainConfig { ld_alpha: Some(1.5), ..base.clone() }),
        (
            &["`ref_model`", "other", "no reference"],
            TrainConfig { ref_model: Some("other".into()), ..other_loss("sft") },
        ),
    ];
    for (parts, config) in cases {
        assert_tells(&refused(&config), parts);
    }
    assert!(!world.config.output_dir.exists(), "nothing was begun");
}

#[test]
fn processes_that_cannot_share_a_step_are_refused() {
    let config = TrainConfig { gradient_accumulation_steps: 2, ..World::new().config.clone() };
    let told = |count, config: &TrainConfig| check_ranks(config, count).unwrap_err().to_string();
    assert!(check_ranks(&config, 2).is_ok());
    assert_tells(&told(3, &config), &["`ranks`", "3 for 2 forward passes", "gradient_accumulation_steps"]);
    let lora = aspo_models::LoraConfig { lora_dropout: 0.1, ..config.lora.clone() };
    assert_tells(&told(2, &TrainConfig { lora, ..config }), &["`ranks`", "lora_dropout", "to 0"]);
}

#[test]
fn a_folder_that_is_not_there_is_named_with_its_option() {
    let world = World::new();
    let gone = world.folder.join("gone");
    let base = &world.config;
    let cases = [
        ("model", TrainConfig { model: gone.clone(), ..base.clone() }),
        ("tokenizer", TrainConfig { tokenizer: None, ..base.clone() }),
        ("data", TrainConfig { data: gone.clone().into(), ..base.clone() }),
        ("eval_data", TrainConfig { eval_data: Some(gone.clone().into()), eval_steps: 1, ..base.clone() }),
        ("images", TrainConfig { images: gone.clone(), ..base.clone() }),
        ("ref_model", TrainConfig { ref_model: Some(gone.clone()), ..base.clone() }),
        ("clip", TrainConfig { clip: Some(gone.clone()), ..base.clone() }),
    ];
    for (option, config) in cases {
        assert_tells(&refused(&config), &[&format!("`{option}`"), "is not there", "; "]);
    }
    assert!(!base.output_dir.exists());
}

#[test]
fn a_row_that_cannot_be_used_is_named_with_its_file() {
    let world = World::new();
    world.write_pairs(&[("A dot.", "Two dots."), ("A box.", "  ")]);
    assert_tells(&refused(&world.config), &["pairs.json", "rejected", "empty"]);
    world.write_pairs(&[("A dot.", "Two </s> dots.")]);
    assert_tells(&refused(&world.config), &["pairs.json", "</s>"]);
    std::fs::write(&world.config.data.0[0].path, "[{\"question\": \"a\", \"chosen\": \"b\"").unwrap();
    assert_tells(&refused(&world.config), &["pairs.json"]);
    std::fs::write(&world.config.data.0[0].path, "[]").unwrap();
    assert_tells(&refused(&world.config), &["pairs.json"]);
    world.write_pairs(&[("A dot.", "Two dots.")]);
    let short = TrainConfig { max_length: 10, ..world.config.clone() };
    assert_tells(&refused(&short), &["no pair that can be used (1 leave no room)", "max_length"]);
    world.write_pairs(&[("A dot.", "A dot.")]);
    assert_tells(&refused(&world.config), &["no pair that can be used (1 equal)"]);
    assert!(!world.config.output_dir.exists(), "nothing was begun");
}

#[test]
fn a_path_that_is_no_file_or_no_folder_is_named_with_its_option() {
    let world = World::new();
    let base = &world.config;
    let (folder, file) = (&base.images, &base.data.0[0].path);
    let cases = [
        (
            ["`data`", "it is a folder without a file of pairs"],
            TrainConfig { data: folder.clone().into(), ..base.clone() },
        ),
        (["`images`", "is a file"], TrainConfig { images: file.clone(), ..base.clone() }),
        (["`model`", "is a file"], TrainConfig { model: file.clone(), ..base.clone() }),
        (["`tokenizer`", "is a folder"], TrainConfig { tokenizer: Some(folder.clone()), ..base.clone() }),
        (["`data`", "not given"], TrainConfig { data: "".into(), ..base.clone() }),
        (["`output_dir`", "is a file"], TrainConfig { output_dir: file.clone(), ..base.clone() }),
        (["`output_dir`", "not given"], TrainConfig { output_dir: "".into(), ..base.clone() }),
    ];
    for (parts, config) in cases {
        assert_tells(&refused(&config), &parts);
    }
}

#[test]
fn a_length_that_a_picture_fills_is_named() {
    let world = World::new();
    let config = TrainConfig { max_length: 4, ..world.config.clone() };
    assert_tells(&refused(&config), &["`max_length`: 4", "a picture takes 4 tokens", "leave room"]);
}

/// The world's picture 3 cut after its header, which a look at the header alone does not find.
fn cut_picture(world: &World) {
    let path = world.config.images.join("3.png");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_picture_that_cannot_be_decoded_is_named_with_its_row_before_the_first_step() {
    let world = World::new();
    cut_picture(&world);
    // Ten pairs over five pictures: the fourth row is the first with it.
    let parts = ["`images`", "pairs.json: row 4:", "3.png", "cut short", "on_fault"];
    let message = told(whole_run::<Flex>(&world.config, false, |_| panic!("no step"), |_| ()));
    assert_tells(&message, &parts);
    assert!(!world.config.output_dir.exists(), "nothing was begun");
}

#[test]
fn faulty_rows_and_pictures_are_skipped_and_counted_on_request() {
    let world = World::new();
    world.write_pairs(&[
        ("A dot.", "Two dots."),
        ("A box.", "  "),
        ("A line.", "A </s> line."),
        ("It is dark.", "It is day."),
        ("Snow.", "Snow. "),
        ("A cat.", "A dog."),
        ("A wall, and it is long indeed.", "A hall."),
    ]);
    cut_picture(&world);
    let config = TrainConfig { on_fault: OnFault::Skip, max_length: 60, ..world.config.clone() };
    let shape = LlavaConfig::load(&config.model).unwrap();
    let mut data = read(&config, &sight(&config, &shape)).unwrap();
    let mut watched = Vec::new();
    data.decode_pictures(&config, |done, of| watched.push((done, of))).unwrap();
    assert_eq!(watched.last(), Some(&(4, 4)), "pairs whose rows are sound");
    let account = &data.account;
    assert_eq!((account.rows, account.equal, account.faulty), (7, 1, 3));
    assert_eq!((account.no_room, account.cut_chosen, account.cut_rejected), (0, 1, 0));
    assert_eq!(
        data.pairs.iter().map(|pair| pair.unwrap().chosen.text).collect::<Vec<_>>(),
        ["A dot.", "A cat.", "A wall, and it is long indeed."]
    );
    let told = account.lines(config.max_length).join("\n");
    assert_tells(&told, &["1 of 7 pairs left out: chosen and rejected are the same text"]);
}

/// A folder with what reading takes of an InstructBLIP: its Q-Former reads six words.
fn instruct_blip(folder: &Path) {
    std::fs::create_dir_all(folder.join("qformer_tokenizer")).unwrap();
    let config = json!({
        "model_type": "instructblip",
        "architectures": ["InstructBlipForConditionalGeneration"],
        "qformer_config": {"model_type": "instructblip_qformer", "max_position_embeddings": 6},
        "text_config": {"model_type": "llama"},
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let special = |id: usize, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[SEP]")],
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "[SEP]": 1, "[UNK]": 2}},
    });
    std::fs::write(folder.join("qformer_tokenizer/tokenizer.json"), tokenizer.to_string()).unwrap();
}

#[test]
fn what_instruct_blip_cannot_read_is_told_with_the_pair() {
    let world = World::new();
    let model = world.folder.join("blip");
    instruct_blip(&model);
    let config = TrainConfig {
        model,
        template: Template::InstructBlip,
        loss_type: vec!["sigmoid".into()],
        alpha: TrainConfig::default().alpha,
        ..world.config.clone()
    };
    let row = |id: &str, prompt: &str, images: &[&str]| json!({"id": id, "prompt": prompt, "images": images, "chosen": "A dot.", "rejected": "A line."});
    let sound = row("sound", "What is to be seen here?", &["0.png"]);
    let cases = [
        (row("none", "What is here?", &[]), "has 0 pictures, InstructBLIP reads one"),
        (row("two", "What is here?", &["0.png", "1.png"]), "has 2 pictures, InstructBLIP reads one"),
        (
            row("long", "What is to be seen just here?", &["0.png"]),
            "of 7 tokens, InstructBLIP's Q-Former reads 6",
        ),
    ];
    // A LLaVA's will do: of a picture, the number of its tokens is all that counts here.
    let eyes = sight(&world.config, &LlavaConfig::load(&world.config.model).unwrap());
    let read = |rows: &[&Value], config: &TrainConfig| {
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(&config.data.0[0].path, lines.join("\n")).unwrap();
        read(config, &eyes)
    };
    for (index, (row, part)) in cases.iter().enumerate() {
        let rows = [&sound, row];
        let id = row["id"].as_str().unwrap();
        assert_tells(&told(read(&rows, &config)), &["`data`", &format!("row 2: pair {id:?} "), part]);
        let skip = TrainConfig { on_fault: OnFault::Skip, ..config.clone() };
        let data = read(&rows, &skip).unwrap();
        assert_eq!((data.pairs.len(), data.account.faulty), (1, 1), "case {index}");
    }
}

#[test]
fn an_absent_picture_is_named_before_the_model_is_read() {
    let world = World::new();
    std::fs::remove_file(world.config.images.join("3.png")).unwrap();
    assert_tells(&refused(&world.config), &["`images`", "pairs.json", "3.png", "images` folder"]);
    assert!(!world.config.output_dir.exists(), "nothing was begun");
}

#[test]
fn a_picture_that_vanishes_or_breaks_mid_run_is_named_and_the_checkpoint_is_whole() {
    for bytes in [None, Some("no picture")] {
        let world = World::new();
        // One pair a step and no features kept yet: the pictures of later pairs are still to be read.
        let config = TrainConfig {
            per_device_train_batch_size: 1,
            gradient_accumulation_steps: 1,
            ..world.config.clone()
        };
        let spoil = || {
            for picture in std::fs::read_dir(&config.images).unwrap() {
                let path = picture.unwrap().path();
                match bytes {
                    None => std::fs::remove_file(path).unwrap(),
                    Some(text) => std::fs::write(path, text).unwrap(),
                }
            }
        };
        let mut last = 0;
        let watch = |step: &aspo_train::StepReport| {
            if step.step == 2 {
                spoil();
            }
            last = step.step;
        };
        let message = told(whole_run::<Flex>(&config, false, watch, |_| ()));
        assert_tells(&message, &[".png"]);
        assert!(last >= 2);
        assert!(config.output_dir.join(format!("checkpoint-{last:06}/manifest.json")).exists());
        World::make(&world.folder);
        let mut steps = Vec::new();
        whole_run::<Flex>(&config, true, |step| steps.push(step.step), |fault| panic!("{fault}")).unwrap();
        assert_eq!(steps.first(), Some(&(last + 1)));
    }
}

/// A world in which one pair's loss is not a number.
fn spoiled() -> World {
    let mut world = World::new();
    world.config.model = world.folder.join("model");
    spoiled_model(&world.config.model);
    world.add_spoiled_pair();
    world
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_names_step_pairs_and_checkpoint() {
    let world = spoiled();
    let mut last = 0;
    let message = told(whole_run::<Flex>(&world.config, false, |step| last = step.step, |_| ()));
    let checkpoint = if last == 0 { "none yet".into() } else { format!("checkpoint-{last:06}") };
    let step = format!("step {}:", last + 1);
    assert_tells(&message, &[&step, "the loss is NaN", "(pairs ", &checkpoint, "learning_rate"]);
    // The pair is the eleventh of its file, and a micro-batch has two.
    let named = message.split("(pairs ").nth(1).unwrap().split(')').next().unwrap();
    let ids: Vec<&str> = named.split(", ").collect();
    let spoiled = world.data().pairs.iter().last().unwrap().unwrap().id;
    assert!(ids.contains(&spoiled.as_str()) && ids.len() <= 2, "{named}");
    assert!(listing(&world.config.output_dir).iter().all(|name| !name.contains(".tmp")));
}

#[test]
fn a_step_that_is_skipped_is_counted() {
    let world = spoiled();
    let config = TrainConfig { on_non_finite: OnNonFinite::Skip, logging_steps: 1, ..world.config.clone() };
    let finished = whole_run::<Flex>(&config, false, |_| (), |_| ()).unwrap();
    assert!(finished.skipped_steps > 0);
    let lines = aspo_train::MetricFile::read(&config.output_dir).unwrap();
    assert_eq!(lines.last().unwrap().values["aspo/skipped_steps"], finished.skipped_steps as f64);
    assert!(lines.iter().all(|line| line.values["loss"].is_finite()));
    // Where nothing but the spoiled pair is left, the run does not go on for ever.
    world.write_pairs(&[("A ~ here.", "Odd.")]);
    let only = TrainConfig { output_dir: world.folder.join("only"), ..config };
    assert_tells(&refused(&only), &["the loss is NaN"]);
}

#[cfg(unix)]
#[test]
fn an_output_folder_that_cannot_be_made_is_named() {
    let world = World::new();
    std::fs::write(world.folder.join("file"), "").unwrap();
    let config = TrainConfig { output_dir: world.folder.join("file/out"), ..world.config.clone() };
    assert_tells(&refused(&config), &["file/out"]);
}
