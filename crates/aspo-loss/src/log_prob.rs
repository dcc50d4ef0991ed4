//! Log-probabilities of tokens from logits: the one place where this equation stands.
//!
//! `log p(y) = z_y - log Σ_v exp(z_v)`, in f32 whatever the logits' type, shifted by the row's maximum so that nothing
//! overflows. [`chunked_log_probs`](crate::chunked_log_probs) calls the same functions tile by tile.

use core::ops::Range;

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::labels::Labels;
use crate::math;

/// Log-probabilities `[N]` of `targets` `[N]` under `logits` `[N, V]` (row i scores `targets[i]`: already shifted), in f32.
///
/// Gradients flow through by Burn's own autodiff, which keeps `[N, V]` tensors; prefer
/// [`chunked_log_probs`](crate::chunked_log_probs) where hidden states and the head's weight are at hand.
///
/// # Errors
/// No rows, another number of targets than rows, a target outside the vocabulary.
pub fn dense_log_probs<B: Backend>(
    logits: Tensor<B, 2>,
    targets: impl Into<Labels<B>>,
) -> Result<Tensor<B, 1>> {
    let ([rows, vocab], targets) = (logits.dims(), targets.into());
    targets.check("targets", rows, vocab)?;
    let targets = Targets::new(targets.tensor().clone());
    Ok(OnlineSoftmax::of(math::to_f32(logits), &targets).0.log_probs())
}

/// [`dense_log_probs`] together with [`TokenStats`] of the same rows.
///
/// # Errors
/// As [`dense_log_probs`].
pub fn dense_log_probs_with_stats<B: Backend>(
    logits: Tensor<B, 2>,
    targets: impl Into<Labels<B>>,
) -> Result<(Tensor<B, 1>, TokenStats<B>)> {
    let ([rows, vocab], targets) = (logits.dims(), targets.into());
    targets.check("targets", rows, vocab)?;
    let (logits, targets) = (math::to_f32(logits), Targets::new(targets.tensor().clone()));
    let constant = math::detached(logits.clone());
    let (softmax, exp) = OnlineSoftmax::of(constant.clone(), &targets);
    let stats = Moments::of(constant, &softmax, &exp, &targets).stats(&softmax, vocab);
    let (softmax, _) = OnlineSoftmax::of(logits, &targets);
    Ok((softmax.log_probs(), TokenStats { rows: stats }))
}

/// Which column of a tile each row's target is, and whether it is in the tile at all; [n, 1] each.
pub(crate) struct Targets<B: Backend> {
    /// Counted from the tile's first column; outside the tile where the target is.
    place: Tensor<B, 2, Int>,
    /// The same, clamped to the tile.
    pub(crate) column: Tensor<B, 2, Int>,
    /// Whether the target's column is in another tile; none where the tile is the whole vocabulary.
    elsewhere: Option<Tensor<B, 2, Bool>>,
}

impl<B: Backend> Targets<B> {
    /// For a tile that is the whole vocabulary.
    pub(crate) fn new(targets: Tensor<B, 1, Int>) -> Self {
        let place: Tensor<B, 2, Int> = targets.unsqueeze_dim(1);
        Self { column: place.clone(), place, elsewhere: None }
    }

    /// For a tile of the columns `start..end`.
    pub(crate) fn within(targets: Tensor<B, 1, Int>, start: usize, end: usize) -> Self {
        let place = targets.unsqueeze_dim::<2>(1).sub_scalar(start as i64);
        let last = (end - start) as i64 - 1;
        let elsewhere = place.clone().lower_elem(0).bool_or(place.clone().greater_elem(last));
        Self { column: place.clone().clamp(0, last), place, elsewhere: Some(elsewhere) }
    }

    /// Values that belong to the target's column, 0 where that is in another tile. (Not by a product: a masked
    /// vocabulary has logits of -∞.)
    pub(crate) fn mask(&self, values: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.elsewhere {
            Some(elsewhere) => values.mask_fill(elsewhere.clone(), 0.0),
            None => values,
        }
    }

    /// The greatest of the logits [n, V of the tile] in front of the target, [n, 1]; the least number where there is none.
    fn greatest_before(&self, logits: Tensor<B, 2>) -> Tensor<B, 2> {
        let [rows, columns] = logits.dims();
        let column = Tensor::<B, 1, Int>::arange(0..columns as i64, &logits.device()).unsqueeze_dim::<2>(0);
        let shape = [rows, columns];
        let not_before = column.expand(shape).greater_equal(self.place.clone().expand(shape));
        logits.mask_fill(not_before, f32::MIN).max_dim(1)
    }
}

