//! Attention on slices.
//!
//! Queries, keys and values stand side by side, as one product made them: `[batch, tokens, (heads + 2 groups) dim]`; or
//! queries by themselves, and keys and values of another sequence side by side.
//! A task is a group of one row of the batch: its keys and values are gathered once, then each of its heads goes through
//! the mask's blocks of queries. Scores exist for one block of one head; a block's products are done by tiles in
//! registers, since packing would cost as much as they do. Tasks depend on shapes alone, so results do not depend on the
//! number of threads.

use core::cell::RefCell;

use rayon::prelude::*;

use super::matrix::{MatMut, written};
use super::vector::{Fma, Part, TILE, dot, exp, exp_sum, max, product, vectorize};
use crate::context::Heads;
use crate::mask::{Block, BlockMask};
use crate::rotary::Rotary;

/// What is read: queries, keys and values.
#[derive(Clone, Copy)]
pub struct Read<'a> {
    q: Side<'a>,
    kv: Side<'a>,
}

/// Heads side by side, in rows of tokens.
#[derive(Clone, Copy)]
struct Side<'a> {
    data: &'a [f32],
    /// Of a row.
    width: usize,
    /// The first head.
    first: usize,
}

impl<'a> Read<'a> {
    /// Queries `[batch, tokens, heads · dim]` over keys and values `[batch, keys, 2 groups dim]`; without `kv` all three are
    /// side by side, `[batch, tokens, (heads + 2 groups) dim]`.
    pub fn new(q: &'a [f32], kv: Option<&'a [f32]>, heads: Heads) -> Self {
        let width = heads.width();
        match kv {
            None => {
                let side = |first| Side { data: q, width, first };
                Self { q: side(0), kv: side(heads.heads) }
            }
            Some(kv) => {
                let own = heads.heads * heads.dim;
                let kv = Side { data: kv, width: width - own, first: 0 };
                Self { q: Side { data: q, width: own, first: 0 }, kv }
            }
        }
    }

    /// Is it one sequence that looks at itself?
    fn together(&self) -> bool {
        self.kv.first > 0
    }
}

/// Sizes, who sees whom, and angles. With a rotation queries are as many as keys.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    pub heads: Heads,
    pub mask: &'a BlockMask,
    pub rotary: Option<&'a Rotary>,
}

