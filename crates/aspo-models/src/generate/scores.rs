//! Scores of the next token, on the host.

use burn::tensor::{Tensor, backend::Backend};

use crate::error::{Error, Result};

/// No token is taken from scores that are no numbers. On the host: a device may compute as if there were none such.
pub(super) fn check_finite(scores: &[f32], row: usize, tokens: usize) -> Result<()> {
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(id) => Err(Error::NotFinite { row, tokens, id, found: scores[id] }),
    }
}

/// Scores of the next token on the host, row by row.
pub(super) struct Scores {
    values: Vec<f32>,
    width: usize,
}

impl Scores {
    /// Of `[rows, vocabulary]`; no copy where the backend's memory is the host's.
    pub(super) fn of<B: Backend>(logits: Tensor<B, 2>) -> Self {
        let width = logits.dims()[1].max(1);
        let values = logits.into_data().into_vec().expect("the head's product is cast to f32");
        Self { values, width }
    }

    pub(super) fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width)
    }
}