/// The sums over the vocabulary that a row's log-probability is made of, [n, 1] each; tiles of columns merge, as in online
/// softmax (arXiv 1805.02867).
pub(crate) struct OnlineSoftmax<B: Backend> {
    /// `Σ exp(z - max z)`.
    pub(crate) sum: Tensor<B, 2>,
    /// `max z`.
    pub(crate) max: Tensor<B, 2>,
    /// `z_y`, 0 where it is in another tile.
    picked: Tensor<B, 2>,
}

impl<B: Backend> OnlineSoftmax<B> {
    /// From f32 logits [n, V]; `exp(z - max z)`, [n, V], beside it. The maximum is a constant to the gradient: the result does
    /// not depend on it.
    pub(crate) fn of(logits: Tensor<B, 2>, targets: &Targets<B>) -> (Self, Tensor<B, 2>) {
        // Finite also where all logits of a tile are -∞.
        let max = math::detached(logits.clone()).max_dim(1).clamp_min(f32::MIN);
        let picked = targets.mask(logits.clone().gather(1, targets.column.clone()));
        let exp = (logits - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        (Self { sum, max, picked }, exp)
    }

    /// This tile after the columns before it. Returns for both what sums relative to their own maximum are moved by.
    pub(crate) fn merge(&mut self, before: &Self) -> [Shift<B>; 2] {
        let max = before.max.clone().max_pair(self.max.clone());
        let shifts = [&before.max, &self.max].map(|old| {
            let by = old.clone() - max.clone();
            Shift { factor: by.clone().exp(), by }
        });
        self.sum =
            before.sum.clone() * shifts[0].factor.clone() + self.sum.clone() * shifts[1].factor.clone();
        self.picked = before.picked.clone() + self.picked.clone();
        self.max = max;
        shifts
    }

    /// `z_y - log Σ exp z`, [n].
    pub(crate) fn log_probs(&self) -> Tensor<B, 1> {
        (self.picked.clone() - self.max.clone() - self.sum.clone().log()).flatten(0, 1)
    }

    /// `log Σ exp z`, [n].
    pub(crate) fn log_sum_exp(&self) -> Tensor<B, 1> {
        (self.sum.clone().log() + self.max.clone()).flatten(0, 1)
    }
}

/// From sums relative to a maximum `m` to sums relative to a greater one `m'`; [n, 1] each.
pub(crate) struct Shift<B: Backend> {
    /// `m - m'`.
    by: Tensor<B, 2>,
    /// `exp(m - m')`.
    pub(crate) factor: Tensor<B, 2>,
}

/// What the full distribution says of each token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenValues {
    /// `log Σ_v p_v²`: the log of the expected agreement, which WPO aligns with (Eq. 2 of arXiv 2406.11827).
    pub log_sum_sq_probs: Vec<f32>,
    /// Entropy `-Σ p log p`, nats.
    pub entropy: Vec<f32>,
    /// Mean logit over the vocabulary.
    pub mean_logit: Vec<f32>,
    /// Whether it is the likeliest token; of several as likely, the first.
    pub is_argmax: Vec<bool>,
}

/// [`TokenValues`] of the tokens of a batch, as constants on the device: a loss takes them without waiting for them.
#[derive(Debug, Clone)]
pub struct TokenStats<B: Backend> {
    /// [4, N]: a row for each field of the values, in their order.
    pub(crate) rows: Tensor<B, 2>,
}

