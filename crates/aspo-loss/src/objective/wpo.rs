//! WPO: pairs count by how likely the policy itself would have written them (arXiv 2406.11827, Eq. 2), aligned by the
//! expected agreement `Σ_v p_v²`:
//! `w(y) = exp[(1/|y|) Σ_t (log p(y_t) - log Σ_v p_v²)]`, and the pair's loss times `w(y_c) w(y_r)`, detached.

use burn::prelude::*;

use super::sequences::Sequences;
use crate::math;
use crate::record::PreferenceBatch;
use crate::sentence::response_sums;

/// The exponent is capped so that the weight stays finite in f32.
const MAX_LOG_WEIGHT: f64 = 80.0;

/// `w(y_c) w(y_r)`, `[B]`.
pub(super) fn weights<B: Backend>(batch: &PreferenceBatch<B>, sequences: &Sequences<'_, B>) -> Tensor<B, 1> {
    let stats = batch.stats.as_ref().expect("evaluated only where the statistics were given");
    let policy = [batch.policy.chosen(), batch.policy.rejected()];
    let maps = [&batch.layout().chosen, &batch.layout().rejected];
    let [chosen, rejected] = [0, 1].map(|side| {
        let tokens = math::detached(policy[side].clone());
        response_sums(tokens - stats[side].log_sum_sq_probs(), maps[side]) / sequences.lengths[side].clone()
    });
    (chosen + rejected).clamp_max(MAX_LOG_WEIGHT).exp()
}
