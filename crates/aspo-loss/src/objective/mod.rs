//! The objectives: ASPO and its kin, by the names TRL uses, over one set of records.
//!
//! An [`Objective`] is a sum of [`LossType`]s with weights and the options they share. Every loss is a value per pair;
//! [`LossOutput::loss`] is their mean, so that one batch of 8 and 8 batches of 1 agree.

mod aspo;
mod ddpo;
mod length;
mod log_odds;
mod loss_type;
mod mdpo;
mod pairwise;
mod sequences;
mod sft;
mod simpo;
mod wpo;

use core::fmt;
use core::str::FromStr;

use burn::prelude::*;

pub use aspo::{Aspo, SideWeighting, Weighting};
pub use ddpo::changed_tokens;
pub use loss_type::LossType;
pub use pairwise::RunningMean;

use sequences::Sequences;

use crate::error::{Error, Result};
use crate::math;
use crate::metric::Metrics;
use crate::record::PreferenceBatch;
use crate::sentence::sentence_sums;
use crate::weight::{RewardScaling, Weigh};

/// A sum of losses with weights, and the options they share.
///
/// ```
/// use aspo_loss::{LossType, Objective};
/// let mpo = Objective {
///     terms: vec![(LossType::Sigmoid, 0.8), (LossType::BcoPair, 0.2), (LossType::Sft, 1.0)],
///     ..Objective::default()
/// };
/// assert!(mpo.needs_reference() && !mpo.needs_similarity());
/// mpo.validate()?;
/// # Ok::<(), aspo_loss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Losses and their weights. Default: ASPO alone.
    pub terms: Vec<(LossType, f64)>,
    /// Temperature β > 0 (ORPO's λ). Default 0.1.
    pub beta: f64,
    /// ASPO: share of similarity against perplexity, in [0, 1]. Default 0.5.
    pub alpha: f64,
    /// ASPO: the reading of ρ. Default `total_weight`.
    pub scaling: RewardScaling,
    /// ASPO: which responses are weighed. Default `chosen`.
    pub weigh: Weigh,
    /// ε. Default 0, and 1e-3 from [`Objective::new`] of `exo_pair`, which has no value at 0.
    pub label_smoothing: f64,
    /// SimPO: the target margin γ. Default 0.5.
    pub simpo_gamma: f64,
    /// DiscoPOP: the temperature τ of the mix, in (0, 1]. Default 0.05.
    pub discopop_tau: f64,
    /// DDPO: the weight γ > 0 of changed tokens. Default 5.
    pub ddpo_gamma: f64,
    /// BCO: the shift δ of the rewards. The paper tracks the mean reward ([`RunningMean`]); TRL, since 2026, has 0.
    /// Default 0.
    pub bco_shift: f64,
    /// mDPO: the anchor δ. Default 0.
    pub anchor: f64,
    /// LD-DPO: the weight, in [0, 1], of tokens beyond the length of the shorter response of the pair
    /// (arXiv 2409.06411). Default none, which is 1.
    pub ld_alpha: Option<f64>,
    /// WPO: each pair's loss times the detached weights of both responses (arXiv 2406.11827, Eq. 2). Needs
    /// [`PreferenceBatch::with_stats`]. Default false.
    pub use_weighting: bool,
}

impl Default for Objective {
    fn default() -> Self {
        Self::new(LossType::Aspo)
    }
}

impl Objective {
    /// One loss with the default options.
    pub fn new(loss: LossType) -> Self {
        Self {
            terms: vec![(loss, 1.0)],
            beta: 0.1,
            alpha: 0.5,
            scaling: RewardScaling::default(),
            weigh: Weigh::default(),
            label_smoothing: if loss == LossType::ExoPair { 1e-3 } else { 0.0 },
            simpo_gamma: 0.5,
            discopop_tau: 0.05,
            ddpo_gamma: 5.0,
            bco_shift: 0.0,
            anchor: 0.0,
            ld_alpha: None,
            use_weighting: false,
        }
    }

    /// Whether a loss is among the terms.
    pub fn has(&self, loss: LossType) -> bool {
        self.terms.iter().any(|(term, _)| *term == loss)
    }

