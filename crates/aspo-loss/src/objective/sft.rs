//! The likelihood of the chosen response, `-log π(y_c)/|y_c|`: TRL's `sft` term. TRL averages over all tokens of a
//! batch; here over the tokens of each pair and then over pairs, so that a loss does not depend on how pairs are batched.

use burn::prelude::*;

use super::{Objective, Sequences, Term};

pub(super) fn term<B: Backend>(sequences: &Sequences<B>, objective: &Objective) -> Term<B> {
    let [chosen, rejected] = sequences.mean_log_probs();
    let losses = chosen.clone().neg();
    let [chosen_rewards, rejected_rewards] = [chosen, rejected].map(|mean| mean.mul_scalar(objective.beta));
    Term { losses, chosen_rewards, rejected_rewards, weighting: None }
}
