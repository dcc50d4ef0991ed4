//! The policy on one device: its share of a step's gradients, and the step itself.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use aspo_data::EncodedPair;
use aspo_loss::{ChunkOptions, Metrics, Objective, Totals};
use aspo_models::lora::without_adapters;
use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;

use crate::adamw::{Adam, Moments};
use crate::batcher::Batcher;
use crate::checkpoint;
use crate::config::{OnNonFinite, TrainConfig};
use crate::error::{Error, Result};
use crate::feature_file::FeatureFile;
use crate::features::VisionFeatures;
use crate::optimize::{Share, gather};
use crate::policy::Policy;
use crate::ranks::Ranks;
use crate::read::Data;
use crate::reference::{self, ReferenceRows};
use crate::reference_model::ReferenceModel;
use crate::sample::Sample;
use crate::step::{self, ReferenceRow, totals};
use crate::team::merged;

/// Where the reference's log-probabilities come from.
enum Reference<B: Backend, P> {
    /// Nowhere: the loss has none.
    None,
    /// The policy with its adapter off.
    AdapterOff,
    /// A second checkpoint.
    Model(Box<ReferenceModel<B, P>>),
    /// Known before the first step.
    Cached(Arc<ReferenceRows>),
    /// The pairs bring it.
    Given,
}

/// Policy, optimiser and reference on one device.
pub(crate) struct Replica<'a, B: Backend, M: Policy<B>> {
    pub config: &'a TrainConfig,
    pub policy: M,
    batcher: Batcher<B>,
    objective: Objective,
    data: &'a Data,
    optimizer: Adam<B, M>,
    reference: Reference<B, M::Plain>,
    /// The reference's log-probabilities of [its own](Self::own_held_out) pairs held out, if the loss has a reference.
    held_out: Vec<Vec<ReferenceRow>>,
}

impl<'a, B: Backend, M: Policy<B>> Replica<'a, B, M> {
    /// The policy, adapter attached, with the optimiser of a `checkpoint`, if any.
    ///
    /// # Errors
    /// A reference that cannot be loaded or does not fit, a cache of another one.
    pub fn new(
        config: &'a TrainConfig,
        data: &'a Data,
        policy: M,
        checkpoint: Option<&Path>,
        device: &B::Device,
        ranks: &Ranks,
    ) -> Result<Self> {
        let mut replica = Self::with(config, data, policy, Reference::None, checkpoint, device)?;
        if config.cache_vision_features {
            let loader = replica.batcher.features.loader.clone();
            let file = FeatureFile::open(ranks, config, data, &loader, &replica.policy.valid(), device)?;
            replica.batcher.features.file = Some(file);
        }
        if !replica.objective.needs_reference() {
            return Ok(replica);
        }
        let caches = config.caches_reference(data.pairs.len());
        // A second checkpoint is read only if it has something to say, to whichever process.
        let kept = caches && ReferenceRows::open(config, data)?.is_some();
        let asked = !ranks.gather(kept).into_iter().all(|kept| kept) || !data.held_out.is_empty();
        let second = config.ref_model.as_ref().filter(|_| asked);
        replica.reference = match second {
            Some(folder) => Reference::Model(Box::new(replica.second(folder)?)),
            None => Reference::AdapterOff,
        };
        let size = config.per_device_train_batch_size;
        for part in replica.own_held_out(ranks) {
            let rows = replica.live(&data.held_out.get_all(part)?)?;
            replica.held_out.push(rows);
        }
        if config.gives_reference() {
            let first = data.pairs.get_all(0..data.pairs.len().min(size))?;
            let rows = replica.live(&first)?;
            reference::check_given(&first, &rows)?;
            replica.reference = Reference::Given;
        }
        if caches {
            let rows = ranks.share(
                |part| replica.live(&data.pairs.get_all(part)?),
                |hand_out| {
                    ReferenceRows::open_or(config, data, |writer| {
                        let parts = parts(writer.len()..data.pairs.len(), size);
                        for some in parts.chunks(ranks.size()) {
                            let rows = hand_out(some.to_vec())?;
                            rows.iter().try_for_each(|rows| reference::add(writer, rows))?;
                        }
                        Ok(())
                    })
                },
            )?;
            replica.reference = Reference::Cached(Arc::new(rows));
        }
        Ok(replica)
    }

