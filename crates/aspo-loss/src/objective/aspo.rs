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
    beta: f64,
) -> Tensor<B, 1> {
    let [chosen_map, rejected_map] = [&batch.layout().chosen, &batch.layout().rejected];
    let [chosen, rejected] = sequences.token_ratios();
    let reward = |ratios: Tensor<B, 1>, map, policy: &Tensor<B, 1>, similarity: &Option<Similarity>, sign| {
        let similarity = similarity.as_ref().filter(|_| aspo.alpha > 0.0);
        device::reward(ratios, map, policy.clone(), similarity, aspo, beta, sign)
    };
    let chosen = reward(chosen, chosen_map, batch.policy.chosen(), &batch.similarity, 1.0);
    let rejected = match aspo.weigh {
        Weigh::Chosen => response_sums(rejected, rejected_map).mul_scalar(beta),
        Weigh::Both => {
            reward(rejected, rejected_map, batch.policy.rejected(), &batch.rejected_similarity, -1.0)
        }
    };
    math::log_sigmoid(chosen - rejected).neg()
}

/// Weights, scales and weighed rewards, once the log-probabilities are known: in f64, by the same equations.
pub(super) fn seen<B: Backend>(
    aspo: Aspo,
    batch: &PreferenceBatch<B>,
    scores: &HostLogps,
    beta: f64,
    seen: &mut Seen,
) {
    let [chosen_map, rejected_map] = [&batch.layout().chosen, &batch.layout().rejected];
    let weigher = |side: usize, map, similarity: &Option<Similarity>, fuse| {
        weigh(map, &scores.policy[side], &scores.ratios(side), similarity.as_ref(), aspo, beta, fuse)
    };
    let chosen = weigher(0, chosen_map, &batch.similarity, sentence_weights);
    let rejected = match aspo.weigh {
        Weigh::Chosen => None,
        Weigh::Both => Some(weigher(1, rejected_map, &batch.rejected_similarity, rejected_weights)),
    };
    let whole =
        || host_sentence_sums(&scores.ratios(1), rejected_map).iter().map(|d| d.iter().sum()).collect();
    let rejected_ratios = rejected.as_ref().map_or_else(whole, SideWeighting::weighed_ratios);
    seen.weighed_rewards =
        Some(Sides { chosen: chosen.weighed_ratios(), rejected: rejected_ratios }.scaled(beta));
    seen.weighting = Some(Weighting { chosen, rejected });
}

/// The weighing on the device, `[B, K]`, where rows with fewer sentences than K have 0.
mod device {
    use super::*;
    use crate::sentence::MAX_PERPLEXITY_EXPONENT;
    use crate::weight::{RewardScaling, SMALL_REWARD, TIE, min_max};

    /// `ρ β Σ_i (1+w_i) d_i`, `[B]`; `sign` is -1 where a sentence weighs by how little it fits.
    pub(super) fn reward<B: Backend>(
        ratios: Tensor<B, 1>,
        map: &ResponseLayout,
        policy: Tensor<B, 1>,
        similarity: Option<&Similarity>,
        aspo: Aspo,
        beta: f64,
        sign: f64,
    ) -> Tensor<B, 1> {
        let sums = sentence_sums(ratios, map);
        let grid = Grid::new(map, &sums.device());
        let log_probs = sentence_sums(math::detached(policy), map);
        let perplexity = (log_probs.neg() / grid.tokens.clone()).clamp_max(MAX_PERPLEXITY_EXPONENT).exp();
        let fluent = grid.min_max(perplexity.mul_scalar(-sign)).mul_scalar(1.0 - aspo.alpha);
        let weights = match similarity {
            Some(similarity) => {
                let fitting = |row: usize| {
                    let signed: Vec<f64> = similarity.row(row).iter().map(|&s| sign * f64::from(s)).collect();
                    min_max(&signed).into_iter().map(|s| aspo.alpha * s).collect()
                };
                fluent + grid.of(fitting)
            }
            None => fluent,
        };
        // 1 + w of a sentence, 0 where there is none.
        let weights = weights + grid.present.clone();
        let scale = grid.scale(aspo.scaling, &weights, math::detached(sums.clone()), beta);
        let factors = math::detached(weights * scale.mul_scalar(beta));
        (sums * factors).sum_dim(1).flatten(0, 1)
    }

