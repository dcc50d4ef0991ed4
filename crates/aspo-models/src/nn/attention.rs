//! Who sees whom in a batch of rows.

use aspo_kernels::{BlockMask, Context, Heads, KvCache, Rotary, Step, attention};
use burn::tensor::{Bool, Tensor, backend::Backend};

use crate::ids::Ids;
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
    Cached(Step<B>),
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
        let segments = positions.segments.clone();
        Self(Kind::Cached(Step::new([batch, tokens, past], segments, rotary, device)))
    }

    /// Causal self-attention of `qkv` `[batch, tokens, (heads + 2 groups) dim]`, queries, keys and values side by side and
    /// not rotated, to `[batch, tokens, heads · dim]`. Keys and values go into the cache where one is given.
    ///
    /// # Panics
    /// If `qkv` has another shape than positions and heads say, or the cache other columns than their past.
    pub fn attention(&self, qkv: Tensor<B, 3>, heads: Heads, cache: Option<&mut KvCache<B>>) -> Tensor<B, 3> {
        match (&self.0, cache) {
            (Kind::Whole(context), cache) => {
                if let Some(cache) = cache {
                    cache.begin(&qkv, heads, context);
                }
                attention(qkv, heads, context)
            }
            (Kind::Cached(step), cache) => {
                cache.expect("positions with a past go with its cache").attention(qkv, heads, step)
            }
        }
    }

    /// The same where only the queries at these places (`row · tokens + column`) are wanted: kernels leave out others, whose
    /// results mean nothing.
    #[must_use]
    pub fn only(&self, places: &[usize]) -> Self {
        match &self.0 {
            Kind::Whole(context) => Self(Kind::Whole(context.only(places))),
            Kind::Cached(_) => self.clone(),
        }
    }

    /// Queries, keys and values of `qkv` apart and rotated, each `[batch, heads or groups, tokens, dim]`: for
    /// [`SplitBlock::before`](crate::SplitBlock::before).
    pub fn split(&self, qkv: Tensor<B, 3>, heads: Heads) -> [Tensor<B, 4>; 3] {
        match &self.0 {
            Kind::Whole(context) => context.split(qkv, heads),
            Kind::Cached(step) => step.split(qkv, heads),
        }
    }

    /// The mask written out, for [`SplitBlock::hidden`](crate::SplitBlock::hidden).
    pub fn hidden(&self, groups: usize) -> Option<Tensor<B, 4, Bool>> {
        match &self.0 {
            Kind::Whole(context) => context.hidden(groups),
            Kind::Cached(step) => Some(step.hidden()),
        }
    }
}

/// Attention of padded rows where every token sees every real token. `attention_mask` is `[batch, tokens]`, 1 = real.
pub fn bidirectional<B: Backend>(attention_mask: &Ids<B>) -> Context<B> {
    let [batch, tokens] = attention_mask.dims();
    let real: Vec<bool> = attention_mask.values().iter().map(|real| *real != 0).collect();
    Context::new(BlockMask::full(batch, tokens, &real), None, attention_mask.device())
}

/// Attention of rows without padding where every token sees every other.
pub fn unmasked<B: Backend>(batch: usize, tokens: usize, device: &B::Device) -> Context<B> {
    Context::new(BlockMask::full(batch, tokens, &vec![true; batch * tokens]), None, device)
}
