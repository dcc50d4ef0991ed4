//! Who sees whom in a batch of rows, and the key-value cache.

use aspo_kernels::{BlockMask, Context, Rotary};
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::input;

/// Causal attention of padded rows: a token sees the earlier real tokens of its own segment and of segment 0.
///
/// `attention_mask` is `[batch, tokens]`, 1 = real; so are `segments`, all 0 where none are given.
pub(crate) fn causal<B: Backend>(
    attention_mask: &Tensor<B, 2, Int>,
    segments: Option<&Tensor<B, 2, Int>>,
    rotary: Option<Rotary>,
) -> Context<B> {
    let [batch, tokens] = attention_mask.dims();
    let mut rows = segments.map_or_else(|| vec![0; batch * tokens], input::host);
    for (segment, real) in rows.iter_mut().zip(input::host(attention_mask)) {
        // Below zero is padding: a real token's segment is turned into one of its own above.
        match real {
            0 => *segment = -1,
            _ if *segment < 0 => *segment = (*segment & i64::MAX) | 1 << 62,
            _ => {}
        }
    }
    Context::new(BlockMask::causal(batch, tokens, &rows), rotary, &attention_mask.device())
}

/// Attention of padded rows where every token sees every real token. `attention_mask` is `[batch, tokens]`, 1 = real.
pub(crate) fn bidirectional<B: Backend>(attention_mask: &Tensor<B, 2, Int>) -> Context<B> {
    let [batch, tokens] = attention_mask.dims();
    let real: Vec<bool> = input::host(attention_mask).iter().map(|real| *real != 0).collect();
    Context::new(BlockMask::full(batch, tokens, &real), None, &attention_mask.device())
}

/// Attention of rows without padding where every token sees every other.
pub(crate) fn unmasked<B: Backend>(batch: usize, tokens: usize, device: &B::Device) -> Context<B> {
    Context::new(BlockMask::full(batch, tokens, &vec![true; batch * tokens]), None, device)
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
