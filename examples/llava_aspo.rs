//! Trains a vision-language model with ASPO (or another preference loss) and shows what that did.
//!
//! `cargo run --example llava_aspo` does it on the tiny LLaVA of the scenes world; every path can be another. The model's
//! `config.json` says whether it is a LLaVA or an InstructBLIP. With `--model`, options are the defaults of `TrainConfig`
//! in place of those of the scenes world; template and length are the checkpoint's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aspo_data::{EncodedPair, OnFault, Template};
use aspo_examples::account::{own_pictures, pictures, print_table, report, table};
use aspo_examples::backend::{Device, OnBackend, exit_on_error};
use aspo_examples::checkpoint::{Known, check_processor, is_instruct_blip, template};
use aspo_examples::measure::{HeldOut, measure};
use aspo_examples::progress::{Progress, decoding, show_example};
use aspo_examples::{Failure, note, out, say};
use aspo_models::{
    Architecture, OnArchitecture, PictureShape, Pretrained, VisionLanguageModel, on_architecture,
};
use aspo_scenes::{Split, write};
use aspo_train::{
    Data, Finished, Output, Plan, Policy, TrainConfig, Trainer, check_paths, human, peak_memory, read, score,
    stored_config, user_cache,
};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use clap::Parser;

#[derive(Parser, Clone)]
#[command(about = "Train a vision-language model on preferences, sentence by sentence")]
struct Args {
    /// A TOML file with options by TRL's names; the flags below override it [default: the scenes world; with --model, TRL's
    /// defaults; with --resume, the options of the run that goes on]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Checkpoint folder of the model
    #[arg(long)]
    model: Option<PathBuf>,
    /// tokenizer.json of the model [default: the one in its folder]
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Checkpoint folder of another model that is the reference [default: the model with its adapter off]
    #[arg(long)]
    ref_model: Option<PathBuf>,
    /// Checkpoint folder of the CLIP that scores sentences
    #[arg(long)]
    clip: Option<PathBuf>,
    /// File of preference pairs [default: the committed pairs of drawn scenes]
    #[arg(long)]
    data: Option<PathBuf>,
    /// Folder that image paths are relative to
    #[arg(long)]
    images: Option<PathBuf>,
    /// How prompts are written: vicuna_v1, llava_hf, llava_llama2, plain, instruct_blip [default: as the model was taught]
    #[arg(long)]
    template: Option<Template>,
    /// Longest sequence in tokens, picture and answer included; longer answers lose their end
    #[arg(long)]
    max_length: Option<usize>,
    /// A faulty row or picture: stop before the first step, or skip and count it
    #[arg(long, value_parser = on_fault)]
    on_fault: Option<OnFault>,
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
    /// Optimiser steps, in place of the config's epochs; -1 takes back a number that the config gives
    #[arg(long, allow_negative_numbers = true)]
    max_steps: Option<i64>,
    /// Steps between two checkpoints
    #[arg(long)]
    save_steps: Option<usize>,
    /// Seed of data order and adapter
    #[arg(long)]
    seed: Option<u64>,
    /// Any other option of the config, as in its file: `--set bf16=true --set lora.r=64`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Output folder [default: the first free of out/llava_aspo-1, -2, …; with --resume the last]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the output folder, with its options where none are given
    #[arg(long)]
    resume: bool,
    /// Print the plan and stop, before weights are read
    #[arg(long)]
    plan: bool,
    /// Held-out scenes on which base and trained model are measured; 0 leaves that out [default: 800 for the model of the
    /// scenes world, 0 for any other]
    #[arg(long)]
    eval_scenes: Option<usize>,
    /// Seed of the held-out scenes
    #[arg(long, default_value_t = 1)]
    world_seed: u64,
    /// Which split the held-out scenes are of: test, or validation while settings are being chosen
    #[arg(long, default_value = "test")]
    split: String,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
    /// Devices that share each step (one process, one thread each)
    #[cfg(feature = "collective")]
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    devices: u16,
    /// burn-train's dashboard in place of the progress line
    #[cfg(feature = "tui")]
    #[arg(long)]
    tui: bool,
}

