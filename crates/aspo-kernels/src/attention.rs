//! Attention with rotary positions, grouped queries, and who sees whom as loop bounds.

use burn::tensor::{Bool, DType, Tensor, backend::Backend, module, ops::AttentionModuleOptions, s};

use crate::cast;
use crate::context::{CHUNK_SCORES, Context, Heads, take_heads};

/// Far below any score, yet finite: a row without a single visible key stays a number.
const HIDDEN: f32 = -1e30;

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
/// Operations for P visible pairs ([`BlockMask::pairs`](crate::BlockMask::pairs)): `4 P heads dim` forward, `10 P heads dim` backward. Bytes: `qkv`
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
    #[cfg(feature = "cube")]
    if let Some(out) = crate::cube::attention(&qkv, None, heads, context) {
        return out;
    }
    let [q, k, v] = context.split(qkv, heads);
    merge_heads(attend(q, k, v, context.hidden(heads.groups)))
}

/// [`attention`] of one sequence over another, of a length of its own: `softmax(q kᵀ / sqrt(dim)) v` for each head.
///
/// `q` is `[batch, tokens, heads · dim]`, `kv` `[batch, keys, 2 groups dim]`, keys and values side by side, as a group of two
/// [linear](crate::linear()) layers gives them, read in the type of `q`. Who sees whom is a [`BlockMask::across`](crate::BlockMask::across); there are no
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
    #[cfg(feature = "cube")]
    if let Some(out) = crate::cube::attention(&q, Some(&kv), heads, context) {
        return out;
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
