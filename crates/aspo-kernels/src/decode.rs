//! Attention of new tokens behind those of a cache: a step of a generation.

use core::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

use crate::attention::{attend, merge_heads};
use crate::context::{Context, Heads, split_heads};
use crate::rotary::{Rotary, Tables};

/// What the layers of one step share: which columns of the cache the new tokens see, and their rotary angles.
#[derive(Debug, Clone)]
pub struct Step<B: Backend> {
    batch: usize,
    tokens: usize,
    past: usize,
    segments: Arc<Vec<i64>>,
    rotary: Option<Arc<Rotary>>,
    #[cfg_attr(not(feature = "flex"), allow(dead_code))]
    seen: Arc<OnceLock<Vec<Vec<Range<usize>>>>>,
    tables: Arc<OnceLock<Tables<B>>>,
    hidden: Arc<OnceLock<Tensor<B, 4, Bool>>>,
    device: B::Device,
}

impl<B: Backend> Step<B> {
    /// `tokens` new ones in each of `batch` rows, behind `past` columns. `segments` is `[batch, past + tokens]`: a token sees
    /// itself and earlier columns of its own segment and of segment 0; below zero is padding, which nobody sees. Queries and
    /// keys are rotated where `rotary` is given, whose angles are those of the new tokens.
    ///
    /// # Panics
    /// If there are more or fewer segments than columns, or angles than tokens.
    pub fn new(
        [batch, tokens, past]: [usize; 3],
        segments: Vec<i64>,
        rotary: Option<Rotary>,
        device: &B::Device,
    ) -> Self {
        assert_eq!(segments.len(), batch * (past + tokens), "a segment for each column");
        if let Some(rotary) = &rotary {
            assert_eq!(
                rotary.cos.len(),
                batch * tokens * rotary.half,
                "an angle for each new token and pair"
            );
        }
        Self {
            batch,
            tokens,
            past,
            segments: Arc::new(segments),
            rotary: rotary.map(Arc::new),
            seen: Arc::default(),
            tables: Arc::default(),
            hidden: Arc::default(),
            device: device.clone(),
        }
    }

    fn sees(&self, row: usize, token: usize, column: usize) -> bool {
        let segments = &self.segments[row * (self.past + self.tokens)..][..self.past + self.tokens];
        let (own, key) = (segments[self.past + token], segments.get(column).copied().unwrap_or(-1));
        // A token that is padding sees itself, so that its result is a number.
        column == self.past + token || column < self.past + token && key >= 0 && (key == 0 || key == own)
    }

    /// The columns that each new token sees, row by row.
    #[cfg(feature = "flex")]
    fn seen(&self) -> &[Vec<Range<usize>>] {
        self.seen.get_or_init(|| {
            let tokens = (0..self.batch).flat_map(|row| (0..self.tokens).map(move |token| (row, token)));
            tokens
                .map(|(row, token)| {
                    let mut ranges: Vec<Range<usize>> = Vec::new();
                    for column in (0..=self.past + token).filter(|&column| self.sees(row, token, column)) {
                        match ranges.last_mut() {
                            Some(range) if range.end == column => range.end += 1,
                            _ => ranges.push(column..column + 1),
                        }
                    }
                    ranges
                })
                .collect()
        })
    }

    /// Queries, keys and values of the new tokens apart and rotated, each `[batch, heads or groups, tokens, dim]`.
    pub fn split(&self, qkv: Tensor<B, 3>, heads: Heads) -> [Tensor<B, 4>; 3] {
        let make = |rotary: &Arc<Rotary>| self.tables.get_or_init(|| Tables::new(rotary, &self.device));
        split_heads(qkv, heads, self.rotary.as_ref().map(make))
    }

    /// The mask over the cache's whole buffer, `[batch, 1, tokens, capacity]`, true where a column is hidden.
    pub fn hidden(&self) -> Tensor<B, 4, Bool> {
        let capacity = capacity(self.past + self.tokens);
        let make = || {
            let rows = (0..self.batch).flat_map(|row| (0..self.tokens).map(move |token| (row, token)));
            let columns = |(row, token)| (0..capacity).map(move |column| !self.sees(row, token, column));
            let mask: Vec<bool> = rows.flat_map(columns).collect();
            let shape = [self.batch, 1, self.tokens, capacity];
            Tensor::from_data(TensorData::new(mask, shape), &self.device)
        };
        self.hidden.get_or_init(make).clone()
    }
}

/// Columns of the buffer that holds this many tokens.
fn capacity(tokens: usize) -> usize {
    tokens.next_multiple_of(64)
}

