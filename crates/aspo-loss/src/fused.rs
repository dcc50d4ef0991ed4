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
//! Which of the three applies is read from the tensors. Everything is computed in f32, but that kernels on GPUs
//! multiply halves as they are, with sums in f32; each gradient is returned in the type of its tensor. A head of another type is
//! cast tile by tile, so that no f32 copy of it is ever held.

use core::any::Any;
use std::sync::Arc;

use aspo_kernels::{HeadPass, HeadWant, head_pass, product};
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{FloatDType, IndexingUpdateOp, TensorPrimitive};

use crate::chunk::{ChunkOptions, Tiles};
use crate::error::Result;
use crate::head::LmHead;
use crate::labels::Labels;
use crate::log_prob::{Moments, OnlineSoftmax, TokenStats, dense_log_probs};
use crate::math;

/// Log-probabilities `[N]` of `targets` `[N]` from `hidden` `[N, D]` and the head, in f32, with the backward that the
/// module's page describes.
///
/// Give only response positions ([`ResponseLayout::select_hidden`](crate::ResponseLayout::select_hidden)). A backend with
/// gradients is [`Autodiff`] over any other; one that is not keeps logits, as [`dense_log_probs`](crate::dense_log_probs).
///
/// ```
/// use aspo_loss::{ChunkOptions, LmHead, Result, chunked_log_probs};
/// use burn::nn::Linear;
/// use burn::prelude::*;
/// use burn::tensor::backend::AutodiffBackend;
///
/// fn score<B: AutodiffBackend>(
///     hidden: Tensor<B, 2>,
///     head: &Linear<B>,
///     targets: Tensor<B, 1, Int>,
/// ) -> Result<Tensor<B, 1>> {
///     chunked_log_probs(hidden, &LmHead::linear(head), targets, &ChunkOptions::default())
/// }
/// ```
///
/// # Errors
/// Shapes that do not fit, no rows, a target outside the vocabulary, a chunk of 0.
pub fn chunked_log_probs<B: AutodiffBackend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: impl Into<Labels<B>>,
    options: &ChunkOptions,
) -> Result<Tensor<B, 1>> {
    let (hidden, weight) = head.product(hidden)?;
    Ok(tracked(hidden, weight, targets.into(), options, false)?.0)
}

/// [`chunked_log_probs`] together with [`TokenStats`] of the same tokens, from the same logits.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_with_stats<B: AutodiffBackend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: impl Into<Labels<B>>,
    options: &ChunkOptions,
) -> Result<(Tensor<B, 1>, TokenStats<B>)> {
    let (hidden, weight) = head.product(hidden)?;
    let (log_probs, stats) = tracked(hidden, weight, targets.into(), options, true)?;
    Ok((log_probs, TokenStats { rows: Tensor::from_inner(Tensor::cat(stats, 1)) }))
}

/// [`chunked_log_probs`] without a backward, on any backend: for the reference model and for evaluation. No gradient
/// flows through it, on an autodiff backend either.
///
/// # Errors
/// As [`chunked_log_probs`].
pub fn chunked_log_probs_forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: &LmHead<B>,
    targets: impl Into<Labels<B>>,
    options: &ChunkOptions,
) -> Result<Tensor<B, 1>> {
    let (hidden, weight) = head.product(hidden)?;
    let targets = targets.into();
    let tiles = check(&hidden, &weight, &targets, options)?;
    let (want, labels) = (Want::default(), (targets.tensor().clone(), &targets.ids()[..]));
    Ok(forward(math::detached(hidden), math::detached(weight), labels, tiles, want).log_probs)
}

fn check<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &Labels<B>,
    options: &ChunkOptions,
) -> Result<Tiles> {
    let ([tokens, _], [vocab, _]) = (hidden.dims(), head.dims());
    targets.check("targets", tokens, vocab)?;
    let (rows, columns) = options.tile(tokens, vocab)?;
    Ok(Tiles { tokens, vocab, rows, columns })
}

/// What one pass over the tiles leaves behind.
struct Forward<B: Backend> {
    log_probs: Tensor<B, 1>,
    log_sum_exp: Tensor<B, 1>,
    /// `∂logp/∂h`, `[N, D]`, if asked for.
    dlogp_dh: Option<Tensor<B, 2>>,
    stats: Vec<Tensor<B, 2>>,
    /// The kernels' pass, if that was taken.
    kernels: Option<HeadPass<B>>,
}

/// What is asked of a pass beside log-probabilities.
#[derive(Debug, Clone, Copy, Default)]
struct Want {
    dlogp_dh: bool,
    stats: bool,
    /// Values of `exp z` to keep, where there are kernels.
    keep: usize,
}

/// The sums of a chunk of tokens over the columns seen so far.
struct Running<B: Backend> {
    softmax: OnlineSoftmax<B>,
    /// `Σ exp(z - max z) W`, [n, D]: softmax times head, up to the sum; if `∂logp/∂h` is asked for.
    softmax_head: Option<Tensor<B, 2>>,
    moments: Option<Moments<B>>,
}

