//! The run itself: steps, checkpoints, metrics.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_data::EncodedPair;
use aspo_data::order::Order;
use aspo_models::Adapter;
use aspo_models::lora::save_adapter;
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn::tensor::backend::Backend;

use crate::checkpoint::{self, TrainerState};
use crate::config::{OnNonFinite, TrainConfig};
use crate::error::{Error, Result};
use crate::metric::{MetricFile, MetricLine, keep_lines};
use crate::output::Output;
use crate::policy::Policy;
use crate::read::Data;
use crate::replica::Replica;
use crate::sample::Sample;
use crate::schedule::warmup_steps;
use crate::start::Start;
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

/// A run that has ended, or was stopped.
#[derive(Debug)]
pub struct Finished<M> {
    /// The policy, adapter attached.
    pub model: M,
    /// Folder of the PEFT adapter: `adapter` of the output folder, or the last checkpoint of a run that was stopped.
    pub adapter: PathBuf,
    /// Steps done, those before a resume included.
    pub steps: usize,
    /// Steps in all: more than `steps` if the run was stopped.
    pub total: usize,
    /// Steps left out.
    pub skipped_steps: usize,
    /// Seconds of training, of all processes that had a part.
    pub seconds: f64,
}

impl<M> Finished<M> {
    /// Whether whoever watched stopped the run before its last step.
    pub fn stopped(&self) -> bool {
        self.steps < self.total
    }
}

