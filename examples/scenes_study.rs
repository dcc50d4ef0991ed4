//! The study of the scenes world: DPO, ASPO in its readings and DDPO, several seeds each, from one base model.
//!
//! `cargo run --release --example scenes_study` trains what is not there yet and writes the tables into `docs/evidence.md`; with
//! `--planted`, on pairs that differ in one sentence. A run that was stopped goes on with the next command.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aspo_cli::backend::{Device, OnBackend, exit_on_error};
use aspo_cli::{Failure, say};
use aspo_data::Pair;
use aspo_data::files::write_atomic;
use aspo_data::write::write_seva;
use aspo_examples::measure::{HeldOut, Measured, measure};
use aspo_examples::pretrain::corpus::INSTRUCTIONS;
use aspo_examples::study::{COLUMNS, OWN, Outcome, PLANTED, Run, Setting, runs, tables};
use aspo_models::{Llava, LlavaConfig, ModelConfig, Pretrained};
use aspo_scenes::{Split, plant_mistakes, write};
use aspo_train::{Data, MetricFile, Output, Sight, TrainConfig, Trainer, folder_hash, read, score};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use clap::Parser;
use serde::Serialize;

#[derive(Parser, Clone)]
#[command(about = "Compare DPO, ASPO and DDPO on the scenes world, over several seeds")]
struct Args {
    /// A TOML file with options by TRL's names [default: the scenes world]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Train on this many pairs whose rejected answer differs in one sentence, a planted mistake
    #[arg(long, value_name = "PAIRS", num_args = 0..=1, default_missing_value = "2400")]
    planted: Option<usize>,
    /// Most seeds of each setting [default: what the study asks for]
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    seeds: u64,
    /// Held-out scenes on which every model is measured
    #[arg(long, default_value_t = 800)]
    eval_scenes: usize,
    /// Seed of the held-out scenes
    #[arg(long, default_value_t = 3)]
    world_seed: u64,
    /// Optimiser steps, in place of the config's epochs
    #[arg(long)]
    max_steps: Option<i64>,
    /// Runs trained at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Train nothing: write the tables of the runs that are there
    #[arg(long)]
    tables: bool,
    /// Where runs are kept [default: out/scenes_study, out/scenes_study_planted]
    #[arg(long)]
    out: Option<PathBuf>,
    /// The page between whose marks the tables are written
    #[arg(long)]
    page: Option<PathBuf>,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

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
        let name = if args.planted.is_some() { "scenes_study_planted" } else { "scenes_study" };
        let out = args.out.clone().unwrap_or_else(|| Path::new("out").join(name));
        let mut config =
            TrainConfig::from_toml(args.config.as_deref().unwrap_or(&here.join("configs/scenes.toml")))?;
        config.max_steps = args.max_steps.unwrap_or(config.max_steps);
        if let Some(count) = args.planted {
            config.images = out.join("scenes");
            config.data = plant(&config.images, &out.join("planted.json"), count)?.into();
        }
        let settings: Vec<Setting> = if args.planted.is_some() { PLANTED.to_vec() } else { OWN.to_vec() };
        let settings: Vec<Setting> =
            settings.into_iter().map(|s| Setting { seeds: s.seeds.min(args.seeds), ..s }).collect();
        let shape = LlavaConfig::load(&config.model)?;
        let mut data = read(&config, &Sight::of(&config, &shape.init::<B>(&device))?)?;
        data.decode_pictures(&config, |_, _| ())?;
        // Both answers: some settings weigh both.
        score::<B>(&config, &mut data, true, &device)?;
        same_study(&args, &out, &config, &data)?;
        let world = out.join("world");
        write(&world, args.world_seed, Split::Test, args.eval_scenes)?;
        let held_out = HeldOut { world: &world, split: Split::Test, scenes: args.eval_scenes, at_a_time: 1 };

        let path = out.join("base.json");
        let base: Measured = match stored(&path)? {
            Some(base) => base,
            None => {
                let base =
                    Llava::<Autodiff<B>>::from_pretrained(&config.model, &config.load_options(), &device)?;
                let base = measure(&base.0.valid(), &data.encoder, held_out, &device)?;
                store(&path, &base)?;
                base
            }
        };

        let data = Arc::new(data);
        let study = Study { out: &out, config: &config, settings: &settings, data: &data, held_out };
        let runs = runs(&settings);
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<Run, Outcome>> = Mutex::default();
        // Threads of their own models: graphs that share leaves are walked as one.
        std::thread::scope(|scope| {
            let work = || -> Result<(), Failure> {
                while let Some(&run) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let there = stored(&study.file(run))?;
                    let outcome = match there {
                        Some(outcome) => outcome,
                        None if args.tables => continue,
                        None => study.train::<B>(run, &device)?,
                    };
                    study.tell(run, &outcome);
                    done.lock().unwrap_or_else(PoisonError::into_inner).insert(run, outcome);
                }
                Ok(())
            };
            let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a run panicked")?)
        })?;
        let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        let steps = done.values().next().map_or(0, |outcome| outcome.steps);
        let tables = format!(
            "{} pairs, {steps} steps a run, {} test scenes of world {}; mean ± standard deviation over seeds.\n\n{}",
            data.pairs.len(),
            args.eval_scenes,
            args.world_seed,
            tables(&settings, &base, &done)
        );
        say!("\n{tables}");
        let page = args.page.unwrap_or_else(|| here.join("../docs/evidence.md"));
        insert(&page, name, &tables)
    }
}