fn forward<B: Backend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    (targets, ids): (Tensor<B, 1, Int>, &[usize]),
    tiles: Tiles,
    want: Want,
) -> Forward<B> {
    if !want.stats {
        let wanted = HeadWant { dlogp_dh: want.dlogp_dh, keep: want.keep };
        if let Some(pass) = head_pass(&hidden, &head, ids, tiles.size(), wanted) {
            let (log_probs, log_sum_exp) = (pass.log_probs.clone(), pass.log_sum_exp.clone());
            return Forward {
                log_probs,
                log_sum_exp,
                dlogp_dh: pass.dlogp_dh.clone(),
                stats: vec![],
                kernels: Some(pass),
            };
        }
    }
    let (mut log_probs, mut log_sums, mut all_dlogp_dh, mut all_stats) = (vec![], vec![], vec![], vec![]);
    for tokens in tiles.token_ranges() {
        let h = math::to_f32(hidden.clone().slice([tokens.clone()]));
        let y = targets.clone().slice([tokens]);
        let mut running: Option<Running<B>> = None;
        for columns in tiles.vocab_ranges() {
            let w = math::to_f32(head.clone().slice([columns.clone()]));
            let logits = product(h.clone(), w.clone().transpose());
            let kept = want.stats.then(|| logits.clone());
            let targets = tiles.targets(&y, &columns);
            let (mut softmax, exp) = OnlineSoftmax::of(logits, &targets);
            let mut moments = kept.map(|logits| Moments::of(logits, &softmax, &exp, &targets));
            let mut softmax_head = want.dlogp_dh.then(|| product(exp, w));
            if let Some(before) = running {
                let own_sum = softmax.sum.clone();
                let shifts = softmax.merge(&before.softmax);
                let [old, new] = &shifts;
                softmax_head = softmax_head
                    .zip(before.softmax_head)
                    .map(|(own, before)| before * old.factor.clone() + own * new.factor.clone());
                if let (Some(moments), Some(earlier)) = (&mut moments, &before.moments) {
                    moments.merge(earlier, [&before.softmax.sum, &own_sum], &shifts);
                }
            }
            running = Some(Running { softmax, softmax_head, moments });
        }
        let Some(Running { softmax, softmax_head, moments }) = running else { continue };
        log_probs.push(softmax.log_probs());
        log_sums.push(softmax.log_sum_exp());
        all_stats.extend(moments.map(|moments| moments.stats(&softmax, tiles.vocab)));
        all_dlogp_dh.extend(
            softmax_head
                .map(|softmax_head| math::to_f32(head.clone().select(0, y)) - softmax_head / softmax.sum),
        );
    }
    Forward {
        log_probs: Tensor::cat(log_probs, 0),
        log_sum_exp: Tensor::cat(log_sums, 0),
        dlogp_dh: want.dlogp_dh.then(|| Tensor::cat(all_dlogp_dh, 0)),
        stats: all_stats,
        kernels: None,
    }
}

/// Exponentials kept for the gradient of a head that trains, in halves of that gradient's size. With Adam's moments, training
/// a head holds three such sizes anyway.
const KEPT_HALVES: usize = 3;

/// Log-probabilities, and blocks of token statistics if asked for.
type Scored<B> = (Tensor<B, 1>, Vec<Tensor<<B as AutodiffBackend>::InnerBackend, 2>>);

/// The primitive of [`Autodiff`] over a backend; it is the same for every checkpointing strategy.
type Tracked<I> = FloatTensor<Autodiff<I>>;

fn tracked<B: AutodiffBackend>(
    hidden: Tensor<B, 2>,
    head: Tensor<B, 2>,
    targets: Labels<B>,
    options: &ChunkOptions,
    want_stats: bool,
) -> Result<Scored<B>> {
    let tiles = check(&hidden, &head, &targets, options)?;
    let (h, w, y) = (hidden.clone().inner(), head.clone().inner(), targets.tensor().clone().inner());
    let ids = targets.ids();
    let nodes = [hidden.clone(), head.clone()].map(|x| same::<_, Tracked<B::InnerBackend>>(primitive(x)));
    let [Some(hidden), Some(head)] = nodes else {
        let want = Want { stats: want_stats, ..Want::default() };
        let stats = if want_stats { forward(h, w, (y, &ids[..]), tiles, want).stats } else { vec![] };
        return Ok((dense_log_probs(hidden.matmul(head.transpose()), targets)?, stats));
    };
    let head_trains = head.is_tracked();
    let keep = if head_trains { w.dims().iter().product::<usize>() / 2 * KEPT_HALVES } else { 0 };
    let want = Want { dlogp_dh: hidden.is_tracked() && !head_trains, stats: want_stats, keep };
    let pass = forward(h, w, (y.clone(), &ids[..]), tiles, want);
    let log_probs = primitive(pass.log_probs);

    let output = if head_trains {
        let state = TrainedHead {
            hidden: hidden.primitive,
            head: head.primitive,
            targets: y.into_primitive(),
            ids: ids.clone(),
            log_sum_exp: primitive(pass.log_sum_exp),
            kernels: pass.kernels,
            tiles,
        };
        let nodes = [hidden.node, head.node];
        match TrainedHeadBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, log_probs),
            OpsKind::UnTracked(prep) => prep.finish(log_probs),
        }
    } else if let Some(dlogp_dh) = pass.dlogp_dh {
        let dtype = tensor::<B::InnerBackend, 2>(hidden.primitive).dtype().into();
        let state = FrozenHead { dlogp_dh: primitive(dlogp_dh), dtype };
        match FrozenHeadBackward.prepare::<NoCheckpointing>([hidden.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(state, log_probs),
            OpsKind::UnTracked(prep) => prep.finish(log_probs),
        }
    } else {
        return Ok((Tensor::from_inner(tensor(log_probs)), pass.stats));
    };
    let output = same::<_, FloatTensor<B>>(output).expect("hidden states had this type");
    Ok((Tensor::from_primitive(TensorPrimitive::Float(output)), pass.stats))
}

