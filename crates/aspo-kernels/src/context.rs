//! What all attentions of one pass share, and how their heads lie.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend, s};

use crate::mask::BlockMask;
use crate::rotary::{Rotary, Tables};

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

    #[cfg(any(feature = "flex", feature = "cube"))]
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
    pub(crate) mask: Arc<BlockMask>,
    pub(crate) rotary: Option<Arc<Rotary>>,
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
        split_heads(qkv, heads, self.tables())
    }

    /// The angles as tensors.
    pub(crate) fn tables(&self) -> Option<&Tables<B>> {
        let make = |rotary: &Arc<Rotary>| self.tables.get_or_init(|| Tables::new(rotary, &self.device));
        self.rotary.as_ref().map(make)
    }
}

/// Queries, keys and values out of `qkv` `[batch, tokens, (heads + 2 groups) dim]`, each
/// `[batch, heads or groups, tokens, dim]`; queries and keys rotated where tables are given.
pub fn split_heads<B: Backend>(
    qkv: Tensor<B, 3>,
    heads: Heads,
    tables: Option<&Tables<B>>,
) -> [Tensor<B, 4>; 3] {
    #[cfg(feature = "cube")]
    if let Some(parts) = crate::cube::split(&qkv, heads, tables) {
        return parts;
    }
    let take = |from: usize, count: usize| take_heads(&qkv, from, count, heads.dim);
    let (q, k) = (take(0, heads.heads), take(heads.heads, heads.groups));
    let v = take(heads.heads + heads.groups, heads.groups).swap_dims(1, 2);
    match tables {
        Some(tables) => [tables.apply(q), tables.apply(k), v],
        None => [q.swap_dims(1, 2), k.swap_dims(1, 2), v],
    }
}

/// `count` heads side by side, `[batch, tokens, count, dim]`.
pub(crate) fn take_heads<B: Backend>(
    x: &Tensor<B, 3>,
    from: usize,
    count: usize,
    dim: usize,
) -> Tensor<B, 4> {
    let [batch, tokens, _] = x.dims();
    x.clone().narrow(2, from * dim, count * dim).reshape([batch, tokens, count, dim])
}
