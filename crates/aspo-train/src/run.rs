//! The run itself: steps, checkpoints, metrics.

use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_data::order::Order;
use aspo_data::{EncodedPair, ImageLoader};
use aspo_loss::{ChunkOptions, Objective};
use aspo_models::lora::{attach, load_adapter, save_adapter, without_adapters};
use aspo_models::{Adapter, stable_ids};
use burn::backend::Autodiff;
use burn::optim::Optimizer;
use burn::tensor::backend::Backend;

use crate::checkpoint::{self, TrainerState};
use crate::config::{OnNonFinite, TrainConfig};
use crate::error::{Error, Result};
use crate::features::VisionFeatures;
use crate::metric::{MetricFile, MetricLine, Window, keep_lines};
use crate::optimize::{StepGradients, accumulate, adamw};
use crate::policy::Policy;
use crate::prepare::{Data, processor};
use crate::reference::{REFERENCE_FILE, ReferenceCache, ReferenceKey};
use crate::sample::Sample;
use crate::schedule::warmup_steps;
use crate::step::{MicroBatch, ReferenceRow};
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

/// Trains the adapter of `base` by the config's loss. With `resume`, goes on from the newest whole checkpoint of the
/// output folder. `watch` is called after every step, `warn` with what was found wrong but could be got around.
///
/// # Errors
/// An output folder that holds another run; anything wrong with pictures, tokens or numbers; a full disk. Checkpoints
/// written before stay whole.
pub fn train<B: Backend, M: Policy<B>>(
    config: &TrainConfig,
    base: M,
    data: &Data,
    resume: bool,
    device: &B::Device,
    mut watch: impl FnMut(&StepReport),
    mut warn: impl FnMut(&str),
) -> Result<Finished<M>> {
    config.validate()?;
    let objective = config.objective()?;
    let folder = config.output_dir.as_path();
    let total = config.total_steps(data.pairs.len());
    let mut start = Start::<M>::new::<B>(config, base, data, resume, &mut warn)?;
    let mut optimizer = adamw(config).init::<Autodiff<B>, M>();
    if let Some(checkpoint) = &start.checkpoint {
        let record = checkpoint::optimizer::<Autodiff<B>, _>(checkpoint, device)?;
        optimizer = optimizer.load_record(record);
    }
    let lengths: Vec<usize> = data.pairs.iter().map(EncodedPair::length).collect();
    let mut order = Order::new(&lengths, config.global_batch(), 1, config.seed)?;
    (0..start.state.step + start.state.skipped_steps).for_each(|_| drop(order.next_batch()));
    let per_epoch = order.batches_per_epoch();
    let size = start.model.image_size();
    let images = ImageLoader::new(&config.images, processor(&config.model, size)?)?;
    let mut work = Work {
        config,
        objective,
        data,
        features: VisionFeatures::new(images),
        reference: None,
        chunk: ChunkOptions::default(),
        device: device.clone(),
    };
    if config.precompute_ref_log_probs {
        work.precompute::<M>(&start.model)?;
    }
    let metrics = MetricFile::open(folder, start.state.step)?;
    if config.eval_steps > 0 {
        keep_lines(&folder.join("samples.jsonl"), start.state.step)?;
    }
    let mut events = EventFile::create(folder, start.state.step)?;

    let begin = Instant::now();
    let first = start.state.step;
    let mut newest = start.checkpoint.clone();
    while start.state.step < total {
        let step = start.state.step;
        let pairs = order.next_batch();
        let named = newest.as_ref().map_or("none yet".to_owned(), |path| path.display().to_string());
        let outcome = work.step(&start.model, &pairs, step + 1, &named);
        let done = match outcome {
            Err(Error::NotFinite { .. }) if config.on_non_finite == OnNonFinite::Skip => {
                start.state.skipped_steps += 1;
                if start.state.skipped_steps > total {
                    outcome?;
                }
                continue;
            }
            outcome => outcome?,
        };
        // Hugging Face's schedulers give step 0 a rate of 0; ours counts from 1, so that no step is wasted.
        let warmup = warmup_steps(total, config.warmup_ratio);
        let rate = config.lr_scheduler_type.rate(config.learning_rate, step + 1, warmup, total + 1);
        start.model = optimizer.step(rate, start.model, done.gradients);
        start.state.step += 1;

        let count = pairs.len() as f64;
        let mut values: Vec<(String, f64)> =
            done.metrics.iter().map(|(name, mean)| (name.to_owned(), mean)).collect();
        values.push(("grad_norm".into(), done.norm));
        for (name, mean) in &values {
            start.state.window.add(name, *mean, count);
        }
        let also = [
            ("learning_rate".to_owned(), rate),
            ("epoch".to_owned(), start.state.step as f64 / per_epoch as f64),
            ("aspo/skipped_steps".to_owned(), start.state.skipped_steps as f64),
        ];
        if start.state.step % config.logging_steps == 0 || start.state.step == total {
            let mut line = start.state.window.take();
            line.extend(also.clone());
            let line = MetricLine { step: start.state.step, values: line };
            metrics.append(&line)?;
            events.append(&line)?;
        }
        if config.eval_steps > 0 && start.state.step % config.eval_steps == 0 {
            let shown = &data.pairs[..data.pairs.len().min(SAMPLES)];
            let (plain, features) = (start.model.valid(), &mut work.features);
            let samples = Sample::of(&plain, &data.encoder, shown, start.state.step, features, device)?;
            samples.iter().try_for_each(|sample| sample.append(folder))?;
        }
        let due = config.save_steps > 0 && start.state.step % config.save_steps == 0;
        if due || start.state.step == total {
            let record = optimizer.to_record();
            let limit = config.save_total_limit;
            let path = checkpoint::save::<Autodiff<B>, M, _>(
                folder,
                &start.model,
                &start.adapter,
                record,
                &start.state,
                limit,
            )?;
            newest = Some(path);
        }
        values.extend(also);
        watch(&StepReport {
            step: start.state.step,
            total,
            values: MetricLine { step: start.state.step, values: values.into_iter().collect() },
            pairs: pairs.len(),
            tokens: done.tokens,
            seconds: begin.elapsed().as_secs_f64(),
            done_here: start.state.step - first,
        });
    }
    let adapter = folder.join("adapter");
    save_adapter(&start.model, &start.adapter, &adapter)?;
    Ok(Finished {
        model: start.model,
        adapter,
        steps: start.state.step,
        skipped_steps: start.state.skipped_steps,
        seconds: begin.elapsed().as_secs_f64(),
    })
}

