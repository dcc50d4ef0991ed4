//! SimPO: length-averaged log-probabilities, a target margin, no reference (arXiv 2405.14734).

use burn::prelude::*;

use super::{Objective, Sequences, Term, smoothed};

pub(super) fn term<B: Backend>(sequences: &Sequences<B>, objective: &Objective) -> Term<B> {
    let [chosen_rewards, rejected_rewards] =
        sequences.mean_log_probs().map(|mean| mean.mul_scalar(objective.beta));
    let margin = (chosen_rewards.clone() - rejected_rewards.clone()).sub_scalar(objective.simpo_gamma);
    let losses = smoothed(margin, objective.label_smoothing);
    Term { losses, chosen_rewards, rejected_rewards, weighting: None }
}
