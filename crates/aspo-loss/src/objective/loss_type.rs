//! The losses: names, equations, papers, and the options that belong to one loss alone.

use core::fmt;
use core::str::FromStr;

use crate::error::{Error, Result};
use crate::names::{call, number, serde_as_text};
use crate::weight::{RewardScaling, Weigh};

/// One preference loss with its own options. The names ([`name`](Self::name), `FromStr`) are TRL's where TRL has the loss.
///
/// In the equations `r_c = log[π(y_c)/π_ref(y_c)]`, `r_r` likewise, `s = r` and `Δ = s_c - s_r` unless an
/// [`FDivergence`](super::FDivergence) is chosen, `|y|` is the number of response tokens and `ε` the loss's label smoothing.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum LossType {
    /// `aspo`: sentences weighed by similarity and perplexity (arXiv 2505.19100).
    Aspo(Aspo),
    /// `sigmoid`, also read as `dpo`: DPO, `-log σ(βΔ)` (arXiv 2305.18290, Eq. 7). As in TRL it has no label smoothing: that
    /// is [`Cdpo`](Self::Cdpo).
    Sigmoid,
    /// `sigmoid_norm`: DPO of means, `-log σ(β[s_c/|y_c| - s_r/|y_r|])` (TRL).
    SigmoidNorm,
    /// `cdpo`: conservative DPO, `-(1-ε) log σ(βΔ) - ε log σ(-βΔ)` (Mitchell, "A note on DPO with noisy preferences", 2023).
    /// Not in TRL 1.16.
    Cdpo {
        /// ε, in [0, 0.5]. Default 0.1.
        label_smoothing: f64,
    },
    /// `robust`: `[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)` (arXiv 2403.00409).
    Robust {
        /// ε, in [0, 0.5). Default 0.
        label_smoothing: f64,
    },
    /// `hinge`: SLiC, `max(0, 1 - βΔ)` (arXiv 2305.10425; 2309.06657).
    Hinge,
    /// `ipo`: `(s_c/|y_c| - s_r/|y_r| - 1/(2β))²` (arXiv 2310.12036, Eq. 17; averaged over tokens as its authors do).
    Ipo,
    /// `aot`: with `Δ_π = log π(y_c) - log π(y_r)` and `Δ_ref` sorted each for itself over the batch,
    /// `-(1-ε) log σ(β[Δ_π - Δ_ref]) - ε log σ(-…)` by rank (arXiv 2406.05882). Its losses go by rank, not by pair, and a
    /// batch of one is DPO.
    Aot {
        /// ε, in [0, 0.5]. Default 0.
        label_smoothing: f64,
    },
    /// `aot_unpaired`: the same of `r_c` and `r_r`, each sorted for itself over the batch (arXiv 2406.05882).
    AotUnpaired {
        /// ε, in [0, 0.5]. Default 0.
        label_smoothing: f64,
    },
    /// `simpo`: `-(1-ε) log σ(x) - ε log σ(-x)`, `x = β[log π(y_c)/|y_c| - log π(y_r)/|y_r|] - γ` (arXiv 2405.14734). No
    /// reference.
    Simpo {
        /// The target margin γ. Default 0.5.
        gamma: f64,
        /// ε, in [0, 0.5]. Default 0.
        label_smoothing: f64,
    },
    /// `orpo`: the likelihood of [`Sft`](Self::Sft) and `-β log σ(log odds(y_c) - log odds(y_r))` with `odds = p/(1-p)`,
    /// `log p = log π(y)/|y|` (arXiv 2403.07691, Eq. 6 and 7; β is its λ). No reference. TRL's likelihood takes the tokens of the
    /// prompt in as well; here, as in the paper's Eq. 6, it is that of the response alone. The odds are the same.
    Orpo,
    /// `apo_zero`: `1 - σ(β r_c) + σ(β r_r)` (arXiv 2408.06266, Eq. 7).
    ApoZero,
    /// `apo_down`: `σ(β r_c) + 1 - σ(β[r_c - r_r])` (arXiv 2408.06266, Eq. 8).
    ApoDown,
    /// `sppo_hard`: `(r_c - 1/(2β))² + (r_r + 1/(2β))²` (arXiv 2405.00675, Eq. 4.7, with P = 1 and 0).
    SppoHard,
    /// `bco_pair`: `-log σ(β r_c - δ) - log σ(-(β r_r - δ))` (arXiv 2404.04656).
    BcoPair {
        /// δ. The paper tracks the mean reward, TRL since 2026 has 0. Default 0.
        shift: f64,
    },
    /// `exo_pair`: `KL(p_π ‖ [1-ε, ε])` with `p_π = [σ(βΔ), σ(-βΔ)]` (arXiv 2402.00856, Eq. 16).
    ExoPair {
        /// ε, in (0, 0.5]: there is no value at 0. Default 1e-3, the paper's.
        label_smoothing: f64,
    },
    /// `nca_pair`: `-log σ(β r_c) - ½ log σ(-β r_c) - ½ log σ(-β r_r)` (arXiv 2402.05369, with K = 2).
    NcaPair,
    /// `discopop`: `(1-m)(-log σ(βΔ)) + m exp(-βΔ)`, `m = σ(βΔ/τ)` (arXiv 2406.08414, Eq. 5).
    Discopop {
        /// The temperature τ of the mix, in (0, 1]. Default 0.05.
        tau: f64,
    },
    /// `sft`: the likelihood of the chosen responses, `-Σ log π(y_c) / Σ |y_c|`: a mean over the tokens of the batch, as in
    /// TRL, untouched by `ld_alpha`. No reference.
    Sft,
    /// `ddpo`: RLHF-V's segment weighting: DPO on
    /// `log π(y) = (1/N) [Σ_{unchanged} log p + γ Σ_{changed} log p]`, `N = |unchanged| + γ|changed|`
    /// (arXiv 2312.00849).
    Ddpo {
        /// The weight γ > 0 of changed tokens. Default 3, as in RLHF-V's code; its paper has 5.
        gamma: f64,
    },
    /// `mdpo_conditional`: mDPO's preference for the true image, `-log σ(β r_c - β r_c')`, where `r_c'` is the chosen
    /// response's log-ratio given the corrupted image (arXiv 2406.11839).
    MdpoConditional,
    /// `mdpo_anchor`: mDPO's anchor, `-log σ(β r_c - δ)` (arXiv 2406.11839).
    MdpoAnchor {
        /// δ. Default 0.
        anchor: f64,
    },
}