    /// Whether [`PreferenceBatch::with_reference`] is needed.
    pub fn needs_reference(&self) -> bool {
        self.terms.iter().any(|(term, _)| term.needs_reference())
    }

    /// Whether [`PreferenceBatch::with_similarity`] is needed: ASPO with α > 0.
    pub fn needs_similarity(&self) -> bool {
        self.has(LossType::Aspo) && self.alpha > 0.0
    }

    /// Whether [`PreferenceBatch::with_rejected_similarity`] is needed: that, weighing both.
    pub fn needs_rejected_similarity(&self) -> bool {
        self.needs_similarity() && self.weigh == Weigh::Both
    }

    /// Whether [`PreferenceBatch::with_changed`] is needed.
    pub fn needs_changed(&self) -> bool {
        self.has(LossType::Ddpo)
    }

    /// Whether [`PreferenceBatch::with_corrupted`] is needed.
    pub fn needs_corrupted(&self) -> bool {
        self.has(LossType::MdpoConditional)
    }

    /// Whether [`PreferenceBatch::with_stats`] is needed.
    pub fn needs_stats(&self) -> bool {
        self.use_weighting
    }

    /// Checks the options before anything is loaded.
    ///
    /// # Errors
    /// The first option outside its range, or set without a term that honours it.
    pub fn validate(&self) -> Result<()> {
        let fault = |option: &'static str, found: &dyn fmt::Debug, remedy: &str| {
            Err(Error::Option { option, found: format!("{found:?}"), remedy: remedy.into() })
        };
        let unit = |x: f64| (0.0..=1.0).contains(&x);
        if self.terms.is_empty() {
            return fault("terms", &self.terms, "give at least one loss");
        }
        if let Some((loss, weight)) = self.terms.iter().find(|(_, w)| !w.is_finite()) {
            return fault("terms", &(loss.name(), weight), "give finite weights");
        }
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return fault("beta", &self.beta, "give a number above 0");
        }
        if self.has(LossType::Aspo) && !unit(self.alpha) {
            return fault("alpha", &self.alpha, "give a share in [0, 1]");
        }
        let smoothing = self.label_smoothing;
        if !(0.0..=0.5).contains(&smoothing) {
            return fault("label_smoothing", &smoothing, "give a share of wrong labels in [0, 0.5]");
        }
        if smoothing == 0.5 && self.has(LossType::Robust) {
            return fault("label_smoothing", &smoothing, "`robust` divides by 1 - 2ε; give less than 0.5");
        }
        if smoothing == 0.0 && self.has(LossType::ExoPair) {
            return fault("label_smoothing", &smoothing, "`exo_pair` needs more than 0; its paper has 1e-3");
        }
        if smoothing > 0.0 && !self.terms.iter().any(|(term, _)| term.uses_label_smoothing()) {
            return fault(
                "label_smoothing",
                &smoothing,
                "no term honours it; set 0 or add `sigmoid`, `robust`, `simpo` or `exo_pair`",
            );
        }
        if self.has(LossType::Simpo) && !self.simpo_gamma.is_finite() {
            return fault("simpo_gamma", &self.simpo_gamma, "give a finite number");
        }
        if self.has(LossType::Discopop) && !(self.discopop_tau > 0.0 && self.discopop_tau <= 1.0) {
            return fault("discopop_tau", &self.discopop_tau, "give a number in (0, 1]; its paper has 0.05");
        }
        if self.has(LossType::Ddpo) && !(self.ddpo_gamma.is_finite() && self.ddpo_gamma > 0.0) {
            return fault("ddpo_gamma", &self.ddpo_gamma, "give a number above 0; its paper has 5");
        }
        if !self.bco_shift.is_finite() {
            return fault("bco_shift", &self.bco_shift, "give a finite number");
        }
        if !self.anchor.is_finite() {
            return fault("anchor", &self.anchor, "give a finite number");
        }
        if let Some(alpha) = self.ld_alpha.filter(|&alpha| !unit(alpha)) {
            return fault("ld_alpha", &alpha, "give a weight in [0, 1]");
        }
        if let (Some(alpha), true) = (self.ld_alpha, self.needs_changed() || self.needs_corrupted()) {
            return fault(
                "ld_alpha",
                &alpha,
                "`ddpo` and `mdpo_conditional` do not honour it; leave it out or them",
            );
        }
        Ok(())
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); a record that a term needs and the batch lacks; a log-probability that is not
    /// finite, where it is read on the host (ASPO, WPO).
    pub fn loss<B: Backend>(&self, batch: &PreferenceBatch<B>) -> Result<LossOutput<B>> {
        self.validate()?;
        self.check_records(batch)?;
        let sequences = Sequences::new(batch, self.ld_alpha);
        let mut total: Option<Tensor<B, 1>> = None;
        let mut rewards = None;
        let mut weighting = None;
        for &(loss, weight) in &self.terms {
            let term = self.term(loss, batch, &sequences)?;
            let losses = if weight == 1.0 { term.losses } else { term.losses.mul_scalar(weight) };
            total = Some(match total {
                Some(total) => total + losses,
                None => losses,
            });
            rewards.get_or_insert((term.chosen_rewards, term.rejected_rewards));
            weighting = weighting.or(term.weighting);
        }
        let (Some(mut losses), Some((chosen_rewards, rejected_rewards))) = (total, rewards) else {
            return Err(Error::Empty { what: "the objective's terms".into() });
        };
        if self.use_weighting {
            losses = losses * wpo::weights(batch)?;
        }
        let mut token_metrics = Metrics::default();
        if let Some([chosen, rejected]) = &batch.stats {
            token_metrics
                .add("entropy", chosen.entropy.iter().chain(&rejected.entropy).map(|&x| f64::from(x)));
            token_metrics
                .add("mean_token_accuracy", chosen.greedy.iter().map(|&hit| f64::from(u8::from(hit))));
            token_metrics.add("logits/chosen", chosen.mean_logit.iter().map(|&x| f64::from(x)));
            token_metrics.add("logits/rejected", rejected.mean_logit.iter().map(|&x| f64::from(x)));
        }
        let [chosen_logps, rejected_logps] = sequences.log_probs.map(math::detached);
        let sentence_log_ratios = sequences
            .token_ratios
            .map(|[chosen, _]| sentence_sums(math::detached(chosen), &batch.map.chosen));
        Ok(LossOutput {
            loss: losses.clone().mean(),
            losses,
            chosen_rewards: math::detached(chosen_rewards),
            rejected_rewards: math::detached(rejected_rewards),
            chosen_logps,
            rejected_logps,
            weighting,
            sentence_log_ratios,
            sentence_counts: (0..batch.batch_size()).map(|row| batch.map.chosen.counts(row).len()).collect(),
            token_metrics,
        })
    }

    fn term<B: Backend>(
        &self,
        loss: LossType,
        batch: &PreferenceBatch<B>,
        sequences: &Sequences<B>,
    ) -> Result<Term<B>> {
        let losses = match loss {
            LossType::Aspo => return aspo::term(batch, sequences, self),
            LossType::Ddpo => return Ok(ddpo::term(batch, self)),
            LossType::Simpo => return Ok(simpo::term(sequences, self)),
            LossType::Orpo => return Ok(log_odds::term(sequences, self)),
            LossType::Sft => return Ok(sft::term(sequences, self)),
            LossType::MdpoConditional => mdpo::conditional(batch, sequences, self),
            LossType::MdpoAnchor => mdpo::anchor(sequences, self),
            pairwise => pairwise::losses(pairwise, sequences, self),
        };
        let [chosen, rejected] = sequences.ratios().clone();
        Ok(Term {
            losses,
            chosen_rewards: chosen.mul_scalar(self.beta),
            rejected_rewards: rejected.mul_scalar(self.beta),
            weighting: None,
        })
    }

    fn check_records<B: Backend>(&self, batch: &PreferenceBatch<B>) -> Result<()> {
        let needs = [
            (
                self.needs_reference() && batch.reference.is_none(),
                "reference log-probabilities",
                "with_reference",
            ),
            (
                self.needs_similarity() && batch.similarity.is_none(),
                "sentence similarities (alpha > 0)",
                "with_similarity",
            ),
            (
                self.needs_rejected_similarity() && batch.rejected_similarity.is_none(),
                "similarities of the rejected sentences (weigh = both, alpha > 0)",
                "with_rejected_similarity",
            ),
            (self.needs_changed() && batch.changed.is_none(), "flags of the changed tokens", "with_changed"),
            (
                self.needs_corrupted() && batch.corrupted.is_none(),
                "log-probabilities given the corrupted image",
                "with_corrupted",
            ),
            (self.needs_stats() && batch.stats.is_none(), "token statistics (use_weighting)", "with_stats"),
        ];
        match needs.into_iter().find(|(lacking, ..)| *lacking) {
            Some((_, missing, method)) => {
                Err(Error::Missing { objective: self.to_string(), missing, method })
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Objective {
    /// `sigmoid` or `0.8 sigmoid + 0.2 bco_pair`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (loss, weight)) in self.terms.iter().enumerate() {
            let plus = if i > 0 { " + " } else { "" };
            if *weight == 1.0 { write!(f, "{plus}{loss}")? } else { write!(f, "{plus}{weight} {loss}")? }
        }
        Ok(())
    }
}

impl FromStr for Objective {
    type Err = Error;

    /// The name of a single loss, with default options.
    fn from_str(name: &str) -> Result<Self> {
        Ok(Self::new(name.parse()?))
    }
}

/// A loss and what was seen on the way.
#[derive(Debug, Clone)]
pub struct LossOutput<B: Backend> {
    /// Mean of `losses`, `[1]`.
    pub loss: Tensor<B, 1>,
    /// The loss of each pair, `[B]`, with gradients: sum these over micro-batches and divide by the pairs of the whole
    /// batch to accumulate exactly.
    pub losses: Tensor<B, 1>,
    /// Implicit rewards of the chosen responses, `[B]`, detached: `β r_c`, weighed for ASPO; `β log π(y)/|y|` for losses
    /// without a reference. Of the first term, where there are several.
    pub chosen_rewards: Tensor<B, 1>,
    /// The same of the rejected responses, `[B]`, detached.
    pub rejected_rewards: Tensor<B, 1>,
    /// `log π(y_c)`, `[B]`, detached, with `ld_alpha` if that is set.
    pub chosen_logps: Tensor<B, 1>,
    /// `log π(y_r)`, `[B]`, detached, with `ld_alpha` if that is set.
    pub rejected_logps: Tensor<B, 1>,
    /// ASPO's weights, perplexities and scales.
    pub weighting: Option<Weighting>,
    pub(crate) sentence_log_ratios: Option<Tensor<B, 2>>,
    pub(crate) sentence_counts: Vec<usize>,
    pub(crate) token_metrics: Metrics,
}

impl<B: Backend> LossOutput<B> {
    /// `chosen_rewards - rejected_rewards`, `[B]`, detached.
    pub fn margins(&self) -> Tensor<B, 1> {
        self.chosen_rewards.clone() - self.rejected_rewards.clone()
    }

    /// `d_i = log[π(s_i)/π_ref(s_i)]` of each chosen sentence, read back; none without a reference.
    pub fn sentence_log_ratios(&self) -> Option<Vec<Vec<f32>>> {
        let ratios = self.sentence_log_ratios.as_ref()?;
        let width = ratios.dims()[1];
        let values = math::host(ratios);
        let row = |(row, &count): (usize, &usize)| values[row * width..row * width + count].to_vec();
        Some(self.sentence_counts.iter().enumerate().map(row).collect())
    }
}

/// What one loss gives to the sum.
struct Term<B: Backend> {
    losses: Tensor<B, 1>,
    chosen_rewards: Tensor<B, 1>,
    rejected_rewards: Tensor<B, 1>,
    weighting: Option<Weighting>,
}

/// `-(1-ε) log σ(x) - ε log σ(-x)`.
fn smoothed<B: Backend>(x: Tensor<B, 1>, smoothing: f64) -> Tensor<B, 1> {
    let losses = math::log_sigmoid(x.clone()).neg();
    if smoothing == 0.0 {
        return losses;
    }
    losses.mul_scalar(1.0 - smoothing) - math::log_sigmoid(x.neg()).mul_scalar(smoothing)
}
