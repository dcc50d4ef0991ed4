//! Several devices (here threads on one CPU) train as one does.

use std::path::Path;

use aspo_train::{OnNonFinite, StepReport, TrainConfig};
use burn_flex::Flex;

use crate::support::{World, apart, other_model, spoiled_model, whole_run_on};

/// Sums of gradients in another order differ by a few units of 1e-7 of their size, and AdamW's first steps are of the
/// size of the rate (1e-3) whatever the gradient's: a relative difference of 1e-3 at the smallest gradients moves a weight
/// by 1e-6. Losses are of order one.
const ROUNDING: f64 = 1e-5;

/// Steps of four micro-batches of one pair; the last step of each epoch has two.
fn config(world: &World, name: &str) -> TrainConfig {
    TrainConfig {
        output_dir: world.folder.join(name),
        per_device_train_batch_size: 1,
        gradient_accumulation_steps: 4,
        max_grad_norm: 0.1,
        ..world.config.clone()
    }
}

fn run(config: &TrainConfig, devices: usize, resume: bool) -> Vec<StepReport> {
    let mut steps = Vec::new();
    let devices = vec![Default::default(); devices];
    whole_run_on::<Flex>(config, &devices, resume, |step| steps.push(step.clone()), |_| ()).unwrap();
    steps
}

/// All numbers of a run's adapter.
fn adapter(folder: &Path) -> Vec<f64> {
    let bytes = std::fs::read(folder.join("adapter/adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort();
    let data = names.iter().flat_map(|name| file.tensor(name).unwrap().data().to_vec()).collect::<Vec<u8>>();
    data.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
}

#[track_caller]
fn assert_same(one: (&TrainConfig, &[StepReport]), many: (&TrainConfig, &[StepReport])) {
    let steps = one.1.len();
    assert_eq!(many.1.len(), steps);
    for (a, b) in one.1.iter().zip(many.1) {
        assert_eq!((a.step, a.pairs, a.tokens), (b.step, b.pairs, b.tokens));
        assert_eq!(a.values.values.keys().collect::<Vec<_>>(), b.values.values.keys().collect::<Vec<_>>());
        for name in ["loss", "rewards/margins", "rewards/accuracies", "learning_rate"] {
            let (a, b) = (a.values.values[name], b.values.values[name]);
            assert!((a - b).abs() < ROUNDING, "{name}: {a} on one, {b}");
        }
        // Before clipping, of order one to ten.
        let (a, b) = (a.values.values["grad_norm"], b.values.values["grad_norm"]);
        assert!((a - b).abs() < ROUNDING * a.max(1.0), "grad_norm: {a} on one, {b}");
    }
    let norms = one.1.iter().map(|step| step.values.values["grad_norm"]);
    assert!(norms.fold(0.0, f64::max) > 0.1, "clipping has something to do");
    let (one, many) = (adapter(&one.0.output_dir), adapter(&many.0.output_dir));
    let apart = apart(&one, &many);
    assert!(apart < ROUNDING, "adapters are {apart:.1e} apart");
    assert!(one.iter().any(|weight| weight.abs() > 1e-3));
}

#[test]
fn two_and_four_devices_train_as_one() {
    let world = World::new();
    let one = config(&world, "one");
    let alone = run(&one, 1, false);
    assert!(alone.iter().any(|step| step.pairs == 2), "a step in which two of four devices have no part");
    for devices in [2, 4] {
        let many = config(&world, &format!("on-{devices}"));
        let shared = run(&many, devices, false);
        assert_same((&one, &alone), (&many, &shared));
    }
}

#[test]
fn devices_share_a_second_checkpoint_a_cache_and_recomputation() {
    let world = World::new();
    let other = world.folder.join("other");
    other_model(&other, "");
    for (precompute, recompute) in [(false, true), (true, false)] {
        let with = |name: &str| TrainConfig {
            ref_model: Some(other.clone()),
            precompute_ref_log_probs: Some(precompute),
            gradient_checkpointing: recompute,
            max_steps: 3,
            ..config(&world, &format!("{name}-{precompute}"))
        };
        let (one, many) = (with("one"), with("two"));
        let (alone, shared) = (run(&one, 1, false), run(&many, 2, false));
        assert_same((&one, &alone), (&many, &shared));
    }
}

#[test]
fn a_run_begun_on_one_device_goes_on_on_two() {
    let world = World::new();
    let whole = config(&world, "whole");
    let wanted = run(&whole, 1, false);
    let begun = config(&world, "begun");
    run(&begun, 1, false);
    for step in 4..=6 {
        std::fs::remove_dir_all(begun.output_dir.join(format!("checkpoint-{step:06}"))).unwrap();
    }
    std::fs::remove_dir_all(begun.output_dir.join("adapter")).unwrap();
    let found = run(&begun, 2, true);
    assert_eq!(found[0].step, 4);
    assert_same((&whole, &wanted[3..]), (&begun, &found));
}

#[test]
fn a_device_that_fails_is_told_and_the_others_do_not_wait_for_it() {
    let mut world = World::new();
    world.config.model = world.folder.join("model");
    spoiled_model(&world.config.model);
    world.add_spoiled_pair();
    let stop = config(&world, "stop");
    let error =
        whole_run_on::<Flex>(&stop, &[Default::default(); 2], false, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("the loss is NaN") && error.contains("pairs "), "{error}");
    // Skipping, all devices leave the same step out, and the run is that of one device.
    let skip = |name: &str| TrainConfig { on_non_finite: OnNonFinite::Skip, ..config(&world, name) };
    let (one, many) = (skip("one"), skip("two"));
    let (alone, shared) = (run(&one, 1, false), run(&many, 2, false));
    assert!(alone.last().unwrap().values.values["aspo/skipped_steps"] >= 1.0);
    assert_same((&one, &alone), (&many, &shared));
}
