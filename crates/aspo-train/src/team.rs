//! Who computes a step: this process, or several that share its micro-batches.
//!
//! Every process holds the whole policy and its own moments, as in torch's DDP. A step's micro-batches go round the processes;
//! when all have computed theirs and said so, the gradients are summed as one flat buffer, and each process clips and applies
//! the same numbers. None enters the sum before all are known to reach it: one that fails makes the others drop theirs.

use aspo_loss::{Metrics, Totals};
use burn::backend::Autodiff;
use burn::module::{ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::optimize::{Share, StepGradients};
use crate::policy::Policy;
use crate::ranks::Ranks;
use crate::replica::Replica;

/// The micro-batches of a step that are `rank`'s of `size`: rows of like length stand together, so that little is padded.
pub(crate) fn own_parts(
    pairs: &[usize],
    length: impl Fn(usize) -> usize,
    batch: usize,
    rank: usize,
    size: usize,
) -> Vec<Vec<usize>> {
    let mut pairs = pairs.to_vec();
    pairs.sort_by_key(|&pair| length(pair));
    let parts = pairs.chunks(batch).skip(rank).step_by(size);
    parts.map(<[usize]>::to_vec).collect()
}

/// Gradients of the mean loss over `pairs`, clipped, not yet applied: the same on all ranks.
///
/// # Errors
/// As [`accumulate`](crate::accumulate), or what another rank says. None has moved then.
pub(crate) fn gradients<B: Backend, M: Policy<B>>(
    ranks: &Ranks,
    replica: &mut Replica<B, M>,
    pairs: &[usize],
    step: usize,
    checkpoint: &str,
) -> Result<StepGradients> {
    let size = replica.config.per_device_train_batch_size;
    let parts = own_parts(pairs, |pair| replica.length(pair), size, ranks.rank(), ranks.size());
    let parts: Vec<&[usize]> = parts.iter().map(Vec::as_slice).collect();
    let share =
        replica.totals(pairs).and_then(|totals: Totals| replica.share(&parts, totals, step, checkpoint));
    if ranks.size() == 1 {
        return share?.clipped::<B, M>(&replica.policy, replica.config, step, checkpoint);
    }
    let told = ranks.gather(Told::of::<B, M>(&replica.policy, &share));
    if let Some(fault) = worst(&told, ranks.rank()) {
        return Err(match (share, fault) {
            // Ours, as it was.
            (Err(own), (rank, _)) if rank == ranks.rank() => own,
            (_, (rank, fault)) => fault.told(rank, step, checkpoint),
        });
    }
    let mut share = share?;
    // The norm is that of the sum.
    share.norm = None;
    (share.metrics, share.tokens, share.ids) = (Metrics::default(), 0, Vec::new());
    let mut held = vec![false; told.first().map_or(0, |told| told.held.len())];
    for told in told {
        held.iter_mut().zip(&told.held).for_each(|(any, held)| *any |= held);
        share.metrics.merge(&told.metrics);
        share.tokens += told.tokens;
        share.ids.extend(told.ids);
    }
    sum::<B, M>(ranks, &replica.policy, &mut share.gradients, &held);
    share.clipped::<B, M>(&replica.policy, replica.config, step, checkpoint)
}

/// Means over pairs that ranks have looked at apart, and how many each has left out.
///
/// # Errors
/// What a rank has met; its own where it is this one's.
pub(crate) fn merged(
    ranks: &Ranks,
    own: Result<(Metrics, usize)>,
    step: usize,
    checkpoint: &str,
) -> Result<(Metrics, usize)> {
    if ranks.size() == 1 {
        return own;
    }
    let told = ranks.gather(match &own {
        Ok((metrics, skipped)) => Told { metrics: metrics.clone(), tokens: *skipped, ..Told::default() },
        Err(error) => Told { fault: Some(Fault::of(error)), ..Told::default() },
    });
    if let Some((rank, fault)) = worst(&told, ranks.rank()) {
        return Err(match own {
            Err(own) if rank == ranks.rank() => own,
            _ => fault.told(rank, step, checkpoint),
        });
    }
    let mut all = (Metrics::default(), 0);
    for told in told {
        all.0.merge(&told.metrics);
        all.1 += told.tokens;
    }
    Ok(all)
}

/// What a rank has to say of its share.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Told {
    metrics: Metrics,
    tokens: usize,
    ids: Vec<String>,
    /// Which parameters have a gradient, in the order of the module.
    held: Vec<bool>,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Fault {
    /// Of a loss that is not finite: what it is, as bits, and the pairs.
    not_finite: Option<(u64, Vec<String>)>,
    text: String,
}

impl Fault {
    fn of(error: &Error) -> Self {
        let not_finite = match error {
            Error::NotFinite { found, pairs, .. } => Some((found.to_bits(), pairs.clone())),
            _ => None,
        };
        Self { not_finite, text: error.to_string() }
    }

    /// The error of another rank.
    fn told(self, rank: usize, step: usize, checkpoint: &str) -> Error {
        match self.not_finite {
            Some((found, pairs)) => {
                let (what, checkpoint) = ("loss", checkpoint.to_owned());
                Error::NotFinite { step, what, found: f64::from_bits(found), pairs, checkpoint }
            }
            None => Error::Rank { rank, text: self.text },
        }
    }
}

impl Told {
    fn of<B: Backend, M: Policy<B>>(policy: &M, share: &Result<Share>) -> Self {
        match share {
            Ok(Share { gradients, metrics, tokens, ids, .. }) => Self {
                metrics: metrics.clone(),
                tokens: *tokens,
                ids: ids.clone(),
                held: held::<B, M>(policy, gradients),
                fault: None,
            },
            Err(error) => Self { fault: Some(Fault::of(error)), ..Self::default() },
        }
    }
}

/// The fault to be told, and whose it is: a loss that is not finite last, since it may be skipped and must not hide anything
/// else; of several, this rank's own.
fn worst(told: &[Told], own: usize) -> Option<(usize, Fault)> {
    let faults = told.iter().enumerate().filter_map(|(rank, told)| Some((rank, told.fault.clone()?)));
    faults.min_by_key(|(rank, fault)| (fault.not_finite.is_some(), *rank != own, *rank))
}

fn held<B: Backend, M: Policy<B>>(policy: &M, gradients: &GradientsParams) -> Vec<bool> {
    struct Held<'a>(&'a GradientsParams, Vec<bool>);
    impl<B: Backend> ModuleVisitor<Autodiff<B>> for Held<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.1.push(self.0.get::<B, D>(param.id).is_some());
        }
    }
    let mut found = Held(gradients, Vec::new());
    policy.visit(&mut found);
    found.1
}