    fn with(
        config: &'a TrainConfig,
        data: &'a Data,
        policy: M,
        reference: Reference<B, M::Plain>,
        checkpoint: Option<&Path>,
        device: &B::Device,
    ) -> Result<Self> {
        let moments = match checkpoint {
            Some(checkpoint) => checkpoint::optimizer::<Autodiff<B>, Moments<B, M>>(checkpoint, device)?,
            None => Moments::<B, M>::default(),
        };
        let pad = data.encoder.tokenizer.pad();
        Ok(Self {
            config,
            batcher: Batcher::new(config, &config.model, policy.image_size(), pad, device)?,
            policy,
            objective: config.objective()?,
            data,
            optimizer: Adam::new(config, moments),
            reference,
            held_out: Vec::new(),
        })
    }

    /// Gradients of the loss of a step over `totals`, as far as they come from these `parts`, each of them a micro-batch; not
    /// clipped.
    ///
    /// # Errors
    /// As [`accumulate`](crate::accumulate).
    pub fn share(
        &mut self,
        parts: &[&[usize]],
        totals: Totals,
        step: usize,
        checkpoint: &str,
    ) -> Result<Share> {
        let (config, data) = (self.config, self.data);
        let plain = self.policy.valid();
        let without = without_adapters(&plain);
        if config.lora.lora_dropout > 0.0 {
            // A backend does not tell its random state: that of each step follows from seed and step instead.
            B::seed(&self.batcher.device, config.seed.rotate_left(32) ^ step as u64);
        }
        let chunk = ChunkOptions::of::<B>(&self.batcher.device);
        let (batcher, reference) = (&mut self.batcher, &mut self.reference);
        let batches = parts.iter().map(|part| {
            let pairs = data.pairs.get_all(part.iter().copied())?;
            let rows: Vec<&EncodedPair> = pairs.iter().collect();
            let batch = batcher.batch(&rows, &plain)?;
            let known = match reference {
                Reference::None => None,
                Reference::AdapterOff => {
                    Some(step::Reference::Live(batch.reference_log_probs(&without, &chunk)?))
                }
                Reference::Model(model) => Some(step::Reference::Live(model.log_probs(&rows)?)),
                Reference::Given => {
                    Some(step::Reference::Rows(rows.iter().map(|pair| reference::given(pair)).collect()))
                }
                Reference::Cached(cache) => {
                    let rows = part.iter().map(|&index| cache.row(index));
                    Some(step::Reference::Rows(rows.collect::<Result<_>>()?))
                }
            };
            Ok((batch, known))
        });
        gather(&self.policy, batches, totals, config, &self.objective, step, checkpoint)
    }

