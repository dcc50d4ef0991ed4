//! A run that was stopped goes on as if it had not been.

use std::ops::ControlFlow;
use std::path::Path;

use aspo_data::OnFault;
use aspo_train::{
    Inputs, MetricFile, OnNonFinite, Output, Ranks, SampleFile, Schedule, StepReport, TrainConfig,
    stored_config,
};
use burn::tensor::backend::Backend;

use crate::support::{
    World, copy_folder, fixtures, listing, on_backends, other_model, spoiled_model, stoppable_run, whole_run,
};

on_backends!(
    resumed_at_any_step_a_run_equals_the_uninterrupted_one_to_the_bit,
    a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used,
    a_run_is_not_resumed_with_other_options_or_data,
    a_folder_that_holds_a_run_is_not_written_over,
    a_folder_that_another_run_writes_is_refused,
    a_run_that_is_stopped_keeps_its_last_step_and_goes_on_to_the_same_end,
    a_run_goes_on_where_its_files_have_moved_or_are_spelled_otherwise,
    a_run_is_not_resumed_with_other_weights_or_pictures,
    a_run_can_be_prolonged_and_the_rate_follows_the_new_length,
    a_finished_run_is_known_as_finished,
    only_so_many_checkpoints_are_kept,
);

/// Adapter, metrics and samples as bytes.
fn results(folder: &Path) -> [Vec<u8>; 3] {
    assert!(folder.join("adapter/adapter_config.json").exists() && folder.join("metrics.jsonl").exists());
    ["adapter/adapter_model.safetensors", "metrics.jsonl", "samples.jsonl"]
        .map(|file| std::fs::read(folder.join(file)).unwrap_or_default())
}

/// The folder as a process killed right after checkpoint `step`, and one that wrote metrics further, leaves it.
fn interrupted(whole: &Path, at: &Path, step: usize) {
    copy_folder(whole, at);
    let _ = std::fs::remove_dir_all(at.join("adapter"));
    for name in listing(at) {
        let number = name.strip_prefix("checkpoint-").and_then(|rest| rest[..6].parse::<usize>().ok());
        if number.is_some_and(|number| number > step) {
            std::fs::remove_file(at.join(name)).unwrap();
        }
    }
    for later in step + 1..20 {
        let _ = std::fs::remove_dir(at.join(format!("checkpoint-{later:06}")));
    }
    // What a process killed while it wrote leaves besides.
    std::fs::create_dir_all(at.join(format!(".checkpoint-{:06}.tmp", step + 1))).unwrap();
    let metrics = at.join("metrics.jsonl");
    let torn = std::fs::read_to_string(&metrics).unwrap() + "{\"step\":9";
    std::fs::write(metrics, torn).unwrap();
}

/// Two epochs of eleven pairs in steps of four, two of which are skipped; lines of metrics every four steps, so that
/// windows are open at most checkpoints.
fn resumed_at_any_step_a_run_equals_the_uninterrupted_one_to_the_bit<B: Backend>() {
    let mut world = World::new();
    world.config.model = world.folder.join("model");
    world.config.on_non_finite = OnNonFinite::Skip;
    world.config.eval_steps = 3;
    world.config.max_length = 120;
    spoiled_model(&world.config.model);
    world.add_spoiled_pair();
    let whole = whole_run::<B>(&world.config, false, |_| (), |_| ()).unwrap();
    assert_eq!(whole.steps, 6);
    assert!(whole.skipped_steps >= 2, "{} skipped", whole.skipped_steps);
    let wanted = results(&world.config.output_dir);
    for step in 1..=6 {
        let folder = world.folder.join(format!("from-{step}"));
        interrupted(&world.config.output_dir, &folder, step);
        let config = TrainConfig { output_dir: folder.clone(), ..world.config.clone() };
        let mut seen = Vec::new();
        let finished =
            whole_run::<B>(&config, true, |done| seen.push(done.step), |fault| panic!("{fault}")).unwrap();
        assert_eq!(seen, (step + 1..=6).collect::<Vec<_>>());
        assert_eq!(finished.skipped_steps, whole.skipped_steps);
        let found = results(&folder);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(text(&found[1]), text(&wanted[1]), "resumed after step {step}");
        assert_eq!(text(&found[2]), text(&wanted[2]), "resumed after step {step}");
        assert!(found[0] == wanted[0], "resumed after step {step}: another adapter");
        assert_eq!(SampleFile::read(&folder).unwrap().len(), 2 * 3);
        assert!(listing(&folder).iter().all(|name| !name.contains(".tmp")), "{:?}", listing(&folder));
    }
}

