//! Log-probabilities from hidden states and the head's weight, in chunks of tokens, with a backward of their own.
//!
//! The dense way makes logits `[N, V]`, a softmax of the same size and their gradients. Here one tile of logits (some rows,
//! some columns of the vocabulary) is made at a time and forgotten; row sums are merged from tile to tile with a running
//! maximum, as in online softmax (arXiv 1805.02867):
//!
//! - **The head is frozen** (adapters): a token's log-probability depends on its own hidden row alone,
//!   `∂logp_t/∂h_t = W[y_t] - softmax(W h_t) W`. It is made in the forward while a tile's exponentials are at hand
//!   and only scaled by the incoming gradient in the backward: two products in all, nothing is recomputed, and `[N, D]`
//!   is all that is kept.
//! - **The head trains**: `log Σ exp` is kept, `[N]`, and the backward makes each tile's logits again for
//!   `∂logp_t/∂h_t` and `∂logp_t/∂W`: four products where the dense way has three. Where there are kernels (flex), exponentials are
//!   kept up to one and a half times the memory of the head's gradient, and only the tiles beyond that are made again.
//! - **Nothing is tracked**: only the forward runs, and no graph is made.
//!
//! Which of the three applies is read from the tensors. Everything is computed in f32; each gradient is returned in the
//! type of its tensor. A head of another type is cast tile by tile, so that no f32 copy of it is ever held.

use core::ops::Range;

use aspo_kernels::{HeadPass, HeadWant, has_kernels, head_pass};
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{FloatDType, IndexingUpdateOp, TensorPrimitive};

use crate::error::{Error, Result};
use crate::head::LmHead;
use crate::log_prob::{Moments, Tally, Targets, TokenStats, check_targets};
use crate::math;

/// How much is projected at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkOptions {
    /// Bytes of f32 logits held at a time. Up to three times as much is in use at the peak, for the exponentials beside
    /// them and the tile of the head. Default: 8 MiB.
    pub byte_budget: usize,
    /// Tokens of a chunk. Default, as none: as many as make a square tile of the budget (1,448 for 8 MiB).
    pub rows: Option<usize>,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { byte_budget: 8 << 20, rows: None }
    }
}

impl ChunkOptions {
    /// Tokens and vocabulary columns of a tile: their product times 4 bytes stays within the budget, but neither falls
    /// below 1 and the tokens are as given, if given.
    ///
    /// # Errors
    /// A budget or a number of rows of 0.
    pub fn tile(&self, tokens: usize, vocab: usize) -> Result<(usize, usize)> {
        if self.rows == Some(0) {
            let remedy = "give at least 1 row, or none to use the byte budget".into();
            return Err(Error::Option { option: "rows", found: "0".into(), remedy });
        }
        if self.byte_budget == 0 {
            let remedy = "give the bytes of f32 logits to hold at a time".into();
            return Err(Error::Option { option: "byte_budget", found: "0".into(), remedy });
        }
        let cells = (self.byte_budget / 4).max(1);
        let rows = self.rows.unwrap_or_else(|| cells.isqrt().max(cells / vocab.max(1)));
        let rows = rows.clamp(1, tokens.max(1));
        Ok((rows, (cells / rows).clamp(1, vocab.max(1))))
    }
}

/// A backend with gradients that knows the chunked head's backward: [`Autodiff`] over any backend. Code that is generic over
/// `AutodiffBackend` asks for this instead.
///
/// ```
/// use aspo_loss::{ChunkOptions, ChunkedBackend, LmHead, Result, chunked_log_probs};
/// use burn::nn::Linear;
/// use burn::prelude::*;
///
/// fn score<B: ChunkedBackend>(
///     hidden: Tensor<B, 2>,
///     head: &Linear<B>,
///     targets: Tensor<B, 1, Int>,
/// ) -> Result<Tensor<B, 1>> {
///     chunked_log_probs(hidden, &LmHead::linear(head), targets, &ChunkOptions::default())
/// }
/// ```
pub trait ChunkedBackend: AutodiffBackend {
    #[doc(hidden)]
    fn chunked(
        hidden: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        options: &ChunkOptions,
        want_stats: bool,
    ) -> Result<Scored<Self>>;
}