/// The value as a `T`, if that is its type.
fn same<S: 'static, T: 'static>(value: S) -> Option<T> {
    (&mut Some(value) as &mut dyn Any).downcast_mut::<Option<T>>().and_then(Option::take)
}

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// Frozen head: the hidden states' gradient is `∂logp/∂h`, kept by the forward, scaled row by row.
#[derive(Debug)]
struct FrozenHeadBackward;

#[derive(Debug, Clone)]
struct FrozenHead<B: Backend> {
    dlogp_dh: FloatTensor<B>,
    dtype: FloatDType,
}

impl<B: Backend> Backward<B, 1> for FrozenHeadBackward {
    type State = FrozenHead<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = math::to_f32(tensor::<B, 1>(grads.consume::<B>(&ops.node)));
        let [hidden] = ops.parents;
        if let Some(hidden) = hidden {
            let rows = grad.dims()[0];
            let grad = tensor::<B, 2>(ops.state.dlogp_dh) * grad.reshape([rows, 1]);
            grads.register::<B>(hidden.id, primitive(grad.cast(ops.state.dtype)));
        }
    }
}

/// Trained head: each chunk's logits are made again.
#[derive(Debug)]
struct TrainedHeadBackward;

#[derive(Debug, Clone)]
struct TrainedHead<B: Backend> {
    hidden: FloatTensor<B>,
    head: FloatTensor<B>,
    targets: IntTensor<B>,
    ids: Arc<[usize]>,
    log_sum_exp: FloatTensor<B>,
    kernels: Option<HeadPass<B>>,
    tiles: Tiles,
}

impl<B: Backend> Backward<B, 2> for TrainedHeadBackward {
    type State = TrainedHead<B>;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = math::to_f32(tensor::<B, 1>(grads.consume::<B>(&ops.node)));
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
    state: TrainedHead<B>,
    want_hidden: bool,
) -> (Option<FloatTensor<B>>, FloatTensor<B>) {
    let (hidden, head) = (tensor::<B, 2>(state.hidden), tensor::<B, 2>(state.head));
    let targets = Tensor::<B, 1, Int>::from_primitive(state.targets);
    let log_sum_exp = tensor::<B, 1>(state.log_sum_exp);
    let tiles = state.tiles;
    if let Some(pass) = state.kernels {
        let found = pass.gradients(&hidden, &head, &state.ids, &grad, tiles.size(), want_hidden);
        if let Some(found) = found {
            let hidden_grad = found.hidden.map(|grad| primitive(grad.cast(hidden.dtype())));
            return (hidden_grad, primitive(found.head.cast(head.dtype())));
        }
    }
    let mut hidden_grads: Vec<Option<Tensor<B, 2>>> = tiles.token_ranges().map(|_| None).collect();
    let mut head_grads = Vec::new();
    for columns in tiles.vocab_ranges() {
        let w = math::to_f32(head.clone().slice([columns.clone()]));
        let mut head_grad = None;
        for (tokens, hidden_grad) in tiles.token_ranges().zip(&mut hidden_grads) {
            let column = |t: &Tensor<B, 1>| t.clone().slice([tokens.clone()]).unsqueeze_dim::<2>(1);
            let (g, log_sum_exp) = (column(&grad), column(&log_sum_exp));
            let h = math::to_f32(hidden.clone().slice([tokens.clone()]));
            let y = tiles.targets(&targets.clone().slice([tokens.clone()]), &columns);
            let softmax = (product(h.clone(), w.clone().transpose()) - log_sum_exp).exp();
            let dz =
                (softmax * g.clone().neg()).scatter(1, y.column.clone(), y.mask(g), IndexingUpdateOp::Add);
            if want_hidden {
                add(hidden_grad, product(dz.clone(), w.clone()));
            }
            add(&mut head_grad, product(dz.transpose(), h));
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
