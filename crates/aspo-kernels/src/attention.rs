//! Attention with rotary positions, grouped queries, and who sees whom as loop bounds.

use std::sync::{Arc, OnceLock};

use burn::tensor::{
    Bool, DType, Tensor, TensorData, backend::Backend, module, ops::AttentionModuleOptions, s,
};

use crate::cast;
use crate::mask::BlockMask;
use crate::rotary::{Rotary, Tables};

/// Far below any score, yet finite: a row without a single visible key stays a number.
const HIDDEN: f32 = -1e30;

/// Scores that one chunk of attention may hold at once without a graph, or in its recomputation (64 MB in `f32`).
pub const CHUNK_SCORES: usize = 1 << 24;

/// Heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub heads: usize,
    /// Of keys and values; divides `heads`. Query head `h` reads group `h · groups / heads`.
    pub groups: usize,
    /// Channels of a head.
    pub dim: usize,
}

impl Heads {
    /// Queries, keys and values of a token, side by side: `(heads + 2 groups) dim`.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.groups) * self.dim
    }

    /// Query heads that read one group.
    pub fn per_group(&self) -> usize {
        self.heads / self.groups
    }

    #[cfg(feature = "flex")]
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }
}

/// What all attentions of one pass share: who sees whom, and the angles of rotary positions.
///
/// Both are on the host. Operations without kernels of their own need a mask and tables as tensors; these are made when
/// first asked for, once a pass.
#[derive(Debug, Clone)]
pub struct Context<B: Backend> {
    mask: Arc<BlockMask>,
    rotary: Option<Arc<Rotary>>,
    hidden: Arc<OnceLock<Tensor<B, 4, Bool>>>,
    tables: Arc<OnceLock<Tables<B>>>,
    device: B::Device,
}

impl<B: Backend> Context<B> {
    /// Queries and keys are rotated where `rotary` is given, whose angles are those of all tokens of the mask.
    ///
    /// # Panics
    /// If angles and mask are of different numbers of tokens.
    pub fn new(mask: BlockMask, rotary: Option<Rotary>, device: &B::Device) -> Self {
        if let Some(rotary) = &rotary {
            let angles = mask.batch() * mask.tokens() * rotary.half;
            assert_eq!(rotary.cos.len(), angles, "an angle for each token and pair of channels");
        }
        Self {
            mask: Arc::new(mask),
            rotary: rotary.map(Arc::new),
            hidden: Arc::default(),
            tables: Arc::default(),
            device: device.clone(),
        }
    }

    /// The same on another backend.
    pub fn on<C: Backend>(&self, device: &C::Device) -> Context<C> {
        Context {
            mask: self.mask.clone(),
            rotary: self.rotary.clone(),
            hidden: Arc::default(),
            tables: Arc::default(),
            device: device.clone(),
        }
    }

    /// The same where only the queries at these places (`row · tokens + column`) are wanted: kernels leave out others,
    /// whose results then mean nothing.
    #[must_use]
    pub fn only(&self, places: &[usize]) -> Self {
        Self { mask: Arc::new(self.mask.only(places)), ..self.clone() }
    }

    /// Who sees whom.
    pub fn mask(&self) -> &BlockMask {
        &self.mask
    }

    #[cfg(feature = "flex")]
    pub(crate) fn parts(&self) -> (Arc<BlockMask>, Option<Arc<Rotary>>) {
        (self.mask.clone(), self.rotary.clone())
    }

    /// The mask as a tensor, `[batch, 1 or groups, queries, keys]`, true where a key is hidden; none where all are seen.
    pub fn hidden(&self, groups: usize) -> Option<Tensor<B, 4, Bool>> {
        if self.mask.hides_nothing() {
            return None;
        }
        let [batch, tokens, keys] = [self.mask.batch(), self.mask.tokens(), self.mask.keys()];
        let make = || {
            let mask = TensorData::new(self.mask.hidden(), [batch, 1, tokens, keys]);
            let mask = Tensor::<B, 4, Bool>::from_data(mask, &self.device);
            // Written out for all groups while it is small: every layer would copy a view of it, forward and backward.
            let small = batch * groups * tokens * keys <= CHUNK_SCORES;
            if small { mask.repeat_dim(1, groups) } else { mask }
        };
        let mask = self.hidden.get_or_init(make).clone();
        Some(if [1, groups].contains(&mask.dims()[1]) { mask } else { mask.slice(s![.., 0..1, .., ..]) })
    }

