//! How the logits `[N, V]` of a chunked head are cut into tiles.

use core::ops::Range;

use aspo_kernels::on_cpu;
use burn::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::log_prob::Targets;

/// How much is projected at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChunkOptions {
    /// Bytes of f32 logits held at a time. Up to three times as much is in use at the peak, for the exponentials beside
    /// them and the tile of the head. (Where the head trains, kernels keep up to one and a half times its gradient's memory
    /// beside that, which saves making logits again.) Default: 8 MiB, a CPU's; [`of`](Self::of) knows other devices.
    pub byte_budget: usize,
    /// Tokens of a chunk. Default, as none: as many as make a square tile of the budget (1,448 for 8 MiB).
    pub rows: Option<usize>,
}

impl Default for ChunkOptions {
    fn default() -> Self {
        Self { byte_budget: 8 << 20, rows: None }
    }
}

impl ChunkOptions {
    /// The default of a device: 8 MiB on a CPU, whose caches hold a tile of that size; 128 MiB elsewhere, where a tile is a
    /// launch or two of each kernel and must be large to fill the device (1,024 tokens by 32,000 columns in one).
    pub fn of<B: Backend>(device: &B::Device) -> Self {
        let byte_budget = if on_cpu::<B>(device) { 8 << 20 } else { 128 << 20 };
        Self { byte_budget, rows: None }
    }

    /// Tokens and vocabulary columns of a tile: their product times 4 bytes stays within the budget, but neither falls
    /// below 1 and the tokens are as given, if given.
    ///
    /// # Errors
    /// A budget or a number of rows of 0.
    pub fn tile(&self, tokens: usize, vocab: usize) -> Result<(usize, usize)> {
        if self.rows == Some(0) {
            let remedy = "give at least 1 row, or none to use the byte budget".into();
            return Err(Error::Option { option: "rows", found: "0".into(), remedy });
        }
        if self.byte_budget == 0 {
            let remedy = "give the bytes of f32 logits to hold at a time".into();
            return Err(Error::Option { option: "byte_budget", found: "0".into(), remedy });
        }
        let cells = (self.byte_budget / 4).max(1);
        let rows = self.rows.unwrap_or_else(|| cells.isqrt().max(cells / vocab.max(1)));
        let rows = rows.clamp(1, tokens.max(1));
        Ok((rows, (cells / rows).clamp(1, vocab.max(1))))
    }
}

/// How `[N, V]` is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tiles {
    pub(crate) tokens: usize,
    pub(crate) vocab: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl Tiles {
    pub(crate) fn size(self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    pub(crate) fn token_ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.tokens).step_by(self.rows).map(move |start| start..(start + self.rows).min(self.tokens))
    }

    pub(crate) fn vocab_ranges(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.vocab).step_by(self.columns).map(move |start| start..(start + self.columns).min(self.vocab))
    }

    /// Where the targets fall in one range of the vocabulary.
    pub(crate) fn targets<B: Backend>(self, targets: &Tensor<B, 1, Int>, range: &Range<usize>) -> Targets<B> {
        if range.len() == self.vocab {
            Targets::new(targets.clone())
        } else {
            Targets::within(targets.clone(), range.start, range.end)
        }
    }
}
