//! Learning rates, as Hugging Face's schedulers give them.

use serde::{Deserialize, Serialize};

/// How the rate falls after the warmup (TRL's `lr_scheduler_type`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Half a cosine, to zero at the last step.
    #[default]
    Cosine,
    /// A straight line, to zero at the last step.
    Linear,
    /// Not at all, and no warmup either: the peak from the first step.
    Constant,
    /// Not at all, after the warmup.
    ConstantWithWarmup,
}

impl Schedule {
    /// The rate of optimiser step `step` (from 0) of `total`, rising linearly from 0 over the first `warmup` steps.
    ///
    /// The same values as `transformers.get_cosine_schedule_with_warmup` and its kin.
    pub fn rate(self, peak: f64, step: usize, warmup: usize, total: usize) -> f64 {
        if self == Schedule::Constant {
            return peak;
        }
        if step < warmup {
            return peak * step as f64 / warmup as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        let factor = match self {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Schedule::Linear => 1.0 - progress,
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
        };
        peak * factor.max(0.0)
    }
}

/// Number of warmup steps of a run: `ceil(total · ratio)`, as Hugging Face rounds.
pub fn warmup_steps(total: usize, ratio: f64) -> usize {
    (total as f64 * ratio).ceil() as usize
}
