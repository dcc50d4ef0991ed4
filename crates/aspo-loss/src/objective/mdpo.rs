//! The two terms that mDPO adds to DPO (arXiv 2406.11839): its whole objective is
//! `sigmoid + mdpo_conditional + mdpo_anchor`, each with weight 1.

use burn::prelude::*;

use crate::math::log_sigmoid;
use crate::record::PreferenceBatch;
use crate::sentence::response_sums;

/// Conditional preference: the chosen response is likelier given the true image than given a corrupted one,
/// `-log σ(β r_c - β r_c')`.
pub(super) fn conditional<B: Backend>(
    batch: &PreferenceBatch<B>,
    [chosen, _]: [Tensor<B, 1>; 2],
    beta: f64,
) -> Tensor<B, 1> {
    let corrupted = batch.corrupted.as_ref().expect("evaluated only where the corrupted scores were given");
    let ratios = corrupted.policy.clone() - corrupted.reference.clone();
    log_sigmoid(chosen - response_sums(ratios, &batch.layout().chosen).mul_scalar(beta)).neg()
}

/// Anchor: the chosen response's reward stays above δ, `-log σ(β r_c - δ)`.
pub(super) fn anchor<B: Backend>([chosen, _]: [Tensor<B, 1>; 2], anchor: f64) -> Tensor<B, 1> {
    log_sigmoid(chosen.sub_scalar(anchor)).neg()
}
