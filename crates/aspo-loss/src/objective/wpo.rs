//! WPO: pairs count by how likely the policy itself would have written them (arXiv 2406.11827, Eq. 2), aligned by the
//! expected agreement `Σ_v p_v²`:
//! `w(y) = exp[(1/|y|) Σ_t (log p(y_t) - log Σ_v p_v²)]`, and the pair's loss times `w(y_c) w(y_r)`, detached.

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::log_prob::TokenStats;
use crate::map::SentenceMap;
use crate::math;
use crate::record::PreferenceBatch;

/// `w(y_c) w(y_r)`, `[B]`.
pub(super) fn weights<B: Backend>(batch: &PreferenceBatch<B>) -> Result<Tensor<B, 1>> {
    let [chosen_stats, rejected_stats] =
        batch.stats.as_ref().expect("evaluated only where the statistics were given");
    let (policy, map) = (&batch.policy, &batch.map);
    let chosen = log_weights("chosen", policy.chosen(), chosen_stats, &map.chosen)?;
    let rejected = log_weights("rejected", policy.rejected(), rejected_stats, &map.rejected)?;
    let weights =
        chosen.iter().zip(&rejected).map(|(c, r)| (c + r).min(MAX_LOG_WEIGHT).exp() as f32).collect();
    Ok(math::constant(weights, [batch.batch_size()], &policy.chosen().device()))
}

/// The exponent is capped so that the weight stays finite in f32.
const MAX_LOG_WEIGHT: f64 = 80.0;

fn log_weights<B: Backend>(
    side: &str,
    policy: &Tensor<B, 1>,
    stats: &TokenStats,
    map: &SentenceMap,
) -> Result<Vec<f64>> {
    let log_probs = math::host(policy);
    let row = |row: usize| {
        let range = map.range(row);
        let agreement = log_probs[range.clone()].iter().zip(&stats.log_collision[range]);
        let mean =
            agreement.map(|(p, c)| f64::from(*p) - f64::from(*c)).sum::<f64>() / map.row_tokens(row) as f64;
        if mean.is_finite() {
            return Ok(mean);
        }
        let what = format!("{side} log-probabilities and token statistics, mean of the row");
        Err(Error::NotFinite { what, row, element: 0, found: mean })
    };
    (0..map.batch_size()).map(row).collect()
}