    /// Answers to the prompts of `pairs` after `step` steps.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn samples(&mut self, pairs: &[EncodedPair], step: usize) -> Result<Vec<Sample>> {
        let (plain, Batcher { features, device, .. }) = (self.policy.valid(), &mut self.batcher);
        Sample::of(&plain, &self.data.encoder, pairs, step, features, device)
    }

    /// What the thread that makes pictures ready goes by, and gives.
    pub fn features(&mut self) -> &mut VisionFeatures {
        &mut self.batcher.features
    }

    /// Tokens of a pair.
    pub fn length(&self, pair: usize) -> usize {
        self.data.pairs.length(pair)
    }

    /// What the loss of a step over these pairs is averaged over.
    ///
    /// # Errors
    /// Pairs that cannot be read.
    pub fn totals(&self, pairs: &[usize]) -> Result<Totals> {
        Ok(totals(&self.data.pairs.get_all(pairs.iter().copied())?))
    }

    /// The optimiser's step.
    pub fn apply(mut self, rate: f64, gradients: GradientsParams) -> Self {
        self.policy = self.optimizer.step(rate, self.policy, gradients);
        self
    }

    /// The moments, for a checkpoint.
    pub fn record(&self) -> Moments<B, M> {
        self.optimizer.moments.clone()
    }

    fn second(&self, folder: &Path) -> Result<ReferenceModel<B, M::Plain>> {
        ReferenceModel::load(self.config, folder, &self.policy.valid(), self.data, &self.batcher.device)
    }

    /// The live reference's log-probabilities of some pairs.
    fn live(&mut self, pairs: &[EncodedPair]) -> Result<Vec<ReferenceRow>> {
        let pairs: Vec<&EncodedPair> = pairs.iter().collect();
        let chunk = ChunkOptions::of::<B>(&self.batcher.device);
        match &mut self.reference {
            Reference::Model(model) => model.rows(&pairs),
            _ => {
                let without = without_adapters(&self.policy.valid());
                self.batcher.batch(&pairs, &without)?.reference(&without, &chunk)
            }
        }
    }

    /// The batches of pairs held out that are this process's.
    fn own_held_out(&self, ranks: &Ranks) -> Vec<Range<usize>> {
        let all = parts(0..self.data.held_out.len(), self.config.per_device_train_batch_size);
        all.into_iter().skip(ranks.rank()).step_by(ranks.size()).collect()
    }

    /// Means over the pairs held out, by TRL's names, and the pairs left out of them because the loss of their batch is not
    /// finite and such are skipped. `step` and `checkpoint` are for the message.
    ///
    /// # Errors
    /// A picture that cannot be had, a loss that is not finite (unless such are skipped).
    pub fn evaluate(&mut self, ranks: &Ranks, step: usize, checkpoint: &str) -> Result<(Metrics, usize)> {
        merged(ranks, self.evaluate_own(ranks, step, checkpoint), step, checkpoint)
    }

    /// The same of this rank's share of them.
    fn evaluate_own(&mut self, ranks: &Ranks, step: usize, checkpoint: &str) -> Result<(Metrics, usize)> {
        let plain = self.policy.valid();
        let (mut metrics, mut skipped) = (Metrics::default(), 0);
        let chunk = ChunkOptions::of::<B>(&self.batcher.device);
        for (at, part) in self.own_held_out(ranks).into_iter().enumerate() {
            let pairs = self.data.held_out.get_all(part)?;
            let rows: Vec<&EncodedPair> = pairs.iter().collect();
            let batch = self.batcher.batch(&rows, &plain)?;
            let known = self.held_out.get(at).map(|rows| step::Reference::Rows(rows.clone()));
            let told = batch.evaluate(&plain, &self.objective, known.as_ref(), &chunk);
            let found = match &told {
                Err(Error::Loss(aspo_loss::Error::NotFinite { found, .. })) => Some(*found),
                Err(_) => None,
                // Any of them: a hinge makes 0 of a margin that is not a number.
                Ok(metrics) => metrics.iter().map(|(_, mean)| mean).find(|mean| !mean.is_finite()),
            };
            match found {
                Some(found) if self.config.on_non_finite == OnNonFinite::Stop => {
                    let (what, checkpoint) = ("loss of pairs held out", checkpoint.to_owned());
                    return Err(Error::NotFinite {
                        step,
                        what,
                        found,
                        pairs: batch.ids().to_vec(),
                        checkpoint,
                    });
                }
                Some(_) => skipped += pairs.len(),
                None => metrics.merge(&told?),
            }
        }
        Ok((metrics, skipped))
    }
}

/// A range in parts of `size`, the last of them what is left.
fn parts(range: Range<usize>, size: usize) -> Vec<Range<usize>> {
    range.clone().step_by(size).map(|start| start..range.end.min(start + size)).collect()
}
