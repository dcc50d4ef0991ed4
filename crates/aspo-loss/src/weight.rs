//! Sentence weights and the scaling that keeps long responses from gaining by them (steps 2 to 6 of docs/method.md), as
//! pure functions of detached host numbers.

use crate::names::{by_name, serde_as_text};

/// Values whose spread is at most this share of the largest of them count as tied (C): some eight of f32's steps, which sums in
/// another order may differ by.
pub const TIE: f64 = 1e-6;

/// Below this magnitude of the weighted reward, `RewardRatio` takes the value of `TotalWeight` (C).
pub const SMALL_REWARD: f64 = 1e-8;

/// Min-max over one response: `(x_i - min) / (max - min) ∈ [0, 1]`. One value, or a spread within [`TIE`], gives 0
/// (F for one sentence, C for ties).
pub fn min_max(values: &[f64]) -> Vec<f64> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let spread = high - low;
    if spread <= TIE * low.abs().max(high.abs()) {
        return vec![0.0; values.len()];
    }
    values.iter().map(|x| ((x - low) / spread).clamp(0.0, 1.0)).collect()
}

/// `w_i = α S'_i + (1-α) P'_i` with `S'` the min-max of the similarities and `P'` that of the negated perplexities
/// (F). Without similarities (`None`, for α = 0) only the second term is there.
pub fn sentence_weights(similarity: Option<&[f64]>, perplexity: &[f64], alpha: f64) -> Vec<f64> {
    fuse(similarity, perplexity, alpha, 1.0)
}

/// The weights of a rejected response under [`Weigh::Both`] (our extension): by how little each sentence fits,
/// `α (1 - S'_i) + (1-α) (1 - P'_i)`. It is the min-max of the *negated* scores, which is `1 - S'` wherever that is
/// defined and, by the same rule as for the chosen response, 0 for one sentence and for ties.
pub fn rejected_weights(similarity: Option<&[f64]>, perplexity: &[f64], alpha: f64) -> Vec<f64> {
    fuse(similarity, perplexity, alpha, -1.0)
}

fn fuse(similarity: Option<&[f64]>, perplexity: &[f64], alpha: f64, sign: f64) -> Vec<f64> {
    let signed = |values: &[f64], sign: f64| min_max(&values.iter().map(|x| sign * x).collect::<Vec<_>>());
    let fluent = signed(perplexity, -sign);
    match similarity {
        Some(similarity) => {
            let fitting = signed(similarity, sign);
            fitting.iter().zip(&fluent).map(|(s, p)| alpha * s + (1.0 - alpha) * p).collect()
        }
        None => fluent.iter().map(|p| (1.0 - alpha) * p).collect(),
    }
}

/// Entropy of `w_i / Σ w`, nats; 0 where all weights are 0.
pub fn weight_entropy(weights: &[f64]) -> f64 {
    let sum: f64 = weights.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    -weights.iter().map(|w| w / sum).filter(|p| *p > 0.0).map(|p| p * p.ln()).sum::<f64>()
}

/// ρ, always detached: what keeps "long responses \[from\] benefit\[ing\] from an increased total weight" (F). Its exact
/// definition is not published; the four readings are ours (C).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RewardScaling {
    /// `K / Σ(1+w_i)`, in [½, 1].
    #[default]
    TotalWeight,
    /// `N / Σ(1+w_i) N_i`: as the normaliser of RLHF-V's DDPO, in [½, 1].
    TokenWeight,
    /// `Σ d_i / Σ (1+w_i) d_i`, clamped to [½, 1]; where `|β Σ (1+w_i) d_i| < 1e-8`, the value of `TotalWeight`.
    RewardRatio,
    /// 1: no scaling.
    Off,
}

impl RewardScaling {
    /// All readings.
    pub const ALL: [Self; 4] = [Self::TotalWeight, Self::TokenWeight, Self::RewardRatio, Self::Off];

    /// ρ of one response: weights `w`, tokens per sentence `N_i`, log-ratios `d`, all of one length.
    pub fn factor(self, weights: &[f64], tokens: &[usize], log_ratios: &[f64], beta: f64) -> f64 {
        let total_weight = || weights.len() as f64 / weights.iter().map(|w| 1.0 + w).sum::<f64>();
        match self {
            Self::TotalWeight => total_weight(),
            Self::TokenWeight => {
                let weighted: f64 = weights.iter().zip(tokens).map(|(w, &n)| (1.0 + w) * n as f64).sum();
                tokens.iter().sum::<usize>() as f64 / weighted
            }
            Self::RewardRatio => {
                let weighted: f64 = weights.iter().zip(log_ratios).map(|(w, d)| (1.0 + w) * d).sum();
                if (beta * weighted).abs() < SMALL_REWARD {
                    return total_weight();
                }
                (log_ratios.iter().sum::<f64>() / weighted).clamp(0.5, 1.0)
            }
            Self::Off => 1.0,
        }
    }

    /// Its name in configurations: `total_weight`, `token_weight`, `reward_ratio`, `none`.
    pub fn name(self) -> &'static str {
        match self {
            Self::TotalWeight => "total_weight",
            Self::TokenWeight => "token_weight",
            Self::RewardRatio => "reward_ratio",
            Self::Off => "none",
        }
    }
}

/// Which responses are weighed sentence by sentence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Weigh {
    /// The chosen response; the rejected one stays whole (F).
    #[default]
    Chosen,
    /// Our extension: the rejected one as well, by [`rejected_weights`].
    Both,
}

impl Weigh {
    /// Its name in configurations: `chosen`, `both`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Both => "both",
        }
    }
}

by_name!(RewardScaling, "reward scaling", RewardScaling::ALL);
by_name!(Weigh, "weighing", [Weigh::Chosen, Weigh::Both]);
serde_as_text!(RewardScaling, Weigh);
