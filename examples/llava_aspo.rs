//! Trains a vision-language model with ASPO (or another preference loss) and shows what that did.
//!
//! `cargo run --example llava_aspo` does it on the tiny LLaVA of the scenes world; every path can be another.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use aspo_data::scenes::{Split, Verdict, judge, load, write};
use aspo_data::{EncodedPair, Encoder, ImageLoader, Pair};
use aspo_examples::Failure;
use aspo_examples::backend::{Device, OnBackend, exit_on_error};
use aspo_examples::measure::{Measured, measure};
use aspo_examples::pretrain::corpus::INSTRUCTIONS;
use aspo_models::{Llava, LlavaConfig, LoadOptions, ModelConfig, Precision, Pretrained, VisionLanguageModel};
use aspo_train::{
    Data, MarkedSentence, MetricFile, Picture, Plan, Report, StepReport, TrainConfig, VisionFeatures,
    WeighedSentence, check_paths, human, peak_memory, processor, read, score, train, weigh,
};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use clap::Parser;

#[derive(Parser, Clone)]
#[command(about = "Train a vision-language model on preferences, sentence by sentence")]
struct Args {
    /// A TOML file with options by TRL's names; the flags below override it [default: the scenes world]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Checkpoint folder of the model
    #[arg(long)]
    model: Option<PathBuf>,
    /// tokenizer.json of the model [default: the one in its folder]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Checkpoint folder of the CLIP that scores sentences
    #[arg(long)]
    clip: Option<PathBuf>,
    /// File of preference pairs
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder that image paths are relative to
    #[arg(long)]
    images: Option<PathBuf>,
    /// The loss: aspo, dpo, or another by TRL's name
    #[arg(long)]
    objective: Option<String>,
    /// ASPO's reward scaling: total_weight, token_weight, reward_ratio, none
    #[arg(long)]
    scaling: Option<String>,
    /// ASPO's share of similarity against perplexity, 0 to 1
    #[arg(long)]
    alpha: Option<f64>,
    /// Temperature of the loss
    #[arg(long)]
    beta: Option<f64>,
    /// Peak learning rate
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Optimiser steps, in place of the config's epochs
    #[arg(long)]
    max_steps: Option<i64>,
    /// Steps between two checkpoints
    #[arg(long)]
    save_steps: Option<usize>,
    /// Seed of data order and adapter
    #[arg(long)]
    seed: Option<u64>,
    /// Output folder [default: the first free of out/llava_aspo-1, -2, …; with --resume the last]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the output folder
    #[arg(long)]
    resume: bool,
    /// Print the plan and stop, before weights are read
    #[arg(long)]
    plan: bool,
    /// Held-out scenes on which base and trained model are measured; 0 leaves that out
    #[arg(long, default_value_t = 400)]
    eval_scenes: usize,
    /// Seed of the held-out scenes
    #[arg(long, default_value_t = 1)]
    world_seed: u64,
    /// Which split the held-out scenes are of: test, or validation while settings are being chosen
    #[arg(long, default_value = "test")]
    split: String,
    /// Backend, among those compiled in
    #[arg(long, value_enum)]
    device: Option<Device>,
}

fn main() {
    let args = Args::parse();
    let config = exit_on_error(config(&args));
    let device = args.device.unwrap_or_default();
    exit_on_error(device.run(Job { args, config }));
}

/// The config file with the flags laid over it.
fn config(args: &Args) -> Result<TrainConfig, Failure> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/scenes.toml");
    let mut config = TrainConfig::from_toml(args.config.as_deref().unwrap_or(&default))?;
    let lay = |target: &mut PathBuf, flag: &Option<PathBuf>| {
        if let Some(path) = flag {
            target.clone_from(path);
        }
    };
    lay(&mut config.model, &args.model);
    lay(&mut config.data, &args.data);
    lay(&mut config.images, &args.images);
    config.tokenizer = args.tokenizer.clone().or(config.tokenizer);
    config.clip = args.clip.clone().or(config.clip);
    if let Some(objective) = &args.objective {
        config.loss_type = vec![if objective == "dpo" { "sigmoid".into() } else { objective.clone() }];
    }
    config.reward_scaling = args.scaling.clone().unwrap_or(config.reward_scaling);
    config.alpha = args.alpha.unwrap_or(config.alpha);
    config.beta = args.beta.unwrap_or(config.beta);
    config.learning_rate = args.learning_rate.unwrap_or(config.learning_rate);
    config.max_steps = args.max_steps.unwrap_or(config.max_steps);
    config.save_steps = args.save_steps.unwrap_or(config.save_steps);
    config.seed = args.seed.unwrap_or(config.seed);
    config.output_dir = match &args.out {
        Some(out) => out.clone(),
        None if config.output_dir.as_os_str().is_empty() => free_folder(args.resume),
        None => config.output_dir,
    };
    config.validate()?;
    check_paths(&config)?;
    Ok(config)
}

