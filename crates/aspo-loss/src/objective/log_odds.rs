//! ORPO's odds ratio of the two responses (arXiv 2403.07691, Eq. 7).

use burn::prelude::*;

use crate::math::log1mexp;

/// `log odds(y_c) - log odds(y_r)`, `[B]`, from the mean log-probabilities.
pub(super) fn log_odds<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2]) -> Tensor<B, 1> {
    let log_odds = |mean: Tensor<B, 1>| mean.clone() - log1mexp(mean);
    log_odds(chosen) - log_odds(rejected)
}
