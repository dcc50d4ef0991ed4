//! The configs that come with the project, and what a config file means.

use std::path::{Path, PathBuf};

use aspo_train::{Schedule, TrainConfig};

fn ready() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs");
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty());
    found.sort();
    found
}

#[test]
fn every_ready_config_parses_and_can_be_honoured() {
    for path in ready() {
        let config = TrainConfig::from_toml(&path).unwrap_or_else(|error| panic!("{error}"));
        config.validate().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(!config.model.as_os_str().is_empty(), "{} names no model", path.display());
        assert!(!config.data.as_os_str().is_empty(), "{} names no pairs", path.display());
    }
}

/// SeVa's recipe as its repository gives it: r 1024, α 2048, rate 2e-6, cosine with 3% warmup, 16 × 8 pairs.
#[test]
fn the_recipes_of_llava_are_those_published() {
    for path in ready() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let config = TrainConfig::from_toml(&path).unwrap();
        if name.starts_with("llava_1_5") || name.starts_with("seva") {
            assert_eq!(
                (config.lora.r, config.lora.lora_alpha, config.lora.lora_dropout),
                (1024, 2048.0, 0.0),
                "{name}"
            );
            assert_eq!((config.learning_rate, config.warmup_ratio), (2e-6, 0.03), "{name}");
            assert_eq!(config.lr_scheduler_type, Schedule::Cosine, "{name}");
            assert_eq!(config.global_batch(), 128, "{name}");
            assert_eq!((config.beta, config.max_grad_norm, config.weight_decay), (0.1, 1.0, 0.0), "{name}");
            assert!(config.bf16 && config.gradient_checkpointing && config.max_length == 2048, "{name}");
        }
        if name.starts_with("instructblip") {
            assert_eq!(
                (config.lora.r, config.lora.lora_alpha, config.learning_rate),
                (64, 16.0, 4e-6),
                "{name}"
            );
            assert_eq!(
                (config.per_device_train_batch_size, config.gradient_accumulation_steps),
                (1, 4),
                "{name}"
            );
        }
    }
}

#[test]
fn paths_of_a_config_are_relative_to_its_folder_and_the_output_to_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let text = "model = \"llava\"\nref_model = \"other\"\nclip = \"../clip\"\ndata = \"/data/pairs.json\"\noutput_dir = \"out\"\n";
    std::fs::write(&path, text).unwrap();
    let config = TrainConfig::from_toml(&path).unwrap();
    assert_eq!(config.model, folder.path().join("llava"));
    assert_eq!(config.ref_model, Some(folder.path().join("other")));
    assert_eq!(config.clip, Some(folder.path().join("../clip")));
    assert_eq!(config.data, Path::new("/data/pairs.json"));
    assert_eq!((config.images, config.output_dir), (PathBuf::new(), PathBuf::from("out")));
    // What is there is named without detours.
    std::fs::create_dir_all(folder.path().join("llava")).unwrap();
    std::fs::create_dir_all(folder.path().join("configs")).unwrap();
    let path = folder.path().join("configs/run.toml");
    std::fs::write(&path, "model = \"../llava\"").unwrap();
    assert_eq!(TrainConfig::from_toml(&path).unwrap().model, folder.path().join("llava"));
}

#[test]
fn a_config_survives_the_way_through_toml() {
    let config =
        TrainConfig { clip: Some("clip".into()), loss_weights: Some(vec![0.25]), ..TrainConfig::default() };
    let text = toml::to_string(&config).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("run.toml"), text).unwrap();
    let read = TrainConfig::from_toml(&folder.path().join("run.toml")).unwrap();
    assert_eq!(TrainConfig { clip: config.clip.clone(), ..read }, config);
}
