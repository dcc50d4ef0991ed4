//! Pairs held out from training, looked at every `eval_steps`.

use aspo_train::{MetricFile, OnNonFinite, TrainConfig};
use burn::tensor::backend::Backend;

use crate::support::{World, apart, on_backends, other_model, spoiled_model, whole_run};

on_backends!(
    the_loss_of_pairs_held_out_is_what_a_step_on_them_would_have,
    looking_at_pairs_held_out_leaves_training_as_it_is,
    held_out_pairs_whose_loss_is_not_finite_stop_the_run_or_are_counted,
);

/// Losses of the steps, and `eval_loss` as `metrics.jsonl` has it.
fn run<B: Backend>(config: &TrainConfig) -> (Vec<f64>, Vec<(usize, f64)>) {
    let mut losses = Vec::new();
    whole_run::<B>(config, false, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    let lines = MetricFile::read(&config.output_dir).unwrap();
    let told = lines.iter().filter_map(|line| Some((line.step, *line.values.get("eval_loss")?)));
    (losses, told.collect())
}

/// Every step is on all pairs, and the same pairs are held out: what is told after a step is the next step's loss.
fn the_loss_of_pairs_held_out_is_what_a_step_on_them_would_have<B: Backend>() {
    let world = World::new();
    let other = world.folder.join("other");
    other_model(&other, "");
    for (ref_model, precompute_ref_log_probs) in
        [(None, false), (None, true), (Some(&other), false), (Some(&other), true)]
    {
        let config = TrainConfig {
            eval_data: Some(world.config.data.clone()),
            eval_steps: 1,
            ref_model: ref_model.cloned(),
            precompute_ref_log_probs: Some(precompute_ref_log_probs),
            per_device_train_batch_size: 10,
            gradient_accumulation_steps: 1,
            max_steps: 3,
            output_dir: world.folder.join(format!("{}-{precompute_ref_log_probs}", ref_model.is_some())),
            ..world.config.clone()
        };
        let (losses, told) = run::<B>(&config);
        assert_eq!(told.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [1, 2, 3]);
        let told: Vec<f64> = told.into_iter().map(|(_, loss)| loss).collect();
        // The same rows in another order, and without gradients: the last bits may differ.
        assert!(apart(&losses[1..], &told[..2]) < 1e-5, "{losses:?} and {told:?}");
        assert!((losses[0] - losses[2]).abs() > 1e-3, "training has moved the loss: {losses:?}");
        let lines = MetricFile::read(&config.output_dir).unwrap();
        let line = lines.iter().find(|line| line.values.contains_key("eval_loss")).unwrap();
        for name in ["eval_rewards/margins", "eval_rewards/accuracies", "eval_logps/chosen"] {
            assert!(line.values.contains_key(name), "no {name} in {line:?}");
        }
    }
}

fn looking_at_pairs_held_out_leaves_training_as_it_is<B: Backend>() {
    let world = World::new();
    let without = TrainConfig { max_steps: 4, ..world.config.clone() };
    let wanted = run::<B>(&without);
    assert!(wanted.1.is_empty());
    let some = world.folder.join("held_out.json");
    let rows: Vec<serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&world.config.data.0[0].path).unwrap()).unwrap();
    std::fs::write(&some, serde_json::to_vec(&rows[..3]).unwrap()).unwrap();
    let with = TrainConfig {
        eval_data: Some(some.into()),
        eval_steps: 3,
        output_dir: world.folder.join("with"),
        ..without.clone()
    };
    let found = run::<B>(&with);
    assert_eq!(found.1.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [3]);
    // Features of a picture may have been computed beside others: the last bits may differ.
    assert!(apart(&wanted.0, &found.0) < 1e-5, "{wanted:?} and {found:?}");
}

/// Eleven pairs in batches of two: the spoiled one is the last, and alone in its batch.
fn held_out_pairs_whose_loss_is_not_finite_stop_the_run_or_are_counted<B: Backend>() {
    let mut world = World::new();
    world.config.model = world.folder.join("model");
    spoiled_model(&world.config.model);
    let held_out = world.folder.join("held_out.json");
    let good = std::fs::read(&world.config.data.0[0].path).unwrap();
    world.add_spoiled_pair();
    std::fs::rename(&world.config.data.0[0].path, &held_out).unwrap();
    std::fs::write(&world.config.data.0[0].path, good).unwrap();
    let stop =
        TrainConfig { eval_data: Some(held_out.into()), eval_steps: 1, max_steps: 1, ..world.config.clone() };
    let error = whole_run::<B>(&stop, false, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("loss of pairs held out is NaN"), "{error}");
    let output_dir = world.folder.join("skip");
    let skip = TrainConfig { on_non_finite: OnNonFinite::Skip, output_dir, ..stop };
    let (_, told) = run::<B>(&skip);
    assert!(told[0].1.is_finite());
    let lines = MetricFile::read(&skip.output_dir).unwrap();
    let skipped = lines.iter().find_map(|line| line.values.get("eval_aspo/skipped_pairs"));
    assert_eq!(skipped, Some(&1.0));
}
