//! Which pairs of several sources are trained on, and which are held out.

use aspo_data::PairSet;
use aspo_data::order::permutation;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// How sources become one set (LLaMA-Factory's `mix_strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixStrategy {
    /// All pairs of all sources.
    #[default]
    Concat,
    /// In the proportion of the weights, until the source that is scarcest for its weight is used up; no pair comes twice.
    InterleaveUnder,
    /// In the proportion of the weights, until every source is used up; pairs of the others come again.
    InterleaveOver,
}

/// The set that is trained on, of the sources' sets.
pub(crate) fn mixed(config: &TrainConfig, sets: Vec<PairSet>) -> Result<PairSet> {
    if config.mix_strategy == MixStrategy::Concat {
        return Ok(PairSet::concat(sets));
    }
    let weights: Vec<f64> = config.data.0.iter().map(|source| source.weight.unwrap_or(1.0)).collect();
    let sizes: Vec<usize> = sets.iter().map(PairSet::len).collect();
    if let Some(empty) = sizes.iter().position(|size| *size == 0) {
        let path = config.data.0[empty].path.display();
        let remedy = "give pairs, or leave the source out of the mixture";
        return Err(Error::option("data", format!("{path} holds no pair that can be used"), remedy));
    }
    let counts = counts(&sizes, &weights, config.mix_strategy);
    let sets = sets.iter().zip(counts).enumerate();
    let sets = sets.map(|(number, (set, count))| {
        let order = permutation(set.len(), config.seed.wrapping_add(number as u64));
        let again = (0..count / set.len()).flat_map(|_| 0..set.len());
        let numbers: Vec<usize> = again.chain(order.into_iter().take(count % set.len())).collect();
        set.select(&numbers)
    });
    Ok(PairSet::concat(sets.collect()))
}

/// How many pairs of each source: in the proportion of the weights to the nearest pair.
fn counts(sizes: &[usize], weights: &[f64], strategy: MixStrategy) -> Vec<usize> {
    let per_weight = sizes.iter().zip(weights).map(|(size, weight)| *size as f64 / weight);
    let under = strategy == MixStrategy::InterleaveUnder;
    let per_weight =
        if under { per_weight.fold(f64::INFINITY, f64::min) } else { per_weight.fold(0.0, f64::max) };
    let count = |(size, weight): (&usize, &f64)| {
        let count = (per_weight * weight).round() as usize;
        if under { count.min(*size) } else { count.max(*size) }
    };
    sizes.iter().zip(weights).map(count).collect()
}

/// Takes the held-out share out of every set, and adds it to `apart`. Pairs about one picture stay together.
pub(crate) fn held_out(share: f64, sets: Vec<PairSet>, apart: &mut Vec<PairSet>) -> Vec<PairSet> {
    if share == 0.0 {
        return sets;
    }
    let parted = sets.into_iter().map(|set| {
        let (held, kept): (Vec<usize>, Vec<usize>) =
            (0..set.len()).partition(|&number| set.share(number) < share);
        apart.push(set.select(&held));
        set.select(&kept)
    });
    parted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_mixed_in_the_proportion_of_their_weights() {
        let under = |sizes: &[usize], weights: &[f64]| counts(sizes, weights, MixStrategy::InterleaveUnder);
        let over = |sizes: &[usize], weights: &[f64]| counts(sizes, weights, MixStrategy::InterleaveOver);
        assert_eq!(under(&[1000, 100], &[0.5, 0.5]), [100, 100]);
        assert_eq!(over(&[1000, 100], &[0.5, 0.5]), [1000, 1000]);
        assert_eq!(under(&[1000, 100], &[9.0, 1.0]), [900, 100]);
        assert_eq!(over(&[1000, 100], &[9.0, 1.0]), [1000, 111]);
        assert_eq!(under(&[10], &[0.3]), [10]);
    }
}
