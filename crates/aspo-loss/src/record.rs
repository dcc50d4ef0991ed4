//! The named records that a loss reads, checked when they are made.
//!
//! Every response token of a batch has one place in a flat vector: row after row, position after position. A
//! [`SentenceMap`] holds that layout on the host; [`PolicyScores`] and [`ReferenceScores`] hold one log-probability for
//! each place, on the device. Prompt, image and padding positions have no place, so nothing has to be masked later.

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::log_prob::TokenStats;
use crate::map::{PairMap, SentenceMap};
use crate::math;

/// One log-probability per response token of both sides, `[N_chosen]` and `[N_rejected]`, in f32.
#[derive(Debug, Clone)]
struct Scores<B: Backend> {
    chosen: Tensor<B, 1>,
    rejected: Tensor<B, 1>,
}

impl<B: Backend> Scores<B> {
    fn flat(who: &str, map: &PairMap, chosen: Tensor<B, 1>, rejected: Tensor<B, 1>) -> Result<Self> {
        for (side, scores, map) in [("chosen", &chosen, &map.chosen), ("rejected", &rejected, &map.rejected)]
        {
            let [found] = scores.dims();
            if found != map.num_tokens() {
                let what = format!("{who} {side} log-probabilities");
                return Err(Error::shape(what, found, map.num_tokens(), "one value per response token"));
            }
        }
        Ok(Self { chosen: math::f32(chosen), rejected: math::f32(rejected) })
    }

    fn joined(who: &str, map: &PairMap, both: Tensor<B, 1>) -> Result<Self> {
        let [found] = both.dims();
        if found != map.num_tokens() {
            let what = format!("{who} log-probabilities, chosen then rejected");
            return Err(Error::shape(what, found, map.num_tokens(), "one value per response token"));
        }
        let split = map.chosen.num_tokens();
        let chosen = both.clone().narrow(0, 0, split);
        Self::flat(who, map, chosen, both.narrow(0, split, found - split))
    }

    fn padded(who: &str, map: &PairMap, chosen: Tensor<B, 2>, rejected: Tensor<B, 2>) -> Result<Self> {
        let what = |side: &str| format!("{who} {side} log-probabilities [B, T]");
        let chosen = map.chosen.select_scores(&what("chosen"), chosen)?;
        let rejected = map.rejected.select_scores(&what("rejected"), rejected)?;
        Self::flat(who, map, chosen, rejected)
    }

    fn rows<R: AsRef<[f32]>>(
        who: &str,
        map: &PairMap,
        chosen: &[R],
        rejected: &[R],
        device: &B::Device,
    ) -> Result<Self> {
        let side = |side: &str, rows: &[R], map: &SentenceMap| -> Result<Tensor<B, 1>> {
            let what = format!("{who} {side} log-probabilities");
            let flat = flatten(&what, rows, map)?;
            check_log_probs(&what, &flat, map)?;
            Ok(math::constant(flat, [map.num_tokens()], device))
        };
        let chosen = side("chosen", chosen, &map.chosen)?;
        let rejected = side("rejected", rejected, &map.rejected)?;
        Ok(Self { chosen, rejected })
    }
}

/// Host rows, one value per response token, as one flat vector.
fn flatten<R: AsRef<[f32]>>(what: &str, rows: &[R], map: &SentenceMap) -> Result<Vec<f32>> {
    if rows.len() != map.batch_size() {
        return Err(Error::shape(what, rows.len(), map.batch_size(), "the rows of the sentence map"));
    }
    let mut flat = Vec::with_capacity(map.num_tokens());
    for (row, values) in rows.iter().enumerate() {
        let values = values.as_ref();
        if values.len() != map.row_tokens(row) {
            let what = format!("{what}, row {row}");
            return Err(Error::shape(
                what,
                values.len(),
                map.row_tokens(row),
                "one value per response token",
            ));
        }
        flat.extend_from_slice(values);
    }
    Ok(flat)
}

/// Above 0 by more than this is no rounding of a log-probability of 0.
const ROUNDING: f32 = 1e-3;