/// Writes scenes of the split `pairs` with true descriptions, each beside one in which a sentence is false.
fn plant(images: &Path, file: &Path, count: usize) -> Result<PathBuf, Failure> {
    let scenes = write(images, 1, Split::Pairs, count)?;
    let pairs = scenes.into_iter().enumerate().map(|(index, written)| {
        let planted = plant_mistakes(&written.scene, 1, index as u64);
        let question = INSTRUCTIONS[index % INSTRUCTIONS.len()];
        Pair::new(index.to_string(), question, planted.right, planted.text).with_image(written.image.as_str())
    });
    write_seva(file, pairs)?;
    Ok(file.to_owned())
}

/// Refuses a folder that holds runs of other settings: their rows would stand in one table with these.
fn same_study(args: &Args, out: &Path, config: &TrainConfig, data: &Data) -> Result<(), Failure> {
    let settings = serde_json::json!({
        "config": config, "data": data.pairs.hash(), "model": folder_hash(&config.model)?,
        "eval_scenes": args.eval_scenes, "world_seed": args.world_seed,
    });
    let path = out.join("study.json");
    match stored::<serde_json::Value>(&path)? {
        None => store(&path, &settings),
        Some(found) if found == settings => Ok(()),
        Some(_) => Err(format!(
            "{}: a study with another model, other settings or pairs; give another `--out`",
            path.display()
        )
        .into()),
    }
}

/// What every run of the study shares.
struct Study<'a> {
    out: &'a Path,
    config: &'a TrainConfig,
    settings: &'a [Setting],
    data: &'a Arc<Data>,
    held_out: HeldOut<'a>,
}

impl Study<'_> {
    fn folder(&self, (setting, seed): Run) -> PathBuf {
        self.out.join(format!("{}-{seed}", self.settings[setting].folder))
    }

    /// Where the outcome of a run lies once it is there.
    fn file(&self, run: Run) -> PathBuf {
        self.folder(run).join("outcome.json")
    }

    fn train<B: Backend>(&self, run: Run, device: &B::Device) -> Result<Outcome, Failure> {
        let config = TrainConfig {
            logging_steps: 1,
            save_steps: 0,
            precompute_ref_log_probs: Some(true),
            // The reference is the same in every run.
            cache_dir: Some(self.out.join("cache")),
            output_dir: self.folder(run),
            ..self.settings[run.0].config(self.config, run.1)
        };
        config.validate()?;
        if config.output_dir.exists() {
            // Left by a study that was stopped: it has no outcome.
            std::fs::remove_dir_all(&config.output_dir)?;
        }
        let (base, _) = Llava::<Autodiff<B>>::from_pretrained(&config.model, &config.load_options(), device)?;
        let output = Output::open(&config, false)?;
        let data = Arc::clone(self.data);
        let done = Trainer::<B, _>::new(config.clone(), base, data, output, device.clone()).train()?;
        let measured = measure(&done.model.valid(), &self.data.encoder, self.held_out, device)?;
        let outcome = Outcome::new(measured, &MetricFile::read(&config.output_dir)?, done.steps);
        store(&self.file(run), &outcome)?;
        Ok(outcome)
    }

    /// A line on the terminal.
    fn tell(&self, (setting, seed): Run, outcome: &Outcome) {
        let [hallucinated, described, pope] = [0, 1, 2].map(|column| COLUMNS[column].1(outcome));
        say!(
            "seed {seed:>2}  {:<28} hallucinated {hallucinated:.1}%  described {described:.1}%  POPE {pope:.1}%",
            self.settings[setting].name
        );
    }
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

/// Puts the tables between the marks `<!-- NAME begins -->` and `<!-- NAME ends -->` of the page.
fn insert(page: &Path, name: &str, tables: &str) -> Result<(), Failure> {
    let (begin, end) = (format!("<!-- {name} begins -->\n"), format!("<!-- {name} ends -->"));
    let text = std::fs::read_to_string(page).map_err(|error| format!("{}: {error}", page.display()))?;
    match text.find(&begin).zip(text.find(&end)).filter(|(from, to)| from < to) {
        Some((from, to)) => {
            write_text(page, &format!("{}{tables}{}", &text[..from + begin.len()], &text[to..]))
        }
        None => Err(format!("{}: the marks are not there; put in\n{begin}{end}", page.display()).into()),
    }
}
