//! Batches as plain numbers, and the strategies that draw them.

use core::fmt;

use burn::prelude::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::error::Result;
use crate::layout::PairLayout;
use crate::log_prob::{TokenStats, TokenValues};
use crate::logps::Logps;
use crate::math;
use crate::record::{PreferenceBatch, Similarity};

/// One response as plain numbers; every vector but `sentences` and `similarity` has one value per response token.
#[derive(Debug, Clone, PartialEq)]
pub struct HostResponse {
    /// Tokens of each sentence.
    pub sentences: Vec<usize>,
    /// Positions that are no response tokens, before and after.
    pub padding: (usize, usize),
    /// Log-probabilities under the policy.
    pub policy: Vec<f32>,
    /// Log-probabilities under the reference.
    pub reference: Vec<f32>,
    /// Log-probabilities under policy and reference given a corrupted image.
    pub corrupted: Vec<(f32, f32)>,
    /// Whether the token differs from the other response.
    pub changed: Vec<bool>,
    /// What the policy's whole distributions say of each token.
    pub stats: TokenValues,
    /// Similarity of each sentence to the image.
    pub similarity: Vec<f32>,
}

/// One pair as plain numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPair {
    /// The chosen response.
    pub chosen: HostResponse,
    /// The rejected response.
    pub rejected: HostResponse,
}

/// A batch as plain numbers, from which a [`PreferenceBatch`] with every record is made.
#[derive(Debug, Clone, PartialEq)]
pub struct HostBatch {
    /// The pairs; at least one.
    pub pairs: Vec<HostPair>,
}

impl HostResponse {
    fn ids(&self) -> Vec<i64> {
        let (before, after) = self.padding;
        let tokens = self.sentences.iter().enumerate().flat_map(|(i, &n)| core::iter::repeat_n(i as i64, n));
        let pad = |n| core::iter::repeat_n(-1, n);
        pad(before).chain(tokens).chain(pad(after)).collect()
    }
}

/// One line: sentences as tokens with their log-probabilities under policy and reference.
impl fmt::Display for HostResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = |values: &mut dyn Iterator<Item = &f32>| {
            values.map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(" ")
        };
        let mut start = 0;
        for (i, &tokens) in self.sentences.iter().enumerate() {
            let span = start..start + tokens;
            start = span.end;
            let policy = numbers(&mut self.policy[span.clone()].iter());
            let reference = numbers(&mut self.reference[span].iter());
            write!(f, "{}[{policy}] against [{reference}]", if i > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

/// Two lines a pair, of the first three pairs.
impl fmt::Display for HostBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        for (row, pair) in self.pairs.iter().take(SHOWN).enumerate() {
            writeln!(f, "  pair {row} chosen   {}", pair.chosen)?;
            writeln!(f, "  pair {row} rejected {}", pair.rejected)?;
        }
        match self.pairs.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  and {more} more"),
        }
    }
}

impl HostPair {
    /// Chosen and rejected exchanged.
    pub fn swapped(&self) -> Self {
        Self { chosen: self.rejected.clone(), rejected: self.chosen.clone() }
    }
}

impl HostBatch {
    /// The batch on a device, with every record that an objective can ask for.
    ///
    /// # Errors
    /// As the records' constructors; none for batches of this module's strategies.
    pub fn batch<B: Backend>(&self, device: &B::Device) -> Result<PreferenceBatch<B>> {
        let [chosen, rejected] = self.policy(device);
        self.batch_of(chosen, rejected)
    }

    /// The policy's log-probabilities of both sides as flat vectors.
    pub fn policy<B: Backend>(&self, device: &B::Device) -> [Tensor<B, 1>; 2] {
        [self.chosen(), self.rejected()].map(|side| flat(&side, |r| r.policy.clone(), device))
    }

    /// The batch with the policy's log-probabilities given as flat vectors: leaves that gradients are asked of.
    ///
    /// # Errors
    /// As [`batch`](Self::batch).
    pub fn batch_of<B: Backend>(
        &self,
        chosen: Tensor<B, 1>,
        rejected: Tensor<B, 1>,
    ) -> Result<PreferenceBatch<B>> {
        let device = chosen.device();
        let sides = [self.chosen(), self.rejected()];
        let [chosen_ids, rejected_ids] =
            [0, 1].map(|side| sides[side].iter().map(|r| r.ids()).collect::<Vec<_>>());
        let layout = PairLayout::from_labels(&chosen_ids, &rejected_ids)?;
        let policy = Logps::new(&layout, chosen, rejected)?;
        let of = |side: usize, f: fn(&HostResponse) -> Vec<f32>| flat::<B>(&sides[side], f, &device);
        let reference = |r: &HostResponse| r.reference.clone();
        let reference = Logps::new(&layout, of(0, reference), of(1, reference))?;
        let rows = |side: usize| sides[side].iter().map(|r| r.similarity.clone()).collect::<Vec<_>>();
        let changed = |side: usize| sides[side].iter().map(|r| r.changed.clone()).collect::<Vec<_>>();
        let stats = |side: usize| {
            let all = sides[side].iter().map(|r| &r.stats).fold(TokenValues::default(), |mut all, one| {
                all.log_sum_sq_probs.extend(&one.log_sum_sq_probs);
                all.entropy.extend(&one.entropy);
                all.mean_logit.extend(&one.mean_logit);
                all.is_argmax.extend(&one.is_argmax);
                all
            });
            TokenStats::new(&all, &device)
        };
        PreferenceBatch::new(policy)
            .with_reference(reference)?
            .with_similarity(Similarity::new(&rows(0))?)?
            .with_rejected_similarity(Similarity::new(&rows(1))?)?
            .with_changed(&changed(0), &changed(1))?
            .with_corrupted(
                of(0, |r| r.corrupted.iter().map(|c| c.0).collect()),
                of(0, |r| r.corrupted.iter().map(|c| c.1).collect()),
            )?
            .with_stats(stats(0)?, stats(1)?)
    }