/// Sums the gradients that any rank has (`held`, in the order of the module), as one buffer of f32.
fn sum<B: Backend, M: Policy<B>>(ranks: &Ranks, policy: &M, gradients: &mut GradientsParams, held: &[bool]) {
    let mut flat = Flat { gradients, held, at: 0, values: Vec::new(), place: None };
    policy.visit(&mut flat);
    ranks.sum(&mut flat.values);
    (flat.at, flat.place) = (0, Some(0));
    policy.visit(&mut flat);
}

struct Flat<'a> {
    gradients: &'a mut GradientsParams,
    held: &'a [bool],
    at: usize,
    values: Vec<f32>,
    /// On the way back: where the next parameter's sum begins.
    place: Option<usize>,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Flat<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let held = self.held[self.at];
        self.at += 1;
        if !held {
            return;
        }
        let (shape, count) = (param.shape(), param.shape().num_elements());
        let Some(place) = self.place else {
            // A rank without a part in this step adds nothing.
            match self.gradients.remove::<B, D>(param.id) {
                Some(own) => self.values.extend(own.into_data().convert::<f32>().iter::<f32>()),
                None => self.values.resize(self.values.len() + count, 0.0),
            }
            return;
        };
        let values = TensorData::new(self.values[place..place + count].to_vec(), shape);
        self.place = Some(place + count);
        let device = param.val().device();
        self.gradients.register::<B, D>(param.id, Tensor::from_data(values, &device));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_that_is_not_finite_hides_no_other_fault() {
        let fault = |not_finite: bool| Told {
            fault: Some(Fault { not_finite: not_finite.then(|| (0, Vec::new())), text: String::new() }),
            ..Told::default()
        };
        let sound = Told::default;
        let whose = |told: &[Told]| worst(told, 0).map(|(rank, _)| rank);
        assert_eq!(whose(&[sound(), sound()]), None);
        assert_eq!(whose(&[fault(true), fault(false)]), Some(1));
        assert_eq!(whose(&[sound(), fault(true), fault(true)]), Some(1));
        assert_eq!(worst(&[fault(false), sound(), fault(false)], 2).map(|(rank, _)| rank), Some(2));
    }
}