/// Log-probabilities, and the statistics of their tokens where they are asked for.
type Scored<B> = (Tensor<B, 1>, Vec<Tensor<<B as AutodiffBackend>::InnerBackend, 2>>);

impl<B: Backend, C: CheckpointStrategy> ChunkedBackend for Autodiff<B, C> {
    fn chunked(
        hidden: Tensor<Self, 2>,
        weight: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        options: &ChunkOptions,
        want_stats: bool,
    ) -> Result<(Tensor<Self, 1>, Vec<Tensor<B, 2>>)> {
        tracked(hidden, weight, targets, options, want_stats)
    }
}

/// Log-probabilities `[N]` of `targets` `[N]` from `hidden` `[N, D]` and the head, in f32, with the backward that the
/// module's page describes.
///
/// Give only response positions ([`SentenceMap::select_rows`](crate::SentenceMap::select_rows)).
///
/// # Errors
/// Shapes that do not fit, no rows, a target outside the vocabulary, a chunk of 0.
pub fn chunked_log_probs<B: ChunkedBackend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<Tensor<B, 1>> {
    let (hidden, weight) = head.product(hidden)?;
    Ok(B::chunked(hidden, weight, targets, options, false)?.0)
}

/// [`chunked_log_probs`] together with [`TokenStats`] of the same tokens, from the same logits.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_with_stats<B: ChunkedBackend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<(Tensor<B, 1>, TokenStats)> {
    let (hidden, weight) = head.product(hidden)?;
    let (log_probs, stats) = B::chunked(hidden, weight, targets, options, true)?;
    Ok((log_probs, TokenStats::read(stats)))
}

/// [`chunked_log_probs`] without a backward, on any backend: for the reference model and for evaluation. No gradient
/// flows through it, on an autodiff backend either.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<Tensor<B, 1>> {
    let (hidden, weight) = head.product(hidden)?;
    let tiles = check(&hidden, &weight, &targets, options)?;
    let want = Want::default();
    Ok(forward(math::detached(hidden), math::detached(weight), targets, tiles, want).log_probs)
}

fn check<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &Tensor<B, 1, Int>,
    options: &ChunkOptions,
) -> Result<Tiles> {
    let ([tokens, _], [vocab, _]) = (hidden.dims(), head.dims());
    check_targets("targets", targets, tokens, vocab)?;
    let (rows, columns) = options.tile(tokens, vocab)?;
    Ok(Tiles { tokens, vocab, rows, columns })
}

/// How `[N, V]` is cut.
#[derive(Debug, Clone, Copy)]
struct Tiles {
    tokens: usize,
    vocab: usize,
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn size(self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    fn token_ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.tokens).step_by(self.rows).map(move |start| start..(start + self.rows).min(self.tokens))
    }

    fn vocab_ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.vocab).step_by(self.columns).map(move |start| start..(start + self.columns).min(self.vocab))
    }

    /// Where the targets fall in one range of the vocabulary.
    fn targets<B: Backend>(self, targets: &Tensor<B, 1, Int>, range: &Range<usize>) -> Targets<B> {
        if range.len() == self.vocab {
            Targets::new(targets.clone())
        } else {
            Targets::within(targets.clone(), range.start, range.end)
        }
    }
}

/// What one pass over the tiles leaves behind.
struct Forward<B: Backend> {
    log_probs: Tensor<B, 1>,
    log_sum_exp: Tensor<B, 1>,
    /// `∂logp/∂h`, `[N, D]`, if asked for.
    slope: Option<Tensor<B, 2>>,
    stats: Vec<Tensor<B, 2>>,
    /// The kernels' pass, if that was taken.
    pass: Option<HeadPass<B>>,
}

/// What is asked of a pass beside log-probabilities.
#[derive(Debug, Clone, Copy, Default)]
struct Want {
    slope: bool,
    stats: bool,
    /// Values of `exp z` to keep, where there are kernels.
    keep: usize,
}

