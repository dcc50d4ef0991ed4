//! ORPO: a likelihood term and the odds ratio of the two responses, no reference (arXiv 2403.07691).

use burn::prelude::*;

use super::{Objective, Sequences, Term};
use crate::math::{log_sigmoid, log1mexp};

pub(super) fn term<B: Backend>(sequences: &Sequences<B>, objective: &Objective) -> Term<B> {
    let [chosen, rejected] = sequences.mean_log_probs();
    let log_odds = |mean: &Tensor<B, 1>| mean.clone() - log1mexp(mean.clone());
    let ratio = log_sigmoid(log_odds(&chosen) - log_odds(&rejected));
    let losses = chosen.clone().neg() - ratio.mul_scalar(objective.beta);
    let [chosen_rewards, rejected_rewards] = [chosen, rejected].map(|mean| mean.mul_scalar(objective.beta));
    Term { losses, chosen_rewards, rejected_rewards, weighting: None }
}