    /// One batch for each pair.
    pub fn singles(&self) -> impl Iterator<Item = Self> + '_ {
        self.pairs.iter().map(|pair| Self { pairs: vec![pair.clone()] })
    }

    /// The batch with every response changed by `f`.
    pub fn map(&self, f: impl Fn(&mut HostResponse)) -> Self {
        let mut batch = self.clone();
        for pair in &mut batch.pairs {
            f(&mut pair.chosen);
            f(&mut pair.rejected);
        }
        batch
    }

    /// The batch with a constant added to every log-probability of policy and reference.
    pub fn shifted(&self, by: f32) -> Self {
        self.map(|r| {
            r.policy.iter_mut().chain(&mut r.reference).for_each(|x| *x += by);
            r.corrupted.iter_mut().for_each(|x| *x = (x.0 + by, x.1 + by));
        })
    }

    fn chosen(&self) -> Vec<&HostResponse> {
        self.pairs.iter().map(|pair| &pair.chosen).collect()
    }

    fn rejected(&self) -> Vec<&HostResponse> {
        self.pairs.iter().map(|pair| &pair.rejected).collect()
    }
}

fn flat<B: Backend>(
    side: &[&HostResponse],
    f: impl Fn(&HostResponse) -> Vec<f32>,
    device: &B::Device,
) -> Tensor<B, 1> {
    let values: Vec<f32> = side.iter().flat_map(|r| f(r)).collect();
    let n = values.len();
    math::constant(values, [n], device)
}

/// Batches of 1 to 5 pairs, 1 to 5 sentences, 1 to 6 tokens each, any padding; log-probabilities in [-8, -0.05] with the
/// reference within 1 of the policy.
pub fn batches() -> impl Strategy<Value = HostBatch> {
    vec((response(-8.0..-0.05_f32), response(-8.0..-0.05_f32)), 1..=5).prop_map(from_pairs)
}

/// The same with log-probabilities anywhere from 0 to -1e4, policy and reference far apart: for finiteness.
pub fn extreme_batches() -> impl Strategy<Value = HostBatch> {
    let log_prob = || {
        prop_oneof![
            Just(0.0_f32),
            Just(-1e-30_f32),
            Just(-1e-7_f32),
            Just(-90.0_f32),
            Just(-1e4_f32),
            -1e4..0.0_f32
        ]
    };
    let extreme = move || {
        response(-8.0..-0.05_f32).prop_flat_map(move |base| {
            let n = base.policy.len();
            vec((log_prob(), log_prob(), log_prob()), n).prop_map(move |values| HostResponse {
                policy: values.iter().map(|v| v.0).collect(),
                reference: values.iter().map(|v| v.1).collect(),
                corrupted: values.iter().map(|v| (v.2, v.1)).collect(),
                ..base.clone()
            })
        })
    };
    vec((extreme(), extreme()), 1..=4).prop_map(from_pairs)
}

fn from_pairs(pairs: Vec<(HostResponse, HostResponse)>) -> HostBatch {
    HostBatch { pairs: pairs.into_iter().map(|(chosen, rejected)| HostPair { chosen, rejected }).collect() }
}

fn response(log_prob: core::ops::Range<f32>) -> impl Strategy<Value = HostResponse> {
    vec(1..=6_usize, 1..=5).prop_flat_map(move |sentences| {
        let tokens = sentences.iter().sum::<usize>();
        let stats = (-6.0..-0.01_f32, 0.0..6.0_f32, -2.0..2.0_f32, any::<bool>());
        let token = (log_prob.clone(), -1.0..1.0_f32, (-1.0..1.0_f32, -1.0..1.0_f32), any::<bool>(), stats);
        let similarity = vec(-1.0..1.0_f32, sentences.len());
        (vec(token, tokens), similarity, (0..4_usize, 0..4_usize)).prop_map(
            move |(tokens, similarity, padding)| HostResponse {
                sentences: sentences.clone(),
                padding,
                policy: tokens.iter().map(|t| t.0).collect(),
                reference: tokens.iter().map(|t| (t.0 + t.1).min(-0.001)).collect(),
                corrupted: tokens
                    .iter()
                    .map(|t| ((t.0 + t.2.0).min(-0.001), (t.0 + t.2.1).min(-0.001)))
                    .collect(),
                changed: tokens.iter().map(|t| t.3).collect(),
                stats: TokenValues {
                    log_sum_sq_probs: tokens.iter().map(|t| t.4.0).collect(),
                    entropy: tokens.iter().map(|t| t.4.1).collect(),
                    mean_logit: tokens.iter().map(|t| t.4.2).collect(),
                    is_argmax: tokens.iter().map(|t| t.4.3).collect(),
                },
                similarity,
            },
        )
    })
}
