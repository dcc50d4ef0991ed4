//! Scaled dot-product attention with masks, grouped queries and a key-value cache.

use burn::tensor::{
    Bool, DType, Int, Tensor, TensorData, backend::Backend, module::attention, ops::AttentionModuleOptions, s,
};

use super::norm::{cast, f32};

/// Far below any score, yet finite: a row without a single visible key stays a number.
const HIDDEN: f32 = -1e30;

/// Scores that one chunk of attention may hold at once without a graph, or in its recomputation (64 MB in `f32`).
pub const CHUNK_SCORES: usize = 1 << 24;

/// `[batch, tokens, heads · head_dim]` to `[batch, tokens, heads, head_dim]`.
pub fn split_heads<B: Backend>(x: Tensor<B, 3>, heads: usize) -> Tensor<B, 4> {
    let [batch, tokens, width] = x.dims();
    x.reshape([batch, tokens, heads, width / heads])
}

/// `[batch, heads, tokens, head_dim]` to `[batch, tokens, heads · head_dim]`.
pub fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 3> {
    let [batch, heads, tokens, dim] = x.dims();
    x.swap_dims(1, 2).reshape([batch, tokens, heads * dim])
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
            attention(q, k, v, mask, None, AttentionModuleOptions::default())
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
                Tensor::cat(parts.collect(), 2)
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
    let scores = f32(q.mul_scalar(scale).matmul(k.swap_dims(2, 3)));
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
        _ => cast(f32(cast(weights, dtype).matmul(v)) / total, dtype),
    }
}

/// The mask of padded keys, `[batch, 1, queries, keys]`, from `attention_mask` `[batch, keys]` (1 = real).
///
/// With `causal`, keys after the query are hidden too; the last query sees the last key. With `segments`
/// (`[batch, keys]`, self-attention only) a token sees its own segment and segment 0.
pub fn padding_mask<B: Backend>(
    attention_mask: Tensor<B, 2, Int>,
    queries: usize,
    causal: bool,
    segments: Option<Tensor<B, 2, Int>>,
) -> Tensor<B, 4, Bool> {
    let [batch, keys] = attention_mask.dims();
    let device = attention_mask.device();
    let shape = [batch, 1, queries, keys];
    let mut mask = attention_mask.equal_elem(0).reshape([batch, 1, 1, keys]).expand(shape);
    if causal && queries > 1 {
        let offset = keys - queries.min(keys);
        let future: Vec<bool> = (0..queries).flat_map(|q| (0..keys).map(move |k| k > q + offset)).collect();
        let future = Tensor::<B, 4, Bool>::from_data(TensorData::new(future, [1, 1, queries, keys]), &device);
        mask = mask.bool_or(future.expand(shape));
    }
    if let Some(segments) = segments {
        let of_key = segments.clone().reshape([batch, 1, 1, keys]).expand(shape);
        let of_query = segments.reshape([batch, 1, keys, 1]).expand(shape);
        let foreign = of_key.clone().not_equal(of_query).bool_and(of_key.not_equal_elem(0));
        mask = mask.bool_or(foreign);
    }
    mask
}

/// Keys and values of the tokens a layer has seen, in a buffer that grows by blocks.
///
/// The buffer is handed to attention as it is, its unwritten tail hidden by the mask; so a step copies one token where
/// the backend writes in place (CubeCL), and the buffer where it does not (flex).
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    pub(crate) keys: Option<Tensor<B, 4>>,
    pub(crate) values: Option<Tensor<B, 4>>,
    len: usize,
    block: usize,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { keys: None, values: None, len: 0, block: 64 }
    }
}

impl<B: Backend> KvCache<B> {
    /// Tokens written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit once `more` are added: the key axis of the mask to give.
    pub fn capacity_with(&self, more: usize) -> usize {
        (self.len + more).next_multiple_of(self.block)
    }

    /// Write `[batch, groups, tokens, head_dim]` behind what is there; returns both buffers, whole.
    pub(crate) fn append(&mut self, k: Tensor<B, 4>, v: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let tokens = k.dims()[2];
        let capacity = self.capacity_with(tokens);
        let at = self.len;
        self.len += tokens;
        let write = |buffer: &mut Option<Tensor<B, 4>>, new: Tensor<B, 4>| {
            let [batch, groups, _, dim] = new.dims();
            let zeros = |n| Tensor::zeros([batch, groups, n, dim], (&new.device(), new.dtype()));
            let old = match buffer.take() {
                None => zeros(capacity),
                Some(old) if old.dims()[2] < capacity => {
                    let missing = capacity - old.dims()[2];
                    Tensor::cat(vec![old, zeros(missing)], 2)
                }
                Some(old) => old,
            };
            let full = old.slice_assign([0..batch, 0..groups, at..at + tokens, 0..dim], new);
            *buffer = Some(full.clone());
            full
        };
        (write(&mut self.keys, k), write(&mut self.values, v))
    }

    /// Keep only these rows of the batch, in this order (finished rows, beams).
    pub(crate) fn select_rows(&mut self, rows: &Tensor<B, 1, Int>) {
        for buffer in [&mut self.keys, &mut self.values] {
            *buffer = buffer.take().map(|t| t.select(0, rows.clone()));
        }
    }
}