fn main() {
    let args = Args::parse();
    let config = exit_on_error(config(&args));
    let device = args.device.unwrap_or_default();
    // What can be refused is refused before anything is computed.
    exit_on_error(device.check());
    let output = (!args.plan).then(|| exit_on_error(Output::open(&config, args.resume)));
    exit_on_error(device.run(Job { args, config, output }));
    if out::interrupted() {
        std::process::exit(out::INTERRUPTED_CODE);
    }
}

fn assets(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

/// Whether a folder is the model of the scenes world.
fn of_scenes(model: &Path) -> bool {
    model.canonicalize().is_ok_and(|model| assets("llava").canonicalize().is_ok_and(|own| own == model))
}

/// The options before any flag.
fn base(args: &Args) -> Result<TrainConfig, Failure> {
    let scenes = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/scenes.toml");
    match (&args.config, &args.model) {
        (Some(file), _) => Ok(TrainConfig::from_toml(file)?),
        (None, _) if args.resume => {
            let mut config = stored_config(&args.out.clone().unwrap_or_else(|| free_folder(true)))?;
            // The scenes world is where this program was built.
            let own = |path: &mut PathBuf| {
                let text = path.to_string_lossy().replace('\\', "/");
                let found = text.split("examples/assets/").nth(1).map(assets).filter(|found| found.exists());
                if let (false, Some(found)) = (path.exists(), found) {
                    *path = found;
                }
            };
            [&mut config.model, &mut config.data, &mut config.images].into_iter().for_each(own);
            config.clip.iter_mut().for_each(own);
            Ok(config)
        }
        (None, Some(model)) if !of_scenes(model) => {
            let known_model = Known::of(model)?;
            let (template, known) = match args.template {
                Some(template) => (template, "as asked".to_owned()),
                None => template(model)?,
            };
            let default = TrainConfig::default();
            let max_length = args.max_length.unwrap_or(default.max_length.min(known_model.positions));
            say!("template {template} ({known}), max_length {max_length}");
            let mut config = TrainConfig { template, max_length, ..default };
            if args.data.is_none() && args.images.is_none() {
                // Enough to try a model out.
                let scenes = TrainConfig::from_toml(&scenes)?;
                say!("no --data: the committed pairs of drawn scenes are taken, {}", scenes.data.display());
                (config.data, config.images) = (scenes.data, scenes.images);
            }
            Ok(config)
        }
        (None, _) => Ok(TrainConfig::from_toml(&scenes)?),
    }
}

/// The config with the flags laid over it.
fn config(args: &Args) -> Result<TrainConfig, Failure> {
    let mut config = base(args)?;
    let lay = |target: &mut PathBuf, flag: &Option<PathBuf>| {
        if let Some(path) = flag {
            target.clone_from(path);
        }
    };
    lay(&mut config.model, &args.model);
    lay(&mut config.data, &args.data);
    lay(&mut config.images, &args.images);
    config.tokenizer = args.tokenizer.clone().or(config.tokenizer);
    config.ref_model = args.ref_model.clone().or(config.ref_model);
    config.clip = args.clip.clone().or(config.clip);
    if let Some(objective) = &args.objective {
        config.loss_type = vec![objective.clone()];
    }
    config.template = args.template.unwrap_or(config.template);
    config.max_length = args.max_length.unwrap_or(config.max_length);
    config.on_fault = args.on_fault.unwrap_or(config.on_fault);
    config.reward_scaling = args.scaling.clone().unwrap_or(config.reward_scaling);
    config.alpha = args.alpha.unwrap_or(config.alpha);
    config.beta = args.beta.unwrap_or(config.beta);
    config.learning_rate = args.learning_rate.unwrap_or(config.learning_rate);
    config.max_steps = args.max_steps.unwrap_or(config.max_steps);
    config.save_steps = args.save_steps.unwrap_or(config.save_steps);
    config.seed = args.seed.unwrap_or(config.seed);
    config = set(config, &args.set)?;
    config.cache_dir = config.cache_dir.or_else(user_cache);
    config.output_dir = match &args.out {
        Some(out) => out.clone(),
        None if config.output_dir.as_os_str().is_empty() => free_folder(args.resume),
        None => config.output_dir,
    };
    if config.objective()?.aspo().is_none() {
        let given = [("scaling", args.scaling.is_some()), ("alpha", args.alpha.is_some())];
        if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
            let losses = config.loss_type.join(" + ");
            return Err(format!("option `{option}`: {losses} weighs no sentences; leave it out").into());
        }
    }
    #[cfg(feature = "tui")]
    if args.tui && !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err("option `tui`: standard output is not a terminal; leave it out".into());
    }
    config.validate()?;
    check_paths(&config)?;
    for folder in [Some(&config.model), config.ref_model.as_ref(), config.clip.as_ref()].into_iter().flatten()
    {
        check_processor(folder)?;
    }
    #[cfg(feature = "collective")]
    aspo_train::check_devices(&config, usize::from(args.devices))?;
    split(&args.split)?;
    Ok(config)
}

