//! Several processes train as one does: each test starts this test binary under `mpirun`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use aspo_train::{MetricFile, MetricLine, OnNonFinite, Ranks, TrainConfig};
use burn_flex::Flex;

use crate::support::{World, apart, other_model, spoiled_model, whole_run, whole_run_on};

/// Sums of gradients in another order differ by a few units of 1e-7 of their size, and AdamW's first steps are of the
/// size of the rate (1e-3) whatever the gradient's: a relative difference of 1e-3 at the smallest gradients moves a weight
/// by 1e-6. Losses are of order one.
const ROUNDING: f64 = 1e-5;

/// Where a rank finds its config, whether it goes on, and at which step of which rank it is to be killed.
const CONFIG: &str = "ASPO_TEST_RANK_CONFIG";
const RESUME: &str = "ASPO_TEST_RANK_RESUME";
const KILL: &str = "ASPO_TEST_RANK_KILL";

/// A rank; does nothing unless it is told what. Fails as a program would, by a message.
#[test]
fn process_that_is_a_rank() {
    let Some(path) = std::env::var_os(CONFIG) else { return };
    let config = TrainConfig::from_toml(Path::new(&path)).unwrap();
    let ranks = Ranks::started().unwrap();
    let kill = std::env::var(KILL).ok().and_then(|kill| kill.parse().ok());
    if kill == Some(ranks.rank()) {
        // In the middle of the others' steps, without a word.
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(1500));
            let own = std::process::id().to_string();
            Command::new("kill").args(["-9", &own]).status().unwrap();
        });
    }
    let resume = std::env::var_os(RESUME).is_some();
    let watch = |_: &aspo_train::StepReport| {
        if kill.is_some() {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    };
    if let Err(error) = whole_run_on::<Flex>(&config, &ranks, resume, watch, |_| ()) {
        eprintln!("error: {error}");
        ranks.abort();
    }
}

/// The run of a config by so many processes.
fn start(config: &TrainConfig, processes: usize, variables: &[(&str, &str)]) -> Output {
    let path = config.output_dir.with_extension("toml");
    std::fs::write(&path, toml::to_string(config).unwrap()).unwrap();
    let mut run = Command::new("mpirun");
    run.args(["--allow-run-as-root", "--oversubscribe", "-np", &processes.to_string()]);
    run.arg(std::env::current_exe().unwrap());
    run.args(["--exact", "ranks::process_that_is_a_rank", "--nocapture", "--test-threads", "1"]);
    run.env(CONFIG, &path).envs(variables.iter().copied()).stdin(Stdio::null());
    run.output().expect("mpirun, of `openmpi-bin`")
}

fn run(config: &TrainConfig, processes: usize, resume: bool) -> Vec<MetricLine> {
    let variables: &[(&str, &str)] = if resume { &[(RESUME, "1")] } else { &[] };
    let done = start(config, processes, variables);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    MetricFile::read(&config.output_dir).unwrap()
}

/// Steps of four micro-batches of one pair; the last step of each epoch has two.
fn config(world: &World, name: &str) -> TrainConfig {
    TrainConfig {
        output_dir: world.folder.join(name),
        per_device_train_batch_size: 1,
        gradient_accumulation_steps: 4,
        max_grad_norm: 0.1,
        logging_steps: 1,
        ..world.config.clone()
    }
}

