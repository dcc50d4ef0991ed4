//! Property tests for preference losses (feature `proptest`): batches that are valid by construction, and
//! [`check_objective`], which holds any loss against the properties that apply to it.
//!
//! ```
//! use aspo_loss::property::{Applies, check_objective};
//! use aspo_loss::{LossType, Objective, PreferenceBatch};
//! type B = burn::backend::Autodiff<burn_flex::Flex>;
//!
//! let objective = Objective::new(LossType::Sigmoid);
//! let loss = |batch: &PreferenceBatch<B>| objective.loss(batch).map(|output| output.losses);
//! check_objective(loss, &Applies { at_reference: Some(2_f64.ln()), ..Applies::default() }, 20).unwrap();
//! ```

mod batch;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

pub use self::batch::{HostBatch, HostPair, HostResponse, batches, extreme_batches};
use crate::error::Result;
use crate::math;
use crate::record::PreferenceBatch;

/// Which properties a loss claims. Those without a field here hold for every loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Applies {
    /// Adding a constant to all log-probabilities of policy and reference changes nothing: the loss reads ratios only.
    /// Default true.
    pub ratios_only: bool,
    /// The loss of a pair where policy equals reference, if that is a constant. Default none.
    pub at_reference: Option<f64>,
    /// The gradient is the loss's whole derivative: nothing that depends on the policy is detached. Default true.
    pub whole_gradient: bool,
}

impl Default for Applies {
    fn default() -> Self {
        Self { ratios_only: true, at_reference: None, whole_gradient: true }
    }
}

/// A runner with a fixed seed: the same cases on every run.
pub fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Holds a loss (a batch to one value per pair, `[B]`) against the properties of preference losses, `cases` batches each:
///
/// - one finite loss per pair and a finite gradient, for ordinary and for extreme log-probabilities;
/// - padding changes nothing; the order of pairs only orders the losses;
/// - a batch is its pairs: each pair alone has the same loss and, up to the mean's 1/B, the same gradient;
/// - as [`Applies`] says: only ratios matter; the value at policy = reference; the gradient is the central difference.
///
/// # Errors
/// The first property that fails, with the smallest batch found that breaks it.
pub fn check_objective<B: AutodiffBackend>(
    loss: impl Fn(&PreferenceBatch<B>) -> Result<Tensor<B, 1>>,
    applies: &Applies,
    cases: u32,
) -> core::result::Result<(), String> {
    let evaluate = |batch: &HostBatch| Evaluation::of(batch, &loss);
    let losses_of = |batch: &HostBatch| plain_losses(batch, &loss);
    let run = |what: &str, strategy: BoxedStrategy<HostBatch>, check: &dyn Fn(HostBatch) -> Check| {
        runner(cases).run(&strategy, check).map_err(|e| format!("{what}: {e}"))
    };
    run("finite", batches().boxed(), &|batch| evaluate(&batch)?.finite())?;
    run("finite at extremes", extreme_batches().boxed(), &|batch| evaluate(&batch)?.finite())?;
    run("padding changes nothing", batches().boxed(), &|batch| {
        let padded = batch.map(|r| r.padding = (r.padding.1 + 3, r.padding.0));
        evaluate(&batch)?.agrees(&evaluate(&padded)?, 1e-5)
    })?;
    run("order only orders", batches().boxed(), &|batch| {
        let reversed = HostBatch { pairs: batch.pairs.iter().rev().cloned().collect() };
        let mut reversed = evaluate(&reversed)?;
        reversed.losses.reverse();
        reversed.grads.reverse();
        evaluate(&batch)?.agrees(&reversed, 1e-5)
    })?;
    run("a batch is its pairs", batches().boxed(), &|batch| {
        let mut alone = Evaluation { losses: vec![], grads: vec![] };
        for single in batch.singles() {
            let single = evaluate(&single)?;
            alone.losses.extend(single.losses);
            alone.grads.extend(single.grads);
        }
        evaluate(&batch)?.agrees(&alone, 1e-5)
    })?;
    if applies.ratios_only {
        let constants = (batches(), -2.0..-0.25_f32);
        let shifted = constants.prop_map(|(batch, by)| (batch.shifted(by), batch));
        runner(cases)
            // Shifted values round differently, by 1e-6 each.
            .run(&shifted, |(shifted, batch)| evaluate(&batch)?.agrees(&evaluate(&shifted)?, 1e-3))
            .map_err(|e| format!("only ratios matter: {e}"))?;
    }
    if let Some(expected) = applies.at_reference {
        run("policy = reference", batches().boxed(), &|batch| {
            let equal = batch.map(|r| {
                r.reference = r.policy.clone();
                r.corrupted.iter_mut().for_each(|x| x.1 = x.0);
            });
            let found = losses_of(&equal)?;
            prop_assert!(found.iter().all(|l| (l - expected).abs() < 1e-5), "{found:?}, not {expected}");
            Ok(())
        })?;
    }
    if applies.whole_gradient {
        run("gradient", batches().boxed(), &|batch| {
            central_difference(&batch, &evaluate(&batch)?, &losses_of)
        })?;
    }
    Ok(())
}

type Check = core::result::Result<(), TestCaseError>;

/// The losses alone, without a graph.
fn plain_losses<B: AutodiffBackend>(
    batch: &HostBatch,
    loss: impl Fn(&PreferenceBatch<B>) -> Result<Tensor<B, 1>>,
) -> core::result::Result<Vec<f64>, TestCaseError> {
    let batch = batch.batch::<B>(&B::Device::default());
    let losses = batch.and_then(|batch| loss(&batch)).map_err(|e| TestCaseError::fail(e.to_string()))?;
    Ok(math::host(&losses).into_iter().map(f64::from).collect())
}

