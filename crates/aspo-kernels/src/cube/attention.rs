//! Attention: products by Burn, what is between them in one kernel, by chunks of queries whose weights are made again in the
//! backward.

use std::sync::Arc;

use burn::tensor::ops::{BoolTensor, FloatTensor};
use burn::tensor::{Bool, Tensor, TensorMetadata, backend::Backend};
use burn_cubecl::tensor::CubeTensor;

use super::product::product;
use super::rotary::{self, Angles};
use super::softmax::{Chunk, softmax, softmax_backward};
use super::{Home, at_home, reads, unwrap, wrap};
use crate::bridge::{Fast, Fused, record, same};
use crate::context::{CHUNK_SCORES, Context, Heads};
use crate::rotary::Tables;

/// Parents: queries, or all that one sequence looks at itself with; keys and values of another sequence.
#[derive(Debug, Clone)]
struct Attention<H: Home> {
    read: Read<H>,
    /// `log Σ exp` of each row, chunk by chunk.
    sums: Arc<Vec<CubeTensor<H::Runtime>>>,
    heads: Heads,
    hidden: Option<CubeTensor<H::Runtime>>,
    angles: Angles<H::Runtime>,
    /// Over another sequence.
    across: bool,
}

/// Heads first.
#[derive(Debug, Clone)]
struct Read<H: Home> {
    /// `[batch, groups, heads of a group · queries, dim]`, scaled.
    q: Tensor<H, 4>,
    /// `[batch, groups, keys, dim]`, as `v`.
    k: Tensor<H, 4>,
    v: Tensor<H, 4>,
}

impl<H: Home> Read<H> {
    /// Rows of all matrices that are computed at once.
    fn chunks(&self, heads: Heads) -> impl Iterator<Item = Chunk> + use<H> {
        let ([batch, groups, rows, _], keys) = (self.q.dims(), self.k.dims()[2]);
        let most = (CHUNK_SCORES / (batch * groups * keys).max(1)).clamp(1, rows.max(1));
        let queries = rows / heads.per_group();
        (0..rows).step_by(most).map(move |from| Chunk { from, len: most.min(rows - from), queries, groups })
    }

    fn scores(&self, chunk: Chunk) -> Tensor<H, 4> {
        product(part(&self.q, chunk), self.k.clone().swap_dims(2, 3))
    }

    /// The result, in the shape of the queries.
    fn forward(
        &self,
        heads: Heads,
        hidden: Option<&CubeTensor<H::Runtime>>,
    ) -> (Tensor<H, 4>, Vec<CubeTensor<H::Runtime>>) {
        let (mut out, mut sums) = (vec![], vec![]);
        for chunk in self.chunks(heads) {
            let scores = unwrap(self.scores(chunk));
            let [weights, own] = softmax(scores, hidden.cloned(), chunk);
            sums.push(own);
            out.push(product(wrap::<H, 4>(weights), self.v.clone()));
        }
        (whole(out, &self.q), sums)
    }

    /// Gradients of queries, keys and values.
    fn backward(
        &self,
        heads: Heads,
        hidden: Option<&CubeTensor<H::Runtime>>,
        sums: &[CubeTensor<H::Runtime>],
        grad: &Tensor<H, 4>,
    ) -> [Tensor<H, 4>; 3] {
        let mut dq = vec![];
        let mut of_keys: Option<[Tensor<H, 4>; 2]> = None;
        for (chunk, sums) in self.chunks(heads).zip(sums) {
            let grad = part(grad, chunk);
            let weights = unwrap(self.scores(chunk));
            let scores = unwrap(product(grad.clone(), self.v.clone().swap_dims(2, 3)));
            let [weights, scores] =
                softmax_backward(weights, scores, hidden.cloned(), sums.clone(), chunk).map(wrap::<H, 4>);
            dq.push(product(scores.clone(), self.k.clone()));
            let dk = product(scores.swap_dims(2, 3), part(&self.q, chunk));
            let dv = product(weights.swap_dims(2, 3), grad);
            of_keys = Some(match of_keys {
                Some([k, v]) => [k + dk, v + dv],
                None => [dk, dv],
            });
        }
        let [dk, dv] = of_keys.unwrap_or_else(|| [self.k.zeros_like(), self.v.zeros_like()]);
        [whole(dq, &self.q), dk, dv]
    }
}

/// Rows of a chunk.
fn part<H: Home>(x: &Tensor<H, 4>, chunk: Chunk) -> Tensor<H, 4> {
    match x.dims()[2] == chunk.len {
        true => x.clone(),
        false => x.clone().narrow(2, chunk.from, chunk.len),
    }
}

/// The chunks' rows under each other, in the shape of `like`.
fn whole<H: Home>(mut parts: Vec<Tensor<H, 4>>, like: &Tensor<H, 4>) -> Tensor<H, 4> {
    match parts.len() {
        0 => like.zeros_like(),
        1 => parts.remove(0),
        _ => Tensor::cat(parts, 2),
    }
}

/// `[batch, tokens, count · dim]` as `[batch, groups, count / groups · tokens, dim]`.
fn heads_first<H: Home>(x: Tensor<H, 3>, groups: usize, dim: usize) -> Tensor<H, 4> {
    let [batch, tokens, width] = x.dims();
    let count = width / dim;
    let heads = x.reshape([batch, tokens, count, dim]).swap_dims(1, 2);
    heads.reshape([batch, groups, count / groups * tokens, dim])
}

