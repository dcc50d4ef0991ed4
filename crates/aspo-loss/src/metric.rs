//! Metrics by TRL's names, as sums that add up exactly over micro-batches.

use std::collections::BTreeMap;

use burn::prelude::*;

use crate::math;
use crate::objective::LossOutput;
use crate::weight::weight_entropy;

/// Means by name, kept as sums and counts so that micro-batches of any size [`merge`](Self::merge) exactly.
///
/// | name | mean over | what |
/// |---|---|---|
/// | `loss` | pairs | the loss |
/// | `rewards/chosen`, `rewards/rejected`, `rewards/margins` | pairs | implicit rewards and their difference |
/// | `rewards/accuracies` | pairs | whether the chosen reward is greater (a tie is not) |
/// | `logps/chosen`, `logps/rejected` | pairs | log-probability of the response |
/// | `aspo/weight_mean` | chosen sentences | `w_i` |
/// | `aspo/weight_entropy` | pairs | entropy of `w_i / Σ w`, nats |
/// | `aspo/scale` | pairs | ρ |
/// | `aspo/sentences` | pairs | sentences of the chosen response |
/// | `entropy` | tokens | entropy of the token's distribution, nats; with token statistics |
/// | `mean_token_accuracy` | chosen tokens | whether the token is the likeliest; with token statistics |
/// | `logits/chosen`, `logits/rejected` | tokens | mean logit; with token statistics |
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    sums: BTreeMap<&'static str, (f64, f64)>,
}

impl Metrics {
    /// Adds values under a name.
    pub fn add(&mut self, name: &'static str, values: impl IntoIterator<Item = f64>) {
        let entry = self.sums.entry(name).or_default();
        for value in values {
            entry.0 += value;
            entry.1 += 1.0;
        }
    }

    /// Adds another micro-batch's sums.
    pub fn merge(&mut self, other: &Self) {
        for (name, (sum, count)) in &other.sums {
            let entry = self.sums.entry(name).or_default();
            entry.0 += sum;
            entry.1 += count;
        }
    }

    /// The mean under a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.sums.get(name).filter(|(_, count)| *count > 0.0).map(|(sum, count)| sum / count)
    }

    /// Names and means, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.sums.iter().filter(|(_, (_, count))| *count > 0.0).map(|(name, (sum, n))| (*name, sum / n))
    }
}

impl<B: Backend> LossOutput<B> {
    /// The metrics of this batch. Reads `[B]`-sized tensors back once.
    pub fn metrics(&self) -> Metrics {
        let columns = [
            &self.losses,
            &self.chosen_rewards,
            &self.rejected_rewards,
            &self.chosen_logps,
            &self.rejected_logps,
        ];
        let columns: Vec<_> = columns.into_iter().map(|t| math::detached(t.clone())).collect();
        let pairs = self.losses.dims()[0];
        let values: Vec<f64> = math::host(&Tensor::cat(columns, 0)).into_iter().map(f64::from).collect();
        let column = |i: usize| values[i * pairs..(i + 1) * pairs].iter().copied();

        let mut metrics = self.token_metrics.clone();
        metrics.add("loss", column(0));
        metrics.add("rewards/chosen", column(1));
        metrics.add("rewards/rejected", column(2));
        metrics.add("rewards/margins", column(1).zip(column(2)).map(|(c, r)| c - r));
        metrics.add("rewards/accuracies", column(1).zip(column(2)).map(|(c, r)| f64::from(u8::from(c > r))));
        metrics.add("logps/chosen", column(3));
        metrics.add("logps/rejected", column(4));
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