/// The sums of a chunk of tokens over the columns seen so far.
struct Running<B: Backend> {
    tally: Tally<B>,
    /// `Σ exp(z - max z) W`, [n, D], if the slope is asked for.
    pull: Option<Tensor<B, 2>>,
    moments: Option<Moments<B>>,
}

fn forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    tiles: Tiles,
    want: Want,
) -> Forward<B> {
    let Want { slope: want_slope, stats: want_stats, keep } = want;
    if !want_stats && has_kernels::<B>() {
        let want = HeadWant { dlogp_dh: want_slope, keep };
        if let Some(pass) = head_pass(&hidden, &head, &ids(&targets), tiles.size(), want) {
            let (log_probs, log_sum_exp) = (pass.log_probs.clone(), pass.log_sum_exp.clone());
            return Forward {
                log_probs,
                log_sum_exp,
                slope: pass.dlogp_dh.clone(),
                stats: vec![],
                pass: Some(pass),
            };
        }
    }
    let (mut log_probs, mut log_sums, mut slopes, mut all_stats) = (vec![], vec![], vec![], vec![]);
    for tokens in tiles.token_ranges() {
        let h = math::f32(hidden.clone().slice([tokens.clone()]));
        let y = targets.clone().slice([tokens]);
        let mut running: Option<Running<B>> = None;
        for columns in tiles.vocab_ranges() {
            let w = math::f32(head.clone().slice([columns.clone()]));
            let logits = h.clone().matmul(w.clone().transpose());
            let kept = want_stats.then(|| logits.clone());
            let targets = tiles.targets(&y, &columns);
            let mut tally = Tally::of(logits, &targets);
            let mut moments = kept.map(|logits| Moments::of(logits, &tally, &targets));
            // Σ exp(z - max) W: the softmax's part of the slope, up to the sum.
            let exp = core::mem::replace(&mut tally.exp, Tensor::empty([1, 1], &h.device()));
            let mut pull = want_slope.then(|| exp.matmul(w));
            if let Some(before) = running {
                let own_sum = tally.sum.clone();
                let shifts = tally.merge(&before.tally);
                let [old, new] = &shifts;
                pull = pull.zip(before.pull).map(|(p, b)| b * old.factor.clone() + p * new.factor.clone());
                if let (Some(moments), Some(earlier)) = (&mut moments, &before.moments) {
                    moments.merge(earlier, [&before.tally.sum, &own_sum], &shifts);
                }
            }
            running = Some(Running { tally, pull, moments });
        }
        let Some(Running { tally, pull, moments }) = running else { continue };
        log_probs.push(tally.log_probs());
        log_sums.push(tally.log_sum_exp());
        all_stats.extend(moments.map(|moments| moments.stats(&tally, tiles.vocab)));
        slopes.extend(pull.map(|pull| math::f32(head.clone().select(0, y)) - pull / tally.sum));
    }
    Forward {
        log_probs: Tensor::cat(log_probs, 0),
        log_sum_exp: Tensor::cat(log_sums, 0),
        slope: want_slope.then(|| Tensor::cat(slopes, 0)),
        stats: all_stats,
        pass: None,
    }
}

fn ids<B: Backend>(targets: &Tensor<B, 1, Int>) -> Vec<usize> {
    targets.to_data().iter::<i64>().map(|id| id as usize).collect()
}

/// Exponentials kept for the gradient of a head that trains, in halves of that gradient's size. With Adam's moments, training
/// a head holds three such sizes anyway.
const KEPT_HALVES: usize = 3;

/// Log-probabilities, and blocks of token statistics if asked for.
type Tracked<B, C> = (Tensor<Autodiff<B, C>, 1>, Vec<Tensor<B, 2>>);