impl<B: Backend> TokenStats<B> {
    /// From values that are known.
    ///
    /// # Errors
    /// Fields of different lengths.
    pub fn new(values: &TokenValues, device: &B::Device) -> Result<Self> {
        let n = values.entropy.len();
        let is_argmax: Vec<f32> = values.is_argmax.iter().map(|&hit| f32::from(u8::from(hit))).collect();
        let rows = [&values.log_sum_sq_probs, &values.entropy, &values.mean_logit, &is_argmax];
        if let Some(other) = rows.iter().find(|row| row.len() != n) {
            return Err(Error::shape("token statistics", other.len(), n, "as many values as entropies"));
        }
        let all: Vec<f32> = rows.into_iter().flatten().copied().collect();
        Ok(Self { rows: math::constant(all, [4, n], device) })
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.rows.dims()[1]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of a range of the tokens: of one side of a joined vector.
    ///
    /// # Errors
    /// A range that is empty or ends behind the last token.
    pub fn part(&self, range: Range<usize>) -> Result<Self> {
        if range.is_empty() || range.end > self.len() {
            return Err(Error::shape("token statistics", range.end, self.len(), "a range of the tokens"));
        }
        Ok(Self { rows: self.rows.clone().narrow(1, range.start, range.len()) })
    }

    /// The values, read back from the device.
    pub fn read(&self) -> TokenValues {
        TokenValues::of(&math::host(&self.rows))
    }

    /// `log Σ_v p_v²` of each token, [N].
    pub(crate) fn log_sum_sq_probs(&self) -> Tensor<B, 1> {
        self.rows.clone().narrow(0, 0, 1).squeeze_dim(0)
    }
}

impl TokenValues {
    /// From the values of [4, N], row after row.
    pub(crate) fn of(values: &[f32]) -> Self {
        let n = values.len() / 4;
        Self {
            log_sum_sq_probs: values[..n].to_vec(),
            entropy: values[n..2 * n].to_vec(),
            mean_logit: values[2 * n..3 * n].to_vec(),
            is_argmax: values[3 * n..].iter().map(|&v| v > 0.5).collect(),
        }
    }
}

/// The sums over the vocabulary that [`TokenStats`] are made of, [n, 1] each; with `e = exp(z - max z)`.
pub(crate) struct Moments<B: Backend> {
    /// `Σ e²`.
    squares: Tensor<B, 2>,
    /// `Σ e (z - max z)`.
    cross: Tensor<B, 2>,
    /// `Σ z`.
    total: Tensor<B, 2>,
    /// The greatest logit in front of the target.
    before: Tensor<B, 2>,
}

impl<B: Backend> Moments<B> {
    pub(crate) fn of(
        logits: Tensor<B, 2>,
        softmax: &OnlineSoftmax<B>,
        exp: &Tensor<B, 2>,
        targets: &Targets<B>,
    ) -> Self {
        let total = logits.clone().sum_dim(1);
        let before = targets.greatest_before(logits.clone());
        // Finite for logits of -∞, whose e is 0.
        let distance = (logits - softmax.max.clone()).clamp_min(f32::MIN);
        let cross = (exp.clone() * distance).sum_dim(1);
        Self { squares: exp.clone().square().sum_dim(1), cross, total, before }
    }

    /// These columns after the ones before. With the maximum going from m to m', `Σ e(z-m)` becomes
    /// `f [Σ e(z-m) + (m-m') Σ e]`, `f = exp(m-m')`.
    pub(crate) fn merge(&mut self, earlier: &Self, sums: [&Tensor<B, 2>; 2], [old, new]: &[Shift<B>; 2]) {
        let cross = |m: &Self, shift: &Shift<B>, sum: &Tensor<B, 2>| {
            shift.factor.clone() * (m.cross.clone() + shift.by.clone() * sum.clone())
        };
        self.cross = cross(earlier, old, sums[0]) + cross(self, new, sums[1]);
        self.squares = earlier.squares.clone() * old.factor.clone().square()
            + self.squares.clone() * new.factor.clone().square();
        self.total = earlier.total.clone() + self.total.clone();
        self.before = earlier.before.clone().max_pair(self.before.clone());
    }

    /// The four rows of [`TokenStats`], [4, n], detached.
    pub(crate) fn stats(&self, softmax: &OnlineSoftmax<B>, vocab: usize) -> Tensor<B, 2> {
        let log_sum = softmax.sum.clone().log();
        let sum_sq_probs = self.squares.clone().log() - log_sum.clone().mul_scalar(2.0);
        let entropy = log_sum - self.cross.clone() / softmax.sum.clone();
        let mean = self.total.clone().div_scalar(vocab as f64);
        let picked = &softmax.picked;
        let first = picked.clone().greater(self.before.clone());
        let is_argmax = picked.clone().greater_equal(softmax.max.clone()).bool_and(first);
        let is_argmax = math::to_f32(is_argmax.float());
        math::detached(Tensor::cat(vec![sum_sq_probs, entropy, mean, is_argmax], 1)).transpose()
    }
}
