//! Who sees whom in a batch of rows, and the key-value cache.

use aspo_kernels::{BlockMask, Context, Heads, Rotary, Tables, attend, attention, merge_heads, split_heads};
use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

use crate::input;
use crate::positions::Positions;

/// What the blocks of a causal decoder share in one pass: who sees whom, and the angles of rotary positions.
///
/// [`attention`](Self::attention) is the whole of self-attention between the projections, with and without a cache.
#[derive(Debug, Clone)]
pub struct CausalContext<B: Backend>(Kind<B>);

#[derive(Debug, Clone)]
enum Kind<B: Backend> {
    /// All tokens of the rows.
    Whole(Context<B>),
    /// New tokens behind those of a cache.
    Cached {
        /// Rotary tables of the new tokens.
        tables: Option<Tables<B>>,
        /// `[batch, 1, new, capacity]`, true = hidden: what a token does not see, and what is not yet written.
        mask: Tensor<B, 4, Bool>,
    },
}

impl<B: Backend> CausalContext<B> {
    /// Queries and keys are rotated where `rotary` is given, whose angles are those of the tokens of `positions`.
    ///
    /// # Panics
    /// If angles and positions are of different numbers of tokens.
    pub fn new(positions: &Positions, rotary: Option<Rotary>, device: &B::Device) -> Self {
        let Positions { batch, tokens, past, .. } = *positions;
        if past == 0 {
            let mask = BlockMask::causal(batch, tokens, &positions.segments);
            return Self(Kind::Whole(Context::new(mask, rotary, device)));
        }
        let capacity = capacity(past + tokens);
        let rows = (0..batch).flat_map(|row| (0..tokens).map(move |token| (row, token)));
        let mask: Vec<bool> = rows
            .flat_map(|(row, token)| (0..capacity).map(move |column| positions.hides(row, token, column)))
            .collect();
        Self(Kind::Cached {
            tables: rotary.map(|rotary| Tables::new(&rotary, device)),
            mask: Tensor::from_data(TensorData::new(mask, [batch, 1, tokens, capacity]), device),
        })
    }

    /// Causal self-attention of `qkv` `[batch, tokens, (heads + 2 groups) dim]`, queries, keys and values side by side and
    /// not rotated, to `[batch, tokens, heads · dim]`. Keys and values go into the cache where one is given.
    ///
    /// # Panics
    /// If `qkv` has another shape than positions and heads say, or the cache other columns than their past.
    pub fn attention(&self, qkv: Tensor<B, 3>, heads: Heads, cache: Option<&mut KvCache<B>>) -> Tensor<B, 3> {
        let cached = cache.as_ref().map_or(0, |cache| cache.len());
        match (&self.0, cache) {
            (Kind::Whole(context), cache) => {
                assert_eq!(cached, 0, "the positions have no past, but the cache has");
                if let Some(cache) = cache {
                    let [_, k, v] = context.split(qkv.clone(), heads);
                    cache.append(k, v);
                }
                attention(qkv, heads, context)
            }
            (Kind::Cached { tables, mask }, cache) => {
                let cache = cache.expect("positions with a past go with its cache");
                let [q, k, v] = split_heads(qkv, heads, tables.as_ref());
                let (k, v) = cache.append(k, v);
                merge_heads(attend(q, k, v, Some(mask.clone())))
            }
        }
    }

    /// The same where only the queries at these places (`row · tokens + column`) are wanted: kernels leave out others, whose
    /// results mean nothing.
    #[must_use]
    pub fn only(&self, places: &[usize]) -> Self {
        match &self.0 {
            Kind::Whole(context) => Self(Kind::Whole(context.only(places))),
            Kind::Cached { .. } => self.clone(),
        }
    }

    /// Queries, keys and values of `qkv` apart and rotated, each `[batch, heads or groups, tokens, dim]`: for
    /// [`SplitBlock::before`](crate::SplitBlock::before).
    pub fn split(&self, qkv: Tensor<B, 3>, heads: Heads) -> [Tensor<B, 4>; 3] {
        match &self.0 {
            Kind::Whole(context) => context.split(qkv, heads),
            Kind::Cached { tables, .. } => split_heads(qkv, heads, tables.as_ref()),
        }
    }

    /// The mask written out, for [`SplitBlock::hidden`](crate::SplitBlock::hidden).
    pub fn hidden(&self, groups: usize) -> Option<Tensor<B, 4, Bool>> {
        match &self.0 {
            Kind::Whole(context) => context.hidden(groups),
            Kind::Cached { mask, .. } => Some(mask.clone()),
        }
    }
}

/// Attention of padded rows where every token sees every real token. `attention_mask` is `[batch, tokens]`, 1 = real.
pub fn bidirectional<B: Backend>(attention_mask: &Tensor<B, 2, Int>) -> Context<B> {
    let [batch, tokens] = attention_mask.dims();
    let real: Vec<bool> = input::host(attention_mask).iter().map(|real| *real != 0).collect();
    Context::new(BlockMask::full(batch, tokens, &real), None, &attention_mask.device())
}

/// Attention of rows without padding where every token sees every other.
pub fn unmasked<B: Backend>(batch: usize, tokens: usize, device: &B::Device) -> Context<B> {
    Context::new(BlockMask::full(batch, tokens, &vec![true; batch * tokens]), None, device)
}

/// Keys and values of the tokens a layer has seen, in a buffer that grows by blocks.
///
/// The buffer is handed to attention as it is, its unwritten tail hidden by the mask; so a step copies one token where
/// the backend writes in place (CubeCL), and the buffer where it does not (flex).
#[derive(Debug, Clone)]
pub struct KvCache<B: Backend> {
    keys: Option<Tensor<B, 4>>,
    values: Option<Tensor<B, 4>>,
    len: usize,
}

impl<B: Backend> Default for KvCache<B> {
    fn default() -> Self {
        Self { keys: None, values: None, len: 0 }
    }
}

/// Columns of the buffer that holds this many tokens.
fn capacity(tokens: usize) -> usize {
    tokens.next_multiple_of(64)
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

    /// Write `[batch, groups, tokens, head_dim]` behind what is there; returns both buffers, whole.
    pub fn append(&mut self, k: Tensor<B, 4>, v: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let tokens = k.dims()[2];
        let capacity = capacity(self.len + tokens);
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
    pub fn select_rows(&mut self, rows: &Tensor<B, 1, Int>) {
        for buffer in [&mut self.keys, &mut self.values] {
            *buffer = buffer.take().map(|t| t.select(0, rows.clone()));
        }
    }
}
