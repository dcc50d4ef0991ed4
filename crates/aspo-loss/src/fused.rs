//! Log-probabilities from hidden states and the head's weight, in chunks of tokens, with a backward of their own.
//!
//! The dense way makes logits [N, V], a softmax of the same size and their gradients. Here one chunk of rows is
//! projected at a time and forgotten:
//!
//! - **The head is frozen** (adapters): a token's log-probability depends on its own hidden row alone,
//!   `∂logp_t/∂h_t = W[y_t] - softmax(W h_t) W`. It is made in the forward while the chunk's exponentials are at hand
//!   and only scaled by the incoming gradient in the backward: two products in all, nothing is recomputed, and [N, D]
//!   is all that is kept.
//! - **The head trains**: `log Σ exp` is kept, [N], and the backward recomputes each chunk's logits for
//!   `∂logp_t/∂h_t` and `∂logp_t/∂W`: four products where the dense way has three.
//! - **Nothing is tracked**: only the forward runs, and no graph is made.
//!
//! Which of the three applies is read from the tensors. Everything is computed in f32; each gradient is returned in the
//! type of its tensor. A head of another type is cast once per call (V·D·4 bytes while the call runs).

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, TensorPrimitive};

use crate::error::{Error, Result};
use crate::log_prob::{Rows, TokenStats, check_targets, stats};
use crate::math;

/// How many tokens are projected at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Bytes of f32 logits held at a time; the number of rows of a chunk is `byte_budget / (4 V)`, at least 1. About
    /// twice as much is in use at the peak, for the exponentials beside the logits. Default: 16 MiB.
    pub byte_budget: usize,
    /// Rows of a chunk, whatever the budget. Default: none.
    pub rows: Option<usize>,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { byte_budget: 16 << 20, rows: None }
    }
}

impl ChunkOptions {
    /// Rows of a chunk for a vocabulary of `vocab`.
    ///
    /// # Errors
    /// A budget or a number of rows of 0.
    pub fn rows_for(&self, vocab: usize) -> Result<usize> {
        if self.rows == Some(0) {
            let remedy = "give at least 1 row, or none to use the byte budget".into();
            return Err(Error::Option { option: "rows", found: "0".into(), remedy });
        }
        if self.byte_budget == 0 {
            let remedy = "give the bytes of f32 logits to hold at a time".into();
            return Err(Error::Option { option: "byte_budget", found: "0".into(), remedy });
        }
        Ok(self.rows.unwrap_or_else(|| (self.byte_budget / (4 * vocab.max(1))).max(1)))
    }
}

/// Log-probabilities [N] of `targets` [N] from `hidden` [N, D] and the head's weight `head` [V, D] (Hugging Face's
/// layout of `lm_head.weight`), in f32, with the backward that the module's page describes.
///
/// Give only response positions ([`SentenceMap::select_rows`](crate::SentenceMap::select_rows)).
///
/// # Errors
/// Shapes that do not fit, no rows, a target outside the vocabulary, a chunk of 0.
pub fn chunked_log_probs<B: Backend, C: CheckpointStrategy>(
    hidden: Tensor<Autodiff<B, C>, 2>,
    head: Tensor<Autodiff<B, C>, 2>,
    targets: Tensor<Autodiff<B, C>, 1, Int>,
    options: &ChunkOptions,
) -> Result<Tensor<Autodiff<B, C>, 1>> {
    Ok(tracked(hidden, head, targets, options, false)?.0)
}

/// [`chunked_log_probs`] together with [`TokenStats`] of the same tokens, from the same logits.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_with_stats<B: Backend, C: CheckpointStrategy>(
    hidden: Tensor<Autodiff<B, C>, 2>,
    head: Tensor<Autodiff<B, C>, 2>,
    targets: Tensor<Autodiff<B, C>, 1, Int>,
    options: &ChunkOptions,
) -> Result<(Tensor<Autodiff<B, C>, 1>, TokenStats)> {
    let (log_probs, stats) = tracked(hidden, head, targets, options, true)?;
    Ok((log_probs, TokenStats::read(stats)))
}

