//! A run, put together: from a model and data, or from the paths that a config names.

use std::sync::Arc;

use aspo_kernels::on_cpu;
use aspo_models::{ModelConfig, Pretrained};
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn::tensor::backend::Backend;

use crate::callback::{Callback, Callbacks};
use crate::config::{LoraDtype, TrainConfig};
use crate::error::{Error, Result};
use crate::output::Output;
use crate::paths::check_paths;
use crate::policy::Policy;
use crate::ranks::Ranks;
use crate::read::{Data, read};
use crate::replica::Replica;
use crate::run::{Finished, Run};
use crate::score::score;
use crate::sight::Sight;
use crate::start::Start;

/// One preference-training run, ready to begin or to go on.
pub struct Trainer<'a, B: Backend, M: Policy<B>> {
    config: TrainConfig,
    model: M,
    data: Arc<Data>,
    output: Output,
    device: B::Device,
    ranks: Option<&'a Ranks>,
    callbacks: Callbacks<'a>,
}

impl<'a, B: Backend, M: Policy<B>> Trainer<'a, B, M> {
    /// Trains the adapter of `model`, which is on `device`, on `data` (whose pictures have been
    /// [looked at](Data::decode_pictures), and scored where the loss needs it) by the config's loss: from the beginning, or
    /// from the checkpoint that `output` was opened with.
    pub fn new(
        config: TrainConfig,
        model: M,
        data: impl Into<Arc<Data>>,
        output: Output,
        device: B::Device,
    ) -> Self {
        Self { config, model, data: data.into(), output, device, ranks: None, callbacks: Vec::new() }
    }

    /// The same from the config's paths: checks them, opens the output folder (to go on there with `resume`), reads the
    /// pairs, looks at every picture, scores sentences if the loss weighs them, and loads the model.
    ///
    /// # Errors
    /// The first option, file, row or picture that is not as it should be, by name.
    pub fn from_paths(config: TrainConfig, resume: bool, device: B::Device) -> Result<Self> {
        config.validate()?;
        check_paths(&config)?;
        let output = Output::open(&config, resume)?;
        let shape = <M as Pretrained<Autodiff<B>>>::Config::load(&config.model)?;
        // Nothing is allocated before it is used.
        let empty = M::from_config(&shape, &device);
        let mut data = read(&config, &Sight::of(&config, &empty)?)?;
        data.decode_pictures(&config, |_, _| ())?;
        let objective = config.objective()?;
        if objective.needs_similarity() {
            score::<B>(&config, &mut data, objective.needs_rejected_similarity(), &device)?;
        }
        let (model, _) = M::from_pretrained(&config.model, &config.load_options(), &device)?;
        Ok(Self::new(config, model, data, output, device))
    }

    /// Shares each step with the other `ranks`, so that the run is the same on any number of them but for the rounding of sums,
    /// and may be resumed on another number. (TRL's `gradient_accumulation_steps` counts the forward passes of each device, ours
    /// those of all.)
    ///
    /// Every rank holds the whole model, its own moments and features. The first writes files and calls the callbacks; what they
    /// ask for, all ranks do.
    pub fn with_ranks(mut self, ranks: &'a Ranks) -> Self {
        self.ranks = Some(ranks);
        self
    }

    /// Tells `callback` of every step, line and checkpoint, after those that were given before.
    pub fn with_callback(mut self, callback: impl Callback + 'a) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// The run's options.
    pub fn config(&self) -> &TrainConfig {
        &self.config
    }

    /// The run's pairs.
    pub fn data(&self) -> &Arc<Data> {
        &self.data
    }

    /// Does all steps that are left, or those until a callback stops the run.
    ///
    /// # Errors
    /// Options or devices that cannot be honoured; pairs or pictures other than the checkpoint's; a model in another
    /// precision than `bf16` says; anything wrong with pictures, tokens or numbers; a full disk. Checkpoints written before
    /// stay whole.
    pub fn train(self) -> Result<Finished<M>> {
        let Self { config, model, data, output, device, ranks, callbacks } = self;
        let alone = Ranks::alone();
        let ranks = ranks.unwrap_or(&alone);
        config.validate()?;
        check_ranks(&config, ranks.size())?;
        if config.lora_dtype == LoraDtype::Bf16 && on_cpu::<B>(&device) {
            let found = format!("bf16 on {}", B::name(&device));
            let remedy = "leave it out: a CPU has no such products, and would widen every weight for them";
            return Err(Error::option("lora_dtype", found, remedy));
        }
        if (model.head().dtype() == DType::BF16) != config.bf16 {
            let remedy = "load the model with `TrainConfig::load_options`";
            return Err(Error::option("bf16", format!("{}, but the model is not so", config.bf16), remedy));
        }
        let (config, data) = (&config, &*data);
        let start = Start::new::<B>(config, model, data, &output)?;
        let checkpoint = start.checkpoint.as_deref();
        let replica = Replica::<B, M>::new(config, data, start.model, checkpoint, &device, ranks)?;
        let start = (start.adapter, start.state, start.checkpoint);
        Run::new(config, data, output, ranks, start, callbacks)?.steps(replica)
    }
}

/// Refuses a number of processes that cannot share a step.
///
/// # Errors
/// More than one with dropout; more than there are micro-batches in a step.
pub fn check_ranks(config: &TrainConfig, count: usize) -> Result<()> {
    if count > config.gradient_accumulation_steps {
        let found = format!("{count} for {} forward passes a step", config.gradient_accumulation_steps);
        let remedy =
            "raise gradient_accumulation_steps, which counts those of all processes, to a multiple of them";
        return Err(Error::option("ranks", found, remedy));
    }
    if count > 1 && config.lora.lora_dropout > 0.0 {
        let found =
            format!("{count} with lora.lora_dropout above 0, whose masks would not follow from the seed");
        return Err(Error::option("ranks", found, "set lora.lora_dropout to 0, or train on one"));
    }
    Ok(())
}
