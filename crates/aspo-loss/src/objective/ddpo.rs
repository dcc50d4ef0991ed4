//! DDPO: RLHF-V's segment weighting (arXiv 2312.00849). Tokens that a correction changed count γ-fold, and the
//! sum is divided by the total weight.

use burn::prelude::*;

use super::{Objective, Term};
use crate::map::SentenceMap;
use crate::math::{self, log_sigmoid};
use crate::record::PreferenceBatch;
use crate::sentence::response_sums;

pub(super) fn term<B: Backend>(batch: &PreferenceBatch<B>, objective: &Objective) -> Term<B> {
    let reference = batch.reference.as_ref().expect("evaluated only where the reference was given");
    let [chosen, rejected] = batch.changed.as_ref().expect("evaluated only where the flags were given");
    let reward = |policy: &Tensor<B, 1>, reference: &Tensor<B, 1>, map: &SentenceMap, changed: &[bool]| {
        let factors = factors(map, changed, objective);
        let factors = math::constant(factors, [map.num_tokens()], &policy.device());
        response_sums((policy.clone() - reference.clone()) * factors, map).mul_scalar(objective.beta)
    };
    let (policy, map) = (&batch.policy, &batch.map);
    let chosen_rewards = reward(policy.chosen(), reference.chosen(), &map.chosen, chosen);
    let rejected_rewards = reward(policy.rejected(), reference.rejected(), &map.rejected, rejected);
    let losses = log_sigmoid(chosen_rewards.clone() - rejected_rewards.clone()).neg();
    Term { losses, chosen_rewards, rejected_rewards, weighting: None }
}

/// `1/N` or `γ/N` for each token, `N = |unchanged| + γ|changed|` of its response.
fn factors(map: &SentenceMap, changed: &[bool], objective: &Objective) -> Vec<f32> {
    let weight = |changed: &bool| if *changed { objective.ddpo_gamma } else { 1.0 };
    let row = |row: usize| {
        let flags = &changed[map.range(row)];
        let total: f64 = flags.iter().map(weight).sum();
        flags.iter().map(|flag| (weight(flag) / total) as f32).collect::<Vec<_>>()
    };
    (0..map.batch_size()).flat_map(row).collect()
}

/// Which tokens of two responses are not part of their longest common subsequence: RLHF-V's changed segments.
/// Quadratic in the lengths.
///
/// ```
/// let (chosen, rejected) = aspo_loss::changed_tokens(&[1, 2, 3, 4], &[1, 9, 3, 4, 5]);
/// assert_eq!(chosen, [false, true, false, false]);
/// assert_eq!(rejected, [false, true, false, false, true]);
/// ```
pub fn changed_tokens<T: PartialEq>(chosen: &[T], rejected: &[T]) -> (Vec<bool>, Vec<bool>) {
    let (n, m) = (chosen.len(), rejected.len());
    // length[i][j]: longest common subsequence of the tails from i and j.
    let mut length = vec![vec![0_u32; m + 1]; n + 1];
    for i in (0..n).rev() {
        for j in (0..m).rev() {
            length[i][j] = if chosen[i] == rejected[j] {
                length[i + 1][j + 1] + 1
            } else {
                length[i + 1][j].max(length[i][j + 1])
            };
        }
    }
    let (mut chosen_changed, mut rejected_changed) = (vec![true; n], vec![true; m]);
    let (mut i, mut j) = (0, 0);
    while i < n && j < m {
        if chosen[i] == rejected[j] {
            (chosen_changed[i], rejected_changed[j]) = (false, false);
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    (chosen_changed, rejected_changed)
}
