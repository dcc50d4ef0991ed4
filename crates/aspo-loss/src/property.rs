//! Property tests for preference losses (feature `proptest`): batches that are valid by construction, and
//! [`check_objective`], which tests any loss for the properties that apply to it.
//!
//! ```
//! use aspo_loss::property::{Applies, check_objective};
//! use aspo_loss::{LossType, Objective, PreferenceBatch};
//! type B = burn::backend::Autodiff<burn_flex::Flex>;
//!
//! let objective = Objective::new(LossType::Sigmoid);
//! let loss = |batch: &PreferenceBatch<B>| objective.loss(batch).map(|output| output.losses);
//! let applies = Applies {
//!     name: "my DPO",
//!     at_reference: Some(2_f64.ln()),
//!     equals: Some(LossType::Sigmoid),
//!     ..Applies::default()
//! };
//! check_objective(loss, &applies, 20).unwrap();
//! ```

mod batch;

use core::cell::Cell;
use core::fmt;

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

pub use self::batch::{HostBatch, HostPair, HostResponse, batches, extreme_batches};
use crate::error::Result;
use crate::math;
use crate::objective::{LossType, Objective};
use crate::record::PreferenceBatch;

/// Which properties a loss claims. Those without a field here hold for every loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Applies {
    /// What messages call the loss. Default: the name of its Rust type.
    pub name: &'static str,
    /// Adding a constant to all log-probabilities of policy and reference changes nothing: the loss reads ratios only.
    /// Default true.
    pub ratios_only: bool,
    /// The loss of a pair where policy equals reference, if that is a constant. Default none.
    pub at_reference: Option<f64>,
    /// The gradient is the loss's whole derivative: nothing that depends on the policy is detached. Default true.
    pub whole_gradient: bool,
    /// A likelier chosen answer never raises the loss, and a likelier rejected one never lowers it. True of DPO and whatever
    /// else falls with the margin; not of losses with a target (`ipo`, `sppo_hard`, `cdpo`, `exo_pair`, `nca_pair`), nor of
    /// `apo_down` and `discopop`. Default true.
    pub direction: bool,
    /// A side that the loss looks at, it looks at whole: no token is without a gradient where others have one. Not so with
    /// `ld_alpha = 0`. Default true.
    pub every_token: bool,
    /// A loss of this crate that this one equals, in value and gradient. Default none.
    pub equals: Option<LossType>,
    /// The β of `equals`. Default 0.1.
    pub beta: f64,
}

impl Default for Applies {
    fn default() -> Self {
        Self {
            name: "",
            ratios_only: true,
            at_reference: None,
            whole_gradient: true,
            direction: true,
            every_token: true,
            equals: None,
            beta: 0.1,
        }
    }
}