/// Trains the adapter of `base` by the config's loss on one device: from its beginning, or from the checkpoint that
/// `output` was opened with. `watch` is called after every step; where it breaks off, a checkpoint is written and the run
/// ends there.
///
/// # Errors
/// Pairs or pictures other than the checkpoint's; a model in another precision than `bf16` says; anything wrong with
/// pictures, tokens or numbers; a full disk. Checkpoints written before stay whole.
pub fn train<B: Backend, M: Policy<B>>(
    config: &TrainConfig,
    base: M,
    data: &Data,
    output: &Output,
    device: &B::Device,
    watch: impl FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<Finished<M>> {
    train_on::<B, M>(config, base, data, output, std::slice::from_ref(device), watch)
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
    output: &Output,
    devices: &[B::Device],
    mut watch: impl FnMut(&StepReport) -> ControlFlow<()>,
) -> Result<Finished<M>> {
    config.validate()?;
    check_devices(config, devices.len())?;
    let first = &devices[0];
    if (base.head().dtype() == DType::BF16) != config.bf16 {
        let remedy = "load the model with `TrainConfig::load_options`";
        return Err(Error::option("bf16", format!("{}, but the model is not so", config.bf16), remedy));
    }
    let start = Start::new::<B>(config, base, data, output)?;
    let checkpoint = start.checkpoint.as_deref();
    let replica = Replica::<B, M>::new(config, data, start.model, checkpoint, first)?;
    let run = Run {
        config,
        data,
        folder: &config.output_dir,
        total: config.total_steps(data.pairs.len()),
        adapter: start.adapter,
    };
    #[cfg(feature = "collective")]
    if devices.len() > 1 {
        use crate::devices::{Others, only_run};
        let copies = devices[1..].iter().map(|device| replica.fork(checkpoint, device));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let _only = only_run();
        return std::thread::scope(|scope| {
            let team = Team { others: Some(Others::start(scope, copies, first)?) };
            run.steps(&team, replica, start.state, start.checkpoint.clone(), &mut watch)
        });
    }
    run.steps(&Team::default(), replica, start.state, start.checkpoint.clone(), &mut watch)
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
    folder: &'a Path,
    total: usize,
    adapter: Adapter,
}

/// The files that a run adds lines to.
struct Lines {
    metrics: MetricFile,
    events: EventFile,
}

impl Lines {
    fn append(&mut self, line: &MetricLine) -> Result<()> {
        self.metrics.append(line)?;
        self.events.append(line)
    }
}

impl Run<'_> {
    /// All steps that are left, then the adapter's folder.
    fn steps<'r, B: Backend, M: Policy<B>>(
        &self,
        team: &Team<B>,
        mut replica: Replica<'r, B, M>,
        mut state: TrainerState,
        mut newest: Option<PathBuf>,
        watch: &mut impl FnMut(&StepReport) -> ControlFlow<()>,
    ) -> Result<Finished<M>> {
        let Self { config, data, folder, total, .. } = *self;
        let lengths: Vec<usize> = data.pairs.iter().map(EncodedPair::length).collect();
        let mut order = Order::new(&lengths, config.global_batch(), 1, config.seed)?;
        (0..state.step + state.skipped_steps).for_each(|_| drop(order.next_batch()));
        let per_epoch = order.batches_per_epoch();
        let metrics = MetricFile::open(folder, state.step)?;
        if config.eval_steps > 0 {
            keep_lines(&folder.join("samples.jsonl"), state.step)?;
        }
        let mut lines = Lines { metrics, events: EventFile::create(folder, state.step)? };

        let (begin, before) = (Instant::now(), state.seconds);
        let first = state.step;
        let mut stopped = false;
        while state.step < total && !stopped {
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
                lines.append(&MetricLine { step: state.step, values: line })?;
            }
            if config.eval_steps > 0 && state.step.is_multiple_of(config.eval_steps) {
                self.look(&mut replica, state.step, &named, &mut lines)?;
            }
            state.seconds = before + begin.elapsed().as_secs_f64();
            let due = config.save_steps > 0 && state.step.is_multiple_of(config.save_steps);
            if due || state.step == total {
                newest = Some(self.save(&replica, &state)?);
            }
            values.extend(also);
            let report = StepReport {
                step: state.step,
                total,
                values: MetricLine { step: state.step, values: values.into_iter().collect() },
                pairs: pairs.len(),
                tokens: done.tokens,
                seconds: begin.elapsed().as_secs_f64(),
                done_here: state.step - first,
            };
            stopped = watch(&report).is_break() && state.step < total;
            if stopped && !due {
                newest = Some(self.save(&replica, &state)?);
            }
        }
        let adapter = match newest.filter(|_| stopped) {
            Some(checkpoint) => checkpoint,
            None => {
                let path = folder.join("adapter");
                save_adapter(&replica.policy, &self.adapter, &path)?;
                path
            }
        };
        Ok(Finished {
            model: replica.policy,
            adapter,
            steps: state.step,
            total: total.max(state.step),
            skipped_steps: state.skipped_steps,
            seconds: state.seconds,
        })
    }

    /// Answers of the learning model, and its loss on the pairs held out.
    fn look<B: Backend, M: Policy<B>>(
        &self,
        replica: &mut Replica<B, M>,
        step: usize,
        checkpoint: &str,
        lines: &mut Lines,
    ) -> Result<()> {
        let data = self.data;
        let shown = &data.pairs[..data.pairs.len().min(SAMPLES)];
        let (plain, features) = (replica.policy.valid(), &mut replica.features);
        let samples = Sample::of(&plain, &data.encoder, shown, step, features, &replica.device)?;
        samples.iter().try_for_each(|sample| sample.append(self.folder))?;
        if data.held_out.is_empty() {
            return Ok(());
        }
        let (means, skipped) = replica.evaluate(step, checkpoint)?;
        let skipped = std::iter::once(("aspo/skipped_pairs", skipped as f64));
        let values = means.iter().chain(skipped);
        let values = values.map(|(name, mean)| (format!("eval_{name}"), mean)).collect();
        lines.append(&MetricLine { step, values })
    }

    fn save<B: Backend, M: Policy<B>>(
        &self,
        replica: &Replica<B, M>,
        state: &TrainerState,
    ) -> Result<PathBuf> {
        let (record, limit) = (replica.record(), self.config.save_total_limit);
        checkpoint::save::<Autodiff<B>, M, _>(
            self.folder,
            &replica.policy,
            &self.adapter,
            record,
            state,
            limit,
        )
    }
}