impl Attention<'_> {
    /// The mixed values `[batch, tokens, heads · dim]`, and with `keep` each query's `log Σ exp` `[batch, heads, tokens]`.
    pub fn forward(self, read: Read, keep: bool) -> (Vec<f32>, Vec<f32>) {
        let Self { heads, mask, .. } = self;
        let (tokens, width) = (mask.tokens(), heads.heads * heads.dim);
        let mut sums = vec![0f32; if keep { mask.batch() * heads.heads * tokens } else { 0 }];
        let out = written(mask.batch() * tokens * width, |out| {
            let mut tasks = Vec::with_capacity(mask.batch() * heads.groups);
            for (row, out) in out.chunks_exact_mut((tokens * width).max(1)).enumerate() {
                let out = MatMut::new(out, tokens, width).deal(vec![self.lanes(); heads.groups]);
                tasks.extend(out.into_iter().enumerate().map(|(group, out)| (row, group, out)));
            }
            let run = |(row, group, mut out): (usize, usize, MatMut), sums: &mut [f32]| {
                let task = Task { how: self, read, row, group };
                let forward = |room: &mut Room| vectorize!(|m| task.forward(m, room, &mut out, sums));
                Room::with(mask, heads.dim, false, forward);
            };
            if keep {
                let sums = sums.par_chunks_exact_mut((heads.per_group() * tokens).max(1));
                tasks.into_par_iter().zip(sums).with_max_len(1).for_each(|(task, sums)| run(task, sums));
            } else {
                tasks.into_par_iter().with_max_len(1).for_each(|task| run(task, &mut []));
            }
        });
        (out, sums)
    }

    /// Gradients of what was read, in its layout, from that of the mixed values: of all three and nothing, or of queries and of
    /// keys and values. `out` and `sums` are the forward's.
    pub fn backward(self, read: Read, out: &[f32], sums: &[f32], grad: &[f32]) -> [Vec<f32>; 2] {
        let Self { heads: Heads { groups, dim, .. }, mask, .. } = self;
        let (tokens, keys) = (mask.tokens(), mask.keys());
        // A row's queries, group by group, then its keys and its values.
        let widths = [vec![self.lanes(); groups], vec![dim; 2 * groups]];
        let mut d_kv = Vec::new();
        let d_q = written(read.q.data.len(), |d| {
            let rows = d.chunks_exact_mut((tokens * read.q.width).max(1));
            let rows = rows.map(|d| MatMut::new(d, tokens, read.q.width));
            if read.together() {
                let rows = rows.map(|d| d.deal(widths.concat()));
                self.backward_rows(read, rows, out, sums, grad);
            } else {
                d_kv = written(read.kv.data.len(), |d| {
                    let others = d.chunks_exact_mut(keys * read.kv.width);
                    let others = others.map(|d| MatMut::new(d, keys, read.kv.width));
                    let rows = rows.zip(others);
                    let rows = rows.map(|(q, kv)| [q.deal(widths[0].clone()), kv.deal(widths[1].clone())]);
                    self.backward_rows(
                        read,
                        rows.map(|d| d.into_iter().flatten().collect()),
                        out,
                        sums,
                        grad,
                    );
                });
            }
        });
        [d_q, d_kv]
    }

    /// A row's gradients are dealt as queries, keys and values of each group.
    fn backward_rows<'d>(
        self,
        read: Read,
        rows: impl Iterator<Item = Vec<MatMut<'d>>>,
        out: &[f32],
        sums: &[f32],
        grad: &[f32],
    ) {
        let Heads { groups, dim, .. } = self.heads;
        let mut tasks = Vec::with_capacity(self.mask.batch() * groups);
        for (row, mut q) in rows.enumerate() {
            let mut k = q.split_off(groups);
            let v = k.split_off(groups);
            let all = q.into_iter().zip(k).zip(v).enumerate();
            tasks.extend(all.map(|(group, ((q, k), v))| (row, group, [q, k, v])));
        }
        tasks.into_par_iter().with_max_len(1).for_each(|(row, group, mut d)| {
            let task = Task { how: self, read, row, group };
            let own = &sums[(row * groups + group) * self.heads.per_group() * self.mask.tokens()..];
            let backward = |room: &mut Room| vectorize!(|m| task.backward(m, room, out, own, grad, &mut d));
            Room::with(self.mask, dim, true, backward);
        });
    }

    /// Channels of the queries of a group.
    fn lanes(self) -> usize {
        self.heads.per_group() * self.heads.dim
    }
}

/// One group of one row.
struct Task<'a> {
    how: Attention<'a>,
    read: Read<'a>,
    row: usize,
    group: usize,
}