/// The config with lines of its file laid over it.
fn set(config: TrainConfig, lines: &[String]) -> Result<TrainConfig, Failure> {
    if lines.is_empty() {
        return Ok(config);
    }
    let mut table = toml::Table::try_from(&config)?;
    for line in lines {
        let told = |why: String| format!("option `set`: {line}: {}", why.trim().replace('\n', " "));
        // A bare word is a text: quotes get lost on command lines.
        let (key, value) = line.split_once('=').ok_or_else(|| told("write KEY=VALUE".into()))?;
        let parsed = toml::from_str::<toml::Table>(line)
            .or_else(|_| toml::from_str(&format!("{key} = {value:?}")))
            .map_err(|error| told(error.message().to_owned()))?;
        for (key, value) in parsed {
            match (table.get_mut(&key), value) {
                (Some(toml::Value::Table(old)), toml::Value::Table(new)) => old.extend(new),
                (_, value) => drop(table.insert(key, value)),
            }
        }
    }
    let text = |error: toml::de::Error| format!("option `set`: {}", error.message().replace('\n', " "));
    Ok(table.try_into().map_err(text)?)
}

fn on_fault(name: &str) -> Result<OnFault, String> {
    match name {
        "stop" => Ok(OnFault::Stop),
        "skip" => Ok(OnFault::Skip),
        _ => Err("use stop or skip".into()),
    }
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
    output: Option<Output>,
}

impl OnBackend for Job {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let folder = &self.config.model;
        if is_instruct_blip(folder)? && self.config.template != Template::InstructBlip {
            let (found, folder) = (self.config.template, folder.display());
            let told =
                format!("option `template`: {found}, but {folder} is an InstructBLIP; use instruct_blip");
            return Err(told.into());
        }
        on_architecture(folder.clone(), OnDevice::<B>(self, device))?
    }
}

struct OnDevice<B: Backend>(Job, B::Device);

impl<B: Backend> OnArchitecture for OnDevice<B> {
    type Output = Result<(), Failure>;

    fn run<A: Architecture>(self, shape: A) -> Self::Output {
        // Nothing is allocated before it is used.
        let model = A::Model::<B>::from_config(&shape, &self.1);
        let tokens = model.tokens(&PictureShape::whole([model.image_size(); 2]));
        let vocabulary = shape.text_config().vocab_size;
        self.0.train::<B, A::Trained<B>>(&shape, vocabulary, [tokens, model.image_token() as usize], self.1)
    }
}