fn tracked<B: Backend, C: CheckpointStrategy>(
    hidden: Tensor<Autodiff<B, C>, 2>,
    head: Tensor<Autodiff<B, C>, 2>,
    targets: Tensor<Autodiff<B, C>, 1, Int>,
    options: &ChunkOptions,
    want_stats: bool,
) -> Result<Tracked<B, C>> {
    let tiles = check(&hidden, &head, &targets, options)?;
    let (hidden, head) = (primitive(hidden), primitive(head));
    let plain = |p: &FloatTensor<B>| tensor::<B, 2>(p.clone());
    let y = Tensor::<B, 1, Int>::from_primitive(targets.clone().into_primitive());
    let (hidden_trains, head_trains) = (hidden.is_tracked(), head.is_tracked());
    let weight = plain(&head.primitive);
    let keep = if head_trains { weight.dims().iter().product::<usize>() / 2 * KEPT_HALVES } else { 0 };
    let want = Want { slope: hidden_trains && !head_trains, stats: want_stats, keep };
    let pass = forward(plain(&hidden.primitive), weight, y, tiles, want);
    let log_probs = primitive(pass.log_probs);

    let output = if head_trains {
        let state = Recompute {
            hidden: hidden.primitive,
            head: head.primitive,
            targets: targets.into_primitive(),
            log_sum_exp: primitive(pass.log_sum_exp),
            pass: pass.pass,
            tiles,
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
    pass: Option<HeadPass<B>>,
    tiles: Tiles,
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
/// `∂L/∂z = g (onehot(y) - softmax z)`. The vocabulary is the outer loop: each tile of the head gets its gradient at
/// once, and only `[N, D]` is added to over and over.
fn recompute<B: Backend>(
    grad: Tensor<B, 1>,
    state: Recompute<B>,
    want_hidden: bool,
) -> (Option<FloatTensor<B>>, FloatTensor<B>) {
    let (hidden, head) = (tensor::<B, 2>(state.hidden), tensor::<B, 2>(state.head));
    let targets = Tensor::<B, 1, Int>::from_primitive(state.targets);
    let log_sum_exp = tensor::<B, 1>(state.log_sum_exp);
    let tiles = state.tiles;
    if let Some(pass) = state.pass {
        let found = pass.gradients(&hidden, &head, &ids(&targets), &grad, tiles.size(), want_hidden);
        if let Some(found) = found {
            let hidden_grad = found.hidden.map(|grad| primitive(grad.cast(hidden.dtype())));
            return (hidden_grad, primitive(found.head.cast(head.dtype())));
        }
    }
    let mut hidden_grads: Vec<Option<Tensor<B, 2>>> = tiles.token_ranges().map(|_| None).collect();
    let mut head_grads = Vec::new();
    for columns in tiles.vocab_ranges() {
        let w = math::f32(head.clone().slice([columns.clone()]));
        let mut head_grad = None;
        for (tokens, hidden_grad) in tiles.token_ranges().zip(&mut hidden_grads) {
            let column = |t: &Tensor<B, 1>| t.clone().slice([tokens.clone()]).unsqueeze_dim::<2>(1);
            let (g, log_sum_exp) = (column(&grad), column(&log_sum_exp));
            let h = math::f32(hidden.clone().slice([tokens.clone()]));
            let y = tiles.targets(&targets.clone().slice([tokens.clone()]), &columns);
            let softmax = (h.clone().matmul(w.clone().transpose()) - log_sum_exp).exp();
            let dz =
                (softmax * g.clone().neg()).scatter(1, y.column.clone(), y.mask(g), IndexingUpdateOp::Add);
            if want_hidden {
                add(hidden_grad, dz.clone().matmul(w.clone()));
            }
            add(&mut head_grad, dz.transpose().matmul(h));
        }
        head_grads.extend(head_grad.map(|grad| grad.cast(head.dtype())));
    }
    let hidden_grad = want_hidden.then(|| {
        let grads = hidden_grads.into_iter().flatten().map(|grad| grad.cast(hidden.dtype())).collect();
        primitive(Tensor::cat(grads, 0))
    });
    (hidden_grad, primitive(Tensor::cat(head_grads, 0)))
}

fn add<B: Backend>(sum: &mut Option<Tensor<B, 2>>, part: Tensor<B, 2>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + part,
        None => part,
    });
}