impl Task<'_> {
    #[inline(always)]
    fn forward<M: Fma>(&self, m: M, room: &mut Room, out: &mut MatMut, sums: &mut [f32]) {
        let Attention { heads, mask, .. } = self.how;
        let (tokens, keys, dim, scale) = (mask.tokens(), mask.keys(), heads.dim, heads.scale());
        let (wide, stride) = (dim.next_multiple_of(TILE), turned_stride(keys));
        self.gather_keys(room);
        turn(&room.k, keys, dim, &mut room.k_turned);
        for head in 0..heads.per_group() {
            self.gather(self.read.q, tokens, self.query(head), true, &mut room.q);
            for block in mask.blocks(self.row) {
                let (from, rows, width) = (block.queries.start, block.queries.len(), block.width());
                let line = line(width);
                if width == 0 {
                    for r in block.queries.clone() {
                        out.row(r)[head * dim..][..dim].fill(0.0);
                    }
                    continue;
                }
                scores(m, block, dim, &room.q, &room.k_turned, stride, &mut room.scores);
                hide(block, &mut room.scores);
                for r in 0..rows {
                    let s = &mut room.scores[r * line..][..width];
                    let top = max(s) * scale;
                    let sum = exp_sum(m, s, scale, top);
                    room.inverse[r] = 1.0 / sum;
                    if let Some(place) = sums.get_mut(head * tokens + from + r) {
                        *place = top + sum.ln();
                    }
                }
                let mut at = 0;
                for keys in &block.keys {
                    let weights = Part { data: &room.scores, at, rows: line, columns: 1 };
                    let values = Part { data: &room.v, at: keys.range.start * wide, rows: wide, columns: 1 };
                    product(m, [rows, dim, keys.range.len()], weights, values, &mut room.o, 0, wide, at > 0);
                    at += keys.range.len();
                }
                for r in 0..rows {
                    let inverse = room.inverse[r];
                    let to = &mut out.row(from + r)[head * dim..][..dim];
                    for (to, o) in to.iter_mut().zip(&room.o[r * wide..][..dim]) {
                        *to = o * inverse;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn backward<M: Fma>(
        &self,
        m: M,
        room: &mut Room,
        out: &[f32],
        sums: &[f32],
        grad: &[f32],
        [d_q, d_k, d_v]: &mut [MatMut; 3],
    ) {
        let Attention { heads, mask, .. } = self.how;
        let (tokens, keys, dim, scale) = (mask.tokens(), mask.keys(), heads.dim, heads.scale());
        let (wide, stride) = (dim.next_multiple_of(TILE), turned_stride(keys));
        let out_width = heads.heads * dim;
        self.gather_keys(room);
        turn(&room.k, keys, dim, &mut room.k_turned);
        turn(&room.v, keys, dim, &mut room.v_turned);
        room.d_k[..keys * wide].fill(0.0);
        room.d_v[..keys * wide].fill(0.0);
        for head in 0..heads.per_group() {
            let column = self.query(head);
            self.gather(self.read.q, tokens, column, true, &mut room.q);
            let first = self.row * tokens * out_width + column * dim;
            gather(&grad[first..], out_width, tokens, dim, None, &mut room.o);
            for block in mask.blocks(self.row) {
                let (from, rows, width) = (block.queries.start, block.queries.len(), block.width());
                let line = line(width);
                if width == 0 {
                    for r in block.queries.clone() {
                        d_q.row(r)[head * dim..][..dim].fill(0.0);
                    }
                    continue;
                }
                scores(m, block, dim, &room.q, &room.k_turned, stride, &mut room.scores);
                scores(m, block, dim, &room.o, &room.v_turned, stride, &mut room.d_scores);
                hide(block, &mut room.scores);
                for r in 0..rows {
                    // Σ p (g · v) of a query is its result times that result's gradient.
                    let result = &out[first + (from + r) * out_width..][..dim];
                    let mean = dot(m, result, &room.o[(from + r) * wide..][..dim]);
                    let shift = sums[head * tokens + from + r];
                    let p = &mut room.scores[r * line..][..width];
                    let d = &mut room.d_scores[r * line..][..width];
                    for i in 0..width {
                        let e = exp(m, p[i] * scale - shift);
                        p[i] = e;
                        d[i] = e * (d[i] - mean) * scale;
                    }
                }
                let mut at = 0;
                for keys in &block.keys {
                    let (place, count) = (keys.range.start * wide, keys.range.len());
                    let p = Part { data: &room.scores, at, rows: 1, columns: line };
                    let d = Part { data: &room.d_scores, at, rows: 1, columns: line };
                    let of = |data, at| Part { data, at, rows: wide, columns: 1 };
                    product(
                        m,
                        [count, dim, rows],
                        p,
                        of(&room.o, from * wide),
                        &mut room.d_v,
                        place,
                        wide,
                        true,
                    );
                    product(
                        m,
                        [count, dim, rows],
                        d,
                        of(&room.q, from * wide),
                        &mut room.d_k,
                        place,
                        wide,
                        true,
                    );
                    let d = Part { rows: line, columns: 1, ..d };
                    product(m, [rows, dim, count], d, of(&room.k, place), &mut room.d_q, 0, wide, at > 0);
                    at += count;
                }
                for r in 0..rows {
                    let to = &mut d_q.row(from + r)[head * dim..][..dim];
                    to.copy_from_slice(&room.d_q[r * wide..][..dim]);
                    self.turn_back(from + r, to);
                }
            }
        }
        for t in 0..keys {
            d_k.row(t).copy_from_slice(&room.d_k[t * wide..][..dim]);
            self.turn_back(t, d_k.row(t));
            d_v.row(t).copy_from_slice(&room.d_v[t * wide..][..dim]);
        }
    }

    /// The query head of this place in the group.
    #[inline(always)]
    fn query(&self, head: usize) -> usize {
        self.group * self.how.heads.per_group() + head
    }

    #[inline(always)]
    fn gather_keys(&self, room: &mut Room) {
        let keys = self.how.mask.keys();
        self.gather(self.read.kv, keys, self.group, true, &mut room.k);
        self.gather(self.read.kv, keys, self.how.heads.groups + self.group, false, &mut room.v);
    }

    /// A head of the row, `[tokens, dim]`, rotated if it is to be.
    #[inline(always)]
    fn gather(&self, from: Side, tokens: usize, head: usize, rotate: bool, to: &mut [f32]) {
        let dim = self.how.heads.dim;
        let rotary = self.how.rotary.filter(|_| rotate).map(|rotary| (rotary, self.row * tokens));
        let data = &from.data[self.row * tokens * from.width + (from.first + head) * dim..];
        gather(data, from.width, tokens, dim, rotary, to);
    }

    /// A gradient of a rotated head back to what was rotated.
    #[inline(always)]
    fn turn_back(&self, token: usize, x: &mut [f32]) {
        if let Some(rotary) = self.how.rotary {
            rotate(x, rotary, self.row * self.how.mask.tokens() + token, -1.0);
        }
    }
}

/// `[tokens, dim]` out of rows `width` apart into rows of whole tiles, what lies behind `dim` zeroed.
#[inline(always)]
fn gather(
    data: &[f32],
    width: usize,
    tokens: usize,
    dim: usize,
    rotary: Option<(&Rotary, usize)>,
    to: &mut [f32],
) {
    let wide = dim.next_multiple_of(TILE);
    for (t, to) in to.chunks_exact_mut(wide).take(tokens).enumerate() {
        to[..dim].copy_from_slice(&data[t * width..][..dim]);
        to[dim..].fill(0.0);
        if let Some((rotary, first)) = rotary {
            rotate(&mut to[..dim], rotary, first + t, 1.0);
        }
    }
}

/// Turn the pairs of a head by the angles of a token; back with `sign` -1.
#[inline(always)]
pub fn rotate(x: &mut [f32], rotary: &Rotary, token: usize, sign: f32) {
    let half = rotary.half;
    let (left, right) = x.split_at_mut(half);
    let (cos, sin) = (&rotary.cos[token * half..][..half], &rotary.sin[token * half..][..half]);
    let right = &mut right[..half];
    for i in 0..half {
        let (a, b, s) = (left[i], right[i], sin[i] * sign);
        left[i] = a * cos[i] - b * s;
        right[i] = b * cos[i] + a * s;
    }
}

/// Rows `[tokens, dim]` of whole tiles to columns, `[dim, stride]`.
#[inline(always)]
fn turn(rows: &[f32], tokens: usize, dim: usize, to: &mut [f32]) {
    let (wide, stride) = (dim.next_multiple_of(TILE), turned_stride(tokens));
    // A tile of tokens at a time: whole lines are written.
    for from in (0..tokens).step_by(TILE) {
        let count = TILE.min(tokens - from);
        for d in 0..dim {
            let to = &mut to[d * stride + from..][..count];
            for (i, to) in to.iter_mut().enumerate() {
                *to = rows[(from + i) * wide + d];
            }
        }
    }
}

/// Columns have room for a tile behind them, and do not all begin in the same set of the cache.
fn turned_stride(tokens: usize) -> usize {
    let stride = tokens.next_multiple_of(TILE) + TILE;
    if stride.is_multiple_of(128) { stride + TILE } else { stride }
}

/// Room of a query's scores: a tile behind them is overwritten.
fn line(width: usize) -> usize {
    width.next_multiple_of(TILE) + TILE
}

/// `q kᵀ` of a block, the ranges of its keys side by side.
#[inline(always)]
fn scores<M: Fma>(m: M, block: &Block, dim: usize, q: &[f32], turned: &[f32], stride: usize, to: &mut [f32]) {
    let (wide, line) = (dim.next_multiple_of(TILE), line(block.width()));
    let q = Part { data: q, at: block.queries.start * wide, rows: wide, columns: 1 };
    let mut at = 0;
    for keys in &block.keys {
        let k = Part { data: turned, at: keys.range.start, rows: stride, columns: 1 };
        product(m, [block.queries.len(), keys.range.len(), dim], q, k, to, at, line, false);
        at += keys.range.len();
    }
}

/// Keys after the query: the end of each causal range.
#[inline(always)]
fn hide(block: &Block, scores: &mut [f32]) {
    let line = line(block.width());
    let mut at = 0;
    for keys in &block.keys {
        if keys.causal {
            for (r, query) in block.queries.clone().enumerate() {
                let seen = (query + 1).clamp(keys.range.start, keys.range.end) - keys.range.start;
                scores[r * line + at + seen..][..keys.range.len() - seen].fill(f32::NEG_INFINITY);
            }
        }
        at += keys.range.len();
    }
}

/// A thread's own buffers, grown to the largest task and kept, so that no pages are asked of the system again.
#[derive(Default)]
struct Room {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    k_turned: Vec<f32>,
    v_turned: Vec<f32>,
    /// Mixed values of a block; in the backward their gradient, of all tokens.
    o: Vec<f32>,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    inverse: Vec<f32>,
    d_q: Vec<f32>,
    d_k: Vec<f32>,
    d_v: Vec<f32>,
}

impl Room {
    fn with<R>(mask: &BlockMask, dim: usize, backward: bool, f: impl FnOnce(&mut Self) -> R) -> R {
        thread_local! {
            static ROOM: RefCell<Room> = RefCell::default();
        }
        let rows = mask.all_blocks().map(|b| b.queries.len()).max().unwrap_or(0);
        let scores = mask.all_blocks().map(|b| b.queries.len() * line(b.width())).max().unwrap_or(0);
        let wide = dim.next_multiple_of(TILE);
        let (queries, keys) = (mask.tokens() * wide, mask.keys() * wide);
        let turned = turned_stride(mask.keys()) * dim;
        // Nothing in `f` waits for other tasks, so no other task of this thread borrows meanwhile.
        ROOM.with_borrow_mut(|room| {
            let grow = |buffers: &mut [&mut Vec<f32>], n: usize| {
                for buffer in buffers {
                    if buffer.len() < n {
                        buffer.resize(n, 0.0);
                    }
                }
            };
            grow(&mut [&mut room.q], queries);
            grow(&mut [&mut room.k, &mut room.v], keys);
            grow(&mut [&mut room.k_turned], turned);
            grow(&mut [&mut room.scores], scores);
            grow(&mut [&mut room.inverse], rows);
            if backward {
                grow(&mut [&mut room.o], queries);
                grow(&mut [&mut room.d_k, &mut room.d_v], keys);
                grow(&mut [&mut room.v_turned], turned);
                grow(&mut [&mut room.d_scores], scores);
                grow(&mut [&mut room.d_q], rows * wide);
            } else {
                grow(&mut [&mut room.o], rows * wide);
            }
            f(room)
        })
    }
}
