//! What most losses read of a batch: whole responses.

use burn::prelude::*;

use super::length;
use crate::math;
use crate::record::PreferenceBatch;
use crate::sentence::response_sums;

/// Both responses of each pair as wholes, chosen first; `[B]` each. With `ld_alpha`, tokens beyond the shorter length
/// count by that much.
pub(super) struct Sequences<B: Backend> {
    /// `log π(y)`.
    pub(super) log_probs: [Tensor<B, 1>; 2],
    /// `|y|`.
    pub(super) lengths: [Tensor<B, 1>; 2],
    /// `log[π(y)/π_ref(y)]`.
    pub(super) ratios: Option<[Tensor<B, 1>; 2]>,
    /// The same of each token, `[N]`.
    pub(super) token_ratios: Option<[Tensor<B, 1>; 2]>,
}

impl<B: Backend> Sequences<B> {
    pub(super) fn new(batch: &PreferenceBatch<B>, ld_alpha: Option<f64>) -> Self {
        let map = &batch.map;
        let maps = [&map.chosen, &map.rejected];
        let device = batch.policy.chosen().device();
        let factors = ld_alpha.map(|alpha| length::factors(map, alpha, &device));
        let weighed = |tokens: Tensor<B, 1>, side: usize| match &factors {
            Some(factors) => tokens * factors[side].clone(),
            None => tokens,
        };
        let policy = [batch.policy.chosen(), batch.policy.rejected()];
        let log_probs = [0, 1].map(|side| response_sums(weighed(policy[side].clone(), side), maps[side]));
        let token_ratios = batch.reference.as_ref().map(|reference| {
            let reference = [reference.chosen(), reference.rejected()];
            [0, 1].map(|side| weighed(policy[side].clone() - reference[side].clone(), side))
        });
        let ratios =
            token_ratios.as_ref().map(|r| [0, 1].map(|side| response_sums(r[side].clone(), maps[side])));
        let lengths = maps.map(|map| {
            let lengths: Vec<f32> = (0..map.batch_size()).map(|row| map.row_tokens(row) as f32).collect();
            math::constant(lengths, [map.batch_size()], &device)
        });
        Self { log_probs, lengths, ratios, token_ratios }
    }

    pub(super) fn ratios(&self) -> &[Tensor<B, 1>; 2] {
        self.ratios.as_ref().expect("losses with a reference are evaluated only where it was given")
    }

    pub(super) fn token_ratios(&self) -> [Tensor<B, 1>; 2] {
        self.token_ratios.clone().expect("losses with a reference are evaluated only where it was given")
    }

    /// `log π(y)/|y|`.
    pub(super) fn mean_log_probs(&self) -> [Tensor<B, 1>; 2] {
        [0, 1].map(|side| self.log_probs[side].clone() / self.lengths[side].clone())
    }
}
