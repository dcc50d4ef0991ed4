//! Training with dropout. Masks come from the one random state that a backend has in a process: the runs here have a
//! process of their own, so that other tests do not draw from it.

use std::path::Path;
use std::process::Command;

use aspo_train::TrainConfig;
use burn::tensor::backend::Backend;

use crate::support::{World, whole_run};

const FOLDER: &str = "ASPO_TEST_DROP_IN";

/// The run's losses and its adapter.
fn run<B: Backend>(config: &TrainConfig, resume: bool) -> (Vec<f64>, Vec<u8>) {
    let mut losses = Vec::new();
    whole_run::<B>(config, resume, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    (losses, std::fs::read(config.output_dir.join("adapter/adapter_model.safetensors")).unwrap())
}

fn check<B: Backend>(folder: &Path, backend: &str) {
    let with = |name: &str, dropout: f64, seed: u64| {
        let mut config = World::at(folder).config;
        config.lora.lora_dropout = dropout;
        (config.max_steps, config.seed) = (4, seed);
        config.output_dir = folder.join(format!("{backend}-{name}"));
        config
    };
    let whole = with("whole", 0.3, 1);
    let wanted = run::<B>(&whole, false);
    assert!(wanted.0.iter().all(|loss| loss.is_finite()));
    assert!(run::<B>(&with("again", 0.3, 1), false) == wanted, "{backend}: the same seed, the same run");
    let without = run::<B>(&with("none", 0.0, 1), false);
    // Before its first step the adapter adds nothing that could be dropped.
    assert_eq!(without.0[0], wanted.0[0], "{backend}");
    assert!(without.0[1..] != wanted.0[1..] && without.1 != wanted.1, "{backend}: something is dropped");
    // A run that goes on draws the masks that it would have drawn.
    for step in 3..=4 {
        std::fs::remove_dir_all(whole.output_dir.join(format!("checkpoint-{step:06}"))).unwrap();
    }
    std::fs::remove_dir_all(whole.output_dir.join("adapter")).unwrap();
    let rest = run::<B>(&whole, true);
    assert_eq!(rest.0, wanted.0[2..], "{backend}");
    assert!(rest.1 == wanted.1, "{backend}: another adapter after a resume");
}

/// Does nothing unless it is told where.
#[test]
fn process_that_drops() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    check::<burn_flex::Flex>(Path::new(&folder), "flex");
    check::<burn_ndarray::NdArray>(Path::new(&folder), "ndarray");
    println!("\ndropped");
}

#[test]
fn with_dropout_a_run_follows_from_its_seed_and_goes_on_as_if_it_had_not_been_stopped() {
    let world = World::new();
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dropout::process_that_drops", "--nocapture", "--test-threads", "1"])
        .env(FOLDER, &world.folder)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && told.contains("\ndropped"), "{told}");
}