fn alone(config: &TrainConfig) -> Vec<MetricLine> {
    whole_run::<Flex>(config, false, |_| (), |_| ()).unwrap();
    MetricFile::read(&config.output_dir).unwrap()
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
fn assert_same(one: (&TrainConfig, &[MetricLine]), many: (&TrainConfig, &[MetricLine])) {
    assert_eq!(many.1.len(), one.1.len());
    for (a, b) in one.1.iter().zip(many.1) {
        assert_eq!(a.step, b.step);
        assert_eq!(a.values.keys().collect::<Vec<_>>(), b.values.keys().collect::<Vec<_>>());
        for name in a.values.keys() {
            let (a, b) = (a.values[name], b.values[name]);
            // Norms before clipping are of order one to ten, log-probabilities of order a hundred.
            assert!((a - b).abs() < ROUNDING * a.abs().max(1.0), "{name}: {a} of one, {b}");
        }
    }
    let norms = one.1.iter().filter_map(|line| line.values.get("grad_norm"));
    assert!(norms.fold(0.0_f64, |most, norm| most.max(*norm)) > 0.1, "clipping has something to do");
    let (one, many) = (adapter(&one.0.output_dir), adapter(&many.0.output_dir));
    let apart = apart(&one, &many);
    assert!(apart < ROUNDING, "adapters are {apart:.1e} apart");
    assert!(one.iter().any(|weight| weight.abs() > 1e-3));
}

#[test]
fn two_and_four_processes_train_as_one_and_look_at_held_out_pairs_as_one() {
    let world = World::new();
    let with = |name: &str| TrainConfig {
        eval_data: Some(world.config.data.clone()),
        eval_steps: 2,
        ..config(&world, name)
    };
    let one = with("one");
    let wanted = alone(&one);
    for processes in [2, 4] {
        let many = with(&format!("on-{processes}"));
        let shared = run(&many, processes, false);
        assert_same((&one, &wanted), (&many, &shared));
    }
}

#[test]
fn processes_share_a_second_checkpoint_what_is_kept_and_recomputation() {
    let world = World::new();
    let other = world.folder.join("other");
    other_model(&other, "");
    for (precompute, recompute) in [(false, true), (true, false)] {
        let with = |name: &str| TrainConfig {
            ref_model: Some(other.clone()),
            precompute_ref_log_probs: Some(precompute),
            gradient_checkpointing: recompute,
            cache_dir: Some(world.folder.join(format!("cache-{name}-{precompute}"))),
            max_steps: 3,
            ..config(&world, &format!("{name}-{precompute}"))
        };
        let (one, many) = (with("one"), with("two"));
        assert_same((&one, &alone(&one)), (&many, &run(&many, 2, false)));
    }
}

#[test]
fn a_run_begun_by_one_process_goes_on_by_two_and_the_other_way_round() {
    let world = World::new();
    let whole = config(&world, "whole");
    let wanted = alone(&whole);
    let cut = |config: &TrainConfig| {
        for step in 4..=6 {
            std::fs::remove_dir_all(config.output_dir.join(format!("checkpoint-{step:06}"))).unwrap();
        }
        std::fs::remove_dir_all(config.output_dir.join("adapter")).unwrap();
    };
    let begun = config(&world, "begun");
    alone(&begun);
    cut(&begun);
    assert_same((&whole, &wanted), (&begun, &run(&begun, 2, true)));
    let begun = config(&world, "begun-by-two");
    run(&begun, 2, false);
    cut(&begun);
    assert_same((&whole, &wanted), (&begun, &run(&begun, 1, true)));
}

#[test]
fn a_rank_that_fails_ends_all_with_its_message_and_skipping_leaves_out_the_same_step() {
    let mut world = World::new();
    world.config.model = world.folder.join("model");
    spoiled_model(&world.config.model);
    world.add_spoiled_pair();
    let failed = start(&config(&world, "stop"), 2, &[]);
    let told = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success());
    assert!(told.contains("the loss is NaN") && told.contains("pairs "), "{told}");
    let skip = |name: &str| TrainConfig { on_non_finite: OnNonFinite::Skip, ..config(&world, name) };
    let (one, many) = (skip("one"), skip("two"));
    let (wanted, shared) = (alone(&one), run(&many, 2, false));
    assert!(wanted.last().unwrap().values["aspo/skipped_steps"] >= 1.0);
    assert_same((&one, &wanted), (&many, &shared));
}

#[test]
fn a_rank_that_is_killed_ends_all_and_the_run_goes_on_from_its_last_checkpoint() {
    let world = World::new();
    let long = |name: &str| TrainConfig { max_steps: 60, ..config(&world, name) };
    let (whole, killed) = (long("whole"), long("killed"));
    let wanted = alone(&whole);
    let ended = start(&killed, 2, &[(KILL, "1")]);
    assert!(!ended.status.success(), "a rank was killed");
    assert!(!killed.output_dir.join("adapter").exists());
    assert_same((&whole, &wanted), (&killed, &run(&killed, 2, true)));
}
