//! The gradients of an optimiser step: those of its micro-batches summed and clipped.

use aspo_loss::{ChunkOptions, Metrics, Objective, Totals};
use burn::backend::Autodiff;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::grad_norm::{clip_by_norm, clip_grad_norm, grad_norm};
use crate::policy::Policy;
use crate::step::{MicroBatch, Reference};

/// What the micro-batches of one optimiser step add up to.
pub struct StepGradients {
    /// Of the adapter's factors, clipped.
    pub gradients: GradientsParams,
    /// Means over the pairs of the step, by TRL's names.
    pub metrics: Metrics,
    /// Global norm before clipping.
    pub norm: f64,
    /// Answer tokens of both sides.
    pub tokens: usize,
}

/// Gradients of the loss of a step over `totals`, which `batches` brings in parts of any size: eight of one give what one
/// of eight gives. Batches are made one at a time. `step` (from 1) and `checkpoint` are for the message if something is
/// not finite.
///
/// # Errors
/// [`Error::NotFinite`] names the pairs of the micro-batch whose loss, or of the step whose gradient is no number; else
/// what pictures, model or loss refuse.
pub fn accumulate<B: Backend, M: Policy<B>>(
    policy: &M,
    batches: impl IntoIterator<Item = Result<(MicroBatch<B>, Option<Reference<B>>)>>,
    totals: Totals,
    config: &TrainConfig,
    objective: &Objective,
    step: usize,
    checkpoint: &str,
) -> Result<StepGradients> {
    gather(policy, batches, totals, config, objective, step, checkpoint)?
        .clipped::<B, M>(policy, config, step, checkpoint)
}

/// What some of a step's micro-batches add up to.
pub(crate) struct Share {
    /// Not clipped.
    pub gradients: GradientsParams,
    pub metrics: Metrics,
    pub tokens: usize,
    /// Ids of the pairs.
    pub ids: Vec<String>,
    /// Of these gradients, where it is known.
    pub norm: Option<f64>,
}

/// The sum before clipping: see [`accumulate`].
pub(crate) fn gather<B: Backend, M: Policy<B>>(
    policy: &M,
    batches: impl IntoIterator<Item = Result<(MicroBatch<B>, Option<Reference<B>>)>>,
    totals: Totals,
    config: &TrainConfig,
    objective: &Objective,
    step: usize,
    checkpoint: &str,
) -> Result<Share> {
    let not_finite = |found, pairs: &[String]| {
        let (pairs, checkpoint) = (pairs.to_vec(), checkpoint.to_owned());
        Err(Error::NotFinite { step, what: "loss", found, pairs, checkpoint })
    };
    let chunk = ChunkOptions::of::<B>(&policy.head().device());
    let mut sum = GradientsAccumulator::<M>::new();
    let (mut unread, mut tokens) = (Vec::new(), 0);
    for batch in batches {
        let (batch, reference) = batch?;
        let recompute = config.gradient_checkpointing;
        let output = batch.step(policy, objective, reference.as_ref(), totals, recompute, &chunk)?;
        tokens += output.tokens;
        unread.push((output.unread, batch.ids().to_vec()));
        sum.accumulate(policy, output.gradients);
    }
    // All backward passes are queued: now everything is read, in one piece.
    let gradients = sum.grads();
    let norm = grad_norm::<Autodiff<B>, M>(policy, &gradients);
    let values = unread.iter().map(|(unread, _)| unread.values().inner());
    let values: Vec<Tensor<B, 1>> = values.chain(norm.map(|norm| norm.cast(DType::F32))).collect();
    let values: Vec<f32> = match values.is_empty() {
        true => Vec::new(),
        false => Tensor::cat(values, 0).into_data().iter::<f32>().collect(),
    };
    let mut rest = values.as_slice();
    let (mut metrics, mut ids) = (Metrics::default(), Vec::new());
    for (unread, of_batch) in unread {
        let values = rest.split_off(..unread.len()).unwrap_or_default();
        let read = match unread.read_from(values) {
            // The loss refuses what is no number; told here with step, pairs and checkpoint.
            Err(aspo_loss::Error::NotFinite { found, .. }) => return not_finite(found, &of_batch),
            read => read?.metrics(),
        };
        match read.get("loss") {
            Some(loss) if loss.is_finite() => metrics.merge(&read),
            loss => return not_finite(loss.unwrap_or(f64::NAN), &of_batch),
        }
        ids.extend(of_batch);
    }
    let norm = f64::from(rest.first().copied().unwrap_or(0.0));
    Ok(Share { gradients, metrics, tokens, ids, norm: Some(norm) })
}

impl Share {
    /// Clips a step's whole sum by its global norm.
    ///
    /// # Errors
    /// A norm that is no number, with the pairs of the step.
    pub fn clipped<B: Backend, M: Policy<B>>(
        self,
        policy: &M,
        config: &TrainConfig,
        step: usize,
        checkpoint: &str,
    ) -> Result<StepGradients> {
        let Self { mut gradients, metrics, tokens, ids, norm } = self;
        let limit = (config.max_grad_norm > 0.0).then_some(config.max_grad_norm);
        let norm = match norm {
            Some(norm) => {
                clip_by_norm::<Autodiff<B>, M>(policy, &mut gradients, norm, limit);
                norm
            }
            None => clip_grad_norm::<Autodiff<B>, M>(policy, &mut gradients, limit),
        };
        if !norm.is_finite() {
            let (what, checkpoint) = ("gradient norm", checkpoint.to_owned());
            return Err(Error::NotFinite { step, what, found: norm, pairs: ids, checkpoint });
        }
        Ok(StepGradients { gradients, metrics, norm, tokens })
    }
}
