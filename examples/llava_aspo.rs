//! Trains a vision-language model with ASPO (or another preference loss) and shows what that did: `aspo train` with the tiny LLaVA
//! of the scenes world and its settings for defaults. With `--model` these are those of `aspo train`.

use std::path::{Path, PathBuf};

use aspo_cli::backend::exit_on_error;
use aspo_cli::options::TrainArgs;
use aspo_cli::{Failure, out, say, train};
use aspo_examples::around::Scenes;
use aspo_scenes::Split;
use aspo_train::TrainConfig;
use clap::Parser;

/// Train a vision-language model on preferences, sentence by sentence
#[derive(Parser)]
struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// Held-out scenes to measure both models on; 0 is none [default: 800 for the scenes world's own model, else 0]
    #[arg(long)]
    eval_scenes: Option<usize>,
    /// Seed of the held-out scenes
    #[arg(long, default_value_t = 1)]
    world_seed: u64,
    /// Which split the held-out scenes are of: validation while settings are being chosen
    #[arg(long, default_value = "test", value_parser = ["test", "validation"])]
    split: String,
}

fn main() {
    let Args { mut train, eval_scenes, world_seed, split } = Args::parse();
    let config = exit_on_error(config(&mut train));
    let of_scenes = same(&config.model, &here("assets/llava"));
    let mut scenes = Scenes {
        count: eval_scenes.unwrap_or(if of_scenes { 800 } else { 0 }),
        asked: eval_scenes.is_some(),
        seed: world_seed,
        split: if split == "validation" { Split::Validation } else { Split::Test },
        at_a_time: train.device.unwrap_or_default().at_a_time(),
        before: None,
    };
    exit_on_error(train::run_config(train, config, &mut scenes));
    if out::interrupted() {
        std::process::exit(out::INTERRUPTED_CODE);
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn same(one: &Path, other: &Path) -> bool {
    one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|other| one == other))
}

/// The options of the scenes world where nothing else is asked for, with the flags laid over them.
fn config(args: &mut TrainArgs) -> Result<TrainConfig, Failure> {
    let scenes = here("configs/scenes.toml");
    let other = args.model.as_deref().is_some_and(|model| !same(model, &here("assets/llava")));
    let open = args.config.is_none() && !args.resume;
    if open && !other {
        args.config = Some(scenes);
    } else if open && args.data.is_empty() && args.images.is_none() {
        // Enough to try a model out.
        let TrainConfig { data, images, .. } = TrainConfig::from_toml(&scenes)?;
        say!("no --data: the committed pairs of drawn scenes are taken, {data}");
        args.data = data.0.into_iter().map(|source| source.path).collect();
        args.images = Some(images);
    }
    let mut config = args.base("llava_aspo")?;
    // The scenes world is where this program was built, whatever a checkpoint says.
    let TrainConfig { model, data, images, clip, .. } = &mut config;
    for path in [model, images].into_iter().chain(clip).chain(data.paths_mut()) {
        let text = path.to_string_lossy().replace('\\', "/");
        let found = text.split("examples/assets/").nth(1).map(|name| here("assets").join(name));
        if let (false, Some(found)) = (path.exists(), found.filter(|found| found.exists())) {
            *path = found;
        }
    }
    args.over(config, "llava_aspo")
}
