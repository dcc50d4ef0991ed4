//! A loss on the device, of which nothing was read back: the backward can begin at once, and what is to be known of it is read
//! afterwards, in one piece, of several batches together.

use burn::prelude::*;

use super::output::{Columns, Likelihood, LossOutput, Seen, Totals, share};
use super::{Objective, aspo, ddpo, sequences, token_metrics};
use crate::error::Result;
use crate::logps::check_log_probs;
use crate::math;
use crate::metric::Metrics;
use crate::record::{HostLogps, PreferenceBatch};

/// What [`Objective::forward`] gives.
#[derive(Debug, Clone)]
pub struct UnreadLoss<B: Backend> {
    /// The loss of the batch, `[1]`, as [`LossOutput::loss`].
    pub loss: Tensor<B, 1>,
    /// The loss of each pair, `[B]`, as [`LossOutput::losses`].
    pub losses: Tensor<B, 1>,
    pub(super) objective: Objective,
    pub(super) batch: PreferenceBatch<B>,
    pub(super) preferences: Option<Tensor<B, 1>>,
    pub(super) likelihood: Option<Likelihood<B>>,
    pub(super) log_odds: Option<Tensor<B, 1>>,
}

impl<B: Backend> UnreadLoss<B> {
    /// As [`LossOutput::share`].
    pub fn share(&self, totals: Totals) -> Tensor<B, 1> {
        share(self.preferences.as_ref(), self.likelihood.as_ref(), totals)
            .expect("every loss is a preference or a likelihood")
    }

    /// Everything that is to be read, as one vector of f32 without gradients: give its values to
    /// [`read_from`](Self::read_from).
    pub fn values(&self) -> Tensor<B, 1> {
        let mut parts: Vec<Tensor<B, 1>> =
            self.batch.held().into_iter().map(|(_, part, _)| part.clone()).collect();
        parts.extend(self.columns().into_iter().flatten().cloned());
        parts.extend(self.batch.stats.iter().flatten().map(|stats| stats.rows.clone().flatten(0, 1)));
        Tensor::cat(parts.into_iter().map(math::detached).collect(), 0)
    }

    /// How many values [`values`](Self::values) has.
    pub fn len(&self) -> usize {
        let held: usize = self.batch.held().iter().map(|(_, part, _)| part.dims()[0]).sum();
        let columns: usize = self.columns().into_iter().flatten().map(|part| part.dims()[0]).sum();
        held + columns + self.batch.stats.iter().flatten().map(|stats| 4 * stats.len()).sum::<usize>()
    }

    /// Never: a batch has pairs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn columns(&self) -> [Option<&Tensor<B, 1>>; 3] {
        let likelihood = self.likelihood.as_ref().map(|likelihood| &likelihood.sums);
        [self.preferences.as_ref(), likelihood, self.log_odds.as_ref()]
    }

    /// Reads everything, in one read.
    ///
    /// # Errors
    /// As [`read_from`](Self::read_from).
    pub fn read(self) -> Result<LossOutput<B>> {
        let values = math::host(&self.values());
        self.read_from(&values)
    }

    /// What is known once [`values`](Self::values) are on the host: they are checked, and metrics and weights are made of
    /// them.
    ///
    /// # Errors
    /// A log-probability that is not finite or above 0, or a token statistic that is not finite, by record, row and element.
    pub fn read_from(self, values: &[f32]) -> Result<LossOutput<B>> {
        let mut rest = values;
        let mut take = |count: usize| rest.split_off(..count).unwrap_or_default();
        let mut parts = Vec::new();
        for (who, part, layout) in self.batch.held() {
            let part = take(part.dims()[0]);
            check_log_probs(&format!("{who} log-probabilities"), part, layout)?;
            parts.push(part.to_vec());
        }
        let mut parts = parts.into_iter();
        let mut sides = || Some([parts.next()?, parts.next()?]);
        let policy = sides().unwrap_or_default();
        let scores = HostLogps { policy, reference: self.batch.reference.as_ref().and_then(|_| sides()) };
        let columns = self.columns().map(|column| {
            column.map(|column| take(column.dims()[0]).iter().map(|&value| f64::from(value)).collect())
        });
        let token_metrics = match &self.batch.stats {
            Some([chosen, rejected]) => {
                let read = [chosen, rejected].map(|stats| take(4 * stats.len()));
                token_metrics(&self.batch.stats_of(read)?)
            }
            None => Metrics::default(),
        };

        let Self { loss, losses, objective, batch, preferences, likelihood, .. } = self;
        let layout = batch.layout();
        let mut seen = Seen::default();
        for term in objective.losses() {
            match term {
                super::LossType::Aspo(options) => {
                    aspo::seen(options, &batch, &scores, objective.beta, &mut seen)
                }
                super::LossType::Ddpo { gamma } => {
                    ddpo::seen(gamma, &batch, &scores, objective.beta, &mut seen)
                }
                _ => {}
            }
        }
        let means = objective.logs_means();
        let logps = sequences::log_probs(layout, &scores, objective.ld_alpha, means);
        let rewards = match means {
            true => Some(logps.clone()),
            false => sequences::log_ratios(layout, &scores, objective.ld_alpha),
        };
        Ok(LossOutput {
            loss,
            losses,
            rewards: rewards.map(|rewards| rewards.scaled(objective.beta)),
            weighed_rewards: seen.weighed_rewards,
            logps,
            weighting: seen.weighting,
            token_metrics,
            columns: Columns::of(columns),
            preferences,
            likelihood,
        })
    }
}
