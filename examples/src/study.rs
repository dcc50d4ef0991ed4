//! What the study of the scenes world compares, and its tables.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use aspo_train::{MetricLine, TrainConfig};
use serde::{Deserialize, Serialize};

use crate::measure::{Measured, Tally};
use aspo_eval::interval::{Interval, Spread, paired, share_change};

/// One way of training.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// What the tables call it.
    pub name: &'static str,
    /// Its folder.
    pub folder: &'static str,
    /// As [`TrainConfig::loss_type`].
    pub loss: &'static str,
    /// As [`TrainConfig::reward_scaling`].
    pub scaling: &'static str,
    /// As [`TrainConfig::alpha`].
    pub alpha: f64,
    /// As [`TrainConfig::weigh`].
    pub weigh: &'static str,
    /// β as a multiple of the config's.
    pub betas: f64,
    /// It is trained with seeds 1, 2, … as many as this.
    pub seeds: u64,
}

const DPO: Setting = Setting {
    name: "DPO",
    folder: "dpo",
    loss: "sigmoid",
    scaling: "total_weight",
    alpha: 0.5,
    weigh: "chosen",
    betas: 1.0,
    seeds: 10,
};
const ASPO: Setting = Setting { name: "ASPO", folder: "aspo", loss: "aspo", ..DPO };
const BOTH: Setting =
    Setting { name: "ASPO, both answers weighed", folder: "aspo-both", weigh: "both", seeds: 5, ..ASPO };
/// DDPO's rewards are means over tokens: its β is larger, five times as RLHF-V's 0.5 is of DPO's 0.1.
const DDPO: Setting =
    Setting { name: "DDPO (5 β)", folder: "ddpo", loss: "ddpo", betas: 5.0, seeds: 5, ..DPO };

/// On a model's own answers. The first is what the others are compared with.
pub const OWN: [Setting; 9] = [
    DPO,
    ASPO,
    Setting { name: "similarity only (α 1)", folder: "aspo-alpha-1", alpha: 1.0, seeds: 5, ..ASPO },
    Setting { name: "perplexity only (α 0)", folder: "aspo-alpha-0", alpha: 0.0, seeds: 5, ..ASPO },
    Setting {
        name: "ρ token weight",
        folder: "aspo-token-weight",
        scaling: "token_weight",
        seeds: 5,
        ..ASPO
    },
    Setting {
        name: "ρ reward ratio",
        folder: "aspo-reward-ratio",
        scaling: "reward_ratio",
        seeds: 5,
        ..ASPO
    },
    Setting { name: "no ρ", folder: "aspo-no-rho", scaling: "none", seeds: 5, ..ASPO },
    BOTH,
    DDPO,
];

/// On planted mistakes.
pub const PLANTED: [Setting; 4] = [
    Setting { seeds: 3, ..DPO },
    Setting { seeds: 3, ..ASPO },
    Setting { seeds: 3, ..BOTH },
    Setting { seeds: 3, ..DDPO },
];

impl Setting {
    /// The run of a seed, on top of what all runs share.
    pub fn config(&self, shared: &TrainConfig, seed: u64) -> TrainConfig {
        TrainConfig {
            loss_type: vec![self.loss.into()],
            reward_scaling: self.scaling.into(),
            alpha: self.alpha,
            weigh: self.weigh.into(),
            beta: self.betas * shared.beta,
            seed,
            ..shared.clone()
        }
    }
}

/// Which setting, which seed.
pub type Run = (usize, u64);

/// All runs; those of settings with more seeds first, and of these seed by seed, so that a study that is stopped has whole
/// pairs to compare.
pub fn runs(settings: &[Setting]) -> Vec<Run> {
    let of = |(at, setting): (usize, &Setting)| (1..=setting.seeds).map(move |seed| (at, seed));
    let mut runs: Vec<Run> = settings.iter().enumerate().flat_map(of).collect();
    runs.sort_by_key(|&(at, seed)| (Reverse(settings[at].seeds), seed, at));
    runs
}

/// One trained model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// What it does on the held-out scenes.
    pub measured: Measured,
    /// Share of pairs whose chosen answer has the higher reward, over the last quarter of the steps.
    pub accuracy: f64,
    /// Change of `log π(chosen)` from the first quarter of the steps to the last.
    pub displacement: f64,
    /// Optimiser steps.
    pub steps: usize,
}