/// The first of `out/llava_aspo-N` that is not there, or the last that is.
fn free_folder(resume: bool) -> PathBuf {
    let folder = |number: usize| PathBuf::from(format!("out/llava_aspo-{number}"));
    let free = (1..).find(|&number| !folder(number).exists()).unwrap_or(1);
    folder(if resume { free.saturating_sub(1).max(1) } else { free })
}

struct Job {
    args: Args,
    config: TrainConfig,
}

impl OnBackend for Job {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let Job { args, config } = self;
        let shape = LlavaConfig::load(&config.model)?;
        let mut data = read(&config, shape.tokens_per_image())?;
        println!("{} from {}", config.loss_type.join(" + "), config.model.display());
        check_vocabulary(&data, &config, shape.text_config.vocab_size)?;
        if data.dropped > 0 {
            println!("{} pairs left out: their prompt leaves no room for an answer", data.dropped);
        }
        let plan = Plan::new::<Autodiff<B>, Llava<Autodiff<B>>>(
            &config,
            &shape,
            &shape.text_config,
            &data.pairs,
            &device,
        )?;
        println!("plan\n{plan}\n");
        if args.plan {
            return Ok(());
        }
        let objective = config.objective()?;
        if config.clip.is_some() {
            // Plain DPO has no use for the scores, but its report shows them.
            score::<B>(&config, &mut data, objective.needs_rejected_similarity(), &device)?;
        }
        show_example(&data, &config)?;

        let options = LoadOptions {
            precision: if config.bf16 { Precision::Bf16 } else { Precision::F32 },
            ..LoadOptions::default()
        };
        let (base, _) = Llava::<Autodiff<B>>::from_pretrained(&config.model, &options, &device)?;
        let plain = base.valid();
        let world = config.output_dir.join("world");
        let split = split(&args.split)?;
        let before = match args.eval_scenes {
            0 => None,
            scenes => {
                write(&world, args.world_seed, split, scenes)?;
                println!("measuring the base model on {scenes} scenes it never saw …");
                Some(measure(&plain, &data.encoder, &world, split, scenes, &device)?)
            }
        };

        let mut progress = Progress::default();
        let finished = train::<B, _>(
            &config,
            base,
            &data,
            args.resume,
            &device,
            |step| progress.show(step),
            |warning| eprintln!("warning: {warning}"),
        )?;
        progress.end();
        let trained = finished.model.valid();
        println!("\ntrained {} steps in {:.0} s", finished.steps, finished.seconds);
        if let Some(peak) = peak_memory() {
            println!(
                "memory: {} planned for training, {} at the peak of the whole process",
                human(plan.total_bytes()),
                human(peak)
            );
        }

        let mut report = report(&config, &plan, &finished.seconds)?;
        if let Some(before) = before {
            println!("measuring the trained model …");
            let after = measure(&trained, &data.encoder, &world, split, args.eval_scenes, &device)?;
            let table = table(&before, &after);
            print_table(&table);
            report.tables.push((format!("{} scenes that no model has seen", args.eval_scenes), table));
            let json = serde_json::json!({ "base": before, "trained": after });
            let path = config.output_dir.join("evaluation.json");
            aspo_data::files::write_atomic(&path, |file| {
                Write::write_all(file, json.to_string().as_bytes())
                    .map_err(|source| aspo_data::Error::Io { path: path.clone(), source })
            })?;
            let models = [("base", &plain, &before), ("trained", &trained, &after)];
            report.pictures = pictures(&config, &data.encoder, models, &world, split, &device)?;
        }
        let path = config.output_dir.join("report.html");
        report.write(&path)?;
        println!("\nadapter  {}", finished.adapter.display());
        println!("metrics  {}", config.output_dir.join("metrics.jsonl").display());
        println!("report   {}", path.display());
        Ok(())
    }
}

fn split(name: &str) -> Result<Split, Failure> {
    match name {
        "test" => Ok(Split::Test),
        "validation" => Ok(Split::Validation),
        other => Err(format!("option `split`: {other}; use test or validation").into()),
    }
}

