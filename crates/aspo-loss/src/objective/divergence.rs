//! f-DPO: what takes the place of the log-ratio when another divergence than the reverse KL holds the policy to the
//! reference (arXiv 2309.16240).

use core::fmt;
use core::str::FromStr;

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::math::log_sigmoid;

/// The divergence between policy and reference, by TRL's names. With `t = π/π_ref` the score of a response is `f'(t)`, up to
/// a constant that cancels in a pair; so only losses of the difference of two scores take another than the first.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum FDivergence {
    /// `reverse_kl`: `log t`, DPO's.
    #[default]
    ReverseKl,
    /// `forward_kl`: `1 - 1/t`.
    ForwardKl,
    /// `js_divergence`: `log(2t/(1+t))`.
    JsDivergence,
    /// `alpha_divergence`: `(t^(α-1) - 1)/(α-1)`; `log t` at α = 1.
    AlphaDivergence {
        /// α. Default 0.5.
        coef: f64,
    },
}

/// Exponents are capped here, as TRL caps those of the α-divergence, so that scores stay finite in f32. Beyond, a score is
/// constant and has no gradient.
const MAX_EXPONENT: f64 = 80.0;

impl FDivergence {
    const ALL: [Self; 4] =
        [Self::ReverseKl, Self::ForwardKl, Self::JsDivergence, Self::AlphaDivergence { coef: 0.5 }];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::ReverseKl => "reverse_kl",
            Self::ForwardKl => "forward_kl",
            Self::JsDivergence => "js_divergence",
            Self::AlphaDivergence { .. } => "alpha_divergence",
        }
    }

    /// The α-divergence with another α.
    ///
    /// # Errors
    /// Another divergence, which has no α.
    pub fn with_coef(self, coef: f64) -> Result<Self> {
        match self {
            Self::AlphaDivergence { .. } => Ok(Self::AlphaDivergence { coef }),
            _ => {
                let remedy = "leave it out, or choose `f_divergence_type = alpha_divergence`";
                Err(Error::option("f_alpha_divergence_coef", coef, remedy))
            }
        }
    }

    pub(super) fn validate(self) -> Result<()> {
        match self {
            Self::AlphaDivergence { coef } if !coef.is_finite() => {
                Err(Error::option("f_alpha_divergence_coef", coef, "give a finite number; TRL has 0.5"))
            }
            _ => Ok(()),
        }
    }

    /// `f'(t)` from `log t`.
    pub(super) fn score<B: Backend>(self, log_ratio: Tensor<B, 1>) -> Tensor<B, 1> {
        let power = |exponent: Tensor<B, 1>| exponent.clamp_max(MAX_EXPONENT).exp().sub_scalar(1.0);
        match self {
            Self::ReverseKl => log_ratio,
            Self::ForwardKl => power(log_ratio.neg()).neg(),
            Self::JsDivergence => log_sigmoid(log_ratio).add_scalar(2_f64.ln()),
            // TRL's limit.
            Self::AlphaDivergence { coef } if (coef - 1.0).abs() < 1e-6 => log_ratio,
            Self::AlphaDivergence { coef } => power(log_ratio.mul_scalar(coef - 1.0)).div_scalar(coef - 1.0),
        }
    }
}

impl fmt::Display for FDivergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FDivergence {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|divergence| divergence.name().eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::Unknown {
            what: "f-divergence",
            found: name.into(),
            known: Self::ALL.map(|divergence| divergence.name()).join(", "),
        })
    }
}
