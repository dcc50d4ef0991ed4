//! Attention of new tokens behind those of a cache, on slices.
//!
//! Keys and values of a row's group lie side by side, so that a new token is one write behind the last, and a query reads its
//! keys in one go. A task is a group of one row, as in attention without a cache.

use core::ops::Range;

use rayon::prelude::*;

use super::attention::rotate;
use super::matrix::{MatMut, written};
use super::vector::{Fma, dot, exp_sum, max, vectorize};
use crate::context::Heads;
use crate::rotary::Rotary;

/// Multiplications that one thread does at least: below, waking another costs more than it does.
const LEAST: usize = 1 << 15;

/// Keys, rotated, and values, each `[rows, groups, capacity, dim]`, of which the first `len` tokens are written.
#[derive(Debug, Clone)]
pub struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
    rows: usize,
    groups: usize,
    dim: usize,
    capacity: usize,
    len: usize,
}

impl Cache {
    pub fn new(rows: usize, heads: Heads) -> Self {
        let Heads { groups, dim, .. } = heads;
        Self { keys: Vec::new(), values: Vec::new(), rows, groups, dim, capacity: 0, len: 0 }
    }

    /// Writes the keys and values of `qkv`, `[rows, tokens, (heads + 2 groups) dim]`.
    ///
    /// # Panics
    /// If rows or heads are others than before.
    pub fn append(&mut self, qkv: &[f32], heads: Heads, tokens: usize, rotary: Option<&Rotary>) {
        let (at, dim, width) = (self.len, self.dim, heads.width());
        assert_eq!((self.groups, self.dim), (heads.groups, heads.dim), "the heads of the cache");
        assert_eq!(qkv.len(), self.rows * tokens * width, "the rows of the cache");
        self.make_room(at + tokens);
        let line = self.capacity * dim;
        let lines = self.keys.par_chunks_exact_mut(line).zip(self.values.par_chunks_exact_mut(line));
        let groups = self.groups;
        lines.enumerate().with_min_len(LEAST / (tokens * dim).max(1)).for_each(|(task, (keys, values))| {
            let (row, group) = (task / groups, task % groups);
            for t in 0..tokens {
                let token = row * tokens + t;
                let new = &qkv[token * width..][..width];
                let key = &mut keys[(at + t) * dim..][..dim];
                key.copy_from_slice(&new[(heads.heads + group) * dim..][..dim]);
                if let Some(rotary) = rotary {
                    rotate(key, rotary, token, 1.0);
                }
                let value = &new[(heads.heads + groups + group) * dim..][..dim];
                values[(at + t) * dim..][..dim].copy_from_slice(value);
            }
        });
        self.len += tokens;
    }

    /// Room for this many tokens; at least twice as much as before, so that a token is copied twice in all at most.
    fn make_room(&mut self, tokens: usize) {
        if tokens <= self.capacity {
            return;
        }
        let capacity = tokens.max(2 * self.capacity).next_multiple_of(64);
        let (old, new, used) = (self.capacity * self.dim, capacity * self.dim, self.len * self.dim);
        for buffer in [&mut self.keys, &mut self.values] {
            let mut larger = vec![0f32; self.rows * self.groups * new];
            if used > 0 {
                for (to, from) in larger.chunks_exact_mut(new).zip(buffer.chunks_exact(old)) {
                    to[..used].copy_from_slice(&from[..used]);
                }
            }
            *buffer = larger;
        }
        self.capacity = capacity;
    }

    /// The mixed values `[rows, tokens, heads · dim]` of the queries of `qkv`, which see the columns `seen` of each row and
    /// token.
    pub fn attend(
        &self,
        qkv: &[f32],
        heads: Heads,
        tokens: usize,
        rotary: Option<&Rotary>,
        seen: &[Vec<Range<usize>>],
    ) -> Vec<f32> {
        let (dim, per_group) = (self.dim, heads.per_group());
        let width = heads.heads * dim;
        written(self.rows * tokens * width, |out| {
            let mut tasks = Vec::with_capacity(self.rows * self.groups);
            for (row, out) in out.chunks_exact_mut((tokens * width).max(1)).enumerate() {
                let parts = MatMut::new(out, tokens, width).deal(vec![per_group * dim; self.groups]);
                tasks.extend(parts.into_iter().enumerate().map(|(group, part)| (row, group, part)));
            }
            let work = tokens * per_group * self.len * dim;
            tasks.into_par_iter().with_min_len(LEAST / work.max(1)).for_each(|(row, group, mut out)| {
                let line = (row * self.groups + group) * self.capacity * dim;
                let (keys, values) = (&self.keys[line..], &self.values[line..]);
                let mut room = (vec![0f32; dim], vec![0f32; self.len]);
                for t in 0..tokens {
                    let token = row * tokens + t;
                    let queries = &qkv[token * heads.width() + group * per_group * dim..];
                    for head in 0..per_group {
                        let (q, scores) = &mut room;
                        q.copy_from_slice(&queries[head * dim..][..dim]);
                        if let Some(rotary) = rotary {
                            rotate(q, rotary, token, 1.0);
                        }
                        let to = &mut out.row(t)[head * dim..][..dim];
                        vectorize!(|m| query(m, q, keys, values, &seen[token], scores, heads.scale(), to));
                    }
                }
            });
        })
    }

    /// Keeps these rows, in this order; one may be taken more than once.
    pub fn select(&mut self, rows: &[usize]) {
        let line = self.groups * self.capacity * self.dim;
        // Rows that only move forward are moved where they are.
        let forward = rows.iter().enumerate().all(|(to, &from)| from >= to) && rows.is_sorted();
        for buffer in [&mut self.keys, &mut self.values] {
            if forward {
                for (to, &from) in rows.iter().enumerate().filter(|(to, from)| *to != **from) {
                    buffer.copy_within(from * line..(from + 1) * line, to * line);
                }
                buffer.truncate(rows.len() * line);
            } else {
                *buffer =
                    rows.iter().flat_map(|&row| &buffer[row * line..(row + 1) * line]).copied().collect();
            }
        }
        self.rows = rows.len();
    }
}

/// `softmax(scale q kᵀ) v` of one query.
#[inline(always)]
#[allow(clippy::too_many_arguments)] // an attention's usual ones
fn query<M: Fma>(
    m: M,
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    seen: &[Range<usize>],
    scores: &mut [f32],
    scale: f32,
    to: &mut [f32],
) {
    let dim = q.len();
    let mut count = 0;
    for range in seen {
        for key in keys[range.start * dim..range.end * dim].chunks_exact(dim) {
            scores[count] = dot(m, q, key);
            count += 1;
        }
    }
    let scores = &mut scores[..count];
    let top = max(scores) * scale;
    let inverse = 1.0 / exp_sum(m, scores, scale, top);
    to.fill(0.0);
    let mut at = 0;
    for range in seen {
        for value in values[range.start * dim..range.end * dim].chunks_exact(dim) {
            let p = scores[at] * inverse;
            for i in 0..dim {
                to[i] = m.madd(p, value[i], to[i]);
            }
            at += 1;
        }
    }
}
