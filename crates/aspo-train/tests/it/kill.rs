//! A run killed without warning, again and again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use aspo_train::TrainConfig;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::{World, listing, whole_run};

const FOLDER: &str = "ASPO_TEST_RUN_IN";
const KILLS: usize = 30;

fn config(folder: &Path) -> TrainConfig {
    TrainConfig { max_steps: 120, save_total_limit: 2, ..World::at(folder).config }
}

/// The newest checkpoint that is whole.
fn newest(folder: &Path) -> Option<String> {
    listing(&folder.join("out")).into_iter().rfind(|name| name.ends_with("/manifest.json"))
}

/// The process that is killed; does nothing unless it is told where.
#[test]
fn process_that_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let resume = folder.join("out").exists();
    whole_run::<burn_flex::Flex>(
        &config(folder),
        resume,
        |done| println!("\nstep {}", done.step),
        |warning| println!("\nwarning {warning}"),
    )
    .unwrap();
}

#[test]
fn killed_thirty_times_a_run_ends_as_if_it_had_never_been() {
    let world = World::new();
    let whole = World::new();
    whole_run::<burn_flex::Flex>(&config(&whole.folder), false, |_| (), |_| ()).unwrap();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::process_that_is_killed", "--nocapture", "--test-threads", "1"])
            .env(FOLDER, &world.folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    // After so many steps, and somewhere within the next: while it computes, writes or tidies up.
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut before = None;
    for kill in 1..=KILLS {
        let mut child = start();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut steps = rng.random_range(1..=3);
        for line in lines {
            assert!(!line.starts_with("warning"), "kill {kill}: {line}");
            steps -= usize::from(line.starts_with("step"));
            if steps == 0 {
                break;
            }
        }
        assert_eq!(steps, 0, "after kill {} the run did not go on", kill - 1);
        std::thread::sleep(Duration::from_millis(rng.random_range(0..60)));
        child.kill().unwrap();
        child.wait().unwrap();
        let after = newest(&world.folder);
        assert!(after >= before, "kill {kill} lost {before:?}: {after:?}");
        before = after;
    }
    assert!(start().wait_with_output().unwrap().status.success());
    for file in ["adapter/adapter_model.safetensors", "metrics.jsonl"] {
        let of = |world: &World| std::fs::read(world.folder.join("out").join(file)).unwrap();
        assert!(of(&world) == of(&whole), "{file} differs");
    }
    let left = listing(&world.folder.join("out"));
    assert!(left.iter().all(|name| !name.contains(".tmp")), "{left:?}");
}
