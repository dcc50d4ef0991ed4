//! What a loss gives: its value in the two means that it is made of, and TRL's metrics.

use burn::prelude::*;

use super::weighting::Weighting;
use crate::metric::{Mean, Metrics};
use crate::weight::weight_entropy;

/// One number for each answer of each pair, `[B]` on either side.
#[derive(Debug, Clone, PartialEq)]
pub struct Sides {
    /// Of the chosen responses.
    pub chosen: Vec<f64>,
    /// Of the rejected responses.
    pub rejected: Vec<f64>,
}

impl Sides {
    /// Chosen less rejected.
    pub fn margins(&self) -> Vec<f64> {
        self.chosen.iter().zip(&self.rejected).map(|(c, r)| c - r).collect()
    }

    pub(super) fn scaled(mut self, by: f64) -> Self {
        self.chosen.iter_mut().chain(&mut self.rejected).for_each(|x| *x *= by);
        self
    }
}

/// What the means of one optimiser step are taken over, however it is cut into micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Pairs: preferences are averaged over them.
    pub pairs: usize,
    /// Tokens of the chosen responses: likelihoods (`sft`, `orpo`) are averaged over them.
    pub chosen_tokens: usize,
}

/// A loss and what was seen on the way.
#[derive(Debug, Clone)]
pub struct LossOutput<B: Backend> {
    /// The loss of the batch, `[1]`: the mean of the preferences over its pairs, and the mean of the likelihood over its
    /// chosen tokens.
    pub loss: Tensor<B, 1>,
    /// The loss of each pair as if it were alone, `[B]`. Where nothing is a likelihood, `loss` is its mean. (`aot` goes by
    /// rank.)
    pub losses: Tensor<B, 1>,
    /// TRL's implicit rewards, whatever the loss and the order of its terms: `β log[π(y)/π_ref(y)]`, with `ld_alpha` if that
    /// is set. `simpo` and `orpo` have `β log π(y)/|y|`. None for likelihoods alone where no reference was given.
    pub rewards: Option<Sides>,
    /// The rewards as `aspo` or `ddpo` weigh them; none for other losses.
    pub weighed_rewards: Option<Sides>,
    /// TRL's log-probabilities `log π(y)`, with `ld_alpha` if that is set; for `simpo` and `orpo` their means over tokens.
    pub logps: Sides,
    /// ASPO's weights, perplexities and scales.
    pub weighting: Option<Weighting>,
    /// What is averaged over pairs, `[B]`, weights of the terms included; none for likelihoods alone.
    pub(super) preferences: Option<Tensor<B, 1>>,
    pub(super) likelihood: Option<Likelihood<B>>,
    pub(super) columns: Columns,
    pub(super) token_metrics: Metrics,
}

/// A number of each pair, as it was read.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    preferences: Option<Vec<f64>>,
    /// `-log π(y_c)`.
    likelihoods: Option<Vec<f64>>,
    /// ORPO's log odds ratio.
    log_odds: Option<Vec<f64>>,
}

impl Columns {
    pub(super) fn of([preferences, likelihoods, log_odds]: [Option<Vec<f64>>; 3]) -> Self {
        Self { preferences, likelihoods, log_odds }
    }
}

/// The part that is averaged over tokens.
#[derive(Debug, Clone)]
pub(super) struct Likelihood<B: Backend> {
    /// `-log π(y_c)`, `[B]`.
    pub(super) sums: Tensor<B, 1>,
    /// Tokens of the chosen responses of the batch.
    pub(super) tokens: usize,
    /// The sum of the terms' weights.
    pub(super) weight: f64,
}

impl<B: Backend> LossOutput<B> {
    /// This batch's part of the loss of an optimiser step over `totals`, `[1]`. The parts of all its micro-batches add up to
    /// the loss of one batch, and so do their gradients: 1 × 8 is 8 × 1, for likelihoods too.
    pub fn share(&self, totals: Totals) -> Tensor<B, 1> {
        share(self.preferences.as_ref(), self.likelihood.as_ref(), totals)
            .expect("every loss is a preference or a likelihood")
    }

