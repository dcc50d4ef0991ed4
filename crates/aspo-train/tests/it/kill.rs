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

/// The run in a process of its own; does nothing unless it is told where. Fails as a program would, by a message.
#[test]
fn process_that_runs() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let resume = folder.join("out").exists();
    whole_run::<burn_flex::Flex>(
        &config(folder),
        resume,
        |done| println!("\nstep {}", done.step),
        |warning| println!("\nwarning {warning}"),
    )
    .unwrap_or_else(|error| {
        eprintln!("error: {error}");
        std::process::exit(1)
    });
}

const THIS_TEST: [&str; 5] = ["--exact", "kill::process_that_runs", "--nocapture", "--test-threads", "1"];

#[test]
fn killed_thirty_times_a_run_ends_as_if_it_had_never_been() {
    let world = World::new();
    let whole = World::new();
    whole_run::<burn_flex::Flex>(&config(&whole.folder), false, |_| (), |_| ()).unwrap();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(THIS_TEST)
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

/// A disk that takes no more is imitated by a limit on the size of a file, which the shell can set.
#[cfg(unix)]
#[test]
fn on_a_full_disk_the_file_is_named_the_last_checkpoint_is_whole_and_the_run_goes_on_later() {
    let (world, whole) = (World::new(), World::new());
    whole_run::<burn_flex::Flex>(&config(&whole.folder), false, |_| (), |_| ()).unwrap();
    // As a process that was killed after its third step leaves it.
    let out = world.folder.join("out");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(THIS_TEST)
        .env(FOLDER, &world.folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    lines.filter(|line| line.starts_with("step")).take(3).for_each(drop);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = newest(&world.folder).unwrap();
    let kept = std::fs::read(out.join(&before)).unwrap();
    let run = |limit: &str| {
        Command::new("sh")
            .args(["-c", &format!("trap '' XFSZ; {limit} exec \"$0\" \"$@\"")])
            .arg(std::env::current_exe().unwrap())
            .args(THIS_TEST)
            .env(FOLDER, &world.folder)
            .output()
            .unwrap()
    };
    // In blocks of 512 or 1,024 bytes: enough for the metrics, not for an adapter.
    let full = run("ulimit -f 16;");
    let told = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(!full.status.success() && told.contains("error: ") && told.contains("checkpoint-"), "{told}");
    assert!(told.to_lowercase().contains("too large"), "the system's own words: {told}");
    assert_eq!(newest(&world.folder).unwrap(), before);
    assert_eq!(std::fs::read(out.join(&before)).unwrap(), kept);
    assert!(run("").status.success());
    let adapter =
        |world: &World| std::fs::read(world.folder.join("out/adapter/adapter_model.safetensors")).unwrap();
    assert!(adapter(&world) == adapter(&whole));
}