/// [`heads_first`] undone.
fn side_by_side<H: Home>(x: Tensor<H, 4>, tokens: usize) -> Tensor<H, 3> {
    let [batch, groups, rows, dim] = x.dims();
    let count = groups * rows / tokens.max(1);
    x.reshape([batch, count, tokens, dim]).swap_dims(1, 2).reshape([batch, tokens, count * dim])
}

impl<H: Home> Fused<H, 2> for Attention<H> {
    fn backward(self, grad: FloatTensor<H>, _: [bool; 2]) -> [Option<FloatTensor<H>>; 2] {
        let (read, heads) = (&self.read, self.heads);
        let tokens = read.q.dims()[2] / heads.per_group();
        let grad = heads_first(wrap::<H, 3>(grad), heads.groups, heads.dim);
        let [dq, dk, dv] = read.backward(heads, self.hidden.as_ref(), &self.sums, &grad);
        if self.across {
            let keys = dk.dims()[2];
            let dq = dq.mul_scalar(heads.scale());
            let of_keys = [dk, dv].map(|d| side_by_side(d, keys)).to_vec();
            return [Some(unwrap(side_by_side(dq, tokens))), Some(unwrap(Tensor::cat(of_keys, 2)))];
        }
        [Some(rotary::join([dq, dk, dv].map(unwrap), heads, self.angles, heads.scale())), None]
    }
}

/// [`attention`](crate::attention()) and [`cross_attention`](crate::cross_attention), where there are kernels.
pub fn attention<B: Backend>(
    q: &Tensor<B, 3>,
    kv: Option<&Tensor<B, 3>>,
    heads: Heads,
    context: &Context<B>,
) -> Option<Tensor<B, 3>> {
    if reads(q.dtype()) {
        at_home!(B, H => {
            let hidden = context.hidden(1).map(|hidden| {
                same::<BoolTensor<B>, CubeTensor<<H as Home>::Runtime>>(hidden.into_primitive()).expect("of the same home")
            });
            let angles = angles::<H, B>(context.tables());
            let kv = kv.map(|kv| Fast::of(kv.clone()));
            Some(mixed::<H>(Fast::of(q.clone()), kv, heads, hidden, angles).back())
        });
    }
    None
}

fn mixed<H: Home>(
    q: Fast<H>,
    kv: Option<Fast<H>>,
    heads: Heads,
    hidden: Option<CubeTensor<H::Runtime>>,
    angles: Angles<H::Runtime>,
) -> Fast<H> {
    let read = match &kv {
        Some(kv) => {
            let kv = wrap::<H, 3>(kv.inner());
            let width = heads.groups * heads.dim;
            let [k, v] =
                [0, 1].map(|i| heads_first(kv.clone().narrow(2, i * width, width), heads.groups, heads.dim));
            let q = wrap::<H, 3>(q.inner()).mul_scalar(heads.scale());
            Read { q: heads_first(q, heads.groups, heads.dim), k, v }
        }
        None => {
            let [q, k, v] = rotary::split(q.inner(), heads, angles.clone(), heads.scale()).map(wrap::<H, 4>);
            let [batch, _, tokens, dim] = q.dims();
            Read { q: q.reshape([batch, heads.groups, heads.per_group() * tokens, dim]), k, v }
        }
    };
    let tokens = q.inner().shape()[1];
    let (out, sums) = read.forward(heads, hidden.as_ref());
    let out = unwrap(side_by_side(out, tokens));
    let across = kv.is_some();
    let state = || Attention { read, sums: Arc::new(sums), heads, hidden, angles, across };
    record([Some(&q), kv.as_ref()], out, state)
}

fn angles<H: Home, B: Backend>(tables: Option<&Tables<B>>) -> Angles<H::Runtime> {
    tables.map(|tables| [&tables.cos, &tables.sin].map(|table| Fast::<H>::of(table.clone()).inner()))
}

/// Attention of queries `[batch, heads, tokens, dim]` over the buffer of a cache, where there are kernels. `hidden` is
/// `[batch, 1, tokens, columns]`; there is no graph.
pub fn attend<B: Backend>(
    [q, k, v]: [&Tensor<B, 4>; 3],
    heads: Heads,
    hidden: &Tensor<B, 4, Bool>,
) -> Option<Tensor<B, 4>> {
    if reads(q.dtype()) {
        at_home!(B, H => {
            let all = [q, k, v].map(|tensor| Fast::<H>::of(tensor.clone()));
            if all.iter().any(Fast::is_tracked) {
                return None;
            }
            let beside = all[0].clone();
            let [q, k, v] = all.map(|tensor| wrap::<H, 4>(tensor.inner()));
            let [batch, count, tokens, dim] = q.dims();
            let q = q.mul_scalar(heads.scale());
            let q = q.reshape([batch, heads.groups, heads.per_group() * tokens, dim]);
            let hidden = same(hidden.clone().into_primitive()).expect("of the same home");
            let (mixed, _) = Read { q, k, v }.forward(heads, Some(&hidden));
            Some(beside.beside(unwrap(mixed.reshape([batch, count, tokens, dim]))).back())
        });
    }
    None
}

/// [`split_heads`](crate::split_heads) without a graph, where there are kernels.
pub fn split<B: Backend>(
    qkv: &Tensor<B, 3>,
    heads: Heads,
    tables: Option<&Tables<B>>,
) -> Option<[Tensor<B, 4>; 3]> {
    if reads(qkv.dtype()) {
        at_home!(B, H => {
            let qkv = Fast::<H>::of(qkv.clone());
            if qkv.is_tracked() {
                return None;
            }
            let parts = rotary::split(qkv.inner(), heads, angles::<H, B>(tables), 1.0);
            Some(parts.map(|part| qkv.beside(part).back()))
        });
    }
    None
}