    /// What is known of the sentences of a batch, `[B, K]` each.
    struct Grid<'a, B: Backend> {
        map: &'a ResponseLayout,
        device: B::Device,
        /// Tokens of a sentence; 1 where there is none.
        tokens: Tensor<B, 2>,
        /// 1 where there is a sentence.
        present: Tensor<B, 2>,
        absent: Tensor<B, 2, Bool>,
    }

    impl<'a, B: Backend> Grid<'a, B> {
        fn new(map: &'a ResponseLayout, device: &B::Device) -> Self {
            let filled = |value: fn(usize) -> f32, empty: f32| {
                let mut values = Vec::with_capacity(map.batch_size() * map.max_sentences());
                for row in 0..map.batch_size() {
                    let counts = map.counts(row);
                    values.extend(counts.iter().map(|&count| value(count)));
                    values.extend(std::iter::repeat_n(empty, map.max_sentences() - counts.len()));
                }
                math::constant(values, [map.batch_size(), map.max_sentences()], device)
            };
            let present: Tensor<B, 2> = filled(|_| 1.0, 0.0);
            let absent = present.clone().equal_elem(0.0);
            Self { map, device: device.clone(), tokens: filled(|count| count as f32, 1.0), present, absent }
        }

        /// Values of the host, by row.
        fn of(&self, row: impl Fn(usize) -> Vec<f64>) -> Tensor<B, 2> {
            let (rows, width) = (self.map.batch_size(), self.map.max_sentences());
            let mut values = vec![0.0; rows * width];
            for index in 0..rows {
                for (value, of_row) in values[index * width..].iter_mut().zip(row(index)) {
                    *value = of_row as f32;
                }
            }
            math::constant(values, [rows, width], &self.device)
        }

        /// [`crate::weight::min_max`] of each row.
        fn min_max(&self, values: Tensor<B, 2>) -> Tensor<B, 2> {
            let edge = |empty: f32| values.clone().mask_fill(self.absent.clone(), empty);
            let (low, high) = (edge(f32::MAX).min_dim(1), edge(f32::MIN).max_dim(1));
            let spread = high.clone() - low.clone();
            let tied = spread.clone().lower_equal(low.clone().abs().max_pair(high.abs()).mul_scalar(TIE));
            let none = self.absent.clone().bool_or(tied.expand(self.absent.dims()));
            let share = (values - low) / spread.clamp_min(f32::MIN_POSITIVE);
            share.clamp(0.0, 1.0).mask_fill(none, 0.0)
        }

        /// ρ, `[B, 1]`, from the `1 + w` of each sentence.
        fn scale(
            &self,
            scaling: RewardScaling,
            weights: &Tensor<B, 2>,
            log_ratios: Tensor<B, 2>,
            beta: f64,
        ) -> Tensor<B, 2> {
            let total = |values: Tensor<B, 2>| values.sum_dim(1);
            let by_weight = || total(self.present.clone()) / total(weights.clone());
            match scaling {
                RewardScaling::TotalWeight => by_weight(),
                RewardScaling::TokenWeight => {
                    let tokens = self.tokens.clone() * self.present.clone();
                    total(tokens.clone()) / total(weights.clone() * tokens)
                }
                RewardScaling::RewardRatio => {
                    let weighed = total(weights.clone() * log_ratios.clone());
                    let small = weighed.clone().abs().mul_scalar(beta).lower_elem(SMALL_REWARD);
                    (total(log_ratios) / weighed).clamp(0.5, 1.0).mask_where(small, by_weight())
                }
                RewardScaling::Off => total(self.present.clone()).ones_like(),
            }
        }
    }
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