/// Where a run begins: fresh, or at a checkpoint.
struct Start<M> {
    model: M,
    adapter: Adapter,
    state: TrainerState,
    checkpoint: Option<PathBuf>,
}

impl<M> Start<M> {
    fn new<B: Backend>(
        config: &TrainConfig,
        base: M,
        data: &Data,
        resume: bool,
        warn: &mut impl FnMut(&str),
    ) -> Result<Self>
    where
        M: Policy<B>,
    {
        let folder = config.output_dir.as_path();
        let base = base.no_grad();
        if !resume {
            if folder.join("adapter").exists() || !checkpoint::list(folder)?.is_empty() {
                let remedy = "give `--resume` to go on, or another output folder";
                return Err(Error::option("output_dir", format!("{} holds a run", folder.display()), remedy));
            }
            std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
            let lora = config.lora_config();
            let model = stable_ids(attach(base, &lora, config.seed)?);
            let adapter = Adapter::from(lora);
            let state = TrainerState {
                step: 0,
                skipped_steps: 0,
                window: Window::default(),
                config: config.clone(),
                data: data.hash.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
            };
            return Ok(Start { model, adapter, state, checkpoint: None });
        }
        let (path, state, faults) = checkpoint::newest(folder)?;
        faults.iter().for_each(|fault| warn(&fault.to_string()));
        fits(config, data, &path, &state)?;
        checkpoint::sweep(folder)?;
        let (model, adapter) = load_adapter(base, &path)?;
        let model = stable_ids(model);
        Ok(Start { model, adapter, state, checkpoint: Some(path) })
    }
}