impl Job {
    /// Of a picture: the tokens that it takes in a row, and their id.
    fn train<B: Backend, M: Policy<B>>(
        self,
        shape: &<M as Pretrained<Autodiff<B>>>::Config,
        vocabulary: usize,
        [tokens, image]: [usize; 2],
        device: B::Device,
    ) -> Result<(), Failure> {
        let Job { args, config, output } = self;
        let scenes = args.eval_scenes.unwrap_or(if of_scenes(&config.model) { 800 } else { 0 });
        let mut data = read(&config, tokens)?;
        check_vocabulary(&data, &config, vocabulary, image)?;
        say!("{} from {}", config.loss_type.join(" + "), config.model.display());
        let Some(output) = output else {
            tell(&data, &config);
            let plan = Plan::new::<Autodiff<B>, M>(&config, shape, &data.pairs, &device)?;
            say!("plan\n{plan}\n");
            return Ok(());
        };
        data.decode_pictures(&config, decoding())?;
        tell(&data, &config);
        let total = config.total_steps(data.pairs.len());
        let longer = output.accept(&config, &data)?;
        output.notes().iter().for_each(|text| note!("warning: {text}"));
        let report_file = config.output_dir.join("report.html");
        let evaluation = config.output_dir.join("evaluation.json");
        if let Some((checkpoint, step)) = output.resumed() {
            // Scenes that nobody asked for are no reason to begin again.
            let measured = args.eval_scenes.unwrap_or(0) == 0 || evaluation.exists();
            let told = report_file.exists() && measured;
            if output.is_finished(&config, &data) && told {
                say!(
                    "{} is the end of this run, step {step} of {total}: nothing is left to do",
                    checkpoint.display()
                );
                say!("report   {}", report_file.display());
                return Ok(());
            }
            say!("going on from {}, step {step} of {total}", checkpoint.display());
            longer.iter().for_each(|text| say!("{text}"));
            if step < total {
                // What a shorter run has come to.
                for (file, name) in [(&report_file, "report"), (&evaluation, "evaluation")] {
                    let kind = file.extension().unwrap_or_default().to_string_lossy();
                    let kept = file.with_file_name(format!("{name}-{step:06}.{kind}"));
                    if file.exists() {
                        std::fs::rename(file, &kept)?;
                        say!("the {name} of the {step} steps so far is now {}", kept.display());
                    }
                }
            }
        }
        let plan = Plan::new::<Autodiff<B>, M>(&config, shape, &data.pairs, &device)?;
        say!("plan\n{plan}\n");
        let objective = config.objective()?;
        if config.clip.is_some() {
            // Plain DPO has no use for the scores, but its report shows them.
            score::<B>(&config, &mut data, objective.needs_rejected_similarity(), &device)?;
        }
        show_example(&data, &config)?;

        let (base, _) = M::from_pretrained(&config.model, &config.load_options(), &device)?;
        let plain = base.valid();
        let world = config.output_dir.join("world");
        let held_out = HeldOut {
            world: &world,
            split: split(&args.split)?,
            scenes,
            at_a_time: args.device.unwrap_or_default().at_a_time(),
        };
        let before = match scenes {
            0 => None,
            scenes => {
                write(&world, args.world_seed, held_out.split, scenes)?;
                say!("measuring the base model on {scenes} scenes it never saw …");
                Some(measure(&plain, &data.encoder, held_out, &device)?)
            }
        };

        #[cfg_attr(not(feature = "tui"), expect(unused_mut))]
        let mut progress = Progress::default();
        #[cfg(feature = "tui")]
        if args.tui {
            progress.open_dashboard();
        }
        let devices = devices::<B>(&args, &device)?;
        out::keep_on()?;
        let data = Arc::new(data);
        let finished = Trainer::<B, M>::new(config.clone(), base, data.clone(), output, device.clone())
            .with_devices(devices)
            .with_callback(progress)
            .train()?;
        if finished.stopped() {
            return told_stop(&finished, &config);
        }
        out::let_go();
        let trained = finished.model.valid();
        say!("\ntrained {} steps in {:.0} s", finished.steps, finished.seconds);
        if let Some(peak) = peak_memory() {
            say!(
                "memory: {} planned for training, {} at the peak of the whole process",
                human(plan.total_bytes()),
                human(peak)
            );
        }

        let mut report = report(&config, &plan, &data.account, finished.steps, finished.seconds)?;
        if let Some(before) = before {
            say!("measuring the trained model …");
            let after = measure(&trained, &data.encoder, held_out, &device)?;
            let table = table(&before, &after);
            print_table(&table);
            report.tables.push((format!("{scenes} scenes that no model has seen"), table));
            let json = serde_json::json!({ "step": finished.steps, "base": before, "trained": after });
            aspo_data::files::write_atomic(&evaluation, |file| {
                file.write_all(json.to_string().as_bytes())
                    .map_err(|source| aspo_data::Error::Io { path: evaluation.clone(), source })
            })?;
            let models = [("base", &plain, &before), ("trained", &trained, &after)];
            let drawn = pictures(&config, &data.encoder, models, &world, held_out.split, &device)?;
            report
                .pictures
                .push(("Descriptions of held-out scenes, their sentences by weight".into(), drawn));
        }
        let own = own_pictures(&config, &data, &trained, &device)?;
        report.pictures.push(("Pairs of the training, their sentences by weight".into(), own));
        report.write(&report_file)?;
        say!("\nadapter  {}", finished.adapter.display());
        say!("metrics  {}", config.output_dir.join("metrics.jsonl").display());
        say!("report   {}", report_file.display());
        Ok(())
    }
}