/// Refuses what is not finite or above 0, by row. NaN is looked for on the host: a device may compare as it likes.
fn check_log_probs(what: &str, flat: &[f32], map: &SentenceMap) -> Result<()> {
    let Some(at) = flat.iter().position(|v| !v.is_finite() || *v > ROUNDING) else { return Ok(()) };
    let row = (0..map.batch_size()).find(|&row| map.range(row).contains(&at)).unwrap_or(0);
    let (what, element, found) = (what.into(), at - map.range(row).start, f64::from(flat[at]));
    Err(match found.is_finite() {
        true => Error::Positive { what, row, element, found },
        false => Error::NotFinite { what, row, element, found },
    })
}

fn check_finite(what: &str, row: usize, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(element) => {
            Err(Error::NotFinite { what: what.into(), row, element, found: f64::from(values[element]) })
        }
        None => Ok(()),
    }
}

macro_rules! scores {
    ($(#[$doc:meta])* $name:ident, $who:literal, $finish:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name<B: Backend>(Scores<B>);

        impl<B: Backend> $name<B> {
            /// From flat vectors `[N_chosen]` and `[N_rejected]`, as [`chunked_log_probs`](crate::chunked_log_probs) makes
            /// them from selected positions.
            ///
            /// # Errors
            /// A length other than the map's number of response tokens.
            pub fn flat(map: &PairMap, chosen: Tensor<B, 1>, rejected: Tensor<B, 1>) -> Result<Self> {
                Scores::flat($who, map, chosen, rejected).map(Self::finish)
            }

            /// From one flat vector [N_chosen + N_rejected], all chosen responses first: one pass of a model over both
            /// sides.
            ///
            /// # Errors
            /// A length other than the map's number of response tokens.
            pub fn joined(map: &PairMap, both: Tensor<B, 1>) -> Result<Self> {
                Scores::joined($who, map, both).map(Self::finish)
            }

            /// From padded tensors `[B, T_chosen]` and `[B, T_rejected]`; positions outside the responses are not read.
            ///
            /// # Errors
            /// Another number of rows than the map's, or rows shorter than its longest.
            pub fn padded(map: &PairMap, chosen: Tensor<B, 2>, rejected: Tensor<B, 2>) -> Result<Self> {
                Scores::padded($who, map, chosen, rejected).map(Self::finish)
            }

            /// From host rows, one value per response token: a cache.
            ///
            /// # Errors
            /// Another number of rows or tokens than the map's; a value that is not finite or above 0.
            pub fn rows<R: AsRef<[f32]>>(
                map: &PairMap,
                chosen: &[R],
                rejected: &[R],
                device: &B::Device,
            ) -> Result<Self> {
                Scores::rows($who, map, chosen, rejected, device).map(Self::finish)
            }

            fn finish(scores: Scores<B>) -> Self {
                let finish: fn(Tensor<B, 1>) -> Tensor<B, 1> = $finish;
                Self(Scores { chosen: finish(scores.chosen), rejected: finish(scores.rejected) })
            }

            /// The chosen side, `[N_chosen]`, f32.
            pub fn chosen(&self) -> &Tensor<B, 1> {
                &self.0.chosen
            }

            /// The rejected side, `[N_rejected]`, f32.
            pub fn rejected(&self) -> &Tensor<B, 1> {
                &self.0.rejected
            }
        }
    };
}

scores! {
    /// Log-probabilities of the response tokens under the policy; gradients flow through them.
    PolicyScores, "policy", |scores| scores
}
scores! {
    /// Log-probabilities of the response tokens under the reference model; detached.
    ReferenceScores, "reference", math::detached
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

    fn check(&self, side: &str, map: &SentenceMap) -> Result<()> {
        let what = format!("{side} similarity");
        if self.rows.len() != map.batch_size() {
            return Err(Error::shape(
                what,
                self.rows.len(),
                map.batch_size(),
                "the rows of the sentence map",
            ));
        }
        for (row, values) in self.rows.iter().enumerate() {
            let expected = map.counts(row).len();
            if values.len() != expected {
                let what = format!("{what}, row {row}");
                return Err(Error::shape(what, values.len(), expected, "one value per sentence of the row"));
            }
        }
        Ok(())
    }
}

/// Everything a preference loss may read about one batch of pairs. The map and the policy's scores are always needed;
/// what else an objective needs, [`Objective`](crate::Objective) says.
#[derive(Debug, Clone)]
pub struct PreferenceBatch<B: Backend> {
    pub(crate) map: PairMap,
    pub(crate) policy: PolicyScores<B>,
    pub(crate) reference: Option<ReferenceScores<B>>,
    pub(crate) similarity: Option<Similarity>,
    pub(crate) rejected_similarity: Option<Similarity>,
    pub(crate) changed: Option<[Vec<bool>; 2]>,
    pub(crate) corrupted: Option<CorruptedScores<B>>,
    pub(crate) stats: Option<[TokenStats; 2]>,
}

/// Log-probabilities of the *chosen* tokens when the model sees a corrupted image (mDPO's conditional term), `[N_chosen]`.
#[derive(Debug, Clone)]
pub(crate) struct CorruptedScores<B: Backend> {
    pub(crate) policy: Tensor<B, 1>,
    pub(crate) reference: Tensor<B, 1>,
}

/// The log-probabilities of a batch on the host, chosen and rejected, finite and at most 0.
pub(crate) struct HostScores {
    pub(crate) policy: [Vec<f32>; 2],
    pub(crate) reference: Option<[Vec<f32>; 2]>,
}

impl HostScores {
    /// `log[p/p_ref]` of each token of one side.
    pub(crate) fn ratios(&self, side: usize) -> Vec<f64> {
        let reference = self.reference.as_ref();
        let reference = reference.expect("losses with a reference are evaluated only where it was given");
        self.policy[side].iter().zip(&reference[side]).map(|(p, r)| f64::from(*p) - f64::from(*r)).collect()
    }
}

impl<B: Backend> PreferenceBatch<B> {
    /// A batch with what every objective needs. `policy` must come from the same `map`.
    ///
    /// # Errors
    /// Scores of another number of tokens than the map's.
    pub fn new(map: PairMap, policy: PolicyScores<B>) -> Result<Self> {
        let policy = PolicyScores::flat(&map, policy.0.chosen, policy.0.rejected)?;
        Ok(Self {
            map,
            policy,
            reference: None,
            similarity: None,
            rejected_similarity: None,
            changed: None,
            corrupted: None,
            stats: None,
        })
    }

    /// With the reference model's log-probabilities of the same tokens.
    ///
    /// # Errors
    /// Scores of another number of tokens than the map's.
    pub fn with_reference(mut self, reference: ReferenceScores<B>) -> Result<Self> {
        self.reference = Some(ReferenceScores::flat(&self.map, reference.0.chosen, reference.0.rejected)?);
        Ok(self)
    }

    /// With the similarity of each chosen sentence to the image.
    ///
    /// # Errors
    /// Rows or sentences other than the map's, named by row.
    pub fn with_similarity(mut self, similarity: Similarity) -> Result<Self> {
        similarity.check("chosen", &self.map.chosen)?;
        self.similarity = Some(similarity);
        Ok(self)
    }

    /// With the similarity of each rejected sentence to the image, for [`Weigh::Both`](crate::Weigh::Both).
    ///
    /// # Errors
    /// Rows or sentences other than the map's, named by row.
    pub fn with_rejected_similarity(mut self, similarity: Similarity) -> Result<Self> {
        similarity.check("rejected", &self.map.rejected)?;
        self.rejected_similarity = Some(similarity);
        Ok(self)
    }

    /// With one flag per response token, true where the token differs between the two responses, for `ddpo`; see
    /// [`changed_tokens`](crate::changed_tokens).
    ///
    /// # Errors
    /// Rows or tokens other than the map's, named by row.
    pub fn with_changed<R: AsRef<[bool]>>(mut self, chosen: &[R], rejected: &[R]) -> Result<Self> {
        let flat = |what: &str, rows: &[R], map: &SentenceMap| -> Result<Vec<bool>> {
            if rows.len() != map.batch_size() {
                return Err(Error::shape(what, rows.len(), map.batch_size(), "the rows of the sentence map"));
            }
            for (row, flags) in rows.iter().enumerate() {
                let (found, expected) = (flags.as_ref().len(), map.row_tokens(row));
                if found != expected {
                    let what = format!("{what}, row {row}");
                    return Err(Error::shape(what, found, expected, "one flag per response token"));
                }
            }
            Ok(rows.iter().flat_map(|r| r.as_ref().iter().copied()).collect())
        };
        let chosen = flat("chosen changed tokens", chosen, &self.map.chosen)?;
        let rejected = flat("rejected changed tokens", rejected, &self.map.rejected)?;
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
            let ([found], expected) = (scores.dims(), self.map.chosen.num_tokens());
            if found != expected {
                let what = format!("{what} log-probabilities given the corrupted image");
                return Err(Error::shape(what, found, expected, "one value per chosen token"));
            }
        }
        let (policy, reference) = (math::f32(policy), math::detached(math::f32(reference)));
        self.corrupted = Some(CorruptedScores { policy, reference });
        Ok(self)
    }

    /// With what the full distributions say of each token of both sides, for WPO weighting and the metrics `entropy`,
    /// `mean_token_accuracy`, `logits/chosen` and `logits/rejected`.
    ///
    /// # Errors
    /// A length other than the map's number of tokens, a statistic that is not finite.
    pub fn with_stats(mut self, chosen: TokenStats, rejected: TokenStats) -> Result<Self> {
        for (side, stats, map) in
            [("chosen", &chosen, &self.map.chosen), ("rejected", &rejected, &self.map.rejected)]
        {
            if stats.len() != map.num_tokens() {
                let what = format!("{side} token statistics");
                return Err(Error::shape(
                    what,
                    stats.len(),
                    map.num_tokens(),
                    "one value per response token",
                ));
            }
            for row in 0..map.batch_size() {
                for values in [&stats.log_sum_sq_probs, &stats.entropy] {
                    check_finite(&format!("{side} token statistics"), row, &values[map.range(row)])?;
                }
            }
        }
        self.stats = Some([chosen, rejected]);
        Ok(self)
    }

    /// All log-probabilities on the host, in one read, checked.
    pub(crate) fn host(&self) -> Result<HostScores> {
        let mut held = vec![
            ("policy chosen", &self.policy.0.chosen, &self.map.chosen),
            ("policy rejected", &self.policy.0.rejected, &self.map.rejected),
        ];
        if let Some(ReferenceScores(reference)) = &self.reference {
            held.push(("reference chosen", &reference.chosen, &self.map.chosen));
            held.push(("reference rejected", &reference.rejected, &self.map.rejected));
        }
        if let Some(corrupted) = &self.corrupted {
            held.push(("corrupted policy", &corrupted.policy, &self.map.chosen));
            held.push(("corrupted reference", &corrupted.reference, &self.map.chosen));
        }
        let columns = held.iter().map(|(_, scores, _)| math::detached((*scores).clone())).collect();
        let all = math::host(&Tensor::cat(columns, 0));
        let (mut start, mut parts) = (0, vec![]);
        for (who, _, map) in held {
            let part = &all[start..start + map.num_tokens()];
            check_log_probs(&format!("{who} log-probabilities"), part, map)?;
            parts.push(part.to_vec());
            start += map.num_tokens();
        }
        let mut parts = parts.into_iter();
        let mut sides = || Some([parts.next()?, parts.next()?]);
        let policy = sides().unwrap_or_default();
        Ok(HostScores { policy, reference: self.reference.as_ref().and_then(|_| sides()) })
    }

    /// The layout of the batch.
    pub fn map(&self) -> &PairMap {
        &self.map
    }

    /// The policy's log-probabilities.
    pub fn policy(&self) -> &PolicyScores<B> {
        &self.policy
    }

    /// The reference model's log-probabilities, if given.
    pub fn reference(&self) -> Option<&ReferenceScores<B>> {
        self.reference.as_ref()
    }

    /// Number of pairs, B.
    pub fn batch_size(&self) -> usize {
        self.map.batch_size()
    }
}