/// [`chunked_log_probs`] without a backward, on any backend: for the reference model and for evaluation. No gradient
/// flows through it, on an autodiff backend either.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<Tensor<B, 1>> {
    let rows = check(&hidden, &head, &targets, options)?;
    Ok(forward(hidden.detach(), head.detach(), targets, rows, false, false).log_probs)
}

fn check<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<usize> {
    let ([rows, features], [vocab, expected]) = (hidden.dims(), head.dims());
    if features != expected {
        return Err(Error::shape("hidden states [N, D]", features, expected, "the head's weight is [V, D]"));
    }
    check_targets("targets", targets, rows, vocab)?;
    options.rows_for(vocab)
}

/// What one pass over the chunks leaves behind.
struct Forward<B: Backend> {
    log_probs: Tensor<B, 1>,
    log_sum_exp: Tensor<B, 1>,
    /// `∂logp/∂h`, [N, D], if asked for.
    slope: Option<Tensor<B, 2>>,
    stats: Vec<Tensor<B, 2>>,
}

fn forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    chunk: usize,
    want_slope: bool,
    want_stats: bool,
) -> Forward<B> {
    let n = hidden.dims()[0];
    let (hidden, head) = (math::f32(hidden), math::f32(head));
    let (mut log_probs, mut log_sums, mut slopes, mut all_stats) = (vec![], vec![], vec![], vec![]);
    for start in (0..n).step_by(chunk) {
        let range = start..(start + chunk).min(n);
        let y = targets.clone().slice([range.clone()]);
        let logits = hidden.clone().slice([range]).matmul(head.clone().transpose());
        if want_stats {
            all_stats.push(stats(logits.clone(), y.clone()));
        }
        let rows = Rows::new(logits, y.clone());
        log_probs.push(rows.log_probs());
        if want_slope {
            slopes.push(head.clone().select(0, y) - rows.exp.matmul(head.clone()) / rows.sum);
        } else {
            log_sums.push(rows.log_sum_exp());
        }
    }
    let log_probs = Tensor::cat(log_probs, 0);
    let log_sum_exp = if want_slope { log_probs.clone() } else { Tensor::cat(log_sums, 0) };
    let slope = want_slope.then(|| Tensor::cat(slopes, 0));
    Forward { log_probs, log_sum_exp, slope, stats: all_stats }
}

fn tracked<B: Backend, C: CheckpointStrategy>(
    hidden: Tensor<Autodiff<B, C>, 2>,
    head: Tensor<Autodiff<B, C>, 2>,
    targets: Tensor<Autodiff<B, C>, 1, Int>,
    options: &ChunkOptions,
    want_stats: bool,
) -> Result<(Tensor<Autodiff<B, C>, 1>, Vec<Tensor<B, 2>>)> {
    let chunk = check(&hidden, &head, &targets, options)?;
    let (hidden, head) = (primitive(hidden), primitive(head));
    let plain = |p: &FloatTensor<B>| tensor::<B, 2>(p.clone());
    let y = Tensor::<B, 1, Int>::from_primitive(targets.clone().into_primitive());
    let (hidden_trains, head_trains) = (hidden.is_tracked(), head.is_tracked());
    let want_slope = hidden_trains && !head_trains;
    let pass = forward(plain(&hidden.primitive), plain(&head.primitive), y, chunk, want_slope, want_stats);
    let log_probs = primitive(pass.log_probs);

    let output = if head_trains {
        let state = Recompute {
            hidden: hidden.primitive,
            head: head.primitive,
            targets: targets.into_primitive(),
            log_sum_exp: primitive(pass.log_sum_exp),
            chunk,
        };
        match RecomputeBackward.prepare::<C>([hidden.node, head.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, log_probs),
            OpsKind::UnTracked(prep) => prep.finish(log_probs),
        }
    } else if let Some(slope) = pass.slope {
        let dtype = plain(&hidden.primitive).dtype().into();
        let state = Scale { slope: primitive(slope), dtype };
        match ScaleBackward.prepare::<C>([hidden.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, log_probs),
            OpsKind::UnTracked(prep) => prep.finish(log_probs),
        }
    } else {
        return Ok((Tensor::from_inner(tensor(log_probs)), pass.stats));
    };
    Ok((Tensor::from_primitive(TensorPrimitive::Float(output)), pass.stats))
}

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Frozen head: the hidden states' gradient is the kept slope, scaled row by row.
#[derive(Debug)]
struct ScaleBackward;

