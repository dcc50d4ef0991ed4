//! The objectives: ASPO and the other preference losses, by the names TRL uses, over one set of records.
//!
//! An [`Objective`] is a sum of [`LossType`]s with weights and the options they share. Preferences are averaged over pairs,
//! likelihoods over the chosen tokens of the batch, as in TRL; [`LossOutput::share`] keeps both means exact over
//! micro-batches, so that one batch of 8 and 8 batches of 1 agree.

mod aspo;
mod ddpo;
mod diff;
mod divergence;
mod log_odds;
mod loss_type;
mod mdpo;
mod output;
mod pairwise;
mod sequences;
mod text;
mod unread;
mod weighting;
mod wpo;

use burn::prelude::*;

pub use diff::changed_tokens;
pub use divergence::FDivergence;
pub use loss_type::{Aspo, LossType};
pub use output::{LossOutput, Sides, Totals};
pub use unread::UnreadLoss;
pub use weighting::{SideWeighting, Weighting};

use output::Likelihood;
use pairwise::{aot, mean_difference, smoothed};
use sequences::Sequences;

use crate::error::{Error, Result};
use crate::log_prob::TokenValues;
use crate::math::{self, log_sigmoid};
use crate::metric::Metrics;
use crate::record::PreferenceBatch;
use crate::weight::Weigh;

/// A sum of losses with weights, and the options they share.
///
/// ```
/// use aspo_loss::{LossType, Objective};
/// let mpo = Objective {
///     terms: vec![(LossType::Sigmoid, 0.8), (LossType::BcoPair { shift: 0.0 }, 0.2), (LossType::Sft, 1.0)],
///     ..Objective::default()
/// };
/// assert!(mpo.needs_reference() && !mpo.needs_similarity());
/// assert_eq!(mpo.to_string(), "0.8 sigmoid + 0.2 bco_pair + sft");
/// assert_eq!(mpo, "0.8 dpo + 0.2 BCO_pair + sft".parse::<Objective>()?);
/// # Ok::<(), aspo_loss::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Objective {
    /// Losses and their weights, which are 0 or more. Default: ASPO alone.
    pub terms: Vec<(LossType, f64)>,
    /// Temperature β > 0 (ORPO's λ). Default 0.1.
    pub beta: f64,
    /// What holds the policy to the reference. Only losses of a score difference take another than the reverse KL: `sigmoid`,
    /// `sigmoid_norm`, `cdpo`, `robust`, `hinge`, `ipo`, `exo_pair`, `discopop`, and `sft` beside them. Default reverse KL.
    pub f_divergence: FDivergence,
    /// LD-DPO: the weight, in [0, 1], of tokens beyond the length of the shorter response of the pair
    /// (arXiv 2409.06411), for policy and reference alike; lengths and likelihoods are untouched. Default none, which is 1.
    pub ld_alpha: Option<f64>,
    /// WPO: each pair's loss times the detached weights of both responses (arXiv 2406.11827, Eq. 2), not clamped, as in TRL
    /// 1.16. Not with likelihoods (`sft`, `orpo`), nor with losses by rank (`aot`). Needs [`PreferenceBatch::with_stats`].
    /// Default false.
    pub use_weighting: bool,
}

impl Default for Objective {
    fn default() -> Self {
        Self::new(Aspo::default())
    }
}

impl From<LossType> for Objective {
    fn from(loss: LossType) -> Self {
        Self::new(loss)
    }
}

impl Objective {
    /// One loss with the default of everything that losses share.
    pub fn new(loss: impl Into<LossType>) -> Self {
        Self {
            terms: vec![(loss.into(), 1.0)],
            beta: 0.1,
            f_divergence: FDivergence::default(),
            ld_alpha: None,
            use_weighting: false,
        }
    }

