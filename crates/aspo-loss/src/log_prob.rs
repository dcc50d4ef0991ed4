//! Log-probabilities of tokens from logits: the one place where this equation stands.
//!
//! `log p(y) = z_y - log Σ_v exp(z_v)`, in f32 whatever the logits' type, shifted by the row's maximum so that nothing
//! overflows. [`chunked_log_probs`](crate::chunked_log_probs) calls the same function block by block.

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::math;

/// Log-probabilities [N] of `targets` [N] under `logits` [N, V] (row i scores `targets[i]`: already shifted), in f32.
///
/// Gradients flow through by Burn's own autodiff, which keeps [N, V] tensors; prefer
/// [`chunked_log_probs`](crate::chunked_log_probs) where hidden states and the head's weight are at hand.
///
/// # Errors
/// No rows, another number of targets than rows, a target outside the vocabulary.
pub fn dense_log_probs<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Result<Tensor<B, 1>> {
    let [rows, vocab] = logits.dims();
    check_targets("targets", &targets, rows, vocab)?;
    Ok(Rows::new(math::f32(logits), targets).log_probs())
}

/// [`dense_log_probs`] together with [`TokenStats`] of the same rows.
///
/// # Errors
/// As [`dense_log_probs`].
pub fn dense_log_probs_with_stats<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> Result<(Tensor<B, 1>, TokenStats)> {
    let [rows, vocab] = logits.dims();
    check_targets("targets", &targets, rows, vocab)?;
    let logits = math::f32(logits);
    let stats = stats(logits.clone().detach(), targets.clone());
    Ok((Rows::new(logits, targets).log_probs(), TokenStats::read(vec![stats])))
}

/// A block of rows after the exponentials: what the log-probabilities and their gradient are made of.
pub(crate) struct Rows<B: Backend> {
    /// `exp(z - max z)`, [n, V].
    pub(crate) exp: Tensor<B, 2>,
    /// Its sum over the vocabulary, [n, 1].
    pub(crate) sum: Tensor<B, 2>,
    /// `z_y - max z`, [n, 1].
    picked: Tensor<B, 2>,
    /// `max z`, [n, 1].
    max: Tensor<B, 2>,
}

impl<B: Backend> Rows<B> {
    /// From f32 logits [n, V] and targets [n]. The maximum is a constant to the gradient: the result does not depend on
    /// it.
    pub(crate) fn new(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Self {
        let rows = targets.dims()[0];
        let max = logits.clone().detach().max_dim(1);
        let picked = logits.clone().gather(1, targets.reshape([rows, 1])) - max.clone();
        let exp = (logits - max.clone()).exp();
        let sum = exp.clone().sum_dim(1);
        Self { exp, sum, picked, max }
    }

    /// `z_y - log Σ exp z`, [n].
    pub(crate) fn log_probs(&self) -> Tensor<B, 1> {
        (self.picked.clone() - self.sum.clone().log()).flatten(0, 1)
    }

    /// `log Σ exp z`, [n].
    pub(crate) fn log_sum_exp(&self) -> Tensor<B, 1> {
        (self.sum.clone().log() + self.max.clone()).flatten(0, 1)
    }
}

/// What the full distribution says of each response token, on the host and detached.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenStats {
    /// `log Σ_v p_v²`: the expected log-agreement that WPO aligns with (Eq. 2 of arXiv 2406.11827).
    pub log_collision: Vec<f32>,
    /// Entropy `-Σ p log p`, nats.
    pub entropy: Vec<f32>,
    /// Mean logit over the vocabulary.
    pub mean_logit: Vec<f32>,
    /// Whether the token is the most likely one.
    pub greedy: Vec<bool>,
}

impl TokenStats {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.entropy.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entropy.is_empty()
    }

    /// The first `n` tokens and the rest: chosen and rejected of a joined vector.
    pub fn split_at(mut self, n: usize) -> (Self, Self) {
        let n = n.min(self.len());
        let rest = Self {
            log_collision: self.log_collision.split_off(n),
            entropy: self.entropy.split_off(n),
            mean_logit: self.mean_logit.split_off(n),
            greedy: self.greedy.split_off(n),
        };
        (self, rest)
    }

    /// Reads blocks of [4, n] (see [`stats`]) back in one piece.
    pub(crate) fn read<B: Backend>(blocks: Vec<Tensor<B, 2>>) -> Self {
        let all = Tensor::cat(blocks, 1);
        let n = all.dims()[1];
        let values = math::host(&all);
        Self {
            log_collision: values[..n].to_vec(),
            entropy: values[n..2 * n].to_vec(),
            mean_logit: values[2 * n..3 * n].to_vec(),
            greedy: values[3 * n..].iter().map(|&v| v > 0.5).collect(),
        }
    }
}

/// The four rows of [`TokenStats`] as one [4, n] tensor, from detached f32 logits [n, V].
pub(crate) fn stats<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    let n = targets.dims()[0];
    let mean_logit = logits.clone().mean_dim(1);
    let greedy = logits.clone().argmax(1).equal(targets.clone().reshape([n, 1])).float();
    let greedy = math::f32(greedy);
    let rows = Rows::new(logits.clone(), targets);
    let (sum, max) = (rows.sum, rows.max);
    let collision = rows.exp.clone().square().sum_dim(1).log() - sum.clone().log().mul_scalar(2.0);
    // H = log Σ exp z - Σ p z, with z shifted by its maximum on both sides.
    let expected = (rows.exp * (logits - max)).sum_dim(1) / sum.clone();
    let entropy = sum.log() - expected;
    Tensor::cat(vec![collision, entropy, mean_logit, greedy], 1).transpose()
}

pub(crate) fn check_targets<B: Backend>(
    what: &str,
    targets: &Tensor<B, 1, Int>,
    rows: usize,
    vocab: usize,
) -> Result<()> {
    let [found] = targets.dims();
    if found != rows {
        return Err(Error::shape(what, found, rows, "one target per row of logits or hidden states"));
    }
    if rows == 0 {
        return Err(Error::Empty { what: what.into() });
    }
    let labels = targets.to_data();
    match labels.iter::<i64>().enumerate().find(|(_, label)| !(0..vocab as i64).contains(label)) {
        Some((position, found)) => Err(Error::Label { what: what.into(), position, found, vocab }),
        None => Ok(()),
    }
}
