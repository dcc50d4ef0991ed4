//! The tokens that are scored, known to the host: they are checked without a read from the device.

use std::sync::Arc;

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::math;

/// Ids of response tokens, `[N]`. From host values nothing is read back; a tensor is read once.
#[derive(Debug, Clone)]
pub struct Labels<B: Backend> {
    values: Arc<[usize]>,
    /// The first value below 0 with its place, which no vocabulary has.
    negative: Option<(usize, i64)>,
    tensor: Tensor<B, 1, Int>,
}

impl<B: Backend> Labels<B> {
    /// From host values.
    pub fn new(values: &[i32], device: &B::Device) -> Self {
        Self::with(values.iter().map(|&id| i64::from(id)), math::indices(values.to_vec(), device))
    }

    fn with(values: impl Iterator<Item = i64>, tensor: Tensor<B, 1, Int>) -> Self {
        let mut negative = None;
        let value = |(place, id): (usize, i64)| {
            usize::try_from(id).unwrap_or_else(|_| {
                negative.get_or_insert((place, id));
                usize::MAX
            })
        };
        let values: Vec<usize> = values.enumerate().map(value).collect();
        Self { values: values.into(), negative, tensor }
    }

    /// On the device.
    pub fn tensor(&self) -> &Tensor<B, 1, Int> {
        &self.tensor
    }

    /// On the host.
    pub(crate) fn ids(&self) -> &Arc<[usize]> {
        &self.values
    }

    /// Refuses another number than `rows`, none, and ids outside the vocabulary.
    pub(crate) fn check(&self, what: &str, rows: usize, vocab: usize) -> Result<()> {
        let found = self.values.len();
        if found != rows {
            return Err(Error::shape(what, found, rows, "one target per row of logits or hidden states"));
        }
        if rows == 0 {
            return Err(Error::Empty { what: what.into() });
        }
        let outside = || {
            let position = self.values.iter().position(|&id| id >= vocab)?;
            let negative = self.negative.filter(|(place, _)| *place == position);
            Some((position, negative.map_or(self.values[position] as i64, |(_, id)| id)))
        };
        match outside() {
            Some((position, found)) => Err(Error::Label { what: what.into(), position, found, vocab }),
            None => Ok(()),
        }
    }
}

impl<B: Backend> From<Tensor<B, 1, Int>> for Labels<B> {
    fn from(tensor: Tensor<B, 1, Int>) -> Self {
        let values: Vec<i64> = tensor.to_data().iter::<i64>().collect();
        Self::with(values.into_iter(), tensor)
    }
}
