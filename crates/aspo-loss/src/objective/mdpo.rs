//! The two terms that mDPO adds to DPO (arXiv 2406.11839): its whole objective is
//! `sigmoid + mdpo_conditional + mdpo_anchor`, each with weight 1.

use burn::prelude::*;

use super::{Objective, Sequences};
use crate::math::log_sigmoid;
use crate::record::PreferenceBatch;
use crate::sentence::response_sums;

/// Conditional preference: the chosen response is likelier given the true image than given a corrupted one,
/// `-log σ(β r_c - β r_c')`.
pub(super) fn conditional<B: Backend>(
    batch: &PreferenceBatch<B>,
    sequences: &Sequences<B>,
    objective: &Objective,
) -> Tensor<B, 1> {
    let corrupted = batch.corrupted.as_ref().expect("evaluated only where the corrupted scores were given");
    let corrupted = response_sums(corrupted.policy.clone() - corrupted.reference.clone(), &batch.map.chosen);
    let [chosen, _] = sequences.ratios().clone();
    log_sigmoid((chosen - corrupted).mul_scalar(objective.beta)).neg()
}

/// Anchor: the chosen response's reward stays above δ, `-log σ(β r_c - δ)`.
pub(super) fn anchor<B: Backend>(sequences: &Sequences<B>, objective: &Objective) -> Tensor<B, 1> {
    let [chosen, _] = sequences.ratios().clone();
    log_sigmoid(chosen.mul_scalar(objective.beta).sub_scalar(objective.anchor)).neg()
}
