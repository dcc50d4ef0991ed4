//! The options of `aspo train` and `aspo plan`: a config file, and flags laid over it.

use std::path::{Path, PathBuf};

use aspo_data::{OnFault, Sources, Template};
use aspo_train::{TrainConfig, check_paths, stored_config, user_cache};
use clap::Parser;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::backend::Device;
use crate::checkpoint::{Known, check_processor, template};
use crate::{Failure, say};

/// Trains an adapter on preference pairs, sentence by sentence.
///
/// Options are TRL's and PEFT's, by their names; those without a flag are given with `--set`, or in a file with `--config`.
/// Flags count above the file.
#[derive(Parser, Clone)]
pub struct TrainArgs {
    /// A TOML file of options [default: the program's own defaults; with --resume, the options of the run that goes on]
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Checkpoint folder of the model
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// tokenizer.json of the model [default: the one in its folder]
    #[arg(long)]
    pub tokenizer: Option<PathBuf>,
    /// Checkpoint folder of another model that is the reference [default: the model with its adapter off]
    #[arg(long, alias = "ref_model")]
    pub ref_model: Option<PathBuf>,
    /// Checkpoint folder of the CLIP that scores sentences; ASPO needs one unless --alpha is 0
    #[arg(long)]
    pub clip: Option<PathBuf>,
    /// Preference pairs: files, folders of files, or patterns such as 'train-*.parquet'; mixtures are told in a config
    #[arg(long, num_args = 1..)]
    pub data: Vec<PathBuf>,
    /// Files of pairs held out from training
    #[arg(long, alias = "eval_data", num_args = 1..)]
    pub eval_data: Vec<PathBuf>,
    /// Share of the pairs to hold out, by their pictures, in place of --eval-data [default: 0]
    #[arg(long, alias = "val_size")]
    val_size: Option<f64>,
    /// Folder that image paths are relative to
    #[arg(long)]
    pub images: Option<PathBuf>,
    /// How prompts are written [default: as the model was taught]
    #[arg(long, value_parser = templates())]
    pub template: Option<Template>,
    /// Longest sequence in tokens, picture and answer included; longer answers lose their end [default: 2048, or what the model
    /// was made for]
    #[arg(long, alias = "max_length")]
    pub max_length: Option<usize>,
    /// A faulty row or picture: end before the first step, or leave it out and count it [default: stop]
    #[arg(long, alias = "on_fault", value_parser = ["stop", "skip"])]
    on_fault: Option<String>,
    /// The loss: aspo, or another by TRL's name (sigmoid, which is dpo, ipo, hinge, simpo, orpo, …) [default: aspo]
    #[arg(long, alias = "loss_type", visible_alias = "objective", value_delimiter = ',')]
    loss_type: Vec<String>,
    /// ASPO's reward scaling [default: total_weight]
    #[arg(long, alias = "reward_scaling", visible_alias = "scaling",
          value_parser = ["total_weight", "token_weight", "reward_ratio", "none"])]
    reward_scaling: Option<String>,
    /// ASPO's share of similarity against perplexity, 0 to 1 [default: 0.5]
    #[arg(long)]
    alpha: Option<f64>,
    /// Temperature of the loss [default: 0.1]
    #[arg(long)]
    beta: Option<f64>,
    /// Peak learning rate [default: 1e-5]
    #[arg(long, alias = "learning_rate")]
    learning_rate: Option<f64>,
    /// Pairs of a forward pass [default: 8]
    #[arg(long, alias = "per_device_train_batch_size")]
    per_device_train_batch_size: Option<usize>,
    /// Forward passes of an optimiser step [default: 1]
    #[arg(long, alias = "gradient_accumulation_steps")]
    gradient_accumulation_steps: Option<usize>,
    /// Passes over the pairs [default: 1]
    #[arg(long, alias = "num_train_epochs")]
    num_train_epochs: Option<f64>,
    /// Optimiser steps, in place of epochs; -1 takes back a number that the config gives
    #[arg(long, alias = "max_steps", allow_negative_numbers = true)]
    max_steps: Option<i64>,
    /// Steps between two checkpoints; 0 is none but the last [default: 500]
    #[arg(long, alias = "save_steps")]
    save_steps: Option<usize>,
    /// Steps between two evaluations on --eval-data; 0 is never [default: 0]
    #[arg(long, alias = "eval_steps")]
    eval_steps: Option<usize>,
    /// Seed of data order and adapter [default: 42]
    #[arg(long)]
    seed: Option<u64>,
    /// Any option of the config, as in its file: `--set bf16=true --set lora.r=64`
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Output folder [default: the first free of out/NAME-1, -2, …; with --resume the last]
    #[arg(long, aliases = ["output-dir", "output_dir"])]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint of the output folder, with its options where none are given
    #[arg(long)]
    pub resume: bool,
    /// Print the plan and stop, before weights are read
    #[arg(long)]
    pub plan: bool,
    /// Backend, among those compiled in
    #[arg(long)]
    pub device: Option<Device>,
    /// burn-train's dashboard in place of the progress line
    #[cfg(feature = "tui")]
    #[arg(long)]
    pub tui: bool,
}

/// A template by its name, those that there are told in the help.
fn templates() -> impl TypedValueParser<Value = Template> {
    PossibleValuesParser::new(Template::ALL.iter().map(|template| template.name()))
        .try_map(|name| name.parse::<Template>())
}