impl Outcome {
    /// Of a model that was measured after a run with these metrics, one line a step.
    pub fn new(measured: Measured, lines: &[MetricLine], steps: usize) -> Self {
        let of = |line: &MetricLine, name: &str| line.values.get(name).copied().unwrap_or(f64::NAN);
        let mean = |lines: &[MetricLine], name: &str| {
            lines.iter().map(|line| of(line, name)).sum::<f64>() / lines.len() as f64
        };
        let quarter = lines.len().div_ceil(4);
        let (first, last) = (&lines[..quarter], &lines[lines.len() - quarter..]);
        Self {
            measured,
            accuracy: mean(last, "rewards/accuracies"),
            displacement: mean(last, "logps/chosen") - mean(first, "logps/chosen"),
            steps,
        }
    }
}

/// A heading and the value below it.
type Column = (&'static str, fn(&Outcome) -> f64);

/// What the tables show of a model.
pub const COLUMNS: [Column; 6] = [
    ("hallucinated sentences, %", |o| 100.0 * o.measured.hallucinated),
    ("objects described, %", |o| 100.0 * o.measured.described),
    ("POPE accuracy, %", |o| 100.0 * o.measured.pope_accuracy()),
    ("sentences a description", |o| o.measured.sentences),
    ("reward accuracy, %", |o| 100.0 * o.accuracy),
    ("Δ log π(chosen)", |o| o.displacement),
];

/// All and part of what was counted on a scene.
type Counts = fn(&Tally) -> [usize; 2];

/// What is a share of counts over scenes.
const SHARES: [(&str, Counts); 3] = [
    ("hallucinated sentences", |tally| tally.sentences),
    ("objects described", |tally| tally.objects),
    ("POPE accuracy", |tally| tally.questions),
];

/// Means over the seeds there are; differences from the first setting over seeds, and over scenes.
pub fn tables(settings: &[Setting], base: &Measured, done: &BTreeMap<Run, Outcome>) -> String {
    let of = |at: usize| done.range((at, 0)..(at + 1, 0)).map(|(&(_, seed), outcome)| (seed, outcome));
    let row = |name: &str, seeds: String, cells: Vec<String>| {
        format!("| {name} | {seeds} | {} |\n", cells.join(" | "))
    };
    let head = |names: &[&str]| {
        format!("| {} |\n|{}\n", [&["", "seeds"], names].concat().join(" | "), "---|".repeat(names.len() + 2))
    };
    let names = COLUMNS.map(|(name, _)| name);
    let there: Vec<usize> = (0..settings.len()).filter(|&at| of(at).next().is_some()).collect();

    let mut text = head(&names);
    let base_row = Outcome { measured: base.clone(), accuracy: f64::NAN, displacement: f64::NAN, steps: 0 };
    let cell = |value: f64| if value.is_nan() { "–".to_owned() } else { format!("{value:.1}") };
    text += &row("base", String::new(), COLUMNS.iter().map(|(_, value)| cell(value(&base_row))).collect());
    for &at in &there {
        let spread = |value: fn(&Outcome) -> f64| {
            Spread::of(&of(at).map(|(_, outcome)| value(outcome)).collect::<Vec<_>>()).to_string()
        };
        let cells = COLUMNS.iter().map(|(_, value)| spread(*value)).collect();
        text += &row(settings[at].name, of(at).count().to_string(), cells);
    }

    // Seeds that both have.
    let both = |at: usize| -> Vec<(&Outcome, &Outcome)> {
        of(at).filter_map(|(seed, outcome)| Some((outcome, done.get(&(0, seed))?))).collect()
    };
    text += &format!("\nMinus {} of the same seed, 95% interval over seeds:\n\n", settings[0].name);
    text += &head(&names);
    for &at in there.iter().filter(|&&at| at > 0) {
        let both = both(at);
        let difference = |value: fn(&Outcome) -> f64| {
            let (own, other): (Vec<f64>, Vec<f64>) = both.iter().map(|(a, b)| (value(a), value(b))).unzip();
            paired(&own, &other).to_string()
        };
        let cells = COLUMNS.iter().map(|(_, value)| difference(*value)).collect();
        text += &row(settings[at].name, both.len().to_string(), cells);
    }

    text += "\nThe same, all seeds of a setting together, 95% interval over scenes; and how many seeds hallucinate less:\n\n";
    let shares = SHARES.map(|(name, _)| name);
    text += &head(&[&shares[..], &["fewer hallucinated"]].concat());
    for &at in there.iter().filter(|&&at| at > 0) {
        let both = both(at);
        let (after, before): (Vec<&Measured>, Vec<&Measured>) =
            both.iter().map(|(a, b)| (&a.measured, &b.measured)).unzip();
        let fewer = both.iter().filter(|(a, b)| a.measured.hallucinated < b.measured.hallucinated).count();
        let cells = SHARES.iter().map(|(_, counts)| over_scenes(&before, &after, *counts).to_string());
        let cells = cells.chain([format!("{fewer} of {}", both.len())]).collect();
        text += &row(settings[at].name, both.len().to_string(), cells);
    }

    text += "\nMinus the base, all seeds of a setting together, 95% interval over scenes:\n\n";
    text += &head(&shares);
    for &at in &there {
        let after: Vec<&Measured> = of(at).map(|(_, outcome)| &outcome.measured).collect();
        let before = vec![base; after.len()];
        let cells = SHARES.iter().map(|(_, counts)| over_scenes(&before, &after, *counts).to_string());
        text += &row(settings[at].name, after.len().to_string(), cells.collect());
    }
    text
}

/// The change of a share, counts of all models on a scene added up.
fn over_scenes(before: &[&Measured], after: &[&Measured], counts: Counts) -> Interval {
    let sums = |models: &[&Measured]| {
        let mut sums = vec![[0; 2]; models.first().map_or(0, |model| model.tallies.len())];
        for model in models {
            for (sum, [whole, part]) in sums.iter_mut().zip(model.tallies.iter().map(counts)) {
                *sum = [sum[0] + whole, sum[1] + part];
            }
        }
        sums
    };
    share_change(&sums(before), &sums(after)).scaled(100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_most_seeds_come_first_seed_by_seed() {
        let runs = runs(&OWN);
        assert_eq!(runs.len(), 2 * 10 + 7 * 5);
        assert_eq!(runs[..4], [(0, 1), (1, 1), (0, 2), (1, 2)]);
        assert_eq!(runs[20..22], [(2, 1), (3, 1)]);
    }

    #[test]
    fn differences_are_of_the_same_seed_and_of_what_is_there() {
        // Of ten sentences a scene, this many are false.
        let measured = |wrong: [usize; 2]| Measured {
            hallucinated: (wrong[0] + wrong[1]) as f64 / 20.0,
            tallies: wrong
                .map(|wrong| Tally { sentences: [10, wrong], objects: [1, 1], questions: [1, 1] })
                .to_vec(),
            ..Measured::default()
        };
        let outcome =
            |wrong| Outcome { measured: measured(wrong), accuracy: 0.5, displacement: 0.0, steps: 1 };
        // DPO with seeds 1 to 3, ASPO with 1 and 2: 10 and 20 points fewer.
        let done = BTreeMap::from([
            ((0, 1), outcome([4, 4])),
            ((0, 2), outcome([4, 6])),
            ((0, 3), outcome([9, 9])),
            ((1, 1), outcome([3, 3])),
            ((1, 2), outcome([2, 4])),
        ]);
        let text = tables(&OWN, &measured([5, 5]), &done);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| ASPO |")).collect();
        assert!(rows[0].starts_with("| ASPO | 2 | 30.0 ± 0.0 |"), "{}", rows[0]);
        // Student's t for one degree of freedom: 12.706 · 7.07 / √2.
        assert!(rows[1].starts_with("| ASPO | 2 | -15.0 [-78.5, +48.5] |"), "{}", rows[1]);
        // Both scenes differ by as much: nothing is left open over scenes.
        assert!(rows[2].starts_with("| ASPO | 2 | -15.0 [-15.0, -15.0] |"), "{}", rows[2]);
        assert!(rows[2].ends_with("| 2 of 2 |"), "{}", rows[2]);
        assert!(rows[3].starts_with("| ASPO | 2 | -20.0 ["), "{}", rows[3]);
    }
}