    /// [`split_heads`] with the angles of this context.
    pub fn split(&self, qkv: Tensor<B, 3>, heads: Heads) -> [Tensor<B, 4>; 3] {
        let make = |rotary: &Arc<Rotary>| self.tables.get_or_init(|| Tables::new(rotary, &self.device));
        split_heads(qkv, heads, self.rotary.as_ref().map(make))
    }
}

/// Queries, keys and values out of `qkv` `[batch, tokens, (heads + 2 groups) dim]`, each
/// `[batch, heads or groups, tokens, dim]`; queries and keys rotated where tables are given.
pub fn split_heads<B: Backend>(
    qkv: Tensor<B, 3>,
    heads: Heads,
    tables: Option<&Tables<B>>,
) -> [Tensor<B, 4>; 3] {
    let take = |from: usize, count: usize| take_heads(&qkv, from, count, heads.dim);
    let (q, k) = (take(0, heads.heads), take(heads.heads, heads.groups));
    let v = take(heads.heads + heads.groups, heads.groups).swap_dims(1, 2);
    match tables {
        Some(tables) => [tables.apply(q), tables.apply(k), v],
        None => [q.swap_dims(1, 2), k.swap_dims(1, 2), v],
    }
}

/// `count` heads side by side, `[batch, tokens, count, dim]`.
fn take_heads<B: Backend>(x: &Tensor<B, 3>, from: usize, count: usize, dim: usize) -> Tensor<B, 4> {
    let [batch, tokens, _] = x.dims();
    x.clone().narrow(2, from * dim, count * dim).reshape([batch, tokens, count, dim])
}

/// `softmax(q kᵀ / sqrt(dim)) v` for each head, over the keys that the context shows a query.
///
/// `qkv` is `[batch, tokens, (heads + 2 groups) dim]`: queries, keys and values side by side, as a group of three
/// [linear](crate::linear()) layers gives them, not yet rotated. The result is `[batch, tokens, heads · dim]`, the softmax in
/// f32. A query that sees nothing gives a finite value that means nothing.
///
/// On the CPU: scores exist for at most 48 queries of one head at a time. Kept for the backward, of a token: `qkv`, the
/// result, and `log Σ exp` of each head; no scores, no mask. The backward makes a block's weights `p` again:
///
/// ```text
/// dv = pᵀ g     ds = p (g vᵀ - g · out)     dq = ds k / sqrt(dim)     dk = dsᵀ q / sqrt(dim)
/// ```
///
/// Operations for P visible pairs ([`BlockMask::pairs`]): `4 P heads dim` forward, `10 P heads dim` backward. Bytes: `qkv`
/// and the result once a pass; keys and values of a group are gathered once, queries once, in rows of whole tiles.
///
/// # Panics
/// If `qkv` has another shape than context and heads say.
pub fn attention<B: Backend>(qkv: Tensor<B, 3>, heads: Heads, context: &Context<B>) -> Tensor<B, 3> {
    let (batch, tokens) = (context.mask.batch(), context.mask.tokens());
    assert_eq!(qkv.dims(), [batch, tokens, heads.width()], "queries, keys and values side by side");
    assert_eq!(context.mask.keys(), tokens, "the mask of a sequence that looks at itself");
    if let Some(rotary) = &context.rotary {
        assert_eq!(2 * rotary.half, heads.dim, "angles are those of the heads");
    }
    #[cfg(feature = "flex")]
    if crate::cpu::ops::takes(&qkv) {
        return crate::cpu::ops::attention(qkv, None, heads, context);
    }
    let [q, k, v] = context.split(qkv, heads);
    merge_heads(attend(q, k, v, context.hidden(heads.groups)))
}

