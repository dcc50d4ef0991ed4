//! The kin against TRL's own code (and, for `ddpo` and `mdpo`, their authors' formulas): value, gradient, and everything
//! else that a file holds. Losses, options and shapes come from the files.

use std::collections::BTreeSet;

use aspo_loss::objective::changed_tokens;
use aspo_loss::stats::{TokenStats, chunked_log_probs_with_stats, dense_log_probs_with_stats};
use aspo_loss::{
    ChunkOptions, FDivergence, LmHead, Logps, LossType, Objective, PairLayout, PreferenceBatch,
    ResponseLayout,
};
use burn::backend::Autodiff;
use burn::prelude::*;
use serde_json::Value;

use crate::common::{assert_close, ints, on_every_backend, tensor, values};
use crate::golden::{Case, cases};

on_every_backend!(every_oracle_case_of_the_kin);

type A<B> = Autodiff<B>;

const SIDES: [&str; 2] = ["chosen", "rejected"];

fn every_oracle_case_of_the_kin<B: Backend>() {
    for case in cases("kin") {
        let mut run = Run::new(&case);
        if run.objective.losses().any(|loss| loss.name().starts_with("mdpo")) {
            run.mdpo::<B>();
        } else {
            run.compare::<B>();
        }
        let known: BTreeSet<&str> = case.tensors.keys().map(String::as_str).collect();
        let left: Vec<&&str> = known.iter().filter(|name| !run.compared.contains(**name)).collect();
        assert!(left.is_empty(), "{}: not compared: {left:?}", case.name);
    }
}

/// Leaves that gradients are asked of.
struct Leaves<B: Backend> {
    policy: [Tensor<A<B>, 2>; 2],
    /// The chosen tokens given a corrupted image.
    corrupted: Option<Tensor<A<B>, 2>>,
}

/// One case, and what of it was read.
struct Run<'a> {
    case: &'a Case,
    objective: Objective,
    compared: BTreeSet<String>,
}

impl<'a> Run<'a> {
    fn new(case: &'a Case) -> Self {
        let mut run = Self { case, objective: Objective::default(), compared: BTreeSet::new() };
        run.objective = run.read_objective();
        run
    }

    /// An option of the metadata, JSON each; null where it is not given.
    fn option(&self, name: &str) -> Value {
        let Some(text) = self.case.metadata.get(name) else { return Value::Null };
        serde_json::from_str(text).unwrap_or_else(|e| panic!("{}: {name} = {text}: {e}", self.case.name))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.option(name).as_f64()
    }

    fn read_objective(&self) -> Objective {
        let names = self.option("loss_type");
        let names = names.as_array().expect("every case names its losses");
        let weights = match self.option("loss_weights") {
            Value::Array(weights) => weights.iter().map(|weight| weight.as_f64().unwrap()).collect(),
            _ => vec![1.0; names.len()],
        };
        assert_eq!(weights.len(), names.len(), "{}: weights", self.case.name);
        let term = |(name, weight): (&Value, f64)| {
            let mut loss: LossType = name.as_str().unwrap().parse().unwrap();
            // An option that a loss does not have TRL ignores (`label_smoothing` with `sigmoid`); it cannot be set here.
            for option in ["label_smoothing", "simpo_gamma", "discopop_tau", "ddpo_gamma", "anchor"] {
                if let Some(value) = self.number(option) {
                    loss.set(option, &value.to_string()).unwrap();
                }
            }
            (loss, weight)
        };
        let mut f_divergence: FDivergence =
            self.option("f_divergence_type").as_str().unwrap_or("reverse_kl").parse().unwrap();
        if let (FDivergence::AlphaDivergence { .. }, Some(coef)) =
            (f_divergence, self.number("f_alpha_divergence_coef"))
        {
            f_divergence = FDivergence::AlphaDivergence { coef };
        }
        let objective = Objective {
            terms: names.iter().zip(weights).map(term).collect(),
            beta: self.number("beta").expect("every case has a beta"),
            f_divergence,
            ld_alpha: self.number("ld_alpha"),
            use_weighting: self.option("use_weighting").as_bool().unwrap_or(false),
        };
        objective.validate().unwrap_or_else(|e| panic!("{}: {e}", self.case.name));
        objective
    }

