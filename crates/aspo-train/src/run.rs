//! The run itself: steps, checkpoints, metrics.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_data::EncodedPair;
use aspo_data::order::Order;
use aspo_models::lora::{attach, load_adapter, save_adapter};
use aspo_models::{Adapter, stable_ids};
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn::tensor::backend::Backend;

use crate::checkpoint::{self, TrainerState};
use crate::config::{OnNonFinite, TrainConfig};
use crate::error::{Error, Result};
use crate::metric::{MetricFile, MetricLine, Window, keep_lines};
use crate::policy::{Policy, check_targets};
use crate::prepare::Data;
use crate::replica::Replica;
use crate::sample::Sample;
use crate::schedule::warmup_steps;
use crate::team::Team;
use crate::tensorboard::EventFile;

/// Prompts that are answered every `eval_steps`.
const SAMPLES: usize = 3;

/// What a step did, for whoever watches.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// Of this step, by TRL's names.
    pub values: MetricLine,
    /// Pairs of this step.
    pub pairs: usize,
    /// Answer tokens of this step.
    pub tokens: usize,
    /// Since this process began its first step.
    pub seconds: f64,
    /// Steps done by this process.
    pub done_here: usize,
}

/// A finished run.
#[derive(Debug)]
pub struct Finished<M> {
    /// The policy, adapter attached.
    pub model: M,
    /// Folder of the PEFT adapter.
    pub adapter: PathBuf,
    /// Steps done, those before a resume included.
    pub steps: usize,
    /// Steps left out.
    pub skipped_steps: usize,
    /// Seconds of training of this process.
    pub seconds: f64,
}

/// Trains the adapter of `base` by the config's loss on one device. With `resume`, goes on from the newest whole
/// checkpoint of the output folder. `watch` is called after every step, `warn` with what was found wrong but could be got
/// around.
///
/// # Errors
/// An output folder that holds another run or is written by one; a model in another precision than `bf16` says; anything wrong with pictures, tokens or numbers; a full disk. Checkpoints
/// written before stay whole.
pub fn train<B: Backend, M: Policy<B>>(
    config: &TrainConfig,
    base: M,
    data: &Data,
    resume: bool,
    device: &B::Device,
    watch: impl FnMut(&StepReport),
    warn: impl FnMut(&str),
) -> Result<Finished<M>> {
    train_on::<B, M>(config, base, data, resume, std::slice::from_ref(device), watch, warn)
}

/// As [`train`], on several devices of one process, of which the first is the one that `base` is on. They share the
/// micro-batches of each step, so that the run is the same on any number of devices but for the rounding of sums, and may
/// be resumed on another number. (TRL's `gradient_accumulation_steps` counts the forward passes of each device, ours those
/// of all.)
///
/// Every device holds the whole model, its own moments and features, and a copy of `ref_model`. More than one needs the
/// feature `collective`.
///
/// # Errors
/// As [`train`]. No device, more devices than micro-batches of a step, dropout with several devices.
pub fn train_on<B: Backend, M: Policy<B>>(
    config: &TrainConfig,
    base: M,
    data: &Data,
    resume: bool,
    devices: &[B::Device],
    mut watch: impl FnMut(&StepReport),
    mut warn: impl FnMut(&str),
) -> Result<Finished<M>> {
    config.validate()?;
    check_devices(config, devices.len())?;
    let first = &devices[0];
    if (base.head().dtype() == DType::BF16) != config.bf16 {
        let remedy = "load the model with `TrainConfig::load_options`";
        return Err(Error::option("bf16", format!("{}, but the model is not so", config.bf16), remedy));
    }
    check_output(config, resume)?;
    let _ours = lock(&config.output_dir)?;
    let (state, start) = Start::<M>::new::<B>(config, base, data, resume, &mut warn)?;
    let checkpoint = start.checkpoint.as_deref();
    let replica = Replica::<B, M>::new(config, data, start.model, checkpoint, first)?;
    let run = Run { config, data, total: config.total_steps(data.pairs.len()), adapter: start.adapter };
    #[cfg(feature = "collective")]
    if devices.len() > 1 {
        use crate::devices::{Others, only_run};
        let copies = devices[1..].iter().map(|device| replica.fork(checkpoint, device));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let _only = only_run();
        return std::thread::scope(|scope| {
            let team = Team { others: Some(Others::start(scope, copies, first)?) };
            run.steps(&team, replica, state, start.checkpoint.clone(), &mut watch)
        });
    }
    run.steps(&Team::default(), replica, state, start.checkpoint.clone(), &mut watch)
}

