//! The names, equations and papers of the losses.

use core::fmt;
use core::str::FromStr;

use crate::error::{Error, Result};
use crate::weight::by_name;

/// One preference loss. The names ([`name`](Self::name), `FromStr`) are TRL's where TRL has the loss.
///
/// In the equations `r_c = log[π(y_c)/π_ref(y_c)]`, `r_r` likewise, `Δ = r_c - r_r`, `|y|` the number of response
/// tokens and ε `label_smoothing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossType {
    /// `aspo`: sentences weighed by similarity and perplexity (arXiv 2505.19100).
    Aspo,
    /// `sigmoid`: DPO, `-(1-ε) log σ(βΔ) - ε log σ(-βΔ)` (arXiv 2305.18290, Eq. 7; ε > 0 is cDPO).
    Sigmoid,
    /// `robust`: `[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)` (arXiv 2403.00409).
    Robust,
    /// `hinge`: SLiC, `max(0, 1 - βΔ)` (arXiv 2305.10425; 2309.06657).
    Hinge,
    /// `ipo`: `(r_c/|y_c| - r_r/|y_r| - 1/(2β))²` (arXiv 2310.12036, Eq. 17; averaged over tokens as its authors do).
    Ipo,
    /// `simpo`: `-(1-ε) log σ(β[log π(y_c)/|y_c| - log π(y_r)/|y_r|] - γ) - ε log σ(-…)` (arXiv 2405.14734). No
    /// reference.
    Simpo,
    /// `orpo`: `-log π(y_c)/|y_c| - β log σ(log odds(y_c) - log odds(y_r))` with
    /// `odds = p/(1-p)`, `log p = log π(y)/|y|` (arXiv 2403.07691; β is its λ). No reference.
    Orpo,
    /// `apo_zero`: `1 - σ(β r_c) + σ(β r_r)` (arXiv 2408.06266, Eq. 7).
    ApoZero,
    /// `apo_down`: `σ(β r_c) + 1 - σ(βΔ)` (arXiv 2408.06266, Eq. 8).
    ApoDown,
    /// `sppo_hard`: `(r_c - 1/(2β))² + (r_r + 1/(2β))²` (arXiv 2405.00675, Eq. 4.7, with P = 1 and 0).
    SppoHard,
    /// `bco_pair`: `-log σ(β r_c - δ) - log σ(-(β r_r - δ))` (arXiv 2404.04656); δ is [`Objective::bco_shift`](super::Objective::bco_shift).
    BcoPair,
    /// `exo_pair`: `KL(p_π ‖ [1-ε, ε])` with `p_π = [σ(βΔ), σ(-βΔ)]` (arXiv 2402.00856, Eq. 16).
    ExoPair,
    /// `nca_pair`: `-log σ(β r_c) - ½ log σ(-β r_c) - ½ log σ(-β r_r)` (arXiv 2402.05369, with K = 2).
    NcaPair,
    /// `discopop`: `(1-m)(-log σ(βΔ)) + m exp(-βΔ)`, `m = σ(βΔ/τ)` (arXiv 2406.08414, Eq. 5).
    Discopop,
    /// `sft`: `-log π(y_c)/|y_c|`, averaged over the tokens of each pair, then over pairs. No reference.
    Sft,
    /// `ddpo`: RLHF-V's segment weighting: DPO on
    /// `log π(y) = (1/N) [Σ_{unchanged} log p + γ Σ_{changed} log p]`, `N = |unchanged| + γ|changed|`
    /// (arXiv 2312.00849); γ is [`Objective::ddpo_gamma`](super::Objective::ddpo_gamma).
    Ddpo,
    /// `mdpo_conditional`: mDPO's preference for the true image,
    /// `-log σ(β r_c - β r_c')`, where `r_c'` is the chosen response's log-ratio given the corrupted image
    /// (arXiv 2406.11839).
    MdpoConditional,
    /// `mdpo_anchor`: mDPO's anchor, `-log σ(β r_c - δ)` (arXiv 2406.11839); δ is [`Objective::anchor`](super::Objective::anchor).
    MdpoAnchor,
}

impl LossType {
    /// All objectives.
    pub const ALL: [Self; 18] = [
        Self::Aspo,
        Self::Sigmoid,
        Self::Robust,
        Self::Hinge,
        Self::Ipo,
        Self::Simpo,
        Self::Orpo,
        Self::ApoZero,
        Self::ApoDown,
        Self::SppoHard,
        Self::BcoPair,
        Self::ExoPair,
        Self::NcaPair,
        Self::Discopop,
        Self::Sft,
        Self::Ddpo,
        Self::MdpoConditional,
        Self::MdpoAnchor,
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aspo => "aspo",
            Self::Sigmoid => "sigmoid",
            Self::Robust => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::Simpo => "simpo",
            Self::Orpo => "orpo",
            Self::ApoZero => "apo_zero",
            Self::ApoDown => "apo_down",
            Self::SppoHard => "sppo_hard",
            Self::BcoPair => "bco_pair",
            Self::ExoPair => "exo_pair",
            Self::NcaPair => "nca_pair",
            Self::Discopop => "discopop",
            Self::Sft => "sft",
            Self::Ddpo => "ddpo",
            Self::MdpoConditional => "mdpo_conditional",
            Self::MdpoAnchor => "mdpo_anchor",
        }
    }

    /// Whether it reads the reference model's log-probabilities.
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::Simpo | Self::Orpo | Self::Sft)
    }

    /// Whether ε changes it.
    pub fn uses_label_smoothing(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Robust | Self::Simpo | Self::ExoPair)
    }
}

by_name!(LossType, "loss type", LossType::ALL);
