//! The loop: steps, what is told of them, checkpoints.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use aspo_data::order::Order;
use aspo_models::Adapter;
use aspo_models::lora::save_adapter;
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;

use crate::callback::{Callbacks, Control, StepReport};
use crate::checkpoint::{self, TrainerState};
use crate::config::{OnNonFinite, TrainConfig};
use crate::error::{Error, Result};
use crate::metric::MetricLine;
use crate::optimize::StepGradients;
use crate::output::Output;
use crate::policy::Policy;
use crate::prefetch::{self, Next};
use crate::ranks::Ranks;
use crate::read::Data;
use crate::recorder::{MetricFile, SampleFile};
use crate::replica::Replica;
use crate::schedule::warmup_steps;
use crate::team;
use crate::tensorboard::EventFile;

/// Prompts that are answered every `eval_steps`.
const SAMPLES: usize = 3;

/// A run that has ended, or was stopped. Its folder is this process's until it is dropped.
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
    _output: Output,
}

impl<M> Finished<M> {
    /// Whether a callback stopped the run before its last step.
    pub fn stopped(&self) -> bool {
        self.steps < self.total
    }
}

/// A run under way.
pub(crate) struct Run<'a> {
    config: &'a TrainConfig,
    data: &'a Data,
    output: Output,
    ranks: &'a Ranks,
    adapter: Adapter,
    total: usize,
    order: Order,
    state: TrainerState,
    /// The newest checkpoint.
    newest: Option<PathBuf>,
    /// The run's own files first.
    callbacks: Callbacks<'a>,
    /// When this process began, with these steps and seconds done before.
    begin: (Instant, usize, f64),
}