fn a_damaged_newest_checkpoint_is_told_and_the_one_before_is_used<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { save_total_limit: 1, ..world.config.clone() };
    whole_run::<B>(&world.config, false, |_| (), |_| ()).unwrap();
    let wanted = results(&config.output_dir);
    let damage = |file: &str, bytes: Option<usize>| {
        let path = config.output_dir.join("checkpoint-000006").join(file);
        match bytes {
            None => std::fs::remove_file(&path).unwrap(),
            Some(at) => {
                let mut content = std::fs::read(&path).unwrap();
                content[at] ^= 1;
                std::fs::write(&path, content).unwrap();
            }
        }
    };
    let damages: [(&str, Option<usize>); 5] = [
        ("adapter_model.safetensors", Some(2_000)),
        ("optimizer.bin", Some(300)),
        ("trainer_state.json", Some(1)),
        ("manifest.json", None),
        ("optimizer.bin", None),
    ];
    let aside = world.folder.join("aside");
    copy_folder(&config.output_dir, &aside);
    for (file, bytes) in damages {
        std::fs::remove_dir_all(&config.output_dir).unwrap();
        copy_folder(&aside, &config.output_dir);
        damage(file, bytes);
        let (mut told, mut steps) = (Vec::new(), Vec::new());
        whole_run::<B>(&config, true, |done| steps.push(done.step), |fault| told.push(fault.to_owned()))
            .unwrap();
        assert_eq!(steps, [6]);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("checkpoint-000006") && told[0].contains("damaged"), "{told:?}");
        assert!(told[0].contains("checkpoint-000005 is taken"), "{told:?}");
        assert!(results(&config.output_dir) == wanted, "{file}");
        assert!(config.output_dir.join("checkpoint-000006/manifest.json").exists(), "written anew and kept");
    }
    // The damaged one is later than the first that is written: it must not count among those kept.
    std::fs::remove_dir_all(&config.output_dir).unwrap();
    copy_folder(&aside, &config.output_dir);
    std::fs::remove_dir_all(config.output_dir.join("checkpoint-000005")).unwrap();
    damage("manifest.json", None);
    let mut found = Vec::new();
    let list = || listing(&config.output_dir).into_iter().filter(|name| name.ends_with("manifest.json"));
    whole_run::<B>(&config, true, |_| found.push(list().collect::<Vec<_>>()), |_| ()).unwrap();
    assert_eq!(found, [["checkpoint-000005/manifest.json"], ["checkpoint-000006/manifest.json"]]);
    // And with none left that is whole, every fault is told.
    damage("manifest.json", None);
    let error = whole_run::<B>(&config, true, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("checkpoint-000006") && !error.contains('\n'), "{error}");
}