    /// The losses, without their weights.
    pub fn losses(&self) -> impl Iterator<Item = LossType> + '_ {
        self.terms.iter().map(|(loss, _)| *loss)
    }

    /// ASPO's options, if ASPO is among the terms.
    pub fn aspo(&self) -> Option<Aspo> {
        self.losses().find_map(|loss| if let LossType::Aspo(aspo) = loss { Some(aspo) } else { None })
    }

    /// Whether [`PreferenceBatch::with_reference`] is needed.
    pub fn needs_reference(&self) -> bool {
        self.losses().any(LossType::needs_reference)
    }

    /// Whether [`PreferenceBatch::with_similarity`] is needed: ASPO with α > 0.
    pub fn needs_similarity(&self) -> bool {
        self.aspo().is_some_and(|aspo| aspo.alpha > 0.0)
    }

    /// Whether [`PreferenceBatch::with_rejected_similarity`] is needed: that, weighing both.
    pub fn needs_rejected_similarity(&self) -> bool {
        self.aspo().is_some_and(|aspo| aspo.alpha > 0.0 && aspo.weigh == Weigh::Both)
    }

    /// Whether [`PreferenceBatch::with_changed`] is needed.
    pub fn needs_changed(&self) -> bool {
        self.losses().any(|loss| matches!(loss, LossType::Ddpo { .. }))
    }

    /// Whether [`PreferenceBatch::with_corrupted`] is needed.
    pub fn needs_corrupted(&self) -> bool {
        self.losses().any(|loss| loss == LossType::MdpoConditional)
    }

    /// Whether [`PreferenceBatch::with_stats`] is needed.
    pub fn needs_stats(&self) -> bool {
        self.use_weighting
    }

    /// Whether some loss goes by rank over the batch, so that how pairs are batched changes it.
    pub fn sorts(&self) -> bool {
        self.losses().any(LossType::sorts)
    }

    /// Whether rewards and log-probabilities are logged as means over tokens, as TRL's trainers of SimPO and ORPO do.
    fn logs_means(&self) -> bool {
        self.losses().any(|loss| matches!(loss, LossType::Simpo { .. } | LossType::Orpo))
            && !self.needs_reference()
    }

    /// Checks the options before anything is loaded.
    ///
    /// # Errors
    /// The first option outside its range, or set beside a loss that does not honour it.
    pub fn validate(&self) -> Result<()> {
        if self.terms.is_empty() {
            return Err(Error::option("terms", "none", "give at least one loss"));
        }
        for (loss, weight) in &self.terms {
            if !(weight.is_finite() && *weight >= 0.0) {
                let found = format!("{weight} for {loss}");
                let remedy = "give finite weights of 0 or more; a negative one would train the loss upwards";
                return Err(Error::option("loss_weights", found, remedy));
            }
            loss.validate()?;
        }
        if self.losses().filter(|loss| matches!(loss, LossType::Aspo(_))).count() > 1 {
            return Err(Error::option("terms", self, "give `aspo` once: its weights are reported by pair"));
        }
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return Err(Error::option("beta", self.beta, "give a number above 0"));
        }
        self.f_divergence.validate()?;
        if let Some(alpha) = self.ld_alpha.filter(|alpha| !(0.0..=1.0).contains(alpha)) {
            return Err(Error::option("ld_alpha", alpha, "give a weight in [0, 1]"));
        }
        let refuse = |option, takes: fn(LossType) -> bool| match self.losses().find(|loss| !takes(*loss)) {
            Some(loss) => {
                let found = format!("set beside `{}`, which does not honour it", loss.name());
                Err(Error::option(option, found, "leave the option out, or that loss"))
            }
            None => Ok(()),
        };
        if self.f_divergence != FDivergence::ReverseKl {
            refuse("f_divergence_type", LossType::takes_f_divergence)?;
        }
        if self.ld_alpha.is_some() {
            refuse("ld_alpha", LossType::takes_ld_alpha)?;
        }
        if self.use_weighting {
            refuse("use_weighting", LossType::takes_weighting)?;
        }
        Ok(())
    }

    /// The loss of a batch. Reads its log-probabilities and values back once: they are checked, and metrics and weights are made
    /// of them. Where a device should not be waited for before the backward, [`forward`](Self::forward) reads nothing.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); a log-probability that is not finite or above 0, by record, row and element.
    pub fn loss<B: Backend>(&self, batch: &PreferenceBatch<B>) -> Result<LossOutput<B>> {
        self.forward(batch)?.read()
    }

    /// The loss of a batch, of which nothing is read back. Weights and scales of sentences are computed on the device.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); a record that a term needs and the batch lacks.
    pub fn forward<B: Backend>(&self, batch: &PreferenceBatch<B>) -> Result<UnreadLoss<B>> {
        self.validate()?;
        self.check_records(batch)?;
        let sequences = Sequences::new(batch, self.ld_alpha);
        let mut log_odds = None;
        let mut preferences: Option<Tensor<B, 1>> = None;
        let mut likelihood_weight = None;
        for &(loss, weight) in &self.terms {
            if let Some(losses) = self.preferences(loss, batch, &sequences, &mut log_odds) {
                let losses = if weight == 1.0 { losses } else { losses.mul_scalar(weight) };
                preferences = Some(match preferences {
                    Some(sum) => sum + losses,
                    None => losses,
                });
            }
            if matches!(loss, LossType::Sft | LossType::Orpo) {
                *likelihood_weight.get_or_insert(0.0) += weight;
            }
        }
        if self.use_weighting {
            preferences = preferences.map(|losses| losses * wpo::weights(batch, &sequences));
        }
        let likelihood = likelihood_weight.map(|weight| Likelihood {
            sums: sequences.chosen_log_probs().neg(),
            tokens: batch.layout().chosen.num_tokens(),
            weight,
        });
        let alone = likelihood.as_ref().map(|likelihood| {
            (likelihood.sums.clone() / sequences.lengths[0].clone()).mul_scalar(likelihood.weight)
        });
        let losses = match (preferences.clone(), alone) {
            (Some(preferences), Some(alone)) => preferences + alone,
            (one, other) => one.or(other).expect("every loss is a preference or a likelihood"),
        };
        let totals = Totals { pairs: batch.batch_size(), chosen_tokens: batch.layout().chosen.num_tokens() };
        let loss = output::share(preferences.as_ref(), likelihood.as_ref(), totals);
        Ok(UnreadLoss {
            loss: loss.expect("every loss is a preference or a likelihood"),
            losses,
            objective: self.clone(),
            batch: batch.clone(),
            preferences,
            likelihood,
            log_odds,
        })
    }

    /// One loss's value for each pair, `[B]`; none for a likelihood.
    fn preferences<B: Backend>(
        &self,
        loss: LossType,
        batch: &PreferenceBatch<B>,
        sequences: &Sequences<'_, B>,
        log_odds: &mut Option<Tensor<B, 1>>,
    ) -> Option<Tensor<B, 1>> {
        let beta = self.beta;
        let rewards = || sequences.ratios().map(|ratio| ratio.mul_scalar(beta));
        let f_scores = || sequences.ratios().map(|ratio| self.f_divergence.score(ratio));
        let margin = || {
            let [chosen, rejected] = f_scores();
            (chosen - rejected).mul_scalar(beta)
        };
        Some(match loss {
            LossType::Aspo(aspo) => aspo::losses(aspo, batch, sequences, beta),
            LossType::Sigmoid => smoothed(margin(), 0.0),
            LossType::SigmoidNorm => smoothed(mean_difference(f_scores(), sequences).mul_scalar(beta), 0.0),
            LossType::Cdpo { label_smoothing } => smoothed(margin(), label_smoothing),
            LossType::Robust { label_smoothing } => pairwise::robust(margin(), label_smoothing),
            LossType::Hinge => pairwise::hinge(margin()),
            LossType::Ipo => pairwise::ipo(mean_difference(f_scores(), sequences), beta),
            LossType::Aot { label_smoothing } => {
                let [policy, reference] = sequences.preferences();
                aot(policy, reference, beta, label_smoothing)
            }
            LossType::AotUnpaired { label_smoothing } => {
                let [chosen, rejected] = sequences.ratios();
                aot(chosen, rejected, beta, label_smoothing)
            }
            LossType::Simpo { gamma, label_smoothing } => {
                let [chosen, rejected] = sequences.mean_log_probs();
                smoothed((chosen - rejected).mul_scalar(beta).sub_scalar(gamma), label_smoothing)
            }
            LossType::Orpo => {
                let odds = log_odds::log_odds(sequences.mean_log_probs());
                *log_odds = Some(math::detached(odds.clone()));
                log_sigmoid(odds).mul_scalar(-beta)
            }
            LossType::ApoZero => pairwise::apo_zero(rewards()),
            LossType::ApoDown => pairwise::apo_down(rewards()),
            LossType::SppoHard => pairwise::sppo(sequences.ratios(), beta),
            LossType::BcoPair { shift } => pairwise::bco(rewards(), shift),
            LossType::ExoPair { label_smoothing } => pairwise::exo(margin(), label_smoothing),
            LossType::NcaPair => pairwise::nca(rewards()),
            LossType::Discopop { tau } => pairwise::discopop(margin(), tau),
            LossType::Sft => return None,
            LossType::Ddpo { gamma } => ddpo::losses(gamma, batch, sequences, beta),
            LossType::MdpoConditional => mdpo::conditional(batch, rewards(), beta),
            LossType::MdpoAnchor { anchor } => mdpo::anchor(rewards(), anchor),
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

/// What is told of the tokens' whole distributions.
fn token_metrics([chosen, rejected]: &[TokenValues; 2]) -> Metrics {
    let mut metrics = Metrics::default();
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    metrics.add("entropy", wide(&chosen.entropy).into_iter().chain(wide(&rejected.entropy)));
    metrics.add("mean_token_accuracy", chosen.is_argmax.iter().map(|&hit| f64::from(u8::from(hit))));
    metrics.add("logits/chosen", wide(&chosen.mean_logit));
    metrics.add("logits/rejected", wide(&rejected.mean_logit));
    metrics
}