impl<'a> Run<'a> {
    /// A run that goes on from `state`: what an interrupted process wrote of later steps is taken out of its files.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn new(
        config: &'a TrainConfig,
        data: &'a Data,
        output: Output,
        ranks: &'a Ranks,
        start: (Adapter, TrainerState, Option<PathBuf>),
        callbacks: Callbacks<'a>,
    ) -> Result<Self> {
        let (adapter, state, newest) = start;
        let lengths: Vec<usize> = (0..data.pairs.len()).map(|pair| data.pairs.length(pair)).collect();
        let mut order = Order::new(&lengths, config.global_batch(), 1, config.seed)?;
        (0..state.step + state.skipped_steps).for_each(|_| drop(order.next_batch()));
        let folder = config.output_dir.as_path();
        let mut all: Callbacks = Vec::new();
        // The first rank writes and tells.
        if ranks.is_first() {
            all.push(Box::new(MetricFile::open(folder, state.step)?));
            all.push(Box::new(EventFile::create(folder, state.step)?));
            if config.eval_steps > 0 {
                all.push(Box::new(SampleFile::open(folder, state.step)?));
            }
            all.extend(callbacks);
        }
        let total = config.total_steps(data.pairs.len());
        let begin = (Instant::now(), state.step, state.seconds);
        Ok(Self { config, data, output, ranks, adapter, total, order, state, newest, callbacks: all, begin })
    }

    /// All steps that are left, then the adapter's folder.
    ///
    /// # Errors
    /// As [`Trainer::train`](crate::Trainer::train).
    pub fn steps<B: Backend, M: Policy<B>>(mut self, mut replica: Replica<'_, B, M>) -> Result<Finished<M>> {
        let (loader, kept) = (replica.features().loader.clone(), replica.features().kept_keys.clone());
        let (order, pairs) = (self.order.clone(), &self.data.pairs);
        std::thread::scope(|scope| {
            let next = {
                let (ranks, batch) = (self.ranks, self.config.per_device_train_batch_size);
                prefetch::steps(scope, order, pairs, loader, kept, (ranks.rank(), ranks.size()), batch)
            };
            let stopped;
            (replica, stopped) = self.taken(replica, &next)?;
            self.end(replica.policy, stopped)
        })
    }

    fn taken<'r, B: Backend, M: Policy<B>>(
        &mut self,
        mut replica: Replica<'r, B, M>,
        next: &Receiver<Next>,
    ) -> Result<(Replica<'r, B, M>, bool)> {
        let mut stopped = false;
        while self.state.step < self.total && !stopped {
            let Next { pairs, ready } = next.recv().expect("steps follow one another without end");
            replica.features().ready = ready;
            let Some(done) = self.gradients(&mut replica, &pairs)? else { continue };
            let rate = self.rate();
            let StepGradients { gradients, metrics, norm, tokens } = done;
            replica = replica.apply(rate, gradients);
            self.state.step += 1;

            let mut values: Vec<(String, f64)> =
                metrics.iter().map(|(name, mean)| (name.to_owned(), mean)).collect();
            values.push(("grad_norm".into(), norm));
            let values = self.log(values, rate, pairs.len())?;
            if self.every(self.config.eval_steps) {
                self.look(&mut replica)?;
            }
            self.state.seconds = self.begin.2 + self.begin.0.elapsed().as_secs_f64();
            let due = self.every(self.config.save_steps) || self.state.step == self.total;
            if due {
                self.save(&replica)?;
            }
            let control = self.tell(values, pairs.len(), tokens);
            let control = self.agreed(control);
            stopped = control.should_training_stop && self.state.step < self.total;
            if (stopped || control.should_save) && !due {
                self.save(&replica)?;
            }
        }
        Ok((replica, stopped))
    }

    /// Whether something that is done every so many steps (0: never) is to be done now.
    fn every(&self, steps: usize) -> bool {
        steps > 0 && self.state.step.is_multiple_of(steps)
    }

    /// Gradients of the next step; none if it is left out because something is not finite.
    fn gradients<B: Backend, M: Policy<B>>(
        &mut self,
        replica: &mut Replica<'_, B, M>,
        pairs: &[usize],
    ) -> Result<Option<StepGradients>> {
        match team::gradients(self.ranks, replica, pairs, self.state.step + 1, &self.named()) {
            Err(fault @ Error::NotFinite { .. }) if self.config.on_non_finite == OnNonFinite::Skip => {
                self.state.skipped_steps += 1;
                if self.state.skipped_steps > self.total { Err(fault) } else { Ok(None) }
            }
            done => done.map(Some),
        }
    }

    /// The newest checkpoint, for messages.
    fn named(&self) -> String {
        self.newest.as_ref().map_or("none yet".to_owned(), |path| path.display().to_string())
    }

    /// Hugging Face's schedulers give step 0 a rate of 0; ours counts from 1, so that no step is wasted.
    fn rate(&self) -> f64 {
        let warmup = warmup_steps(self.total, self.config.warmup_ratio);
        let TrainConfig { lr_scheduler_type, learning_rate, .. } = *self.config;
        lr_scheduler_type.rate(learning_rate, self.state.step + 1, warmup, self.total + 1)
    }

    /// Adds a step's means to those since the last line, which is written when it is due. Gives all values of the step.
    fn log(&mut self, mut values: Vec<(String, f64)>, rate: f64, pairs: usize) -> Result<Vec<(String, f64)>> {
        for (name, mean) in &values {
            self.state.window.add(name, *mean, pairs as f64);
        }
        let also = [
            ("learning_rate".to_owned(), rate),
            ("epoch".to_owned(), self.state.step as f64 / self.order.batches_per_epoch() as f64),
            ("aspo/skipped_steps".to_owned(), self.state.skipped_steps as f64),
        ];
        if self.every(self.config.logging_steps) || self.state.step == self.total {
            let mut line = self.state.window.take();
            line.extend(also.clone());
            self.line(MetricLine { step: self.state.step, values: line })?;
        }
        values.extend(also);
        Ok(values)
    }

    fn line(&mut self, line: MetricLine) -> Result<()> {
        self.callbacks.iter_mut().try_for_each(|callback| callback.on_log(&line))
    }

    /// Answers of the learning model, and its loss on the pairs held out.
    fn look<B: Backend, M: Policy<B>>(&mut self, replica: &mut Replica<'_, B, M>) -> Result<()> {
        let (data, step) = (self.data, self.state.step);
        if self.ranks.is_first() {
            let samples = replica.samples(&data.pairs.get_all(0..data.pairs.len().min(SAMPLES))?, step)?;
            self.callbacks.iter_mut().try_for_each(|callback| callback.on_samples(&samples))?;
        }
        if data.held_out.is_empty() {
            return Ok(());
        }
        let (means, skipped) = replica.evaluate(self.ranks, step, &self.named())?;
        let skipped = std::iter::once(("aspo/skipped_pairs", skipped as f64));
        let values = means.iter().chain(skipped);
        let values = values.map(|(name, mean)| (format!("eval_{name}"), mean)).collect();
        self.line(MetricLine { step, values })
    }

    fn save<B: Backend, M: Policy<B>>(&mut self, replica: &Replica<'_, B, M>) -> Result<()> {
        if !self.ranks.is_first() {
            return Ok(());
        }
        let (folder, limit) = (&self.config.output_dir, self.config.save_total_limit);
        let (model, record) = (&replica.policy, replica.record());
        let path =
            checkpoint::save::<Autodiff<B>, M, _>(folder, model, &self.adapter, record, &self.state, limit)?;
        self.callbacks.iter_mut().for_each(|callback| callback.on_save(&path));
        self.newest = Some(path);
        Ok(())
    }

    /// Tells everybody of a step, and gives what they ask for.
    fn tell(&mut self, values: Vec<(String, f64)>, pairs: usize, tokens: usize) -> Control {
        let (step, (begin, first, _)) = (self.state.step, self.begin);
        let report = StepReport {
            step,
            total: self.total,
            values: MetricLine { step, values: values.into_iter().collect() },
            pairs,
            tokens,
            seconds: begin.elapsed().as_secs_f64(),
            done_here: step - first,
        };
        let mut control = Control::default();
        self.callbacks.iter_mut().for_each(|callback| callback.on_step_end(&report, &mut control));
        control
    }

    /// What the first rank was asked for, on all of them.
    fn agreed(&self, own: Control) -> Control {
        let all = self.ranks.gather((own.should_training_stop, own.should_save));
        let any = |of: fn(&(bool, bool)) -> bool| all.iter().any(of);
        Control { should_training_stop: any(|one| one.0), should_save: any(|one| one.1) }
    }

    fn end<B: Backend, M: Policy<B>>(self, model: M, stopped: bool) -> Result<Finished<M>> {
        let adapter = match self.newest.filter(|_| stopped) {
            Some(checkpoint) => checkpoint,
            None => {
                let path = self.config.output_dir.join("adapter");
                if self.ranks.is_first() {
                    save_adapter(&model, &self.adapter, &path)?;
                }
                path
            }
        };
        Ok(Finished {
            model,
            adapter,
            steps: self.state.step,
            total: self.total.max(self.state.step),
            skipped_steps: self.state.skipped_steps,
            seconds: self.state.seconds,
            _output: self.output,
        })
    }
}
