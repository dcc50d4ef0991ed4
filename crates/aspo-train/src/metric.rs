//! Metrics over the steps between two lines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Sums of the steps since the last line. Stored with a checkpoint, so that a resumed run writes the same line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// By name: sum and weight, as the bits of an `f64` so that nothing is lost on the way through a file.
    sums: BTreeMap<String, (u64, u64)>,
}

impl Window {
    /// Adds a step's mean, weighed by its pairs.
    pub fn add(&mut self, name: &str, mean: f64, weight: f64) {
        let entry = self.sums.entry(name.to_owned()).or_default();
        let (sum, total) = (f64::from_bits(entry.0) + mean * weight, f64::from_bits(entry.1) + weight);
        *entry = (sum.to_bits(), total.to_bits());
    }

    /// The means; the window is empty afterwards.
    pub fn take(&mut self) -> BTreeMap<String, f64> {
        std::mem::take(&mut self.sums)
            .into_iter()
            .map(|(name, (sum, weight))| (name, f64::from_bits(sum) / f64::from_bits(weight)))
            .collect()
    }
}

/// One line of `metrics.jsonl`: `step` and everything by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricLine {
    /// Optimiser steps done.
    pub step: usize,
    /// Everything else, by TRL's names.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}