/// Refuses an output folder that holds a run if one is to begin there, or holds none if one is to go on.
///
/// # Errors
/// That, a folder that is not named or cannot be read.
pub fn check_output(config: &TrainConfig, resume: bool) -> Result<()> {
    let folder = config.output_dir.as_path();
    if folder.as_os_str().is_empty() {
        return Err(Error::option("output_dir", "not given", "name the folder that the run is written to"));
    }
    let begun = !checkpoint::list(folder)?.is_empty();
    if !resume && (begun || folder.join("adapter").exists()) {
        let remedy = "give `--resume` to go on, or another output folder";
        return Err(Error::option("output_dir", format!("{} holds a run", folder.display()), remedy));
    }
    if resume && !begun {
        let why = "no checkpoint to resume from; start the run without `--resume`";
        return Err(Error::stored(folder, why));
    }
    Ok(())
}

/// The output folder, made if it is not there, for this process alone until the file is dropped.
fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let path = folder.join(".lock");
    let file = File::create(&path).map_err(|source| Error::io(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let found = format!("{} is written by another run", folder.display());
            Err(Error::option("output_dir", found, "wait for it to end, or give another folder"))
        }
        Err(TryLockError::Error(source)) => Err(Error::io(&path, source)),
    }
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

/// What stays the same from step to step.
struct Run<'a> {
    config: &'a TrainConfig,
    data: &'a Data,
    total: usize,
    adapter: Adapter,
}

impl Run<'_> {
    /// All steps that are left, then the adapter's folder.
    fn steps<'r, B: Backend, M: Policy<B>>(
        &self,
        team: &Team<B>,
        mut replica: Replica<'r, B, M>,
        mut state: TrainerState,
        mut newest: Option<PathBuf>,
        watch: &mut impl FnMut(&StepReport),
    ) -> Result<Finished<M>> {
        let Self { config, data, total, ref adapter } = *self;
        let folder = config.output_dir.as_path();
        let lengths: Vec<usize> = data.pairs.iter().map(EncodedPair::length).collect();
        let mut order = Order::new(&lengths, config.global_batch(), 1, config.seed)?;
        (0..state.step + state.skipped_steps).for_each(|_| drop(order.next_batch()));
        let per_epoch = order.batches_per_epoch();
        let metrics = MetricFile::open(folder, state.step)?;
        if config.eval_steps > 0 {
            keep_lines(&folder.join("samples.jsonl"), state.step)?;
        }
        let mut events = EventFile::create(folder, state.step)?;

        let begin = Instant::now();
        let first = state.step;
        while state.step < total {
            let step = state.step;
            let pairs = order.next_batch();
            let named = newest.as_ref().map_or("none yet".to_owned(), |path| path.display().to_string());
            let outcome = team.gradients(&mut replica, &pairs, step + 1, &named);
            let done = match outcome {
                Err(Error::NotFinite { .. }) if config.on_non_finite == OnNonFinite::Skip => {
                    state.skipped_steps += 1;
                    if state.skipped_steps > total {
                        outcome?;
                    }
                    continue;
                }
                outcome => outcome?,
            };
            // Hugging Face's schedulers give step 0 a rate of 0; ours counts from 1, so that no step is wasted.
            let warmup = warmup_steps(total, config.warmup_ratio);
            let rate = config.lr_scheduler_type.rate(config.learning_rate, step + 1, warmup, total + 1);
            replica = team.apply(replica, rate, done.gradients);
            state.step += 1;

            let count = pairs.len() as f64;
            let mut values: Vec<(String, f64)> =
                done.metrics.iter().map(|(name, mean)| (name.to_owned(), mean)).collect();
            values.push(("grad_norm".into(), done.norm));
            for (name, mean) in &values {
                state.window.add(name, *mean, count);
            }
            let also = [
                ("learning_rate".to_owned(), rate),
                ("epoch".to_owned(), state.step as f64 / per_epoch as f64),
                ("aspo/skipped_steps".to_owned(), state.skipped_steps as f64),
            ];
            if state.step.is_multiple_of(config.logging_steps) || state.step == total {
                let mut line = state.window.take();
                line.extend(also.clone());
                let line = MetricLine { step: state.step, values: line };
                metrics.append(&line)?;
                events.append(&line)?;
            }
            if config.eval_steps > 0 && state.step.is_multiple_of(config.eval_steps) {
                let shown = &data.pairs[..data.pairs.len().min(SAMPLES)];
                let (plain, features) = (replica.policy.valid(), &mut replica.features);
                let samples =
                    Sample::of(&plain, &data.encoder, shown, state.step, features, &replica.device)?;
                samples.iter().try_for_each(|sample| sample.append(folder))?;
                if !data.held_out.is_empty() {
                    let (means, skipped) = replica.evaluate(state.step, &named)?;
                    let skipped = std::iter::once(("aspo/skipped_pairs", skipped as f64));
                    let values = means.iter().chain(skipped);
                    let values = values.map(|(name, mean)| (format!("eval_{name}"), mean)).collect();
                    let line = MetricLine { step: state.step, values };
                    metrics.append(&line)?;
                    events.append(&line)?;
                }
            }
            let due = config.save_steps > 0 && state.step.is_multiple_of(config.save_steps);
            if due || state.step == total {
                let (record, limit) = (replica.record(), config.save_total_limit);
                let model = &replica.policy;
                let path =
                    checkpoint::save::<Autodiff<B>, M, _>(folder, model, adapter, record, &state, limit)?;
                newest = Some(path);
            }
            values.extend(also);
            watch(&StepReport {
                step: state.step,
                total,
                values: MetricLine { step: state.step, values: values.into_iter().collect() },
                pairs: pairs.len(),
                tokens: done.tokens,
                seconds: begin.elapsed().as_secs_f64(),
                done_here: state.step - first,
            });
        }
        let path = folder.join("adapter");
        save_adapter(&replica.policy, adapter, &path)?;
        Ok(Finished {
            model: replica.policy,
            adapter: path,
            steps: state.step,
            skipped_steps: state.skipped_steps,
            seconds: begin.elapsed().as_secs_f64(),
        })
    }
}