/// What became of the rows, before anything is made of them.
fn tell(data: &Data, config: &TrainConfig) {
    data.account.lines(config.max_length).iter().for_each(|line| say!("{line}"));
}

/// On standard error: standard output may be what was closed.
fn told_stop<M>(finished: &Finished<M>, config: &TrainConfig) -> Result<(), Failure> {
    note!(
        "stopped after step {} of {}, kept in {}; go on with --out {} --resume",
        finished.steps,
        finished.total,
        finished.adapter.display(),
        config.output_dir.display()
    );
    Ok(())
}

fn split(name: &str) -> Result<Split, Failure> {
    match name {
        "test" => Ok(Split::Test),
        "validation" => Ok(Split::Validation),
        other => Err(format!("option `split`: {other}; use test or validation").into()),
    }
}

/// A tokenizer of another model writes ids that this one has no rows for, or another one where a picture goes.
fn check_vocabulary(
    data: &Data,
    config: &TrainConfig,
    vocabulary: usize,
    image: usize,
) -> Result<(), Failure> {
    let refuse = |found: String| {
        let model = config.model.display();
        let remedy = format!("give the tokenizer.json that belongs to {model}");
        Err(format!("option `tokenizer`: {found}; {remedy}").into())
    };
    let own = data.encoder.tokenizer.image()? as usize;
    if own != image {
        return refuse(format!("its <image> is token {own}, the model's is {image}"));
    }
    let ids = |pair: &EncodedPair| [&pair.prompt_ids[..], &pair.chosen.ids, &pair.rejected.ids].concat();
    let held_out = config.eval_data.as_ref().unwrap_or(&config.data);
    let trained_on = data.pairs.iter().map(|pair| (pair, &config.data));
    for (pair, file) in trained_on.chain(data.held_out.iter().map(|pair| (pair, held_out))) {
        // The image token may lie outside the table: its row is never looked at.
        if let Some(id) = ids(pair).into_iter().find(|&id| id as usize >= vocabulary && id as usize != image)
        {
            let (pair, file) = (&pair.id, file.display());
            return refuse(format!(
                "pair {pair:?} of {file} has the token id {id}, but the model has {vocabulary}"
            ));
        }
    }
    Ok(())
}

/// The devices of a step: the chosen one and those that come after it.
#[cfg(feature = "collective")]
fn devices<B: Backend>(args: &Args, device: &B::Device) -> Result<Vec<B::Device>, Failure> {
    use burn::tensor::backend::{Device as _, DeviceId};
    let DeviceId { type_id, index_id } = device.to_id();
    let at = |index| B::Device::from_id(DeviceId { type_id, index_id: index_id + index });
    let devices: Vec<B::Device> = std::iter::once(device.clone()).chain((1..args.devices).map(at)).collect();
    // A CPU is one device whatever its index: several threads on it are for trying this out.
    let one = devices.iter().all(|other| other == device);
    let there = B::device_count(type_id);
    match devices.len() {
        count if one || count <= there => Ok(devices),
        count => {
            Err(format!("option `devices`: {count}, but there are {there} of this kind; give fewer").into())
        }
    }
}

#[cfg(not(feature = "collective"))]
fn devices<B: Backend>(_: &Args, device: &B::Device) -> Result<Vec<B::Device>, Failure> {
    Ok(vec![device.clone()])
}
