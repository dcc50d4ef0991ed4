//! ASPO: the chosen response's sentences weighed by how well they fit the image and how fluent they are.
//!
//! `M* = ρ Σ_i β (1+w_i) d_i - β log[π(y_r)/π_ref(y_r)]`, `d_i = log[π(s_i)/π_ref(s_i)]`, `L = -log σ(M*)` (F;
//! arXiv 2505.19100). Weights and ρ are constants to the gradient.

use burn::prelude::*;

use super::{LossOutput, LossType, Objective, Sequences, Term};
use crate::error::{Error, Result};
use crate::map::SentenceMap;
use crate::math;
use crate::record::{PreferenceBatch, Similarity};
use crate::sentence::{host_sentence_sums, perplexity, sentence_sums};
use crate::weight::{RewardScaling, Weigh, misfit_weights, sentence_weights};

/// ASPO by itself; [`Objective`] mixes it with others.
///
/// ```
/// use aspo_loss::{Aspo, RewardScaling};
/// let aspo = Aspo { alpha: 0.7, scaling: RewardScaling::TokenWeight, ..Aspo::default() };
/// assert_eq!(aspo.beta, 0.1);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aspo {
    /// DPO's temperature β > 0. Default 0.1.
    pub beta: f64,
    /// Share of similarity against perplexity, in [0, 1]. Not published; default 0.5 (C).
    pub alpha: f64,
    /// The reading of ρ. Default [`RewardScaling::TotalWeight`] (C).
    pub scaling: RewardScaling,
    /// Which responses are weighed. Default [`Weigh::Chosen`] (F).
    pub weigh: Weigh,
}

impl Default for Aspo {
    fn default() -> Self {
        Self { beta: 0.1, alpha: 0.5, scaling: RewardScaling::default(), weigh: Weigh::default() }
    }
}

impl Aspo {
    /// The loss of a batch that carries reference scores and, for α > 0, similarities.
    ///
    /// # Errors
    /// An option outside its range, a missing record, a log-probability that is not finite.
    pub fn loss<B: Backend>(&self, batch: &PreferenceBatch<B>) -> Result<LossOutput<B>> {
        Objective::from(*self).loss(batch)
    }
}

impl From<Aspo> for Objective {
    fn from(aspo: Aspo) -> Self {
        let Aspo { beta, alpha, scaling, weigh } = aspo;
        Objective { beta, alpha, scaling, weigh, ..Objective::new(LossType::Aspo) }
    }
}

/// What ASPO made of each sentence: constants of the step, on the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighting {
    /// The chosen side.
    pub chosen: SideWeighting,
    /// The rejected side, under [`Weigh::Both`].
    pub rejected: Option<SideWeighting>,
}

/// One side of a [`Weighting`]; every inner vector has one value per sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct SideWeighting {
    /// `w_i`.
    pub weights: Vec<Vec<f64>>,
    /// `PPL_i` of the policy.
    pub perplexity: Vec<Vec<f64>>,
    /// `log π(s_i)`.
    pub log_probs: Vec<Vec<f64>>,
    /// `d_i = log[π(s_i)/π_ref(s_i)]`.
    pub log_ratios: Vec<Vec<f64>>,
    /// ρ of each row.
    pub scale: Vec<f64>,
}

/// The losses `[B]` and rewards of ASPO.
pub(super) fn term<B: Backend>(
    batch: &PreferenceBatch<B>,
    sequences: &Sequences<B>,
    objective: &Objective,
) -> Result<Term<B>> {
    let [chosen_tokens, rejected_tokens] = sequences.token_ratios();
    let chosen = weigh(
        "chosen",
        &batch.map.chosen,
        [batch.policy.chosen(), &chosen_tokens],
        batch.similarity.as_ref(),
        objective,
        sentence_weights,
    )?;
    let chosen_rewards = reward(chosen_tokens, &batch.map.chosen, &chosen, objective.beta);
    let (rejected_rewards, rejected) = match objective.weigh {
        Weigh::Chosen => (sequences.ratios()[1].clone().mul_scalar(objective.beta), None),
        Weigh::Both => {
            let map = &batch.map.rejected;
            let tokens = [batch.policy.rejected(), &rejected_tokens];
            let similarity = batch.rejected_similarity.as_ref();
            let side = weigh("rejected", map, tokens, similarity, objective, misfit_weights)?;
            (reward(rejected_tokens, map, &side, objective.beta), Some(side))
        }
    };
    let losses = math::log_sigmoid(chosen_rewards.clone() - rejected_rewards.clone()).neg();
    Ok(Term { losses, chosen_rewards, rejected_rewards, weighting: Some(Weighting { chosen, rejected }) })
}

/// `ρ β Σ_i (1+w_i) d_i`, `[B]`.
fn reward<B: Backend>(
    ratios: Tensor<B, 1>,
    map: &SentenceMap,
    side: &SideWeighting,
    beta: f64,
) -> Tensor<B, 1> {
    let (rows, width) = (map.batch_size(), map.max_sentences());
    let mut factors = vec![0.0_f32; rows * width];
    for (row, weights) in side.weights.iter().enumerate() {
        for (i, w) in weights.iter().enumerate() {
            factors[row * width + i] = (side.scale[row] * beta * (1.0 + w)) as f32;
        }
    }
    let factors = math::constant(factors, [rows, width], &ratios.device());
    (sentence_sums(ratios, map) * factors).sum_dim(1).flatten(0, 1)
}

type Fuse = fn(Option<&[f64]>, &[f64], f64) -> Vec<f64>;

/// Weights and scaling of one side, from the policy's log-probabilities and the log-ratios of its tokens.
fn weigh<B: Backend>(
    side: &str,
    map: &SentenceMap,
    [policy, ratios]: [&Tensor<B, 1>; 2],
    similarity: Option<&Similarity>,
    objective: &Objective,
    fuse: Fuse,
) -> Result<SideWeighting> {
    // One read of both vectors.
    let both =
        math::host(&Tensor::cat(vec![math::detached(policy.clone()), math::detached(ratios.clone())], 0));
    let (policy, ratios) = both.split_at(map.num_tokens());
    let (log_probs, log_ratios) = (host_sentence_sums(policy, map), host_sentence_sums(ratios, map));
    let mut out = SideWeighting {
        weights: vec![],
        perplexity: vec![],
        log_probs: vec![],
        log_ratios: vec![],
        scale: vec![],
    };
    for (row, (log_probs, log_ratios)) in log_probs.into_iter().zip(log_ratios).enumerate() {
        let counts = map.counts(row);
        if let Some(element) =
            log_probs.iter().zip(&log_ratios).position(|(p, d)| !(p.is_finite() && d.is_finite()))
        {
            let (p, d) = (log_probs[element], log_ratios[element]);
            let what = format!("{side} sentence log-probabilities (policy, or policy less reference)");
            return Err(Error::NotFinite { what, row, element, found: if p.is_finite() { d } else { p } });
        }
        let perplexity: Vec<f64> =
            log_probs.iter().zip(counts).map(|(&sum, &n)| perplexity(sum, n)).collect();
        let similarity: Option<Vec<f64>> = (objective.alpha > 0.0)
            .then(|| similarity.map(|s| s.row(row).iter().map(|&x| f64::from(x)).collect()))
            .flatten();
        let weights = fuse(similarity.as_deref(), &perplexity, objective.alpha);
        out.scale.push(objective.scaling.factor(&weights, counts, &log_ratios, objective.beta));
        out.weights.push(weights);
        out.perplexity.push(perplexity);
        out.log_probs.push(log_probs);
        out.log_ratios.push(log_ratios);
    }
    Ok(out)
}