/// Where a run begins: fresh, or at a checkpoint.
struct Start<M> {
    model: M,
    adapter: Adapter,
    checkpoint: Option<PathBuf>,
}

impl<M> Start<M> {
    fn new<B: Backend>(
        config: &TrainConfig,
        base: M,
        data: &Data,
        resume: bool,
        warn: &mut impl FnMut(&str),
    ) -> Result<(TrainerState, Self)>
    where
        M: Policy<B>,
    {
        let folder = config.output_dir.as_path();
        let base = base.no_grad();
        if !resume {
            let lora = config.lora_config();
            let mut model = stable_ids(attach(base, &lora, config.seed)?);
            check_targets(&mut model)?;
            let adapter = Adapter::from(lora);
            let state = TrainerState {
                step: 0,
                skipped_steps: 0,
                window: Window::default(),
                config: config.clone(),
                data: data.hash.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            return Ok((state, Start { model, adapter, checkpoint: None }));
        }
        let (path, mut state, faults) = checkpoint::newest(folder)?;
        faults.iter().for_each(|fault| warn(&fault.to_string()));
        fits(config, data, &path, &state)?;
        state.config = config.clone();
        checkpoint::sweep(folder)?;
        let (model, adapter) = load_adapter(base, &path)?;
        let model = stable_ids(model);
        Ok((state, Start { model, adapter, checkpoint: Some(path) }))
    }
}

/// Refuses to go on with other options or data: the run would be neither the old nor a new one.
fn fits(config: &TrainConfig, data: &Data, path: &Path, state: &TrainerState) -> Result<()> {
    // What may change from one process to the next.
    let same = |config: &TrainConfig| TrainConfig {
        output_dir: PathBuf::new(),
        eval_data: None,
        eval_steps: 0,
        save_steps: 0,
        save_total_limit: 0,
        on_non_finite: OnNonFinite::Stop,
        ..config.clone()
    };
    // Through text, as the stored ones have gone: the last digit of a number may not come back.
    let options = |config: &TrainConfig| -> serde_json::Map<String, serde_json::Value> {
        let text = serde_json::to_string(&same(config)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let (old, new) = (options(&state.config), options(config));
    let changed = old.keys().chain(new.keys()).find(|key| old.get(*key) != new.get(*key));
    if let Some(key) = changed {
        let show = |options: &serde_json::Map<String, serde_json::Value>| match options.get(key) {
            None | Some(serde_json::Value::Null) => "not set".to_owned(),
            Some(value) => value.to_string(),
        };
        let why = format!("was made with `{key}` = {}, now {}; resume with the same", show(&old), show(&new));
        return Err(Error::stored(path, why));
    }
    if state.data != data.hash {
        return Err(Error::stored(
            path,
            "was made with other pairs or scores; resume with the same data, CLIP and device",
        ));
    }
    Ok(())
}
