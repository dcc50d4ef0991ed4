//! What a loss reads of a batch, checked when it is given.

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::layout::{PairLayout, ResponseLayout};
use crate::log_prob::{TokenStats, TokenValues};
use crate::logps::Logps;
use crate::math;

fn check_finite(what: &str, row: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(element) => {
            Err(Error::NotFinite { what: what.into(), row, element, found: f64::from(values[element]) })
        }
        None => Ok(()),
    }
}

/// How well each sentence of a response fits its image: `S_i`, one row per response, one value per sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    rows: Vec<Vec<f32>>,
}

impl Similarity {
    /// From ragged rows.
    ///
    /// # Errors
    /// No rows, or a value that is not finite.
    pub fn new<R: AsRef<[f32]>>(rows: &[R]) -> Result<Self> {
        if rows.is_empty() {
            return Err(Error::Empty { what: "similarity".into() });
        }
        for (row, values) in rows.iter().enumerate() {
            check_finite("similarity", row, values.as_ref())?;
        }
        Ok(Self { rows: rows.iter().map(|r| r.as_ref().to_vec()).collect() })
    }

    /// From rows padded to one length, and the number of sentences of each.
    ///
    /// # Errors
    /// As [`new`](Self::new); a count beyond its row.
    pub fn padded<R: AsRef<[f32]>>(rows: &[R], counts: &[usize]) -> Result<Self> {
        if rows.len() != counts.len() {
            return Err(Error::shape(
                "similarity counts",
                counts.len(),
                rows.len(),
                "the rows of similarity",
            ));
        }
        let cut = |(row, (values, &count)): (usize, (&R, &usize))| match values.as_ref().get(..count) {
            Some(values) => Ok(values.to_vec()),
            None => {
                let what = format!("similarity, row {row}");
                Err(Error::shape(what, values.as_ref().len(), count, "at least the row's sentences"))
            }
        };
        let rows = rows.iter().zip(counts).enumerate().map(cut).collect::<Result<Vec<_>>>()?;
        Self::new(&rows)
    }

    /// The values of one row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.rows[row]
    }

    fn check(&self, side: &str, layout: &ResponseLayout) -> Result<()> {
        let what = format!("{side} similarity");
        if self.rows.len() != layout.batch_size() {
            return Err(Error::shape(what, self.rows.len(), layout.batch_size(), "the rows of the layout"));
        }
        for (row, values) in self.rows.iter().enumerate() {
            let expected = layout.counts(row).len();
            if values.len() != expected {
                let what = format!("{what}, row {row}");
                return Err(Error::shape(what, values.len(), expected, "one value per sentence of the row"));
            }
        }
        Ok(())
    }
}

/// Everything a preference loss may read about one batch of pairs. The policy's log-probabilities are always needed, and
/// their layout is the batch's; what else an objective needs, [`Objective`](crate::Objective) says.
#[derive(Debug, Clone)]
pub struct PreferenceBatch<B: Backend> {
    pub(crate) policy: Logps<B>,
    pub(crate) reference: Option<Logps<B>>,
    pub(crate) similarity: Option<Similarity>,
    pub(crate) rejected_similarity: Option<Similarity>,
    pub(crate) changed: Option<[Vec<bool>; 2]>,
    pub(crate) corrupted: Option<CorruptedLogps<B>>,
    pub(crate) stats: Option<[TokenStats<B>; 2]>,
}

/// Log-probabilities of the *chosen* tokens when the model sees a corrupted image (mDPO's conditional term), `[N_chosen]`.
#[derive(Debug, Clone)]
pub(crate) struct CorruptedLogps<B: Backend> {
    pub(crate) policy: Tensor<B, 1>,
    pub(crate) reference: Tensor<B, 1>,
}

/// The log-probabilities of a batch on the host, chosen and rejected, finite and at most 0.
pub(crate) struct HostLogps {
    pub(crate) policy: [Vec<f32>; 2],
    pub(crate) reference: Option<[Vec<f32>; 2]>,
}

impl HostLogps {
    /// `log[p/p_ref]` of each token of one side.
    pub(crate) fn ratios(&self, side: usize) -> Vec<f64> {
        let reference = self.reference.as_ref();
        let reference = reference.expect("losses with a reference are evaluated only where it was given");
        self.policy[side].iter().zip(&reference[side]).map(|(p, r)| f64::from(*p) - f64::from(*r)).collect()
    }
}

impl<B: Backend> PreferenceBatch<B> {
    /// A batch with what every objective needs: the policy's log-probabilities.
    pub fn new(policy: Logps<B>) -> Self {
        Self {
            policy,
            reference: None,
            similarity: None,
            rejected_similarity: None,
            changed: None,
            corrupted: None,
            stats: None,
        }
    }

    /// With the reference model's log-probabilities of the same tokens, as constants.
    ///
    /// # Errors
    /// Another layout than the policy's.
    pub fn with_reference(mut self, reference: Logps<B>) -> Result<Self> {
        if reference.layout() != self.layout() {
            let sizes = |layout: &PairLayout| {
                let [c, r] = [&layout.chosen, &layout.rejected].map(ResponseLayout::num_tokens);
                format!("{} pairs with {c} and {r} tokens", layout.batch_size())
            };
            let (found, expected) = (sizes(reference.layout()), sizes(self.layout()));
            let what = "layout of the reference log-probabilities".into();
            let why = "the policy's layout, in positions and sentences too";
            return Err(Error::Shape { what, found, expected, why });
        }
        self.reference = Some(reference.detach());
        Ok(self)
    }