/// A tokenizer of another model writes ids that this one has no rows for.
fn check_vocabulary(data: &Data, config: &TrainConfig, vocabulary: usize) -> Result<(), Failure> {
    let ids = |pair: &EncodedPair| [&pair.prompt_ids[..], &pair.chosen.ids, &pair.rejected.ids].concat();
    for pair in &data.pairs {
        if let Some(id) = ids(pair).into_iter().find(|&id| id as usize >= vocabulary) {
            return Err(format!(
                "option `tokenizer`: pair {:?} of {} has the token id {id}, but the model has {vocabulary}; give the \
                 tokenizer.json that belongs to {}",
                pair.id,
                config.data.display(),
                config.model.display()
            )
            .into());
        }
    }
    Ok(())
}

/// One pair as the model sees it: tokens that count, sentences, scores.
fn show_example(data: &Data, config: &TrainConfig) -> Result<(), Failure> {
    let pair = &data.pairs[0];
    let image = data.encoder.tokenizer.image()?;
    let mut shown = pair.prompt_ids.clone();
    shown.dedup_by(|a, b| a == b && *a == image);
    println!("one pair, {} of {}", pair.id, config.data.display());
    println!("  prompt    {:?}", data.encoder.tokenizer.decode(&shown, false)?);
    let images: usize = pair.image_spans.iter().map(|span| span.len()).sum();
    println!(
        "            {} tokens, {images} of them image; none of them counts in the loss",
        pair.prompt_ids.len()
    );
    for (name, answer) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        println!(
            "  {name:<9} {} tokens in {} sentences, all of them count",
            answer.ids.len(),
            answer.sentence_count()
        );
        for (index, text) in answer.sentence_texts().enumerate() {
            let tokens = answer.sentences.iter().filter(|&&sentence| sentence as usize == index).count();
            let similarity =
                answer.similarity.get(index).map_or("     ".into(), |score| format!("{score:+.2}"));
            println!("    {index:>2} {tokens:>3} tokens  {similarity}  {}", text.trim());
        }
    }
    println!();
    Ok(())
}

/// A line that is written over while it goes to a terminal, else one line every few steps.
#[derive(Default)]
struct Progress {
    pairs: usize,
    tokens: usize,
    open: bool,
}

impl Progress {
    fn show(&mut self, report: &StepReport) {
        self.pairs += report.pairs;
        self.tokens += report.tokens;
        let terminal = std::io::stdout().is_terminal();
        let (step, total) = (report.step, report.total);
        if !terminal && step % 10 != 0 && step != total && report.done_here != 1 {
            return;
        }
        let value = |name: &str| report.values.values.get(name).copied().unwrap_or(f64::NAN);
        let left = report.seconds / report.done_here as f64 * (total - step) as f64;
        let memory = peak_memory().map_or(String::new(), |bytes| format!("  {}", human(bytes)));
        let line = format!(
            "step {step:>4}/{total}  loss {:.4}  margin {:+.3}  accuracy {:.2}  {:.1} pairs/s  {:.0} tokens/s{memory}  {left:.0} s left",
            value("loss"),
            value("rewards/margins"),
            value("rewards/accuracies"),
            self.pairs as f64 / report.seconds,
            self.tokens as f64 / report.seconds,
        );
        if terminal {
            print!("\r\x1b[2K{line}");
            let _ = std::io::stdout().flush();
            self.open = true;
        } else {
            println!("{line}");
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            println!();
        }
    }
}

fn table(before: &Measured, after: &Measured) -> Vec<Vec<String>> {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let row = |name: &str, of: &dyn Fn(&Measured) -> f64, as_percent: bool| {
        let show = |value: f64| if as_percent { percent(value) } else { format!("{value:.2}") };
        let (a, b) = (of(before), of(after));
        let scale = if as_percent { 100.0 } else { 1.0 };
        vec![name.to_owned(), show(a), show(b), format!("{:+.1}", scale * (b - a))]
    };
    let mut table = vec![vec!["".into(), "base".into(), "trained".into(), "change".into()]];
    table.push(row("hallucinated sentences, %", &|m| m.hallucinated, true));
    table.push(row("descriptions with a false sentence, %", &|m| m.spoiled, true));
    table.push(row("unreadable sentences, %", &|m| m.unreadable, true));
    table.push(row("objects described rightly, %", &|m| m.described, true));
    table.push(row("sentences a description", &|m| m.sentences, false));
    for (index, name) in ["random", "popular", "adversarial"].iter().enumerate() {
        table.push(row(&format!("POPE {name}: accuracy, %"), &|m| m.pope[index].accuracy, true));
        table.push(row(&format!("POPE {name}: F1, %"), &|m| m.pope[index].f1, true));
        table.push(row(&format!("POPE {name}: yes-ratio, %"), &|m| m.pope[index].yes_ratio, true));
    }
    table.push(row("POPE mean accuracy, %", &Measured::pope_accuracy, true));
    table
}

