//! Queries, keys and values apart, heads first, queries and keys turned; and their gradients side by side again.

use burn::tensor::TensorMetadata;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{a_unit_a_value, array, arrays, empty, written};
use crate::context::Heads;

/// Cosines and sines as [`Tables`](crate::Tables) hold them, `[tokens · dim]`: both halves of a head alike, the sines of the
/// first half negated. None turn nothing.
pub type Angles<R> = Option<[CubeTensor<R>; 2]>;

/// Of `qkv` `[batch, tokens, (heads + 2 groups) dim]`, each `[batch, heads or groups, tokens, dim]`, queries times `scale`.
pub fn split<R: CubeRuntime>(
    qkv: CubeTensor<R>,
    heads: Heads,
    angles: Angles<R>,
    scale: f32,
) -> [CubeTensor<R>; 3] {
    let (shape, dtype) = (qkv.shape(), qkv.dtype);
    let (batch, tokens) = (shape[0], shape[1]);
    let parts = [heads.heads, heads.groups, heads.groups]
        .map(|count| empty(&qkv, [batch, count, tokens, heads.dim], dtype));
    let values = shape.num_elements();
    if values > 0 {
        let client = qkv.client.clone();
        let (count, dim) = a_unit_a_value(&client, values);
        let [q, k, v] = parts.each_ref().map(written);
        let turns = angles.is_some();
        let Heads { heads, groups, dim: channels } = heads;
        unsafe {
            split_heads::launch_unchecked(
                &client,
                count,
                dim,
                array(qkv),
                arrays(angles.into_iter().flatten()),
                q,
                k,
                v,
                values,
                tokens,
                heads,
                groups,
                channels,
                scale,
                turns,
                dtype.into(),
            );
        }
    }
    parts
}

/// The gradient of `qkv`, from those of its parts.
pub fn join<R: CubeRuntime>(
    parts: [CubeTensor<R>; 3],
    heads: Heads,
    angles: Angles<R>,
    scale: f32,
) -> CubeTensor<R> {
    let [q, k, v] = parts;
    let (shape, dtype) = (q.shape(), q.dtype);
    let (batch, tokens) = (shape[0], shape.num_elements() / (shape[0] * heads.heads * heads.dim).max(1));
    let out = empty(&q, [batch, tokens, heads.width()], dtype);
    let values = batch * tokens * heads.width();
    if values > 0 {
        let client = q.client.clone();
        let (count, dim) = a_unit_a_value(&client, values);
        let turns = angles.is_some();
        let Heads { heads, groups, dim: channels } = heads;
        unsafe {
            join_heads::launch_unchecked(
                &client,
                count,
                dim,
                array(q),
                array(k),
                array(v),
                arrays(angles.into_iter().flatten()),
                written(&out),
                values,
                tokens,
                heads,
                groups,
                channels,
                scale,
                turns,
                dtype.into(),
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn split_heads<T: Float>(
    qkv: &Array<T>,
    angles: &Sequence<Array<f32>>,
    q: &mut Array<T>,
    k: &mut Array<T>,
    v: &mut Array<T>,
    values: usize,
    tokens: usize,
    heads: usize,
    groups: usize,
    dim: usize,
    scale: f32,
    #[comptime] turns: bool,
    #[define(T)] _type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let width = (heads + 2 * groups) * dim;
        let (row, head, channel) = (at / width, at % width / dim, at % dim);
        let from = at - channel;
        if head < heads {
            let to = place(row, tokens, heads, head) * dim + channel;
            q[to] = T::cast_from(scale * turned(qkv, from, channel, dim, angles, row * dim, turns, false));
        } else if head < heads + groups {
            let to = place(row, tokens, groups, head - heads) * dim + channel;
            k[to] = T::cast_from(turned(qkv, from, channel, dim, angles, row * dim, turns, false));
        } else {
            let to = place(row, tokens, groups, head - heads - groups) * dim + channel;
            v[to] = qkv[at];
        }
    }
}

#[cube(launch_unchecked)]
fn join_heads<T: Float>(
    q: &Array<T>,
    k: &Array<T>,
    v: &Array<T>,
    angles: &Sequence<Array<f32>>,
    out: &mut Array<T>,
    values: usize,
    tokens: usize,
    heads: usize,
    groups: usize,
    dim: usize,
    scale: f32,
    #[comptime] turns: bool,
    #[define(T)] _type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let width = (heads + 2 * groups) * dim;
        let (row, head, channel) = (at / width, at % width / dim, at % dim);
        if head < heads {
            let from = place(row, tokens, heads, head) * dim;
            out[at] = T::cast_from(scale * turned(q, from, channel, dim, angles, row * dim, turns, true));
        } else if head < heads + groups {
            let from = place(row, tokens, groups, head - heads) * dim;
            out[at] = T::cast_from(turned(k, from, channel, dim, angles, row * dim, turns, true));
        } else {
            out[at] = v[place(row, tokens, groups, head - heads - groups) * dim + channel];
        }
    }
}

/// Where a head of a token lies among `heads` that come first, in heads.
#[cube]
fn place(row: usize, tokens: usize, heads: usize, head: usize) -> usize {
    (row / tokens * heads + head) * tokens + row % tokens
}

/// A channel of a head that begins at `from`, turned, or turned back.
#[cube]
fn turned<T: Float>(
    x: &Array<T>,
    from: usize,
    channel: usize,
    dim: usize,
    angles: &Sequence<Array<f32>>,
    angle: usize,
    #[comptime] turns: bool,
    #[comptime] back: bool,
) -> f32 {
    let value = f32::cast_from(x[from + channel]);
    if comptime!(turns) {
        let pair = (channel + dim / 2) % dim;
        let other = f32::cast_from(x[from + pair]);
        // The sine of the pair is that of the channel negated: to turn back.
        let sine = if comptime!(back) { angle + pair } else { angle + channel };
        value * angles.index(0usize)[angle + channel] + other * angles.index(1usize)[sine]
    } else {
        value
    }
}