fn a_run_is_not_resumed_with_other_options_or_data<B: Backend>() {
    let world = World::new();
    let config = world.config.clone();
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let before = results(&config.output_dir);
    let others = [
        ("learning_rate", TrainConfig { learning_rate: 2e-3, ..config.clone() }),
        ("seed", TrainConfig { seed: u64::MAX, ..config.clone() }),
        ("loss_type", TrainConfig { loss_type: vec!["sft".into(), "aspo".into()], ..config.clone() }),
        ("loss_weights", TrainConfig { loss_weights: Some(vec![0.5]), ..config.clone() }),
        (
            "lora",
            TrainConfig { lora: aspo_models::LoraConfig { r: 8, ..config.lora.clone() }, ..config.clone() },
        ),
    ];
    for (name, other) in others {
        let error = whole_run::<B>(&other, true, |_| (), |_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{name}`")) && error.contains("checkpoint-"), "{error}");
    }
    world.add_spoiled_pair();
    let error = whole_run::<B>(&config, true, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("other pairs (`data`") && error.contains("resume with the same"), "{error}");
    assert!(results(&config.output_dir) == before);
    // What does not change the numbers may change.
    World::make(&world.folder);
    let saves = TrainConfig { save_steps: 7, save_total_limit: 3, on_fault: OnFault::Skip, ..config };
    whole_run::<B>(&saves, true, |_| (), |_| ()).unwrap();
}

fn a_folder_that_holds_a_run_is_not_written_over<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { max_steps: 2, ..world.config.clone() };
    let error = whole_run::<B>(&config, true, |_| (), |_| ()).unwrap_err().to_string();
    assert!(
        error.contains("no checkpoint to resume from") && error.contains("without `--resume`"),
        "{error}"
    );
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let before = results(&config.output_dir);
    for step in [2, 1] {
        let error = whole_run::<B>(&config, false, |_| (), |_| ()).unwrap_err().to_string();
        assert!(error.contains("`output_dir`") && error.contains("--resume"), "{error}");
        // Even an adapter alone is a run's.
        std::fs::remove_dir_all(config.output_dir.join(format!("checkpoint-{step:06}"))).unwrap();
    }
    let error = whole_run::<B>(&config, false, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("`output_dir`"), "{error}");
    assert!(results(&config.output_dir) == before);
}

fn only_so_many_checkpoints_are_kept<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { save_total_limit: 2, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let kept: Vec<String> =
        listing(&config.output_dir).into_iter().filter(|name| name.ends_with("trainer_state.json")).collect();
    assert_eq!(kept, ["checkpoint-000005/trainer_state.json", "checkpoint-000006/trainer_state.json"]);
}

fn a_folder_that_another_run_writes_is_refused<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { max_steps: 2, save_steps: 0, ..world.config.clone() };
    let mut told = Vec::new();
    let watch = |_: &StepReport| {
        told.push(whole_run::<B>(&config, false, |_| (), |_| ()).unwrap_err().to_string());
    };
    whole_run::<B>(&config, false, watch, |_| ()).unwrap();
    assert!(told[0].contains("`output_dir`") && told[0].contains("written by another run"), "{}", told[0]);
}

fn a_run_that_is_stopped_keeps_its_last_step_and_goes_on_to_the_same_end<B: Backend>() {
    let world = World::new();
    let whole = TrainConfig { save_steps: 0, output_dir: world.folder.join("whole"), ..world.config.clone() };
    whole_run::<B>(&whole, false, |_| (), |_| ()).unwrap();
    let config = TrainConfig { save_steps: 2, ..world.config.clone() };
    // A step that has no checkpoint of its own, one that has, and the last, after which there is nothing to stop.
    for (at, resume) in [(3, false), (4, true), (6, true)] {
        let watch = |step: &StepReport| match step.step == at {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let ended = stoppable_run::<B>(&config, &Ranks::alone(), resume, watch, |_| ()).unwrap();
        assert_eq!((ended.steps, ended.total, ended.stopped()), (at, 6, at < 6));
        let adapter = if at < 6 { format!("checkpoint-{at:06}") } else { "adapter".to_owned() };
        assert_eq!(ended.adapter, config.output_dir.join(adapter));
        assert!(ended.adapter.join("adapter_config.json").exists());
    }
    assert!(results(&config.output_dir) == results(&whole.output_dir));
}

fn a_run_goes_on_where_its_files_have_moved_or_are_spelled_otherwise<B: Backend>() {
    let old = tempfile::tempdir().unwrap();
    let world = World::make(&old.path().join("world"));
    let model = world.folder.join("model");
    copy_folder(&fixtures().join("models/llava"), &model);
    let config = TrainConfig { model, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let wanted = results(&config.output_dir);
    let stop = |config: &TrainConfig| {
        for step in 4..=6 {
            let _ = std::fs::remove_dir_all(config.output_dir.join(format!("checkpoint-{step:06}")));
        }
        std::fs::remove_dir_all(config.output_dir.join("adapter")).unwrap();
    };
    // Another spelling of each path.
    stop(&config);
    let detour = |path: &Path| world.folder.join("images/..").join(path.file_name().unwrap());
    let spelled = TrainConfig {
        model: detour(&config.model),
        data: detour(&config.data.0[0].path).into(),
        images: detour(&config.images),
        tokenizer: config.tokenizer.as_deref().map(detour),
        ..config.clone()
    };
    whole_run::<B>(&spelled, true, |_| (), |fault| panic!("{fault}")).unwrap();
    assert!(results(&config.output_dir) == wanted);
    // The whole folder moved; the options are those of the checkpoint.
    stop(&config);
    let moved = world.folder.with_file_name("moved");
    std::fs::rename(&world.folder, &moved).unwrap();
    let stored = stored_config(&moved.join("out")).unwrap();
    assert_eq!(stored.output_dir, moved.join("out"));
    assert_eq!((&stored.model, &stored.images), (&moved.join("model"), &moved.join("images")));
    whole_run::<B>(&stored, true, |_| (), |fault| panic!("{fault}")).unwrap();
    assert!(results(&stored.output_dir) == wanted);
    let adapter = std::fs::read_to_string(stored.output_dir.join("adapter/adapter_config.json")).unwrap();
    assert!(adapter.contains("moved/model"), "the base is named where it is now: {adapter}");
}

fn a_run_is_not_resumed_with_other_weights_or_pictures<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { max_steps: 2, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let before = results(&config.output_dir);
    let other = world.folder.join("other");
    other_model(&other, "");
    let error = whole_run::<B>(&TrainConfig { model: other, ..config.clone() }, true, |_| (), |_| ());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("checkpoint-000002: was made with other weights (`model`)"), "{error}");
    // Another picture under the same name.
    std::fs::copy(config.images.join("1.png"), config.images.join("0.png")).unwrap();
    let error = whole_run::<B>(&config, true, |_| (), |_| ()).unwrap_err().to_string();
    assert!(error.contains("was made with other pictures (`images`)"), "{error}");
    assert!(results(&config.output_dir) == before);
    let state =
        std::fs::read_to_string(config.output_dir.join("checkpoint-000002/trainer_state.json")).unwrap();
    let state: aspo_train::TrainerState = serde_json::from_str(&state).unwrap();
    let Inputs { model, pairs, pictures, .. } = state.inputs;
    assert!([model, pairs, pictures].iter().all(|hash| hash.len() == 64));
}

fn a_run_can_be_prolonged_and_the_rate_follows_the_new_length<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { max_steps: 4, logging_steps: 1, warmup_ratio: 0.0, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let longer = TrainConfig { max_steps: -1, num_train_epochs: 3.0, ..config.clone() };
    let data = World::at(&world.folder).data();
    let output = Output::open(&longer, true).unwrap();
    let told = output.accept(&longer, &data).unwrap().unwrap();
    assert!(told.contains("9 steps in place of 4") && told.contains("from step 5"), "{told}");
    assert!(!output.is_finished(&longer, &data));
    drop(output);
    let mut steps = Vec::new();
    whole_run::<B>(&longer, true, |done| steps.push(done.step), |_| ()).unwrap();
    assert_eq!(steps, [5, 6, 7, 8, 9]);
    for line in MetricFile::read(&config.output_dir).unwrap() {
        let total = if line.step <= 4 { 4 } else { 9 };
        // Counted from 1, see `Schedule`.
        let wanted = Schedule::Cosine.rate(longer.learning_rate, line.step, 0, total + 1);
        // The last digit of a number may not come back from a file.
        assert!((line.values["learning_rate"] / wanted - 1.0).abs() < 1e-12, "step {}", line.step);
    }
}

fn a_finished_run_is_known_as_finished<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { max_steps: 2, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let data = world.data();
    let finished = || {
        let output = Output::open(&config, true).unwrap();
        assert_eq!(output.resumed().unwrap().1, 2);
        assert_eq!(output.accept(&config, &data).unwrap(), None);
        output.is_finished(&config, &data)
    };
    assert!(finished());
    // Stopped between the last checkpoint and the adapter.
    std::fs::remove_file(config.output_dir.join("adapter/adapter_model.safetensors")).unwrap();
    assert!(!finished());
    let before = MetricFile::read(&config.output_dir).unwrap();
    whole_run::<B>(&config, true, |_| panic!("no step is left"), |_| ()).unwrap();
    assert!(finished());
    assert_eq!(MetricFile::read(&config.output_dir).unwrap(), before);
}