impl TrainArgs {
    /// The options that the flags are laid over. Runs without `--out` are written to `out/NAME-1`, `-2`, ….
    ///
    /// # Errors
    /// A file that cannot be read; no checkpoint to go on from; no model; a chat template that is not known.
    pub fn base(&self, name: &str) -> Result<TrainConfig, Failure> {
        if let Some(file) = &self.config {
            return Ok(TrainConfig::from_toml(file)?);
        }
        if self.resume {
            return Ok(stored_config(&self.out.clone().unwrap_or_else(|| folder(name, true)))?);
        }
        let Some(model) = &self.model else {
            let remedy = "give the folder of a Hugging Face checkpoint, or a file of options with --config";
            return Err(format!("option `model`: not given; {remedy}").into());
        };
        // An id is fetched once; the config keeps the folder.
        let mut fetched = TrainConfig { model: model.clone(), ..TrainConfig::default() };
        crate::hub::fetch(&mut fetched)?;
        let model = &fetched.model;
        let positions = Known::of(model)?.positions;
        let (template, known) = match self.template {
            Some(template) => (template, "as asked".to_owned()),
            None => template(model)?,
        };
        let default = TrainConfig::default();
        let max_length = self.max_length.unwrap_or(default.max_length.min(positions));
        say!("template {template} ({known}), max_length {max_length}");
        Ok(TrainConfig { template, max_length, ..default })
    }

    /// The flags laid over `config`, and the whole checked: options, paths, image processors.
    ///
    /// # Errors
    /// The first option that cannot be honoured, by name.
    pub fn over(&self, mut config: TrainConfig, name: &str) -> Result<TrainConfig, Failure> {
        fn lay<T: Clone>(target: &mut T, flag: &Option<T>) {
            if let Some(value) = flag {
                target.clone_from(value);
            }
        }
        lay(&mut config.model, &self.model);
        lay(&mut config.val_size, &self.val_size);
        if let Some(data) = sources(&self.data) {
            config.data = data;
        }
        lay(&mut config.images, &self.images);
        lay(&mut config.template, &self.template);
        lay(&mut config.max_length, &self.max_length);
        lay(&mut config.reward_scaling, &self.reward_scaling);
        lay(&mut config.alpha, &self.alpha);
        lay(&mut config.beta, &self.beta);
        lay(&mut config.learning_rate, &self.learning_rate);
        lay(&mut config.per_device_train_batch_size, &self.per_device_train_batch_size);
        lay(&mut config.gradient_accumulation_steps, &self.gradient_accumulation_steps);
        lay(&mut config.num_train_epochs, &self.num_train_epochs);
        lay(&mut config.max_steps, &self.max_steps);
        lay(&mut config.save_steps, &self.save_steps);
        lay(&mut config.eval_steps, &self.eval_steps);
        lay(&mut config.seed, &self.seed);
        config.tokenizer = self.tokenizer.clone().or(config.tokenizer);
        config.ref_model = self.ref_model.clone().or(config.ref_model);
        config.clip = self.clip.clone().or(config.clip);
        config.eval_data = sources(&self.eval_data).or(config.eval_data);
        if !self.loss_type.is_empty() {
            config.loss_type.clone_from(&self.loss_type);
        }
        if let Some(on_fault) = &self.on_fault {
            config.on_fault = if on_fault == "skip" { OnFault::Skip } else { OnFault::Stop };
        }
        config = set(config, &self.set)?;
        config.cache_dir = config.cache_dir.or_else(user_cache);
        config.output_dir = match &self.out {
            Some(out) => out.clone(),
            None if config.output_dir.as_os_str().is_empty() => folder(name, self.resume),
            None => config.output_dir,
        };
        crate::hub::fetch(&mut config)?;
        self.check(&config)?;
        Ok(config)
    }

    fn check(&self, config: &TrainConfig) -> Result<(), Failure> {
        if config.objective()?.aspo().is_none() {
            let given = [("scaling", self.reward_scaling.is_some()), ("alpha", self.alpha.is_some())];
            if let Some((option, _)) = given.into_iter().find(|(_, given)| *given) {
                let losses = config.loss_type.join(" + ");
                return Err(format!("option `{option}`: {losses} weighs no sentences; leave it out").into());
            }
        }
        #[cfg(feature = "tui")]
        if self.tui && !std::io::IsTerminal::is_terminal(&std::io::stdout()) {
            return Err("option `tui`: standard output is not a terminal; leave it out".into());
        }
        config.validate()?;
        check_paths(config)?;
        let folders = [Some(&config.model), config.ref_model.as_ref(), config.clip.as_ref()];
        folders.into_iter().flatten().try_for_each(|folder| check_processor(folder))?;
        Ok(())
    }
}

fn sources(paths: &[PathBuf]) -> Option<Sources> {
    (!paths.is_empty()).then(|| Sources(paths.iter().map(|path| path.as_path().into()).collect()))
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

/// The first of `out/NAME-N` that is not there, or the last that is.
fn folder(name: &str, last: bool) -> PathBuf {
    let folder = |number: usize| Path::new("out").join(format!("{name}-{number}"));
    let free = (1..).find(|&number| !folder(number).exists()).unwrap_or(1);
    folder(if last { free.saturating_sub(1).max(1) } else { free })
}