/// Keys, rotated, and values of the tokens that one layer has seen, in a buffer that grows.
///
/// On the CPU a new token is written behind the last one and nothing else is touched; the buffer doubles when it is full.
/// Elsewhere the buffer is a tensor that grows by 64 tokens and is handed to attention as it is, its tail hidden by the mask:
/// a step copies one token where the backend assigns in place (CubeCL).
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    kept: Kept<B>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Kept<B: Backend> {
    Nothing,
    #[cfg(feature = "flex")]
    Slices(crate::cpu::Cache),
    /// Keys and values, `[batch, groups, capacity, dim]`.
    Tensors([Tensor<B, 4>; 2]),
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { kept: Kept::Nothing, len: 0 }
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

    /// Keeps the keys and values of the first tokens, those of `context`, whose attention is computed without a cache.
    ///
    /// # Panics
    /// If something is written already.
    pub fn begin(&mut self, qkv: &Tensor<B, 3>, heads: Heads, context: &Context<B>) {
        assert!(self.is_empty(), "a cache begins once");
        self.len = qkv.dims()[1];
        #[cfg(feature = "flex")]
        if let Some(cache) = crate::cpu::ops::begin_cache(qkv, heads, context) {
            self.kept = Kept::Slices(cache);
            return;
        }
        let [_, k, v] = context.split(qkv.clone(), heads);
        self.kept = Kept::Tensors([k, v].map(|new| grown(None, 0, new)));
    }

    /// Causal self-attention of new tokens, which see those of the cache too and are written into it.
    ///
    /// `qkv` is `[batch, tokens, (heads + 2 groups) dim]`, as for [`attention`](crate::attention()); the result is `[batch,
    /// tokens, heads · dim]`, without a graph. Operations for C visible columns: `4 C heads dim` a token; bytes: the keys and
    /// values of C columns, read once for the heads of a group.
    ///
    /// # Panics
    /// If `qkv` has another shape than step and heads say, or the cache other columns than the step's past.
    pub fn attention(&mut self, qkv: Tensor<B, 3>, heads: Heads, step: &Step<B>) -> Tensor<B, 3> {
        assert_eq!(
            qkv.dims(),
            [step.batch, step.tokens, heads.width()],
            "queries, keys and values side by side"
        );
        assert_eq!(self.len, step.past, "columns of the cache");
        let at = self.len;
        self.len += step.tokens;
        #[cfg(feature = "flex")]
        if let Kept::Slices(cache) = &mut self.kept {
            return crate::cpu::ops::step(qkv, heads, cache, step.rotary.as_deref(), step.seen());
        }
        let [q, k, v] = step.split(qkv, heads);
        let [keys, values] = match std::mem::replace(&mut self.kept, Kept::Nothing) {
            Kept::Tensors([keys, values]) => [grown(Some(keys), at, k), grown(Some(values), at, v)],
            _ => [k, v].map(|new| grown(None, at, new)),
        };
        self.kept = Kept::Tensors([keys.clone(), values.clone()]);
        #[cfg(feature = "cube")]
        if let Some(mixed) = crate::cube::attend([&q, &keys, &values], heads, &step.hidden()) {
            return merge_heads(mixed);
        }
        merge_heads(attend(q, keys, values, Some(step.hidden())))
    }

    /// Keeps these rows of the batch alone, in this order (finished rows, beams); one may be taken more than once.
    pub fn select_rows(&mut self, rows: &[usize]) {
        match &mut self.kept {
            Kept::Nothing => {}
            #[cfg(feature = "flex")]
            Kept::Slices(cache) => cache.select(rows),
            Kept::Tensors(both) => {
                let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
                let index = TensorData::new(index, [rows.len()]);
                let index = Tensor::<B, 1, Int>::from_data(index, &both[0].device());
                *both = both.clone().map(|tensor| tensor.select(0, index.clone()));
            }
        }
    }
}

/// The buffer with `new`, `[batch, groups, tokens, dim]`, written at column `at`.
fn grown<B: Backend>(old: Option<Tensor<B, 4>>, at: usize, new: Tensor<B, 4>) -> Tensor<B, 4> {
    let [batch, groups, tokens, dim] = new.dims();
    let capacity = capacity(at + tokens);
    let zeros = |columns| Tensor::zeros([batch, groups, columns, dim], (&new.device(), new.dtype()));
    let buffer = match old {
        None => zeros(capacity),
        Some(old) if old.dims()[2] < capacity => {
            let missing = capacity - old.dims()[2];
            Tensor::cat(vec![old, zeros(missing)], 2)
        }
        Some(old) => old,
    };
    buffer.slice_assign([0..batch, 0..groups, at..at + tokens, 0..dim], new)
}
