//! The evidence table of the scenes world: DPO and ASPO in its readings, some seeds each, from one base model.
//!
//! `cargo run --release --example scenes_study` trains what is not there yet and writes the tables into
//! `docs/evidence.md`. A run that was stopped goes on with the next command.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aspo_cli::backend::{Device, OnBackend, exit_on_error};
use aspo_cli::{Failure, say};
use aspo_data::files::write_atomic;
use aspo_examples::measure::{HeldOut, Measured, measure};
use aspo_examples::spread::{Spread, paired};
use aspo_models::{Llava, LlavaConfig, ModelConfig, Pretrained};
use aspo_scenes::{Split, write};
use aspo_train::{Data, MetricFile, MetricLine, Output, Sight, TrainConfig, Trainer, read, score};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use clap::Parser;
use serde::{Deserialize, Serialize};

#[derive(Parser, Clone)]
#[command(about = "Compare DPO and ASPO on the scenes world, over several seeds")]
struct Args {
    /// A TOML file with options by TRL's names [default: the scenes world]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Seeds of each setting, from 1
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Held-out scenes on which every model is measured
    #[arg(long, default_value_t = 200)]
    eval_scenes: usize,
    /// Optimiser steps, in place of the config's epochs
    #[arg(long)]
    max_steps: Option<i64>,
    /// Runs trained at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Where runs are kept
    #[arg(long, default_value = "out/scenes_study")]
    out: PathBuf,
    /// The page between whose marks the tables are written
    #[arg(long)]
    page: Option<PathBuf>,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

/// What is varied: name, loss, scaling, α.
const SETTINGS: [(&str, &str, &str, f64); 9] = [
    ("DPO", "sigmoid", "total_weight", 0.5),
    ("ASPO, ρ total weight", "aspo", "total_weight", 0.5),
    ("ASPO, ρ token weight", "aspo", "token_weight", 0.5),
    ("ASPO, ρ reward ratio", "aspo", "reward_ratio", 0.5),
    ("ASPO, no ρ", "aspo", "none", 0.5),
    ("ASPO, perplexity only (α 0)", "aspo", "total_weight", 0.0),
    ("ASPO, α 0.25", "aspo", "total_weight", 0.25),
    ("ASPO, α 0.75", "aspo", "total_weight", 0.75),
    ("ASPO, similarity only (α 1)", "aspo", "total_weight", 1.0),
];

/// One trained model.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Outcome {
    measured: Measured,
    /// Share of pairs whose chosen answer has the higher reward, over the last quarter of the steps.
    accuracy: f64,
    /// Change of `log π(chosen)` from the first quarter of the steps to the last.
    displacement: f64,
    steps: usize,
}

/// What every model is measured on. Runs are trained at a time, so that a model's answers need not be.
fn held_out<'a>(args: &Args, world: &'a Path) -> HeldOut<'a> {
    HeldOut { world, split: Split::Test, scenes: args.eval_scenes, at_a_time: 1 }
}

