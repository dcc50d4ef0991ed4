//! ASPO: the chosen response's sentences weighed by how well they fit the image and how fluent they are.
//!
//! `M* = ρ Σ_i β (1+w_i) d_i - β log[π(y_r)/π_ref(y_r)]`, `d_i = log[π(s_i)/π_ref(s_i)]`, `L = -log σ(M*)` (F;
//! arXiv 2505.19100). Weights and ρ are constants to the gradient.

use burn::prelude::*;

use super::loss_type::Aspo;
use super::output::{Seen, Sides};
use super::sequences::Sequences;
use super::weighting::{SideWeighting, Weighting};
use crate::layout::ResponseLayout;
use crate::math;
use crate::record::{HostLogps, PreferenceBatch, Similarity};
use crate::sentence::{host_sentence_sums, perplexity, response_sums, sentence_sums};
use crate::weight::{Weigh, rejected_weights, sentence_weights};

/// The losses, `[B]`.
pub(super) fn losses<B: Backend>(
    aspo: Aspo,
    batch: &PreferenceBatch<B>,
    sequences: &Sequences<'_, B>,
    scores: &HostLogps,
    beta: f64,
    seen: &mut Seen<B>,
) -> Tensor<B, 1> {
    let [chosen_map, rejected_map] = [&batch.layout().chosen, &batch.layout().rejected];
    let [chosen_tokens, rejected_tokens] = sequences.token_ratios();
    let weigher = |side: usize, map, similarity: &Option<Similarity>, fuse| {
        weigh(map, &scores.policy[side], &scores.ratios(side), similarity.as_ref(), aspo, beta, fuse)
    };
    let chosen = weigher(0, chosen_map, &batch.similarity, sentence_weights);
    let chosen_rewards = reward(chosen_tokens, chosen_map, &chosen, beta);
    let (rejected_rewards, rejected) = match aspo.weigh {
        Weigh::Chosen => (response_sums(rejected_tokens, rejected_map).mul_scalar(beta), None),
        Weigh::Both => {
            let side = weigher(1, rejected_map, &batch.rejected_similarity, rejected_weights);
            (reward(rejected_tokens, rejected_map, &side, beta), Some(side))
        }
    };
    let whole =
        || host_sentence_sums(&scores.ratios(1), rejected_map).iter().map(|d| d.iter().sum()).collect();
    let rejected_ratios = rejected.as_ref().map_or_else(whole, SideWeighting::weighed_ratios);
    seen.weighed_rewards =
        Some(Sides { chosen: chosen.weighed_ratios(), rejected: rejected_ratios }.scaled(beta));
    seen.weighting = Some(Weighting { chosen, rejected });
    math::log_sigmoid(chosen_rewards - rejected_rewards).neg()
}

/// `ρ β Σ_i (1+w_i) d_i`, `[B]`.
fn reward<B: Backend>(
    ratios: Tensor<B, 1>,
    map: &ResponseLayout,
    side: &SideWeighting,
    beta: f64,
) -> Tensor<B, 1> {
    let (rows, width) = (map.batch_size(), map.max_sentences());
    let mut factors = vec![0.0_f32; rows * width];
    for row in 0..rows {
        for (i, factor) in side.factors(row).enumerate() {
            factors[row * width + i] = (beta * factor) as f32;
        }
    }
    let factors = math::constant(factors, [rows, width], &ratios.device());
    (sentence_sums(ratios, map) * factors).sum_dim(1).flatten(0, 1)
}

type Fuse = fn(Option<&[f64]>, &[f64], f64) -> Vec<f64>;

/// Weights and scaling of one side, from the policy's log-probabilities and the log-ratios of its tokens.
fn weigh(
    map: &ResponseLayout,
    policy: &[f32],
    ratios: &[f64],
    similarity: Option<&Similarity>,
    aspo: Aspo,
    beta: f64,
    fuse: Fuse,
) -> SideWeighting {
    let policy: Vec<f64> = policy.iter().map(|&p| f64::from(p)).collect();
    let (log_probs, log_ratios) = (host_sentence_sums(&policy, map), host_sentence_sums(ratios, map));
    let perplexity: Vec<Vec<f64>> = log_probs
        .iter()
        .enumerate()
        .map(|(row, sums)| sums.iter().zip(map.counts(row)).map(|(&sum, &n)| perplexity(sum, n)).collect())
        .collect();
    let weights: Vec<Vec<f64>> = perplexity
        .iter()
        .enumerate()
        .map(|(row, perplexity)| {
            let similarity = similarity.filter(|_| aspo.alpha > 0.0);
            let similarity: Option<Vec<f64>> =
                similarity.map(|s| s.row(row).iter().map(|&x| f64::from(x)).collect());
            fuse(similarity.as_deref(), perplexity, aspo.alpha)
        })
        .collect();
    let scale = |(row, weights): (usize, &Vec<f64>)| {
        aspo.scaling.factor(weights, map.counts(row), &log_ratios[row], beta)
    };
    let scale = weights.iter().enumerate().map(scale).collect();
    SideWeighting { weights, perplexity, log_probs, log_ratios, scale }
}
