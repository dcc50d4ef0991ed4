//! DDPO: RLHF-V's segment weighting (arXiv 2312.00849). Tokens that a correction changed count γ-fold, and the
//! sum is divided by the total weight.

use burn::prelude::*;

use super::output::{Seen, Sides};
use super::sequences::Sequences;
use crate::layout::ResponseLayout;
use crate::math::{self, log_sigmoid};
use crate::record::{HostLogps, PreferenceBatch};
use crate::sentence::response_sums;

/// The losses, `[B]`.
pub(super) fn losses<B: Backend>(
    gamma: f64,
    batch: &PreferenceBatch<B>,
    sequences: &Sequences<'_, B>,
    beta: f64,
) -> Tensor<B, 1> {
    let (maps, factors) = factors_of(gamma, batch);
    let ratios = sequences.token_ratios();
    let [chosen, rejected] = [0, 1].map(|side| {
        let ratios = ratios[side].clone();
        let factors = factors[side].iter().map(|&factor| factor as f32).collect();
        let factors = math::constant(factors, ratios.dims(), &ratios.device());
        response_sums(ratios * factors, maps[side]).mul_scalar(beta)
    });
    log_sigmoid(chosen - rejected).neg()
}

/// The rewards as they are weighed, once the log-probabilities are known.
pub(super) fn seen<B: Backend>(
    gamma: f64,
    batch: &PreferenceBatch<B>,
    scores: &HostLogps,
    beta: f64,
    seen: &mut Seen,
) {
    let (maps, factors) = factors_of(gamma, batch);
    let host = |side: usize| {
        let weighed: Vec<f64> = scores.ratios(side).iter().zip(&factors[side]).map(|(d, f)| d * f).collect();
        let row = |row| weighed[maps[side].range(row)].iter().sum::<f64>();
        (0..maps[side].batch_size()).map(row).collect()
    };
    seen.weighed_rewards = Some(Sides { chosen: host(0), rejected: host(1) }.scaled(beta));
}

/// The layouts of both sides, and the factor of each token.
fn factors_of<B: Backend>(gamma: f64, batch: &PreferenceBatch<B>) -> ([&ResponseLayout; 2], [Vec<f64>; 2]) {
    let changed = batch.changed.as_ref().expect("evaluated only where the flags were given");
    let maps = [&batch.layout().chosen, &batch.layout().rejected];
    (maps, [0, 1].map(|side| factors(maps[side], &changed[side], gamma)))
}

/// `1/N` or `γ/N` for each token, `N = |unchanged| + γ|changed|` of its response.
fn factors(map: &ResponseLayout, changed: &[bool], gamma: f64) -> Vec<f64> {
    let weight = |changed: &bool| if *changed { gamma } else { 1.0 };
    let row = |row: usize| {
        let flags = &changed[map.range(row)];
        let total: f64 = flags.iter().map(weight).sum();
        flags.iter().map(|flag| weight(flag) / total).collect::<Vec<_>>()
    };
    (0..map.batch_size()).flat_map(row).collect()
}