/// A heading and the value below it.
type Column = (&'static str, fn(&Outcome) -> f64);

/// What the tables show of a model.
const COLUMNS: [Column; 6] = [
    ("hallucinated sentences, %", |o| 100.0 * o.measured.hallucinated),
    ("objects described, %", |o| 100.0 * o.measured.described),
    ("POPE accuracy, %", |o| 100.0 * o.measured.pope_accuracy()),
    ("sentences a description", |o| o.measured.sentences),
    ("reward accuracy, %", |o| 100.0 * o.accuracy),
    ("Δ log π(chosen)", |o| o.displacement),
];

fn main() {
    let args = Args::parse();
    exit_on_error(args.device.unwrap_or_default().run(Job(args)));
}

struct Job(Args);

impl OnBackend for Job {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let args = self.0;
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut config =
            TrainConfig::from_toml(args.config.as_deref().unwrap_or(&here.join("configs/scenes.toml")))?;
        config.max_steps = args.max_steps.unwrap_or(config.max_steps);
        let shape = LlavaConfig::load(&config.model)?;
        let mut data = read(&config, &Sight::of(&config, &shape.init::<B>(&device))?)?;
        data.decode_pictures(&config, |_, _| ())?;
        score::<B>(&config, &mut data, false, &device)?;
        same_study(&args, &config, &data)?;
        let data = Arc::new(data);
        let world = args.out.join("world");
        write(&world, 1, Split::Test, args.eval_scenes)?;
        let load = || Llava::<Autodiff<B>>::from_pretrained(&config.model, &config.load_options(), &device);

        let path = args.out.join("base.json");
        let base: Measured = match stored(&path)? {
            Some(base) => base,
            None => {
                let plain = load()?.0.valid();
                let base = measure(&plain, &data.encoder, held_out(&args, &world), &device)?;
                store(&path, &base)?;
                base
            }
        };
        let base = Outcome { measured: base, accuracy: f64::NAN, displacement: f64::NAN, steps: 0 };

        let study = Study { args: &args, config: &config, data: &data, world: &world };
        let next = AtomicUsize::new(0);
        let runs = SETTINGS.len() * args.seeds as usize;
        let done: Mutex<Vec<(usize, Outcome)>> = Mutex::default();
        // Threads of their own models: graphs that share leaves are walked as one.
        std::thread::scope(|scope| {
            let work = || -> Result<(), Failure> {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= runs {
                        return Ok(());
                    }
                    let outcome = study.run::<B>(number, &device)?;
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
                }
            };
            let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a run panicked")?)
        })?;
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(number, _)| *number);
        let mut outcomes: Vec<Vec<Outcome>> = vec![Vec::new(); SETTINGS.len()];
        for (number, outcome) in done {
            outcomes[number % SETTINGS.len()].push(outcome);
        }
        let tables = tables(&base, &outcomes, &args, data.pairs.len());
        say!("\n{tables}");
        let page = args.page.unwrap_or_else(|| here.join("../docs/evidence.md"));
        insert(&page, &tables)
    }
}

/// Refuses a folder that holds runs of other settings: their rows would stand in one table with these.
fn same_study(args: &Args, config: &TrainConfig, data: &Data) -> Result<(), Failure> {
    let settings =
        serde_json::json!({ "config": config, "data": data.pairs.hash(), "eval_scenes": args.eval_scenes });
    let path = args.out.join("study.json");
    match stored::<serde_json::Value>(&path)? {
        None => store(&path, &settings),
        Some(found) if found == settings => Ok(()),
        Some(_) => {
            Err(format!("{}: a study with other settings or pairs; give another `--out`", path.display())
                .into())
        }
    }
}

/// What every run of the study shares.
struct Study<'a> {
    args: &'a Args,
    config: &'a TrainConfig,
    data: &'a Arc<Data>,
    world: &'a Path,
}

impl Study<'_> {
    /// The `number`-th run, all settings of a seed before the next seed: its stored outcome, or else training it.
    fn run<B: Backend>(&self, number: usize, device: &B::Device) -> Result<Outcome, Failure> {
        let seed = 1 + (number / SETTINGS.len()) as u64;
        let (name, loss, scaling, alpha) = SETTINGS[number % SETTINGS.len()];
        let folder = self.args.out.join(format!("{loss}-{scaling}-{alpha}-{seed}"));
        let path = folder.join("outcome.json");
        let outcome = match stored(&path)? {
            Some(outcome) => outcome,
            None => {
                let run = TrainConfig {
                    loss_type: vec![loss.into()],
                    reward_scaling: scaling.into(),
                    alpha,
                    seed,
                    logging_steps: 1,
                    save_steps: 0,
                    precompute_ref_log_probs: Some(true),
                    // The reference is the same in every run.
                    cache_dir: Some(self.args.out.join("cache")),
                    output_dir: folder,
                    ..self.config.clone()
                };
                run.validate()?;
                if run.output_dir.exists() {
                    // Left by a study that was stopped: it has no outcome.
                    std::fs::remove_dir_all(&run.output_dir)?;
                }
                let (base, _) =
                    Llava::<Autodiff<B>>::from_pretrained(&run.model, &run.load_options(), device)?;
                let output = Output::open(&run, false)?;
                let data = Arc::clone(self.data);
                let done = Trainer::<B, _>::new(run.clone(), base, data, output, device.clone()).train()?;
                let scenes = held_out(self.args, self.world);
                let measured = measure(&done.model.valid(), &self.data.encoder, scenes, device)?;
                let outcome = outcome(measured, &MetricFile::read(&run.output_dir)?, done.steps);
                store(&path, &outcome)?;
                outcome
            }
        };
        say!(
            "seed {seed}  {name:<28} hallucinated {:.1}%  described {:.1}%  POPE {:.1}%",
            COLUMNS[0].1(&outcome),
            COLUMNS[1].1(&outcome),
            COLUMNS[2].1(&outcome)
        );
        Ok(outcome)
    }
}

