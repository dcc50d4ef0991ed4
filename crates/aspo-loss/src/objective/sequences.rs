//! What most losses read of a batch: whole responses, on the device where gradients flow and on the host where metrics are
//! made.

use burn::prelude::*;

use super::output::Sides;
use crate::layout::{PairLayout, ResponseLayout};
use crate::math;
use crate::record::{HostLogps, PreferenceBatch};
use crate::sentence::response_sums;

/// Both responses of each pair as wholes, chosen first; `[B]` each. With `ld_alpha`, LD-DPO's weight (arXiv 2409.06411),
/// tokens beyond the length that both responses reach count by that much, for policy and reference alike.
pub(super) struct Sequences<'a, B: Backend> {
    batch: &'a PreferenceBatch<B>,
    /// `|y|`, whatever `ld_alpha`.
    pub(super) lengths: [Tensor<B, 1>; 2],
    factors: Option<[Tensor<B, 1>; 2]>,
}

impl<'a, B: Backend> Sequences<'a, B> {
    pub(super) fn new(batch: &'a PreferenceBatch<B>, ld_alpha: Option<f64>) -> Self {
        let device = batch.policy.chosen().device();
        let maps = [&batch.layout().chosen, &batch.layout().rejected];
        let vector = |values: Vec<f64>| {
            let n = values.len();
            math::constant(values.into_iter().map(|x| x as f32).collect(), [n], &device)
        };
        let lengths = maps.map(|map| (0..map.batch_size()).map(|row| map.row_tokens(row) as f64).collect());
        let factors =
            ld_alpha.map(|alpha| maps.map(|side| factors(batch.layout(), side, alpha).collect()).map(vector));
        Self { batch, lengths: lengths.map(vector), factors }
    }

    fn maps(&self) -> [&'a ResponseLayout; 2] {
        [&self.batch.layout().chosen, &self.batch.layout().rejected]
    }

    fn policy(&self) -> [&'a Tensor<B, 1>; 2] {
        [self.batch.policy.chosen(), self.batch.policy.rejected()]
    }

    fn reference(&self) -> [&'a Tensor<B, 1>; 2] {
        let reference = self.batch.reference.as_ref();
        let reference = reference.expect("losses with a reference are evaluated only where it was given");
        [reference.chosen(), reference.rejected()]
    }

    /// Sums with `ld_alpha`.
    fn sums(&self, tokens: [Tensor<B, 1>; 2]) -> [Tensor<B, 1>; 2] {
        let [chosen, rejected] = match &self.factors {
            Some([c, r]) => {
                let [chosen, rejected] = tokens;
                [chosen * c.clone(), rejected * r.clone()]
            }
            None => tokens,
        };
        let [chosen_map, rejected_map] = self.maps();
        [response_sums(chosen, chosen_map), response_sums(rejected, rejected_map)]
    }

    /// `log[p/p_ref]` of each token, `[N]`, without `ld_alpha`.
    pub(super) fn token_ratios(&self) -> [Tensor<B, 1>; 2] {
        let (policy, reference) = (self.policy(), self.reference());
        [0, 1].map(|side| policy[side].clone() - reference[side].clone())
    }

    /// `log[π(y)/π_ref(y)]`.
    pub(super) fn ratios(&self) -> [Tensor<B, 1>; 2] {
        self.sums(self.token_ratios())
    }

    /// `log π(y_c) - log π(y_r)` under the policy and under the reference.
    pub(super) fn preferences(&self) -> [Tensor<B, 1>; 2] {
        [self.policy(), self.reference()].map(|tokens| {
            let [chosen, rejected] = self.sums(tokens.map(Clone::clone));
            chosen - rejected
        })
    }

    /// `log π(y)/|y|`, without `ld_alpha`.
    pub(super) fn mean_log_probs(&self) -> [Tensor<B, 1>; 2] {
        let (policy, maps) = (self.policy(), self.maps());
        [0, 1].map(|side| response_sums(policy[side].clone(), maps[side]) / self.lengths[side].clone())
    }

    /// `log π(y_c)`, without `ld_alpha`: what likelihoods are made of.
    pub(super) fn chosen_log_probs(&self) -> Tensor<B, 1> {
        response_sums(self.policy()[0].clone(), self.maps()[0])
    }
}

/// One factor per token of one side: 1 up to the shorter length of the pair, `alpha` beyond.
fn factors<'a>(map: &'a PairLayout, side: &'a ResponseLayout, alpha: f64) -> impl Iterator<Item = f64> + 'a {
    (0..map.batch_size()).flat_map(move |row| {
        let shared = map.chosen.row_tokens(row).min(map.rejected.row_tokens(row));
        (0..side.row_tokens(row)).map(move |i| if i < shared { 1.0 } else { alpha })
    })
}

/// TRL's `logps/*`, with `ld_alpha`: `log π(y)`, or its mean over tokens.
pub(super) fn log_probs(map: &PairLayout, scores: &HostLogps, ld_alpha: Option<f64>, means: bool) -> Sides {
    let tokens = |side: usize| scores.policy[side].iter().map(|&p| f64::from(p)).collect();
    let mut sums = host_sums(map, ld_alpha, tokens);
    if means {
        for (values, side) in [(&mut sums.chosen, &map.chosen), (&mut sums.rejected, &map.rejected)] {
            values.iter_mut().enumerate().for_each(|(row, sum)| *sum /= side.row_tokens(row) as f64);
        }
    }
    sums
}

/// `log[π(y)/π_ref(y)]`, with `ld_alpha`; none without a reference.
pub(super) fn log_ratios(map: &PairLayout, scores: &HostLogps, ld_alpha: Option<f64>) -> Option<Sides> {
    scores.reference.as_ref()?;
    Some(host_sums(map, ld_alpha, |side| scores.ratios(side)))
}

fn host_sums(map: &PairLayout, ld_alpha: Option<f64>, tokens: impl Fn(usize) -> Vec<f64>) -> Sides {
    let sums = |index: usize, side: &ResponseLayout| {
        let mut tokens = tokens(index);
        if let Some(alpha) = ld_alpha {
            tokens.iter_mut().zip(factors(map, side, alpha)).for_each(|(x, factor)| *x *= factor);
        }
        (0..side.batch_size()).map(|row| tokens[side.range(row)].iter().sum()).collect()
    };
    Sides { chosen: sums(0, &map.chosen), rejected: sums(1, &map.rejected) }
}
