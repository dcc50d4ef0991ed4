//! A run, put together: from a model and data, or from the paths that a config names.

use std::sync::Arc;

use aspo_models::{ModelConfig, Pretrained};
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn::tensor::backend::Backend;

use crate::callback::{Callback, Callbacks};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::output::Output;
use crate::paths::check_paths;
use crate::policy::Policy;
use crate::read::{Data, read};
use crate::replica::Replica;
use crate::run::{Finished, Run};
use crate::score::score;
use crate::sight::Sight;
use crate::start::Start;
use crate::team::Team;

/// One preference-training run, ready to begin or to go on.
pub struct Trainer<'a, B: Backend, M: Policy<B>> {
    config: TrainConfig,
    model: M,
    data: Arc<Data>,
    output: Output,
    devices: Vec<B::Device>,
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
        Self { config, model, data: data.into(), output, devices: vec![device], callbacks: Vec::new() }
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

    /// On several devices of one process, of which the first is the one that the model is on. They share the micro-batches of
    /// each step, so that the run is the same on any number of devices but for the rounding of sums, and may be resumed on
    /// another number. (TRL's `gradient_accumulation_steps` counts the forward passes of each device, ours those of all.)
    ///
    /// Every device holds the whole model, its own moments and features, and a copy of `ref_model`. More than one needs the
    /// feature `collective`.
    pub fn with_devices(mut self, devices: Vec<B::Device>) -> Self {
        self.devices = devices;
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
        let Self { config, model, data, output, devices, callbacks } = self;
        config.validate()?;
        check_devices(&config, devices.len())?;
        if (model.head().dtype() == DType::BF16) != config.bf16 {
            let remedy = "load the model with `TrainConfig::load_options`";
            return Err(Error::option("bf16", format!("{}, but the model is not so", config.bf16), remedy));
        }
        let (config, data) = (&config, &*data);
        let start = Start::new::<B>(config, model, data, &output)?;
        let checkpoint = start.checkpoint.clone();
        let replica = Replica::<B, M>::new(config, data, start.model, checkpoint.as_deref(), &devices[0])?;
        let start = (start.adapter, start.state, start.checkpoint);
        let run = Run::new(config, data, output, start, callbacks)?;
        on_devices(run, replica, checkpoint.as_deref(), &devices[1..])
    }
}

/// The run's steps on the replica's device and `others`.
fn on_devices<B: Backend, M: Policy<B>>(
    run: Run,
    replica: Replica<B, M>,
    checkpoint: Option<&std::path::Path>,
    others: &[B::Device],
) -> Result<Finished<M>> {
    #[cfg(feature = "collective")]
    if !others.is_empty() {
        use crate::devices::{Others, only_run};
        let copies = others.iter().map(|device| replica.fork(checkpoint, device));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let _only = only_run();
        let first = replica.device().clone();
        return std::thread::scope(|scope| {
            let team = Team { others: Some(Others::start(scope, copies, &first)?) };
            run.steps(&team, replica)
        });
    }
    let _ = (checkpoint, others);
    run.steps(&Team::default(), replica)
}

/// Refuses a number of devices that cannot share a step.
///
/// # Errors
/// None; more than one without the feature `collective`, or with dropout; more than there are micro-batches in a step.
pub fn check_devices(config: &TrainConfig, count: usize) -> Result<()> {
    if count == 0 {
        return Err(Error::option("devices", "none given", "give one or more"));
    }
    if count > 1 && cfg!(not(feature = "collective")) {
        let remedy = "build aspo-train with the feature `collective`, or give one";
        return Err(Error::option("devices", count, remedy));
    }
    if count > config.gradient_accumulation_steps {
        let found = format!("{count} for {} forward passes a step", config.gradient_accumulation_steps);
        let remedy = "raise gradient_accumulation_steps, which counts those of all devices, to a multiple of the devices";
        return Err(Error::option("devices", found, remedy));
    }
    if count > 1 && config.lora.lora_dropout > 0.0 {
        let found =
            format!("{count} with lora.lora_dropout above 0, whose masks would not follow from the seed");
        return Err(Error::option("devices", found, "set lora.lora_dropout to 0, or train on one"));
    }
    Ok(())
}