#[derive(Debug, Clone)]
struct Scale<B: Backend> {
    slope: FloatTensor<B>,
    dtype: FloatDType,
}

impl<B: Backend> Backward<B, 1> for ScaleBackward {
    type State = Scale<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = math::f32(tensor::<B, 1>(grads.consume::<B>(&ops.node)));
        let [hidden] = ops.parents;
        if let Some(hidden) = hidden {
            let rows = grad.dims()[0];
            let slope = tensor::<B, 2>(ops.state.slope) * grad.reshape([rows, 1]);
            grads.register::<B>(hidden.id, primitive(slope.cast(ops.state.dtype)));
        }
    }
}

/// Trained head: each chunk's logits are made again.
#[derive(Debug)]
struct RecomputeBackward;

#[derive(Debug, Clone)]
struct Recompute<B: Backend> {
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: IntTensor<B>,
    log_sum_exp: FloatTensor<B>,
    chunk: usize,
}

impl<B: Backend> Backward<B, 2> for RecomputeBackward {
    type State = Recompute<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = math::f32(tensor::<B, 1>(grads.consume::<B>(&ops.node)));
        let [hidden_node, head_node] = ops.parents;
        let (hidden_grad, head_grad) = recompute(grad, ops.state, hidden_node.is_some());
        if let (Some(node), Some(grad)) = (hidden_node, hidden_grad) {
            grads.register::<B>(node.id, grad);
        }
        if let Some(node) = head_node {
            grads.register::<B>(node.id, head_grad);
        }
    }
}

/// The gradients of hidden states (if wanted) and head. With `g` the incoming gradient,
/// `∂L/∂z = g (onehot(y) - softmax z)`.
fn recompute<B: Backend>(
    grad: Tensor<B, 1>,
    state: Recompute<B>,
    want_hidden: bool,
) -> (Option<FloatTensor<B>>, FloatTensor<B>) {
    let (hidden, head) = (tensor::<B, 2>(state.hidden), tensor::<B, 2>(state.head));
    let dtypes: [DType; 2] = [hidden.dtype(), head.dtype()];
    let (hidden, head) = (math::f32(hidden), math::f32(head));
    let targets = Tensor::<B, 1, Int>::from_primitive(state.targets);
    let log_sum_exp = tensor::<B, 1>(state.log_sum_exp);
    let n = hidden.dims()[0];
    let mut hidden_grads = Vec::new();
    let mut head_grad: Option<Tensor<B, 2>> = None;
    for start in (0..n).step_by(state.chunk) {
        let range = start..(start + state.chunk).min(n);
        let rows = range.len();
        let column = |t: &Tensor<B, 1>| t.clone().slice([range.clone()]).reshape([rows, 1]);
        let h = hidden.clone().slice([range.clone()]);
        let g = column(&grad);
        let y = targets.clone().slice([range.clone()]).reshape([rows, 1]);
        let softmax = (h.clone().matmul(head.clone().transpose()) - column(&log_sum_exp)).exp();
        let dz = (softmax * g.clone().neg()).scatter(1, y, g, IndexingUpdateOp::Add);
        if want_hidden {
            hidden_grads.push(dz.clone().matmul(head.clone()));
        }
        let part = dz.transpose().matmul(h);
        head_grad = Some(match head_grad {
            Some(sum) => sum + part,
            None => part,
        });
    }
    let head_grad = head_grad.unwrap_or_else(|| head.zeros_like());
    let hidden_grad = want_hidden.then(|| primitive(Tensor::cat(hidden_grads, 0).cast(dtypes[0])));
    (hidden_grad, primitive(head_grad.cast(dtypes[1])))
}