fn outcome(measured: Measured, lines: &[MetricLine], steps: usize) -> Outcome {
    let of = |line: &MetricLine, name: &str| line.values.get(name).copied().unwrap_or(f64::NAN);
    let mean = |lines: &[MetricLine], name: &str| {
        lines.iter().map(|line| of(line, name)).sum::<f64>() / lines.len() as f64
    };
    let quarter = lines.len().div_ceil(4);
    let (first, last) = (&lines[..quarter], &lines[lines.len() - quarter..]);
    Outcome {
        measured,
        accuracy: mean(last, "rewards/accuracies"),
        displacement: mean(last, "logps/chosen") - mean(first, "logps/chosen"),
        steps,
    }
}

fn tables(base: &Outcome, outcomes: &[Vec<Outcome>], args: &Args, pairs: usize) -> String {
    let head = |first: &str| {
        let names: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
        format!("| {first} | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(COLUMNS.len()))
    };
    let steps = outcomes[0].first().map_or(0, |outcome| outcome.steps);
    let mut text = format!(
        "{pairs} pairs, {steps} steps, seeds 1 to {}, {} test scenes; mean ± standard deviation over seeds.\n\n{}",
        args.seeds,
        args.eval_scenes,
        head("")
    );
    let cell = |value: f64| if value.is_nan() { "–".to_owned() } else { format!("{value:.1}") };
    let row = |name: &str, cells: Vec<String>| format!("| {name} | {} |\n", cells.join(" | "));
    text += &row("base", COLUMNS.iter().map(|(_, of)| cell(of(base))).collect());
    let values =
        |setting: usize, of: fn(&Outcome) -> f64| -> Vec<f64> { outcomes[setting].iter().map(of).collect() };
    for (setting, (name, ..)) in SETTINGS.iter().enumerate() {
        text +=
            &row(name, COLUMNS.iter().map(|(_, of)| Spread::of(&values(setting, *of)).to_string()).collect());
    }
    text += "\nMinus DPO of the same seed: mean and 95% interval (Student's t over seeds).\n\n";
    text += &head("");
    for (setting, (name, ..)) in SETTINGS.iter().enumerate().skip(1) {
        let cells = COLUMNS.iter().map(|(_, of)| paired(&values(setting, *of), &values(0, *of)).to_string());
        text += &row(name, cells.collect());
    }
    text
}

fn stored<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes)
                .map_err(|error| format!("{}: {error}; delete the file", path.display()))?,
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

fn store(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    write_text(path, &serde_json::to_string(value)?)
}

fn write_text(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(write_atomic(path, |file| {
        std::io::Write::write_all(file, text.as_bytes())
            .map_err(|source| aspo_data::Error::Io { path: path.into(), source })
    })?)
}

const BEGIN: &str = "<!-- scenes_study begins -->\n";
const END: &str = "<!-- scenes_study ends -->";

/// Puts the tables between the marks of the page.
fn insert(page: &Path, tables: &str) -> Result<(), Failure> {
    let text = std::fs::read_to_string(page).map_err(|error| format!("{}: {error}", page.display()))?;
    let marks = text.find(BEGIN).zip(text.find(END)).filter(|(begin, end)| begin < end);
    let Some((begin, end)) = marks else {
        return Err(format!("{}: the marks are not there; put in\n{BEGIN}{END}", page.display()).into());
    };
    write_text(page, &format!("{}{tables}{}", &text[..begin + BEGIN.len()], &text[end..]))
}