/// ASPO's own options.
///
/// ```
/// use aspo_loss::{Aspo, Objective, RewardScaling};
/// let aspo = Aspo { alpha: 0.7, scaling: RewardScaling::TokenWeight, ..Aspo::default() };
/// let objective = Objective { beta: 0.2, ..Objective::new(aspo) };
/// assert_eq!(objective.to_string(), "aspo(alpha=0.7, reward_scaling=token_weight); beta=0.2");
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Aspo {
    /// Share of similarity against perplexity, in [0, 1]. Not published; default 0.5 (C).
    pub alpha: f64,
    /// The reading of ρ. Default [`RewardScaling::TotalWeight`] (C).
    pub scaling: RewardScaling,
    /// Which responses are weighed. Default [`Weigh::Chosen`] (F).
    pub weigh: Weigh,
}

impl Default for Aspo {
    fn default() -> Self {
        Self { alpha: 0.5, scaling: RewardScaling::default(), weigh: Weigh::default() }
    }
}

serde_as_text!(LossType);

impl From<Aspo> for LossType {
    fn from(aspo: Aspo) -> Self {
        Self::Aspo(aspo)
    }
}

/// An option of a loss, to be read or set by its name in configurations.
enum Slot<'a> {
    Number(&'a mut f64),
    Scaling(&'a mut RewardScaling),
    Weigh(&'a mut Weigh),
}

impl LossType {
    /// All losses with their default options.
    pub const ALL: &'static [Self] = &[
        Self::Aspo(Aspo { alpha: 0.5, scaling: RewardScaling::TotalWeight, weigh: Weigh::Chosen }),
        Self::Sigmoid,
        Self::SigmoidNorm,
        Self::Cdpo { label_smoothing: 0.1 },
        Self::Robust { label_smoothing: 0.0 },
        Self::Hinge,
        Self::Ipo,
        Self::Aot { label_smoothing: 0.0 },
        Self::AotUnpaired { label_smoothing: 0.0 },
        Self::Simpo { gamma: 0.5, label_smoothing: 0.0 },
        Self::Orpo,
        Self::ApoZero,
        Self::ApoDown,
        Self::SppoHard,
        Self::BcoPair { shift: 0.0 },
        Self::ExoPair { label_smoothing: 1e-3 },
        Self::NcaPair,
        Self::Discopop { tau: 0.05 },
        Self::Sft,
        Self::Ddpo { gamma: 3.0 },
        Self::MdpoConditional,
        Self::MdpoAnchor { anchor: 0.0 },
    ];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aspo(_) => "aspo",
            Self::Sigmoid => "sigmoid",
            Self::SigmoidNorm => "sigmoid_norm",
            Self::Cdpo { .. } => "cdpo",
            Self::Robust { .. } => "robust",
            Self::Hinge => "hinge",
            Self::Ipo => "ipo",
            Self::Aot { .. } => "aot",
            Self::AotUnpaired { .. } => "aot_unpaired",
            Self::Simpo { .. } => "simpo",
            Self::Orpo => "orpo",
            Self::ApoZero => "apo_zero",
            Self::ApoDown => "apo_down",
            Self::SppoHard => "sppo_hard",
            Self::BcoPair { .. } => "bco_pair",
            Self::ExoPair { .. } => "exo_pair",
            Self::NcaPair => "nca_pair",
            Self::Discopop { .. } => "discopop",
            Self::Sft => "sft",
            Self::Ddpo { .. } => "ddpo",
            Self::MdpoConditional => "mdpo_conditional",
            Self::MdpoAnchor { .. } => "mdpo_anchor",
        }
    }

    /// Whether it reads the reference model's log-probabilities.
    pub fn needs_reference(self) -> bool {
        !matches!(self, Self::Simpo { .. } | Self::Orpo | Self::Sft)
    }

    /// Whether its loss goes by rank over the batch instead of by pair, so that how pairs are batched changes it: `aot` and
    /// `aot_unpaired`.
    pub fn sorts(self) -> bool {
        matches!(self, Self::Aot { .. } | Self::AotUnpaired { .. })
    }

    /// Whether it reads the score difference that an f-divergence other than the reverse KL redefines; TRL's list. `sft`
    /// reads no scores, but may stand beside losses that do.
    pub(super) fn takes_f_divergence(self) -> bool {
        match self {
            Self::Sigmoid
            | Self::SigmoidNorm
            | Self::Cdpo { .. }
            | Self::Robust { .. }
            | Self::Hinge
            | Self::Ipo
            | Self::ExoPair { .. }
            | Self::Discopop { .. }
            | Self::Sft => true,
            Self::Aspo(_)
            | Self::Aot { .. }
            | Self::AotUnpaired { .. }
            | Self::Simpo { .. }
            | Self::Orpo
            | Self::ApoZero
            | Self::ApoDown
            | Self::SppoHard
            | Self::BcoPair { .. }
            | Self::NcaPair
            | Self::Ddpo { .. }
            | Self::MdpoConditional
            | Self::MdpoAnchor { .. } => false,
        }
    }

    /// Whether LD-DPO's weight of tokens beyond the shorter length has a meaning in it. `sft` is not scaled by it, but what is
    /// logged beside it is.
    pub(super) fn takes_ld_alpha(self) -> bool {
        !matches!(
            self,
            Self::Aspo(_) | Self::Simpo { .. } | Self::Orpo | Self::Ddpo { .. } | Self::MdpoConditional
        )
    }

    /// Whether WPO's weight of a pair has a meaning in it: not where losses go by rank, nor for likelihoods.
    pub(super) fn takes_weighting(self) -> bool {
        !(self.sorts() || matches!(self, Self::Sft | Self::Orpo))
    }

    fn slots(&mut self) -> Vec<(&'static str, Slot<'_>)> {
        use Slot::{Number, Scaling};
        match self {
            Self::Aspo(aspo) => vec![
                ("alpha", Number(&mut aspo.alpha)),
                ("reward_scaling", Scaling(&mut aspo.scaling)),
                ("weigh", Slot::Weigh(&mut aspo.weigh)),
            ],
            Self::Cdpo { label_smoothing }
            | Self::Robust { label_smoothing }
            | Self::Aot { label_smoothing }
            | Self::AotUnpaired { label_smoothing }
            | Self::ExoPair { label_smoothing } => vec![("label_smoothing", Number(label_smoothing))],
            Self::Simpo { gamma, label_smoothing } => {
                vec![("simpo_gamma", Number(gamma)), ("label_smoothing", Number(label_smoothing))]
            }
            Self::BcoPair { shift } => vec![("bco_shift", Number(shift))],
            Self::Discopop { tau } => vec![("discopop_tau", Number(tau))],
            Self::Ddpo { gamma } => vec![("ddpo_gamma", Number(gamma))],
            Self::MdpoAnchor { anchor } => vec![("anchor", Number(anchor))],
            Self::Sigmoid
            | Self::SigmoidNorm
            | Self::Hinge
            | Self::Ipo
            | Self::Orpo
            | Self::ApoZero
            | Self::ApoDown
            | Self::SppoHard
            | Self::NcaPair
            | Self::Sft
            | Self::MdpoConditional => vec![],
        }
    }

    /// Sets an option of this loss by its name in configurations: `alpha`, `reward_scaling`, `weigh`, `label_smoothing`,
    /// `simpo_gamma`, `bco_shift`, `discopop_tau`, `ddpo_gamma` or `anchor`. Returns whether the loss has it; if not, nothing
    /// was done.
    ///
    /// ```
    /// let mut loss: aspo_loss::LossType = "simpo".parse()?;
    /// assert!(loss.set("simpo_gamma", "1.4")? && !loss.set("discopop_tau", "1")?);
    /// # Ok::<(), aspo_loss::Error>(())
    /// ```
    ///
    /// # Errors
    /// A value that cannot be read as what the option holds.
    pub fn set(&mut self, option: &str, value: &str) -> Result<bool> {
        for (name, slot) in self.slots() {
            if name == option {
                match slot {
                    Slot::Number(slot) => *slot = number(name, value)?,
                    Slot::Scaling(scaling) => *scaling = value.parse()?,
                    Slot::Weigh(weigh) => *weigh = value.parse()?,
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Names and values of its options.
    fn options(mut self) -> Vec<(&'static str, String)> {
        let shown = |slot| match slot {
            Slot::Number(number) => number.to_string(),
            Slot::Scaling(scaling) => scaling.to_string(),
            Slot::Weigh(weigh) => weigh.to_string(),
        };
        self.slots().into_iter().map(|(name, slot)| (name, shown(slot))).collect()
    }

    /// Refuses an option outside its range.
    pub(super) fn validate(self) -> Result<()> {
        let check = |right: bool, option: &'static str, found: f64, remedy: &str| {
            if right { Ok(()) } else { Err(Error::option(option, found, remedy)) }
        };
        let smoothing = |e: f64| {
            let remedy = "give a share of wrong labels in [0, 0.5]";
            check((0.0..=0.5).contains(&e), "label_smoothing", e, remedy)
        };
        match self {
            Self::Aspo(aspo) => {
                check((0.0..=1.0).contains(&aspo.alpha), "alpha", aspo.alpha, "give a share in [0, 1]")
            }
            Self::Robust { label_smoothing: e } => {
                smoothing(e)?;
                check(e < 0.5, "label_smoothing", e, "`robust` divides by 1 - 2ε; give less than 0.5")
            }
            Self::ExoPair { label_smoothing: e } => {
                smoothing(e)?;
                check(e > 0.0, "label_smoothing", e, "`exo_pair` needs more than 0; its paper has 1e-3")
            }
            Self::Cdpo { label_smoothing: e }
            | Self::Aot { label_smoothing: e }
            | Self::AotUnpaired { label_smoothing: e } => smoothing(e),
            Self::Simpo { gamma, label_smoothing: e } => {
                smoothing(e)?;
                check(gamma.is_finite(), "simpo_gamma", gamma, "give a finite number")
            }
            Self::BcoPair { shift } => check(shift.is_finite(), "bco_shift", shift, "give a finite number"),
            Self::Discopop { tau } => check(
                tau > 0.0 && tau <= 1.0,
                "discopop_tau",
                tau,
                "give a number in (0, 1]; its paper has 0.05",
            ),
            Self::Ddpo { gamma } => check(
                gamma.is_finite() && gamma > 0.0,
                "ddpo_gamma",
                gamma,
                "give a number above 0; RLHF-V's code has 3",
            ),
            Self::MdpoAnchor { anchor } => {
                check(anchor.is_finite(), "anchor", anchor, "give a finite number")
            }
            Self::Sigmoid
            | Self::SigmoidNorm
            | Self::Hinge
            | Self::Ipo
            | Self::Orpo
            | Self::ApoZero
            | Self::ApoDown
            | Self::SppoHard
            | Self::NcaPair
            | Self::Sft
            | Self::MdpoConditional => Ok(()),
        }
    }
}

impl fmt::Display for LossType {
    /// The name, and in brackets the options that are not their defaults: `simpo`, `simpo(simpo_gamma=1.4)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let default = Self::ALL.iter().find(|loss| loss.name() == self.name()).copied().unwrap_or(*self);
        let options = self.options().into_iter().zip(default.options());
        let set: Vec<String> = options
            .filter(|(mine, default)| mine != default)
            .map(|((name, value), _)| format!("{name}={value}"))
            .collect();
        if set.is_empty() { Ok(()) } else { write!(f, "({})", set.join(", ")) }
    }
}

impl FromStr for LossType {
    type Err = Error;

    /// What [`Display`](fmt::Display) writes, in any case; `dpo` is `sigmoid`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, options) = call(text)?;
        let wanted = if name.eq_ignore_ascii_case("dpo") { "sigmoid" } else { name };
        let loss = Self::ALL.iter().find(|loss| loss.name().eq_ignore_ascii_case(wanted));
        let mut loss = *loss.ok_or_else(|| Error::Unknown {
            what: "loss type",
            found: name.into(),
            known: format!(
                "dpo (sigmoid), {}",
                Self::ALL.iter().map(|loss| loss.name()).collect::<Vec<_>>().join(", ")
            ),
        })?;
        for (option, value) in options {
            if !loss.set(option, value)? {
                let known: Vec<&str> = loss.options().into_iter().map(|(name, _)| name).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                let what = "option of a loss";
                return Err(Error::Unknown { what, found: format!("{name}({option})"), known });
            }
        }
        Ok(loss)
    }
}