/// [`attention`] of one sequence over another, of a length of its own: `softmax(q kᵀ / sqrt(dim)) v` for each head.
///
/// `q` is `[batch, tokens, heads · dim]`, `kv` `[batch, keys, 2 groups dim]`, keys and values side by side, as a group of two
/// [linear](crate::linear()) layers gives them, read in the type of `q`. Who sees whom is a [`BlockMask::across`]; there are no
/// rotary positions. The result is `[batch, tokens, heads · dim]`.
///
/// Equations, operations and bytes are those of [`attention`]; kept for the backward are `q`, `kv`, the result, and
/// `log Σ exp` of each head of a token. Gradients of `q` and of `kv`.
///
/// # Panics
/// If shapes are not those of context and heads, a sequence is empty, or the context rotates.
pub fn cross_attention<B: Backend>(
    q: Tensor<B, 3>,
    kv: Tensor<B, 3>,
    heads: Heads,
    context: &Context<B>,
) -> Tensor<B, 3> {
    let (batch, tokens, keys) = (context.mask.batch(), context.mask.tokens(), context.mask.keys());
    assert_eq!(q.dims(), [batch, tokens, heads.heads * heads.dim], "queries");
    assert_eq!(kv.dims(), [batch, keys, 2 * heads.groups * heads.dim], "keys and values side by side");
    assert!(tokens > 0 && keys > 0, "{tokens} queries look at {keys} keys");
    assert!(context.rotary.is_none(), "keys of another sequence have no angles");
    let kv = cast(kv, q.dtype());
    #[cfg(feature = "flex")]
    if crate::cpu::ops::takes(&q) {
        return crate::cpu::ops::attention(q, Some(kv), heads, context);
    }
    let q = take_heads(&q, 0, heads.heads, heads.dim).swap_dims(1, 2);
    let [k, v] = [0, heads.groups].map(|from| take_heads(&kv, from, heads.groups, heads.dim).swap_dims(1, 2));
    merge_heads(attend(q, k, v, context.hidden(heads.groups)))
}

/// `softmax(q kᵀ / sqrt(head_dim)) v`, the softmax in `f32` whatever the type of `q`.
///
/// `q` is `[batch, heads, queries, head_dim]`, `k` and `v` `[batch, groups, keys, head_dim]`; query head `h` reads
/// group `h · groups / heads` (grouped queries). `mask` is `[batch, 1 or groups, queries, keys]`, true where a key is
/// hidden.
///
/// Only the exponentials are kept for a backward pass: the normaliser divides the result instead of the weights, but
/// in `f16`, where a sum of values not yet divided could overflow. Masked rows are computed by the same operations with
/// and without a graph, so that a policy whose adapter is still zero equals its reference exactly; without a graph, rows
/// of more than [`CHUNK_SCORES`] scores are computed by chunks, whose products may round otherwise in the last bit.
pub fn attend<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    mask: Option<Tensor<B, 4, Bool>>,
) -> Tensor<B, 4> {
    let [batch, heads, queries, dim] = q.dims();
    let [_, groups, keys, _] = k.dims();
    let repeat = heads / groups;
    // The heads of a group become more query rows of it: nothing is repeated but the mask.
    let q = q.reshape([batch, groups, repeat * queries, dim]);
    let mask = mask.map(|mask| match repeat {
        1 => mask.expand([batch, groups, queries, keys]),
        _ => mask.unsqueeze_dim::<5>(2).expand([batch, groups, repeat, queries, keys]).reshape([
            batch,
            groups,
            repeat * queries,
            keys,
        ]),
    });
    let tracked = B::ad_enabled(&q.device());
    // Burn's own attention computes the softmax in the tensors' type on some backends.
    let burns = !tracked && q.dtype() == DType::F32;
    let out = match mask {
        mask if burns && (mask.is_none() || queries == 1) => {
            module::attention(q, k, v, mask, None, AttentionModuleOptions::default())
        }
        mask => {
            let rows = repeat * queries;
            let chunk =
                if tracked { rows } else { (CHUNK_SCORES / (batch * groups * keys).max(1)).clamp(1, rows) };
            if chunk == rows {
                softmax_mix(q, k, v, mask)
            } else {
                let parts = (0..rows).step_by(chunk).map(|from| {
                    let range = s![.., .., from..(from + chunk).min(rows), ..];
                    let mask = mask.clone().map(|mask| mask.slice(range));
                    softmax_mix(q.clone().slice(range), k.clone(), v.clone(), mask)
                });
                crate::cat(parts.collect(), 2)
            }
        }
    };
    out.reshape([batch, heads, queries, dim])
}

fn softmax_mix<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    mask: Option<Tensor<B, 4, Bool>>,
) -> Tensor<B, 4> {
    let dtype = q.dtype();
    let scale = 1.0 / (q.dims()[3] as f64).sqrt();
    let scores = cast(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)), DType::F32);
    let scores = match mask {
        Some(mask) => scores.mask_fill(mask, HIDDEN),
        None => scores,
    };
    let max = scores.clone().detach().max_dim(3);
    let weights = (scores - max).exp();
    let total = weights.clone().sum_dim(3);
    match dtype {
        DType::F32 => weights.matmul(v) / total,
        DType::F16 => cast(weights / total, dtype).matmul(v),
        _ => cast(cast(cast(weights, dtype).matmul(v), DType::F32) / total, dtype),
    }
}

/// `[batch, heads, tokens, dim]` to `[batch, tokens, heads · dim]`.
pub fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
}