/// Losses, and for each pair the gradient of its own loss in its own tokens, chosen then rejected.
struct Evaluation {
    losses: Vec<f64>,
    grads: Vec<Vec<f64>>,
}

impl Evaluation {
    fn of<B: AutodiffBackend>(
        batch: &HostBatch,
        loss: impl Fn(&PreferenceBatch<B>) -> Result<Tensor<B, 1>>,
    ) -> core::result::Result<Self, TestCaseError> {
        let failed = |e: crate::Error| TestCaseError::fail(e.to_string());
        let leaves = batch.policy::<B>(&B::Device::default()).map(Tensor::require_grad);
        let device_batch = batch.batch_of(leaves[0].clone(), leaves[1].clone()).map_err(failed)?;
        let losses = loss(&device_batch).map_err(failed)?;
        let grads = losses.clone().sum().backward();
        let [chosen, rejected] = leaves.map(|leaf| match leaf.grad(&grads) {
            Some(grad) => math::host(&grad),
            None => vec![0.0; leaf.dims()[0]],
        });
        let map = device_batch.map();
        let row = |row: usize| {
            let both = chosen[map.chosen.range(row)].iter().chain(&rejected[map.rejected.range(row)]);
            both.map(|&g| f64::from(g)).collect()
        };
        let losses: Vec<f64> = math::host(&losses).into_iter().map(f64::from).collect();
        prop_assert_eq!(losses.len(), batch.pairs.len(), "one loss per pair");
        Ok(Self { losses, grads: (0..batch.pairs.len()).map(row).collect() })
    }

    fn finite(&self) -> Check {
        prop_assert!(self.losses.iter().all(|l| l.is_finite()), "losses {:?}", self.losses);
        prop_assert!(self.grads.iter().flatten().all(|g| g.is_finite()), "gradients {:?}", self.grads);
        Ok(())
    }

    /// Equal up to `tolerance`, relative to 1 and the magnitude of the value.
    fn agrees(&self, other: &Self, tolerance: f64) -> Check {
        let close = |a: &f64, b: &f64| (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()));
        let all = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b));
        prop_assert!(all(&self.losses, &other.losses), "losses {:?} and {:?}", self.losses, other.losses);
        for (mine, theirs) in self.grads.iter().zip(&other.grads) {
            prop_assert!(all(mine, theirs), "gradients {mine:?} and {theirs:?}");
        }
        Ok(())
    }
}

/// The gradient along one fixed direction against central differences `[L(x+εu) - L(x-εu)] / 2ε` of two steps,
/// extrapolated to ε = 0, pair by pair. Where the two disagree, or the slopes to both sides, there is a bend nearby (a
/// hinge): no quotient is the truth, and the pair is passed over.
fn central_difference(
    batch: &HostBatch,
    here: &Evaluation,
    losses_of: &impl Fn(&HostBatch) -> core::result::Result<Vec<f64>, TestCaseError>,
) -> Check {
    const STEP: f64 = 1e-2;
    // Signs that do not cancel: two of three tokens up on the chosen side, one of three on the rejected one.
    let direction = |i: usize, up: usize| if i % 3 < up { 1.0 } else { -1.0 };
    let moved = |step: f64| {
        let mut batch = batch.clone();
        let along = |values: &mut [f32], up: usize| {
            for (i, x) in values.iter_mut().enumerate() {
                *x = (f64::from(*x) + step * direction(i, up)) as f32;
            }
        };
        for pair in &mut batch.pairs {
            along(&mut pair.chosen.policy, 2);
            along(&mut pair.rejected.policy, 1);
        }
        losses_of(&batch)
    };
    let near_losses = [moved(STEP)?, moved(-STEP)?];
    let far_losses = [moved(2.0 * STEP)?, moved(-2.0 * STEP)?];
    for (row, pair) in batch.pairs.iter().enumerate() {
        let quotient = |sides: &[Vec<f64>; 2], step: f64| (sides[0][row] - sides[1][row]) / (2.0 * step);
        let (near, far) = (quotient(&near_losses, STEP), quotient(&far_losses, 2.0 * STEP));
        // f32 rounding of the loss, divided by the step.
        let noise = 1e-6 * (1.0 + here.losses[row].abs()) / STEP;
        let [ahead, behind] =
            [(0, STEP), (1, -STEP)].map(|(side, step)| (near_losses[side][row] - here.losses[row]) / step);
        let bend = (ahead - behind).abs() > 0.5 * ahead.abs().max(behind.abs()) + noise;
        // A bend just inside the far step moves the extrapolation by a third of what the two differ by.
        if bend || (near - far).abs() > 0.02 * near.abs() + noise {
            continue;
        }
        let chosen = pair.chosen.policy.len();
        let along =
            |(i, g): (usize, &f64)| g * if i < chosen { direction(i, 2) } else { direction(i - chosen, 1) };
        let slope: f64 = here.grads[row].iter().enumerate().map(along).sum();
        let limit = (4.0 * near - far) / 3.0;
        let allowed = 1e-2 * limit.abs() + 5.0 * noise;
        prop_assert!(
            (slope - limit).abs() <= allowed,
            "pair {row}: gradient {slope}, difference quotient {limit}"
        );
    }
    Ok(())
}