    /// With the similarity of each chosen sentence to the image.
    ///
    /// # Errors
    /// Rows or sentences other than the layout's, named by row.
    pub fn with_similarity(mut self, similarity: Similarity) -> Result<Self> {
        similarity.check("chosen", &self.layout().chosen)?;
        self.similarity = Some(similarity);
        Ok(self)
    }

    /// With the similarity of each rejected sentence to the image, for [`Weigh::Both`](crate::Weigh::Both).
    ///
    /// # Errors
    /// Rows or sentences other than the layout's, named by row.
    pub fn with_rejected_similarity(mut self, similarity: Similarity) -> Result<Self> {
        similarity.check("rejected", &self.layout().rejected)?;
        self.rejected_similarity = Some(similarity);
        Ok(self)
    }

    /// With one flag per response token, true where the token differs between the two responses, for `ddpo`; see
    /// [`changed_tokens`](crate::objective::changed_tokens).
    ///
    /// # Errors
    /// Rows or tokens other than the layout's, named by row.
    pub fn with_changed<R: AsRef<[bool]>>(mut self, chosen: &[R], rejected: &[R]) -> Result<Self> {
        let flat = |what: &str, rows: &[R], layout: &ResponseLayout| -> Result<Vec<bool>> {
            if rows.len() != layout.batch_size() {
                return Err(Error::shape(what, rows.len(), layout.batch_size(), "the rows of the layout"));
            }
            for (row, flags) in rows.iter().enumerate() {
                let (found, expected) = (flags.as_ref().len(), layout.row_tokens(row));
                if found != expected {
                    let what = format!("{what}, row {row}");
                    return Err(Error::shape(what, found, expected, "one flag per response token"));
                }
            }
            Ok(rows.iter().flat_map(|r| r.as_ref().iter().copied()).collect())
        };
        let chosen = flat("chosen changed tokens", chosen, &self.layout().chosen)?;
        let rejected = flat("rejected changed tokens", rejected, &self.layout().rejected)?;
        self.changed = Some([chosen, rejected]);
        Ok(self)
    }

    /// With the log-probabilities, `[N_chosen]`, of the chosen tokens given a corrupted image, under policy and
    /// reference, for `mdpo_conditional`.
    ///
    /// # Errors
    /// A length other than the chosen side's number of tokens.
    pub fn with_corrupted(mut self, policy: Tensor<B, 1>, reference: Tensor<B, 1>) -> Result<Self> {
        for (what, scores) in [("policy", &policy), ("reference", &reference)] {
            let ([found], expected) = (scores.dims(), self.layout().chosen.num_tokens());
            if found != expected {
                let what = format!("{what} log-probabilities given the corrupted image");
                return Err(Error::shape(what, found, expected, "one value per chosen token"));
            }
        }
        let (policy, reference) = (math::to_f32(policy), math::detached(math::to_f32(reference)));
        self.corrupted = Some(CorruptedLogps { policy, reference });
        Ok(self)
    }

    /// With what the full distributions say of each token of both sides, for WPO weighting and the metrics `entropy`,
    /// `mean_token_accuracy`, `logits/chosen` and `logits/rejected`.
    ///
    /// # Errors
    /// A length other than the layout's number of tokens. (One that is not finite is told when the loss is read.)
    pub fn with_stats(mut self, chosen: TokenStats<B>, rejected: TokenStats<B>) -> Result<Self> {
        for (side, stats, layout) in
            [("chosen", &chosen, &self.layout().chosen), ("rejected", &rejected, &self.layout().rejected)]
        {
            let (found, expected) = (stats.len(), layout.num_tokens());
            if found != expected {
                let what = format!("{side} token statistics");
                return Err(Error::shape(what, found, expected, "one value per response token"));
            }
        }
        self.stats = Some([chosen, rejected]);
        Ok(self)
    }

    /// The statistics of both sides, from what was read of them.
    ///
    /// # Errors
    /// A statistic that is not finite.
    pub(crate) fn stats_of(&self, read: [&[f32]; 2]) -> Result<[TokenValues; 2]> {
        let stats = read.map(TokenValues::of);
        for ((side, layout), stats) in
            [("chosen", &self.layout().chosen), ("rejected", &self.layout().rejected)].into_iter().zip(&stats)
        {
            for row in 0..layout.batch_size() {
                for values in [&stats.log_sum_sq_probs, &stats.entropy] {
                    check_finite(&format!("{side} token statistics"), row, &values[layout.range(row)])?;
                }
            }
        }
        Ok(stats)
    }

    /// All log-probabilities, by name, and the layout of each.
    pub(crate) fn held(&self) -> Vec<(&'static str, &Tensor<B, 1>, &ResponseLayout)> {
        let layout = self.layout();
        let mut held = vec![
            ("policy chosen", self.policy.chosen(), &layout.chosen),
            ("policy rejected", self.policy.rejected(), &layout.rejected),
        ];
        if let Some(reference) = &self.reference {
            held.push(("reference chosen", reference.chosen(), &layout.chosen));
            held.push(("reference rejected", reference.rejected(), &layout.rejected));
        }
        if let Some(corrupted) = &self.corrupted {
            held.push(("corrupted policy", &corrupted.policy, &layout.chosen));
            held.push(("corrupted reference", &corrupted.reference, &layout.chosen));
        }
        held
    }

    /// The layout of the batch.
    pub fn layout(&self) -> &PairLayout {
        self.policy.layout()
    }

    /// The policy's log-probabilities.
    pub fn policy(&self) -> &Logps<B> {
        &self.policy
    }

    /// The reference model's log-probabilities, if given; constants.
    pub fn reference(&self) -> Option<&Logps<B>> {
        self.reference.as_ref()
    }

    /// Number of pairs, B.
    pub fn batch_size(&self) -> usize {
        self.layout().batch_size()
    }
}
