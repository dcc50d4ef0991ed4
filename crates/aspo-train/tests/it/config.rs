//! The configs that come with the project, and what a config file means.

use std::path::{Path, PathBuf};

use aspo_train::{LoraDtype, Schedule, TrainConfig};

use crate::support::{World, whole_run};

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
        assert!(!config.data.is_empty(), "{} names no pairs", path.display());
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
    assert_eq!(config.data, Path::new("/data/pairs.json").into());
    assert_eq!((config.images, config.output_dir), (PathBuf::new(), PathBuf::from("out")));
    // What is there is named without detours.
    std::fs::create_dir_all(folder.path().join("llava")).unwrap();
    std::fs::create_dir_all(folder.path().join("configs")).unwrap();
    let path = folder.path().join("configs/run.toml");
    std::fs::write(&path, "model = \"../llava\"").unwrap();
    assert_eq!(TrainConfig::from_toml(&path).unwrap().model, folder.path().join("llava"));
}

#[test]
fn the_adapters_options_are_pefts_and_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let read = |lora: &str| {
        std::fs::write(&path, format!("beta = 0.2\n[lora]\n{lora}\n")).unwrap();
        TrainConfig::from_toml(&path)
    };
    let default = TrainConfig::default().lora;
    assert_eq!((default.r, default.lora_alpha), (128, 256.0));
    assert_eq!(read("").unwrap().lora, default, "what is left out keeps its default");
    let config = read(
        "r = 8\nexclude_modules = [\"lm_head\"]\nuse_rslora = true\nlayers_to_transform = [0, 2]\n\
         target_modules = [\"q_proj\", \"v_proj\"]\ninit_lora_weights = \"gaussian\"\n\
         rank_pattern = { q_proj = 2, 'layers\\.0\\..*q_proj' = 7 }\n[lora.alpha_pattern]\nv_proj = 3\nq_proj = 2.5",
    )
    .unwrap();
    let lora = &config.lora;
    assert_eq!((lora.r, lora.lora_alpha, lora.use_rslora), (8, 256.0, true));
    let keys: Vec<&str> = lora.rank_pattern.0.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["q_proj", "layers\\.0\\..*q_proj"], "in the order of the file, not of the alphabet");
    assert_eq!(lora.alpha_pattern.0, [("v_proj".to_owned(), 3.0), ("q_proj".to_owned(), 2.5)]);
    // As a checkpoint holds it.
    let stored: TrainConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
    assert_eq!(stored.lora, config.lora);
    for (text, words) in [
        ("use_dora = true", ["use_dora", "rank_pattern"]),
        ("rank_pattern = { q_proj = -1 }", ["line 3", "-1"]),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    for (text, word) in [
        ("init_lora_weights = \"pissa\"", "pissa"),
        ("init_lora_weights = false", "init_lora_weights"),
        ("modules_to_save = [\"lm_head\"]", "modules_to_save"),
        ("bias = \"all\"", "bias"),
        ("r = 9000000", "9000000"),
        ("layers_to_transform = 1", "layers_to_transform"),
    ] {
        let config = TrainConfig { loss_type: vec!["sigmoid".into()], ..read(text).unwrap() };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("`lora`") && error.contains(word), "{error}");
    }
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

/// Every option of every loss, as TRL spells it.
#[test]
fn losses_and_their_options_are_asked_for_in_the_config() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let config = TrainConfig::from_toml(&path).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        config.objective().map(|objective| objective.to_string()).map_err(|error| error.to_string())
    };
    for (text, objective) in [
        // One loss as text, by the name that everybody uses.
        ("loss_type = \"sigmoid\"", "sigmoid"),
        ("loss_type = \"DPO\"", "sigmoid"),
        ("loss_type = [\"sigmoid\", \"sft\"]\nloss_weights = [1.0, 0.2]", "sigmoid + 0.2 sft"),
        ("loss_type = \"sigmoid\"\nuse_weighting = true", "sigmoid; use_weighting=true"),
        ("loss_type = \"ddpo\"\nddpo_gamma = 5.0", "ddpo(ddpo_gamma=5)"),
        ("loss_type = \"bco_pair\"\nbco_shift = 0.1", "bco_pair(bco_shift=0.1)"),
        ("loss_type = \"simpo\"\nsimpo_gamma = 1.4\nbeta = 2.0", "simpo(simpo_gamma=1.4); beta=2"),
        ("loss_type = \"cdpo\"\nlabel_smoothing = 0.2", "cdpo(label_smoothing=0.2)"),
        ("loss_type = \"discopop\"\ndiscopop_tau = 0.1", "discopop(discopop_tau=0.1)"),
        (
            "loss_type = [\"sigmoid\", \"mdpo_conditional\", \"mdpo_anchor\"]\nanchor = 0.5",
            "sigmoid + mdpo_conditional + mdpo_anchor(anchor=0.5)",
        ),
        (
            "loss_type = \"sigmoid\"\nf_divergence_type = \"js_divergence\"",
            "sigmoid; f_divergence_type=js_divergence",
        ),
        (
            "loss_type = \"sigmoid\"\nf_divergence_type = \"alpha_divergence\"\nf_alpha_divergence_coef = 0.3",
            "sigmoid; f_divergence_type=alpha_divergence, f_alpha_divergence_coef=0.3",
        ),
        ("alpha = 0.0\nreward_scaling = \"none\"", "aspo(alpha=0, reward_scaling=none)"),
    ] {
        assert_eq!(read(text).unwrap_or_else(|error| panic!("{text}: {error}")), objective, "{text}");
    }
    for (text, parts) in [
        ("loss_type = 3", ["loss", "list of names"]),
        ("loss_type = \"dop\"", ["`dop`", "dpo (sigmoid)"]),
        // TRL 1.16 ignores it.
        ("loss_type = \"sigmoid\"\nlabel_smoothing = 0.1", ["label_smoothing", "cdpo"]),
        ("loss_type = \"sigmoid\"\nsimpo_gamma = 1.0", ["simpo_gamma", "simpo"]),
        (
            "loss_type = \"sigmoid\"\nf_alpha_divergence_coef = 0.3",
            ["f_alpha_divergence_coef", "alpha_divergence"],
        ),
        ("loss_type = \"apo_zero\"\nf_divergence_type = \"forward_kl\"", ["f_divergence_type", "apo_zero"]),
        ("loss_type = \"sft\"\nuse_weighting = true", ["use_weighting", "sft"]),
        ("loss_type = [\"sigmoid\"]\nloss_weights = [-1.0]", ["loss_weights", "-1"]),
        (
            "loss_type = \"mdpo_conditional\"\nprecompute_ref_log_probs = true",
            ["precompute_ref_log_probs", "corrupted pictures"],
        ),
        ("loss_type = \"aot\"\nper_device_train_batch_size = 1", ["aot", "per_device_train_batch_size"]),
    ] {
        let error = read(text).expect_err(text);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

#[test]
fn products_of_the_adapter_in_bf16_are_refused_where_they_are_of_no_use() {
    let world = World::new();
    let bf16 = TrainConfig { lora_dtype: LoraDtype::Bf16, ..world.config.clone() };
    let told = bf16.validate().unwrap_err().to_string();
    assert!(told.contains("lora_dtype") && told.contains("bf16 = true"), "{told}");
    let on_cpu = TrainConfig { bf16: true, ..bf16 };
    let told = whole_run::<burn_flex::Flex>(&on_cpu, false, |_| (), |_| ()).unwrap_err().to_string();
    assert!(told.contains("lora_dtype") && told.contains("flex"), "{told}");
}