/// Refuses to go on with other options or data: the run would be neither the old nor a new one.
fn fits(config: &TrainConfig, data: &Data, path: &Path, state: &TrainerState) -> Result<()> {
    // What may change from one process to the next.
    let same = |config: &TrainConfig| TrainConfig {
        output_dir: PathBuf::new(),
        eval_steps: 0,
        save_steps: 0,
        save_total_limit: 0,
        on_non_finite: OnNonFinite::Stop,
        ..config.clone()
    };
    let options = |config: &TrainConfig| match serde_json::to_value(same(config)) {
        Ok(serde_json::Value::Object(options)) => options,
        _ => Default::default(),
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
        return Err(Error::stored(path, "was made with other pairs or scores; resume with the same data"));
    }
    Ok(())
}

/// What every step needs.
struct Work<'a, B: Backend> {
    config: &'a TrainConfig,
    objective: Objective,
    data: &'a Data,
    features: VisionFeatures,
    reference: Option<ReferenceCache>,
    chunk: ChunkOptions,
    device: B::Device,
}

impl<B: Backend> Work<'_, B> {
    fn micro<P: aspo_models::VisionLanguageModel<B>>(
        &mut self,
        model: &P,
        pairs: &[usize],
    ) -> Result<MicroBatch<B>> {
        let rows: Vec<&EncodedPair> = pairs.iter().map(|&index| &self.data.pairs[index]).collect();
        let pad = self.data.encoder.tokenizer.pad();
        MicroBatch::new(&rows, self.config.pair_packing, pad, &mut self.features, model, &self.device)
    }

    /// Gradients of one optimiser step, clipped, not yet applied.
    fn step<M: Policy<B>>(
        &mut self,
        policy: &M,
        pairs: &[usize],
        step: usize,
        checkpoint: &str,
    ) -> Result<StepGradients> {
        let plain = policy.valid();
        let reference = without_adapters(&plain);
        let (config, objective) = (self.config, self.objective.clone());
        if config.lora.lora_dropout > 0.0 {
            // A backend does not tell its random state: that of each step follows from seed and step instead.
            B::seed(&self.device, config.seed.rotate_left(32) ^ step as u64);
        }
        let batches = pairs.chunks(config.per_device_train_batch_size).map(|part| {
            let batch = self.micro(&plain, part)?;
            let rows = self.reference_rows(&reference, &batch, part)?;
            Ok((batch, rows))
        });
        accumulate(policy, batches, pairs.len(), config, &objective, step, checkpoint)
    }

    fn reference_rows<P: aspo_models::VisionLanguageModel<B>>(
        &self,
        reference: &P,
        batch: &MicroBatch<B>,
        pairs: &[usize],
    ) -> Result<Option<Vec<ReferenceRow>>> {
        if !self.objective.needs_reference() {
            return Ok(None);
        }
        match &self.reference {
            Some(cache) => Ok(Some(pairs.iter().map(|&index| cache.row(index).clone()).collect())),
            None => batch.reference(reference, &self.chunk).map(Some),
        }
    }

    fn precompute<M: Policy<B>>(&mut self, policy: &M) -> Result<()> {
        let reference = without_adapters(&policy.valid());
        let key = ReferenceKey::new(self.config, self.data)?;
        let path = self.config.output_dir.join(REFERENCE_FILE);
        let mut cache = ReferenceCache::open(&path, &key)?;
        let missing: Vec<usize> = (cache.len()..self.data.pairs.len()).collect();
        for part in missing.chunks(self.config.per_device_train_batch_size) {
            let batch = self.micro(&reference, part)?;
            cache.extend(batch.reference(&reference, &self.chunk)?)?;
        }
        self.reference = Some(cache);
        Ok(())
    }
}