    /// The metrics of this batch.
    pub fn metrics(&self) -> Metrics {
        let Columns { preferences, likelihoods, log_odds } = &self.columns;
        let mut metrics = self.token_metrics.clone();
        if let Some(losses) = preferences {
            metrics.add("loss", losses.iter().copied());
        }
        if let (Some(likelihood), Some(sums)) = (&self.likelihood, likelihoods) {
            let sum: f64 = sums.iter().sum();
            let tokens = likelihood.tokens as f64;
            metrics.add_mean("loss", Mean::Tokens, likelihood.weight * sum, tokens);
            metrics.add_mean("nll_loss", Mean::Tokens, sum, tokens);
        }
        if let Some(log_odds) = log_odds {
            // log σ(x) = min(x, 0) - log(1 + exp(-|x|)).
            metrics.add("log_odds_ratio", log_odds.iter().map(|x| x.min(0.0) - (-x.abs()).exp().ln_1p()));
            metrics.add("log_odds_chosen", log_odds.iter().copied());
        }
        if let Some(rewards) = &self.rewards {
            add_rewards(&mut metrics, RewardNames::TRL, rewards);
        }
        if let Some(rewards) = &self.weighed_rewards {
            add_rewards(&mut metrics, RewardNames::OURS, rewards);
        }
        metrics.add("logps/chosen", self.logps.chosen.iter().copied());
        metrics.add("logps/rejected", self.logps.rejected.iter().copied());
        if let Some(weighting) = &self.weighting {
            for (weights, scale) in weighting.chosen.weights.iter().zip(&weighting.chosen.scale) {
                metrics.add("aspo/weight_mean", weights.iter().copied());
                metrics.add("aspo/weight_entropy", [weight_entropy(weights)]);
                metrics.add("aspo/scale", [*scale]);
                metrics.add("aspo/sentences", [weights.len() as f64]);
            }
        }
        metrics
    }
}

/// What is told of losses beside their values.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) weighed_rewards: Option<Sides>,
    pub(super) weighting: Option<Weighting>,
}

/// The two means added up; none where there is neither.
pub(super) fn share<B: Backend>(
    preferences: Option<&Tensor<B, 1>>,
    likelihood: Option<&Likelihood<B>>,
    totals: Totals,
) -> Option<Tensor<B, 1>> {
    let preferences = preferences.map(|losses| losses.clone().sum().div_scalar(totals.pairs as f64));
    let likelihood = likelihood.map(|likelihood| {
        likelihood.sums.clone().sum().mul_scalar(likelihood.weight / totals.chosen_tokens as f64)
    });
    match (preferences, likelihood) {
        (Some(preferences), Some(likelihood)) => Some(preferences + likelihood),
        (one, other) => one.or(other),
    }
}

struct RewardNames {
    chosen: &'static str,
    rejected: &'static str,
    margins: &'static str,
    accuracies: &'static str,
}

impl RewardNames {
    const TRL: Self = Self {
        chosen: "rewards/chosen",
        rejected: "rewards/rejected",
        margins: "rewards/margins",
        accuracies: "rewards/accuracies",
    };
    const OURS: Self = Self {
        chosen: "aspo/rewards/chosen",
        rejected: "aspo/rewards/rejected",
        margins: "aspo/rewards/margins",
        accuracies: "aspo/rewards/accuracies",
    };
}

fn add_rewards(metrics: &mut Metrics, names: RewardNames, rewards: &Sides) {
    metrics.add(names.chosen, rewards.chosen.iter().copied());
    metrics.add(names.rejected, rewards.rejected.iter().copied());
    metrics.add(names.margins, rewards.margins());
    metrics
        .add(names.accuracies, rewards.margins().into_iter().map(|margin| f64::from(u8::from(margin > 0.0))));
}
