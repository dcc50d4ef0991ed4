//! WPO: pairs count by how likely the policy itself would have written them (arXiv 2406.11827, Eq. 2), aligned by the
//! expected agreement `Σ_v p_v²`:
//! `w(y) = exp[(1/|y|) Σ_t (log p(y_t) - log Σ_v p_v²)]`, and the pair's loss times `w(y_c) w(y_r)`, detached.

use burn::prelude::*;

use crate::layout::ResponseLayout;
use crate::math;
use crate::record::{HostLogps, PreferenceBatch};

/// The exponent is capped so that the weight stays finite in f32.
const MAX_LOG_WEIGHT: f64 = 80.0;

/// `w(y_c) w(y_r)`, `[B]`.
pub(super) fn weights<B: Backend>(batch: &PreferenceBatch<B>, scores: &HostLogps) -> Tensor<B, 1> {
    let [chosen, rejected] = batch.stats.as_ref().expect("evaluated only where the statistics were given");
    let chosen = log_weights(&scores.policy[0], &chosen.log_sum_sq_probs, &batch.layout().chosen);
    let rejected = log_weights(&scores.policy[1], &rejected.log_sum_sq_probs, &batch.layout().rejected);
    let weights =
        chosen.iter().zip(&rejected).map(|(c, r)| (c + r).min(MAX_LOG_WEIGHT).exp() as f32).collect();
    math::constant(weights, [batch.batch_size()], &batch.policy.chosen().device())
}

fn log_weights(log_probs: &[f32], agreement: &[f32], map: &ResponseLayout) -> Vec<f64> {
    let row = |row: usize| {
        let range = map.range(row);
        let aligned = log_probs[range.clone()].iter().zip(&agreement[range]);
        aligned.map(|(p, a)| f64::from(*p) - f64::from(*a)).sum::<f64>() / map.row_tokens(row) as f64
    };
    (0..map.batch_size()).map(row).collect()
}