/// The property that a loss breaks, and the smallest batch found that shows it. `Debug` is as short as `Display`, so that
/// `unwrap` prints it readably.
#[derive(Clone, PartialEq)]
pub struct Broken {
    message: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for Broken {}

/// A runner with a fixed seed: the same cases on every run.
pub fn runner(cases: u32) -> TestRunner {
    let config = Config { cases, max_shrink_iters: 4096, failure_persistence: None, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

/// Tests a loss (a batch to one value per pair, `[B]`) for the properties of preference losses, `cases` batches each:
///
/// - one finite loss per pair and a finite gradient, for ordinary and for extreme log-probabilities;
/// - padding changes nothing; the order of pairs only orders the losses;
/// - a batch is its pairs: each pair alone has the same loss and, up to the mean's 1/B, the same gradient;
/// - as [`Applies`] says: only ratios matter; the value at policy = reference; the gradient is the central difference; the
///   direction of the gradient, and of the value; every token counts; the loss is a known one.
///
/// # Errors
/// The first property that fails, with the name of the loss and the smallest batch found that breaks it; no cases, or none
/// that a property could judge.
pub fn check_objective<B: AutodiffBackend>(
    loss: impl Fn(&PreferenceBatch<B>) -> Result<Tensor<B, 1>>,
    applies: &Applies,
    cases: u32,
) -> core::result::Result<(), Broken> {
    let name = if applies.name.is_empty() { core::any::type_name_of_val(&loss) } else { applies.name };
    let broken = |what: &str, why: &dyn fmt::Display| Broken { message: format!("{name}: {what}: {why}") };
    if cases == 0 {
        return Err(broken("cases", &"0 judge nothing; give 1 or more"));
    }
    let evaluate = |batch: &HostBatch| Evaluation::of(batch, &loss);
    let run = |what: &str, strategy: BoxedStrategy<HostBatch>, check: &dyn Fn(&HostBatch) -> Check| {
        runner(cases).run(&strategy, |batch| check(&batch)).map_err(|error| match error {
            TestError::Fail(why, batch) => broken(what, &format!("{why}\n{batch}")),
            TestError::Abort(why) => broken(what, &why),
        })
    };
    run("finite", batches().boxed(), &|batch| evaluate(batch)?.finite())?;
    run("finite at extremes", extreme_batches().boxed(), &|batch| evaluate(batch)?.finite())?;
    run("padding changes nothing", batches().boxed(), &|batch| {
        let padded = batch.map(|r| r.padding = (r.padding.1 + 3, r.padding.0));
        evaluate(batch)?.agrees("as given", &evaluate(&padded)?, "with other padding", 1e-5)
    })?;
    run("order only orders", batches().boxed(), &|batch| {
        let reversed = HostBatch { pairs: batch.pairs.iter().rev().cloned().collect() };
        let mut reversed = evaluate(&reversed)?;
        reversed.losses.reverse();
        reversed.grads.reverse();
        evaluate(batch)?.agrees("in order", &reversed, "in reverse order", 1e-5)
    })?;
    run("a batch is its pairs", batches().boxed(), &|batch| {
        let mut alone = Evaluation { losses: vec![], grads: vec![], chosen: vec![] };
        for single in batch.singles() {
            let single = evaluate(&single)?;
            alone.losses.extend(single.losses);
            alone.grads.extend(single.grads);
        }
        evaluate(batch)?.agrees("in the batch", &alone, "alone", 1e-5)
    })?;
    if applies.ratios_only {
        run("only ratios matter", batches().boxed(), &|batch| {
            // Sums of up to 30 tokens round differently, by 30 · 1e-6, and gradients follow the loss's bends.
            evaluate(batch)?.agrees("as given", &evaluate(&batch.shifted(-1.0))?, "all less 1", 2e-4)
        })?;
    }
    if let Some(expected) = applies.at_reference {
        run("policy = reference", batches().boxed(), &|batch| {
            let equal = batch.map(|r| {
                r.reference = r.policy.clone();
                r.corrupted.iter_mut().for_each(|x| x.1 = x.0);
            });
            let found = plain_losses(&equal, &loss)?;
            prop_assert!(found.iter().all(|l| (l - expected).abs() < 1e-5), "{found:?}, not {expected}");
            Ok(())
        })?;
    }
    if applies.whole_gradient {
        let (seen, judged) = (Cell::new(0), Cell::new(0));
        run("gradient", batches().boxed(), &|batch| {
            let rows = central_difference(batch, &evaluate(batch)?, &|batch| plain_losses(batch, &loss))?;
            seen.set(seen.get() + batch.pairs.len());
            judged.set(judged.get() + rows);
            Ok(())
        })?;
        // Smooth losses are judged in all rows, a hinge in most.
        if judged.get() * 4 < seen.get() || judged.get() == 0 {
            let why = format!("{} of {} pairs have a difference quotient", judged.get(), seen.get());
            return Err(broken("gradient", &format!("{why}; elsewhere the loss bends or jumps")));
        }
    }
    if applies.direction {
        run("direction", batches().boxed(), &|batch| evaluate(batch)?.points_right())?;
    }
    // What is detached may move the value another way than the gradient.
    if applies.direction && applies.whole_gradient {
        run("direction", batches().boxed(), &|batch| {
            let here = plain_losses(batch, &loss)?;
            for (likelier, sign) in [("chosen", 1.0), ("rejected", -1.0)] {
                let mut moved = batch.clone();
                for pair in &mut moved.pairs {
                    let side = if likelier == "chosen" { &mut pair.chosen } else { &mut pair.rejected };
                    side.policy.iter_mut().for_each(|p| *p *= 0.9);
                }
                for (row, (before, after)) in here.iter().zip(plain_losses(&moved, &loss)?).enumerate() {
                    let rise = sign * (after - before);
                    prop_assert!(
                        rise <= 1e-5 * (1.0 + before.abs()),
                        "pair {row}: loss {before}, and {after} with a likelier {likelier} answer"
                    );
                }
            }
            Ok(())
        })?;
    }
    if applies.every_token {
        run("every token counts", batches().boxed(), &|batch| evaluate(batch)?.looks_at_all())?;
    }
    if let Some(known) = applies.equals {
        let objective = Objective { beta: applies.beta, ..Objective::new(known) };
        let reference = |batch: &PreferenceBatch<B>| objective.loss(batch).map(|output| output.losses);
        run(&format!("equals {objective}"), batches().boxed(), &|batch| {
            let known = Evaluation::of(batch, reference)?;
            evaluate(batch)?.agrees(name, &known, &objective.to_string(), 1e-5)
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
    /// How many of them are chosen.
    chosen: Vec<usize>,
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
        let layout = device_batch.layout();
        let row = |row: usize| {
            let both = chosen[layout.chosen.range(row)].iter().chain(&rejected[layout.rejected.range(row)]);
            both.map(|&g| f64::from(g)).collect()
        };
        let losses: Vec<f64> = math::host(&losses).into_iter().map(f64::from).collect();
        prop_assert_eq!(losses.len(), batch.pairs.len(), "one loss per pair");
        let rows = 0..batch.pairs.len();
        let chosen = rows.clone().map(|row| layout.chosen.row_tokens(row)).collect();
        Ok(Self { losses, grads: rows.map(row).collect(), chosen })
    }

    fn finite(&self) -> Check {
        prop_assert!(self.losses.iter().all(|l| l.is_finite()), "losses {:?}", self.losses);
        prop_assert!(self.grads.iter().flatten().all(|g| g.is_finite()), "gradients {:?}", self.grads);
        Ok(())
    }

    /// Equal up to `tolerance`, relative to 1 and the magnitude of the value. `mine` and `theirs` say which is which.
    fn agrees(&self, mine: &str, other: &Self, theirs: &str, tolerance: f64) -> Check {
        let close = |a: &f64, b: &f64| (a - b).abs() <= tolerance * (1.0 + a.abs().max(b.abs()));
        let all = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b));
        let (losses, others) = (&self.losses, &other.losses);
        prop_assert!(all(losses, others), "losses {losses:?} {mine}, {others:?} {theirs}");
        prop_assert_eq!(self.grads.len(), other.grads.len(), "rows of gradients");
        for (row, (a, b)) in self.grads.iter().zip(&other.grads).enumerate() {
            prop_assert!(all(a, b), "pair {row}: gradient {a:?} {mine}, {b:?} {theirs}");
        }
        Ok(())
    }

    /// The gradient is at most 0 in chosen tokens and at least 0 in rejected ones, but for rounding.
    fn points_right(&self) -> Check {
        for (row, (grads, &chosen)) in self.grads.iter().zip(&self.chosen).enumerate() {
            let (up, down) = grads.split_at(chosen);
            prop_assert!(
                up.iter().all(|g| *g <= 1e-6),
                "pair {row}: the loss rises with the chosen answer's log-probabilities: gradient {up:?}"
            );
            prop_assert!(
                down.iter().all(|g| *g >= -1e-6),
                "pair {row}: the loss falls with the rejected answer's log-probabilities: gradient {down:?}"
            );
        }
        Ok(())
    }

    /// No token of a side is without a gradient where another of that side has one.
    fn looks_at_all(&self) -> Check {
        for (row, (grads, &chosen)) in self.grads.iter().zip(&self.chosen).enumerate() {
            let (up, down) = grads.split_at(chosen);
            for (side, grads) in [("chosen", up), ("rejected", down)] {
                let largest = grads.iter().fold(0.0_f64, |largest, g| largest.max(g.abs()));
                let passed_over = grads.iter().position(|g| g.abs() <= 1e-6 * largest);
                prop_assert!(
                    largest < 1e-6 || passed_over.is_none(),
                    "pair {row}: {side} token {} has no gradient, others have: {grads:?}",
                    passed_over.unwrap_or_default()
                );
            }
        }
        Ok(())
    }
}

/// The gradient along one fixed direction against central differences `[L(x+εu) - L(x-εu)] / 2ε` of two steps,
/// extrapolated to ε = 0, pair by pair. Where the two disagree, or the slopes to both sides, there is a bend nearby (a
/// hinge): no quotient is the truth, and the pair is passed over. Returns the pairs that were judged.
fn central_difference(
    batch: &HostBatch,
    here: &Evaluation,
    losses_of: &impl Fn(&HostBatch) -> core::result::Result<Vec<f64>, TestCaseError>,
) -> core::result::Result<usize, TestCaseError> {
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
    let mut judged = 0;
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
        judged += 1;
    }
    Ok(judged)
}
