//! The losses that read nothing but the two log-ratios of a pair, `r_c` and `r_r`: DPO and most of its kin.
//! Their equations and papers stand at [`LossType`].

use burn::prelude::*;
use burn::tensor::activation::relu;

use super::{LossType, Objective, Sequences, smoothed};
use crate::math::{log_sigmoid, sigmoid};

/// The losses `[B]` of one of the pairwise kinds.
pub(super) fn losses<B: Backend>(
    loss: LossType,
    sequences: &Sequences<B>,
    objective: &Objective,
) -> Tensor<B, 1> {
    let (beta, smoothing) = (objective.beta, objective.label_smoothing);
    let [chosen, rejected] = sequences.ratios().clone();
    let [chosen_reward, rejected_reward] = [&chosen, &rejected].map(|r| r.clone().mul_scalar(beta));
    let margin = (chosen.clone() - rejected.clone()).mul_scalar(beta);
    match loss {
        LossType::Robust => {
            let right = log_sigmoid(margin.clone()).mul_scalar(-(1.0 - smoothing));
            let flipped = log_sigmoid(margin.neg()).mul_scalar(smoothing);
            (right + flipped).div_scalar(1.0 - 2.0 * smoothing)
        }
        LossType::Hinge => relu(margin.neg().add_scalar(1.0)),
        LossType::Ipo => {
            let [chosen_length, rejected_length] = sequences.lengths.clone();
            let delta = chosen / chosen_length - rejected / rejected_length;
            delta.sub_scalar(0.5 / beta).square()
        }
        LossType::ApoZero => sigmoid(rejected_reward) - sigmoid(chosen_reward) + 1.0,
        LossType::ApoDown => sigmoid(chosen_reward) - sigmoid(margin) + 1.0,
        LossType::SppoHard => {
            chosen.sub_scalar(0.5 / beta).square() + rejected.add_scalar(0.5 / beta).square()
        }
        LossType::BcoPair => {
            let shift = objective.bco_shift;
            let chosen = log_sigmoid(chosen_reward.sub_scalar(shift));
            let rejected = log_sigmoid(rejected_reward.neg().add_scalar(shift));
            (chosen + rejected).neg()
        }
        LossType::ExoPair => {
            let side = |margin: Tensor<B, 1>, log_target: f64| {
                sigmoid(margin.clone()) * log_sigmoid(margin).sub_scalar(log_target)
            };
            side(margin.clone(), (-smoothing).ln_1p()) + side(margin.neg(), smoothing.ln())
        }
        LossType::NcaPair => {
            let pull = log_sigmoid(chosen_reward.clone());
            let push = log_sigmoid(chosen_reward.neg()) + log_sigmoid(rejected_reward.neg());
            (pull + push.mul_scalar(0.5)).neg()
        }
        LossType::Discopop => {
            // m exp(-x) is written exp(-x + log m): exp alone would overflow where m is 0.
            let log_mix = log_sigmoid(margin.clone().div_scalar(objective.discopop_tau));
            let logistic = log_sigmoid(margin.clone()).neg();
            let exponential = (log_mix.clone() - margin).exp();
            logistic * (log_mix.exp().neg() + 1.0) + exponential
        }
        _ => smoothed(margin, smoothing),
    }
}

/// The mean of all rewards seen so far: BCO's δ (arXiv 2404.04656). Feed it
/// [`chosen_rewards`](super::LossOutput::chosen_rewards) and `rejected_rewards` of each step and put
/// [`mean`](Self::mean) into [`Objective::bco_shift`] for the next.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RunningMean {
    sum: f64,
    count: u64,
}

impl RunningMean {
    /// Takes rewards in.
    pub fn update(&mut self, rewards: &[f32]) {
        self.sum += rewards.iter().map(|&r| f64::from(r)).sum::<f64>();
        self.count += rewards.len() as u64;
    }

    /// The mean, 0 before the first reward.
    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum / self.count as f64 }
    }
}
