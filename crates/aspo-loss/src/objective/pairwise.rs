//! The losses that read nothing but whole responses: DPO and most others. Their equations and papers stand at
//! [`LossType`](super::LossType).

use burn::prelude::*;
use burn::tensor::activation::relu;

use super::sequences::Sequences;
use crate::math::{self, log_sigmoid, sigmoid};

/// `-(1-ε) log σ(x) - ε log σ(-x)`.
pub(super) fn smoothed<B: Backend>(x: Tensor<B, 1>, smoothing: f64) -> Tensor<B, 1> {
    let losses = log_sigmoid(x.clone()).neg();
    if smoothing == 0.0 {
        return losses;
    }
    losses.mul_scalar(1.0 - smoothing) - log_sigmoid(x.neg()).mul_scalar(smoothing)
}

pub(super) fn robust<B: Backend>(margin: Tensor<B, 1>, smoothing: f64) -> Tensor<B, 1> {
    let right = log_sigmoid(margin.clone()).mul_scalar(-(1.0 - smoothing));
    let flipped = log_sigmoid(margin.neg()).mul_scalar(smoothing);
    (right + flipped).div_scalar(1.0 - 2.0 * smoothing)
}

pub(super) fn hinge<B: Backend>(margin: Tensor<B, 1>) -> Tensor<B, 1> {
    relu(margin.neg().add_scalar(1.0))
}

pub(super) fn exo<B: Backend>(margin: Tensor<B, 1>, smoothing: f64) -> Tensor<B, 1> {
    let side = |margin: Tensor<B, 1>, log_target: f64| {
        sigmoid(margin.clone()) * log_sigmoid(margin).sub_scalar(log_target)
    };
    side(margin.clone(), (-smoothing).ln_1p()) + side(margin.neg(), smoothing.ln())
}

pub(super) fn discopop<B: Backend>(margin: Tensor<B, 1>, tau: f64) -> Tensor<B, 1> {
    // m exp(-x) is written exp(-x + log m): exp alone would overflow where m is 0.
    let log_mix = log_sigmoid(margin.clone().div_scalar(tau));
    let logistic = log_sigmoid(margin.clone()).neg();
    let exponential = (log_mix.clone() - margin).exp();
    logistic * (log_mix.exp().neg() + 1.0) + exponential
}

/// The two means `s/|y|`, chosen less rejected.
pub(super) fn mean_difference<B: Backend>(
    [chosen, rejected]: [Tensor<B, 1>; 2],
    sequences: &Sequences<B>,
) -> Tensor<B, 1> {
    let [chosen_length, rejected_length] = sequences.lengths.clone();
    chosen / chosen_length - rejected / rejected_length
}

pub(super) fn ipo<B: Backend>(mean_difference: Tensor<B, 1>, beta: f64) -> Tensor<B, 1> {
    mean_difference.sub_scalar(0.5 / beta).square()
}

pub(super) fn apo_zero<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2]) -> Tensor<B, 1> {
    sigmoid(rejected) - sigmoid(chosen) + 1.0
}

pub(super) fn apo_down<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2]) -> Tensor<B, 1> {
    sigmoid(chosen.clone()) - sigmoid(chosen - rejected) + 1.0
}

/// Of log-ratios, not of rewards.
pub(super) fn sppo<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2], beta: f64) -> Tensor<B, 1> {
    chosen.sub_scalar(0.5 / beta).square() + rejected.add_scalar(0.5 / beta).square()
}

pub(super) fn bco<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2], shift: f64) -> Tensor<B, 1> {
    (log_sigmoid(chosen.sub_scalar(shift)) + log_sigmoid(rejected.neg().add_scalar(shift))).neg()
}

pub(super) fn nca<B: Backend>([chosen, rejected]: [Tensor<B, 1>; 2]) -> Tensor<B, 1> {
    let pull = log_sigmoid(chosen.clone());
    let push = log_sigmoid(chosen.neg()) + log_sigmoid(rejected.neg());
    (pull + push.mul_scalar(0.5)).neg()
}

/// Optimal transport in one dimension: both sides sorted, each for itself, and compared rank by rank.
pub(super) fn aot<B: Backend>(
    better: Tensor<B, 1>,
    worse: Tensor<B, 1>,
    beta: f64,
    smoothing: f64,
) -> Tensor<B, 1> {
    smoothed((sorted(better) - sorted(worse)).mul_scalar(beta), smoothing)
}

/// In rising order; equal values keep theirs, so that gradients do not depend on a backend's sort.
fn sorted<B: Backend>(values: Tensor<B, 1>) -> Tensor<B, 1> {
    let host = math::host(&values);
    let mut order: Vec<i32> = (0..host.len() as i32).collect();
    order.sort_by(|&a, &b| host[a as usize].total_cmp(&host[b as usize]));
    let device = values.device();
    values.select(0, math::indices(order, &device))
}