    fn get(&mut self, name: &str) -> &'a [f64] {
        self.compared.insert(name.to_owned());
        self.case.get(name)
    }

    fn has(&self, name: &str) -> bool {
        self.case.tensors.contains_key(name)
    }

    /// f32 against f64: 1e-5 of a value's size or of a gradient's largest; powers of ratios lose a digit.
    fn tolerance(&self) -> f64 {
        match self.objective.f_divergence {
            FDivergence::ForwardKl | FDivergence::AlphaDivergence { .. } => 1e-4,
            _ => 1e-5,
        }
    }

    fn same(&mut self, name: &str, found: &[f64]) {
        let tolerance = self.tolerance();
        let expected = self.get(name);
        let what = format!("{} {name}", self.case.name);
        assert!(expected.iter().all(|x| x.is_finite()), "{what}: golden values are finite");
        assert_close(&what, found, expected, tolerance, tolerance);
    }

    fn same_gradient(&mut self, name: &str, found: &[f64]) {
        let expected = self.get(name).to_vec();
        self.near_gradient(name, found, &expected);
    }

    fn near_gradient(&self, name: &str, found: &[f64], expected: &[f64]) {
        let largest = expected.iter().fold(0.0_f64, |largest, g| largest.max(g.abs()));
        let what = format!("{} {name}", self.case.name);
        assert!(expected.iter().all(|x| x.is_finite()), "{what}: golden gradients are finite");
        // Where TRL's gradient is 0 throughout, rounding of 1e-7 of the loss's own scale is left.
        assert_close(&what, found, expected, 0.0, self.tolerance() * largest.max(1e-3));
    }

    fn matrix<B: Backend>(&mut self, name: &str) -> Tensor<A<B>, 2> {
        self.compared.insert(name.to_owned());
        let (shape, values) = self.case.entry(name);
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        tensor(&values, [shape[0], shape[1]])
    }

    fn mask(&mut self, name: &str) -> Vec<Vec<i64>> {
        self.compared.insert(name.to_owned());
        self.case.rows(name)
    }

    /// The batch of a case with fresh leaves.
    fn batch<B: Backend>(&mut self) -> (PreferenceBatch<A<B>>, Leaves<B>) {
        let ids = SIDES.map(|side| {
            let rows = self.mask(&format!("{side}_mask"));
            rows.iter().map(|row| row.iter().map(|m| m - 1).collect::<Vec<i64>>()).collect::<Vec<_>>()
        });
        let map = PairLayout::from_labels(&ids[0], &ids[1]).unwrap();
        let policy = SIDES.map(|side| self.matrix::<B>(&format!("policy_{side}_logps")).require_grad());
        let reference = SIDES.map(|side| self.matrix::<B>(&format!("reference_{side}_logps")));
        let [chosen, rejected] = policy.clone();
        let scores = Logps::padded(&map, chosen, rejected).unwrap();
        let mut batch = PreferenceBatch::new(scores);
        let [chosen, rejected] = reference;
        batch = batch.with_reference(Logps::padded(&map, chosen, rejected).unwrap()).unwrap();
        if self.has("policy_chosen_logits") {
            let [chosen, rejected] = [&map.chosen, &map.rejected];
            let stats = [self.token_stats::<B>(0, chosen), self.token_stats::<B>(1, rejected)];
            let [chosen, rejected] = stats;
            batch = batch.with_stats(chosen, rejected).unwrap();
        }
        if self.has("chosen_changed") {
            let [chosen, rejected] = self.changed(&map);
            batch = batch.with_changed(&chosen, &rejected).unwrap();
        }
        let corrupted = self.has("policy_corrupted_logps").then(|| {
            let policy = self.matrix::<B>("policy_corrupted_logps").require_grad();
            let reference = self.matrix::<B>("reference_corrupted_logps");
            (policy, reference)
        });
        if let Some((policy, reference)) = &corrupted {
            let flat = |scores: &Tensor<A<B>, 2>| {
                let rows = map.chosen.select_hidden(scores.clone().unsqueeze_dim(2)).unwrap();
                rows.flatten::<1>(0, 1)
            };
            batch = batch.with_corrupted(flat(policy), flat(reference)).unwrap();
        }
        (batch, Leaves { policy, corrupted: corrupted.map(|(policy, _)| policy) })
    }

    /// The statistics of one side from its logits, dense and in tiles, each token held against the file.
    fn token_stats<B: Backend>(&mut self, side: usize, map: &ResponseLayout) -> TokenStats<A<B>> {
        let name = SIDES[side];
        let logits = format!("policy_{name}_logits");
        self.compared.insert(logits.clone());
        let (shape, cells) = self.case.entry(&logits);
        let cells: Vec<f32> = cells.iter().map(|&x| x as f32).collect();
        let logits = map.select_hidden(tensor::<A<B>, 3>(&cells, [shape[0], shape[1], shape[2]])).unwrap();
        let labels = self.mask(&format!("{name}_labels")).concat();
        let labels = map.select_targets(ints::<A<B>, 2>(&labels, [shape[0], shape[1]])).unwrap();
        let (dense, stats) = dense_log_probs_with_stats(logits.clone(), labels.clone()).unwrap();
        let head = LmHead::hugging_face(Tensor::eye(shape[2], &logits.device()));
        let options = ChunkOptions { byte_budget: 4 * 15, rows: Some(3) };
        let (tiled, tiled_stats) = chunked_log_probs_with_stats(logits, &head, labels, &options).unwrap();
        let places = map.flat_positions(shape[1]);
        for (way, log_probs, stats) in [("dense", dense, stats.read()), ("tiled", tiled, tiled_stats.read())]
        {
            let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
            for (what, found) in [
                (format!("policy_{name}_logps"), values(&log_probs)),
                (format!("{name}_log_sum_sq_probs"), wide(&stats.log_sum_sq_probs)),
                (format!("{name}_entropy"), wide(&stats.entropy)),
                (format!("{name}_mean_logits"), wide(&stats.mean_logit)),
                (
                    format!("{name}_is_top1"),
                    stats.is_argmax.iter().map(|&hit| f64::from(u8::from(hit))).collect(),
                ),
            ] {
                let all = self.get(&what);
                let expected: Vec<f64> = places.iter().map(|&place| all[place]).collect();
                assert_close(&format!("{} {what} {way}", self.case.name), &found, &expected, 1e-5, 1e-5);
            }
        }
        stats
    }

    /// RLHF-V's marks of both sides, made from the labels and held against the file, prompt included.
    fn changed(&mut self, map: &PairLayout) -> [Vec<Vec<bool>>; 2] {
        let [labels, real, marks] = ["labels", "attention_mask", "changed"]
            .map(|what| SIDES.map(|side| self.mask(&format!("{side}_{what}"))));
        let mut flags = [vec![], vec![]];
        for row in 0..map.batch_size() {
            let kept = |values: &[Vec<Vec<i64>>; 2], side: usize| -> Vec<i64> {
                let pairs = values[side][row].iter().zip(&real[side][row]);
                pairs.filter(|(_, real)| **real == 1).map(|(value, _)| *value).collect()
            };
            let (chosen, rejected) = changed_tokens(&kept(&labels, 0), &kept(&labels, 1));
            for (side, found) in [chosen, rejected].into_iter().enumerate() {
                let expected: Vec<bool> = kept(&marks, side).into_iter().map(|mark| mark == 1).collect();
                assert_eq!(found, expected, "{} row {row}, {}", self.case.name, SIDES[side]);
                let side_map = [&map.chosen, &map.rejected][side];
                let first = real[side][row].iter().position(|&real| real == 1).unwrap();
                flags[side].push(side_map.positions(row).iter().map(|at| found[at - first]).collect());
            }
        }
        flags
    }

    fn compare<B: Backend>(&mut self) {
        for side in SIDES {
            self.compared.insert(format!("{side}_attention_mask"));
        }
        let (batch, leaves) = self.batch::<B>();
        let output = self.objective.loss(&batch).unwrap_or_else(|e| panic!("{}: {e}", self.case.name));
        let grads = output.loss.backward();
        let gradient = |leaf: &Tensor<A<B>, 2>| {
            leaf.grad(&grads).map_or_else(|| vec![0.0; leaf.dims().iter().product()], |grad| values(&grad))
        };
        let prompt = self.prompt_of_orpo();
        let mut loss = values(&output.loss);
        loss[0] += prompt.loss;
        self.same("loss", &loss);
        let mut chosen = gradient(&leaves.policy[0]);
        assert_eq!(prompt.grads.len(), chosen.len());
        chosen.iter_mut().zip(&prompt.grads).for_each(|(g, more)| *g += more);
        self.same_gradient("grad_policy_chosen_logps", &chosen);
        self.same_gradient("grad_policy_rejected_logps", &gradient(&leaves.policy[1]));

        let losses = values(&output.losses);
        if self.objective.sorts() {
            self.same("sorted_losses", &losses);
        } else {
            let pairs: Vec<f64> = losses.iter().zip(&prompt.losses).map(|(loss, more)| loss + more).collect();
            self.same("losses", &pairs);
            let weighed = output.weighed_rewards.as_ref().or(output.rewards.as_ref()).unwrap();
            self.same("chosen_rewards", &weighed.chosen);
            self.same("rejected_rewards", &weighed.rejected);
            if self.has("chosen_logps") {
                self.same("chosen_logps", &output.logps.chosen);
                self.same("rejected_logps", &output.logps.rejected);
            }
        }
        // The mean over pairs is TRL's loss, but for likelihoods.
        let likelihood = self.objective.losses().any(|loss| matches!(loss, LossType::Sft | LossType::Orpo));
        assert_eq!(self.has("pairs_loss"), likelihood, "{}: pairs_loss", self.case.name);
        if likelihood {
            let (batch, leaves) = self.batch::<B>();
            let pairs = self.objective.loss(&batch).unwrap().losses.mean();
            let grads = pairs.backward();
            let rows = prompt.losses.len() as f64;
            self.same("pairs_loss", &[values(&pairs)[0] + prompt.losses.iter().sum::<f64>() / rows]);
            let mut chosen = values(&leaves.policy[0].grad(&grads).unwrap());
            chosen.iter_mut().zip(&prompt.pair_grads).for_each(|(g, more)| *g += more);
            self.same_gradient("pairs_grad_policy_chosen_logps", &chosen);
            let rejected = &leaves.policy[1];
            let rejected = rejected
                .grad(&grads)
                .map_or_else(|| vec![0.0; rejected.dims().iter().product()], |g| values(&g));
            self.same_gradient("pairs_grad_policy_rejected_logps", &rejected);
        }
        if self.objective.use_weighting {
            let plain = Objective { use_weighting: false, ..self.objective.clone() };
            let plain = values(&plain.loss(&batch).unwrap().losses);
            let weights = self.get("pair_weights");
            assert_eq!(weights.len(), losses.len());
            let expected: Vec<f64> = plain.iter().zip(weights).map(|(loss, weight)| loss * weight).collect();
            assert_close("weights", &losses, &expected, 1e-5, 1e-5);
        }

        let metrics = output.metrics();
        let logged: Vec<String> =
            self.case.tensors.keys().filter(|name| name.starts_with("metrics.")).cloned().collect();
        let formula = self.option("source").as_str().is_some_and(|source| !source.contains("TRL"));
        assert!(formula || logged.len() >= 6, "{}: TRL logs rewards and log-probabilities", self.case.name);
        for name in logged {
            let found =
                match (name.trim_start_matches("metrics."), metrics.get(name.trim_start_matches("metrics.")))
                {
                    ("nll_loss", Some(found)) => found + prompt.loss,
                    // TRL logs 0 where there is no likelihood; nothing is logged here.
                    ("nll_loss", None) => 0.0,
                    (_, found) => found.unwrap_or_else(|| panic!("{}: no {name}", self.case.name)),
                };
            self.same(&name, &[found]);
        }
    }

    /// What TRL's likelihood of ORPO adds to that of the response alone by taking the prompt's tokens in: they are scored like
    /// the response's (`attention_mask`), and the mean is over both. Zero for all other losses.
    fn prompt_of_orpo(&mut self) -> Prompt {
        let (mask, real) = (self.mask("chosen_mask"), self.mask("chosen_attention_mask"));
        let weight: f64 = self
            .objective
            .terms
            .iter()
            .filter(|(loss, _)| *loss == LossType::Orpo)
            .map(|(_, weight)| weight)
            .sum();
        let (shape, logps) = self.case.entry("policy_chosen_logps");
        let count = |rows: &[Vec<i64>]| rows.iter().flatten().sum::<i64>() as f64;
        // `-Σ logp / n` and its slope in each token, over the rows given.
        let mean = |mask: &[Vec<i64>], rows: core::ops::Range<usize>| {
            let n = count(&mask[rows.clone()]);
            let cells = rows.clone().flat_map(|row| (0..shape[1]).map(move |at| (row, at)));
            let slope: Vec<f64> = cells.map(|(row, at)| -weight * mask[row][at] as f64 / n).collect();
            let logps = &logps[rows.start * shape[1]..rows.end * shape[1]];
            (slope.iter().zip(logps).map(|(s, p)| s * p).sum::<f64>(), slope)
        };
        let more = |rows: core::ops::Range<usize>| {
            let (with, without) = (mean(&real, rows.clone()), mean(&mask, rows));
            let slope: Vec<f64> = with.1.iter().zip(&without.1).map(|(a, b)| a - b).collect();
            (with.0 - without.0, slope)
        };
        let (loss, grads) = more(0..shape[0]);
        let pairs: Vec<(f64, Vec<f64>)> = (0..shape[0]).map(|row| more(row..row + 1)).collect();
        let pair_grads =
            pairs.iter().flat_map(|(_, slope)| slope.iter().map(|s| s / shape[0] as f64)).collect();
        Prompt { loss, grads, losses: pairs.iter().map(|(loss, _)| *loss).collect(), pair_grads }
    }

    /// mDPO: each of its terms alone, and their sum.
    fn mdpo<B: Backend>(&mut self) {
        for side in SIDES {
            self.compared.insert(format!("{side}_attention_mask"));
        }
        let mut groups: Vec<(String, Objective)> = self
            .objective
            .losses()
            .map(|loss| {
                (loss.name().to_owned(), Objective { terms: vec![(loss, 1.0)], ..self.objective.clone() })
            })
            .collect();
        groups.push(("mdpo".into(), self.objective.clone()));
        for (group, objective) in groups {
            let (batch, leaves) = self.batch::<B>();
            let output = objective.loss(&batch).unwrap();
            let grads = output.loss.backward();
            self.same(&format!("{group}.loss"), &values(&output.loss));
            self.same(&format!("{group}.losses"), &values(&output.losses));
            let rewards = output.rewards.as_ref().unwrap();
            self.same(&format!("{group}.chosen_rewards"), &rewards.chosen);
            self.same(&format!("{group}.rejected_rewards"), &rewards.rejected);
            let [chosen, rejected] = &leaves.policy;
            for (name, leaf) in [
                ("chosen", chosen),
                ("rejected", rejected),
                ("corrupted", leaves.corrupted.as_ref().unwrap()),
            ] {
                let found =
                    leaf.grad(&grads).map_or_else(|| vec![0.0; leaf.dims().iter().product()], |g| values(&g));
                self.same_gradient(&format!("{group}.grad_policy_{name}_logps"), &found);
            }
            if group == "mdpo" {
                self.same("loss", &values(&output.loss));
            }
        }
    }
}

/// Sums over the batch, and of each pair alone.
struct Prompt {
    loss: f64,
    grads: Vec<f64>,
    losses: Vec<f64>,
    pair_grads: Vec<f64>,
}