fn print_table(table: &[Vec<String>]) {
    println!();
    for row in table {
        println!("{:<38}{:>9}{:>9}{:>9}", row[0], row[1], row[2], row[3]);
    }
}

fn report(config: &TrainConfig, plan: &Plan, seconds: &f64) -> Result<Report, Failure> {
    let fact = |name: &str, value: String| (name.to_owned(), value);
    let mut facts = vec![
        fact("model", config.model.display().to_string()),
        fact("pairs", format!("{} in {}", plan.pairs, config.data.display())),
        fact(
            "loss",
            format!(
                "{}, β {}, α {}, scaling {}",
                config.loss_type.join(" + "),
                config.beta,
                config.alpha,
                config.reward_scaling
            ),
        ),
        fact(
            "trainable",
            format!("{} of {} parameters (LoRA, r {})", plan.trainable, plan.parameters, config.lora.r),
        ),
        fact("steps", format!("{} of {} pairs, seed {}", plan.steps, plan.global_batch, config.seed)),
        fact("time", format!("{seconds:.0} s")),
        fact("memory planned", human(plan.total_bytes())),
        fact("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    facts.extend(peak_memory().map(|peak| fact("memory at the peak", human(peak))));
    let title = format!("{} on {}", config.loss_type.join(" + "), config.model.display());
    Ok(Report { title, facts, metrics: MetricFile::read(&config.output_dir)?, ..Report::default() })
}

/// A few held-out scenes with both models' descriptions, every sentence weighed and judged.
fn pictures<B: Backend>(
    config: &TrainConfig,
    encoder: &Encoder,
    models: [(&str, &Llava<B>, &Measured); 2],
    world: &Path,
    split: Split,
    device: &B::Device,
) -> Result<Vec<Picture>, Failure> {
    const SHOWN: usize = 6;
    let mut scenes = load(world, split)?;
    scenes.truncate(SHOWN);
    let mut pictures = Vec::new();
    for line in &scenes {
        let path = world.join(&line.image);
        let image = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        pictures.push(Picture { image, question: INSTRUCTIONS[0].to_owned(), answers: Vec::new() });
    }
    let here = TrainConfig { images: world.into(), ..config.clone() };
    for (name, model, measured) in models {
        // Empty answers have no sentences to show.
        let told: Vec<usize> =
            (0..scenes.len()).filter(|&index| !measured.texts[index].trim().is_empty()).collect();
        let pairs = told
            .iter()
            .map(|&index| {
                let text = &measured.texts[index];
                let pair = Pair::new(index.to_string(), INSTRUCTIONS[0], text, text);
                encoder.encode(&pair.with_image(scenes[index].image.as_str()))
            })
            .collect::<Result<Vec<EncodedPair>, _>>()?;
        let mut data = Data {
            encoder: encoder.clone(),
            pairs,
            dropped: 0,
            similarity: Default::default(),
            hash: String::new(),
        };
        if config.clip.is_some() && !data.pairs.is_empty() {
            score::<B>(&here, &mut data, false, device)?;
        }
        let images = ImageLoader::new(world, processor(&config.model, model.image_size())?)?;
        let mut features = VisionFeatures::new(images);
        let rows: Vec<&EncodedPair> = data.pairs.iter().collect();
        let alpha = if config.clip.is_some() { config.alpha } else { 0.0 };
        let weighed = weigh(model, &rows, &mut features, alpha, encoder.tokenizer.pad(), device)?;
        for (&index, sentences) in told.iter().zip(weighed) {
            let mark = |sentence: WeighedSentence| {
                let verdicts = judge(&scenes[index].scene, &sentence.text).sentences;
                let hallucinated = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::False);
                MarkedSentence { sentence, hallucinated }
            };
            pictures[index].answers.push((name.to_owned(), sentences.into_iter().map(mark).collect()));
        }
    }
    Ok(pictures)
}
