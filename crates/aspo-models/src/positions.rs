//! Where the tokens of a batch stand and whom they see.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::error::{Error, Result};
use crate::input::ModelInput;

/// Position and segment of every token of a batch, on the host: all that a decoder has to know of it beside the values.
///
/// [`LanguageModel::positions`](crate::LanguageModel::positions) makes it from an input, generation from what it has written,
/// and [`Decoder::context`](crate::Decoder::context) turns it into rotary angles and masks, on whatever backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Positions {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row, padding included.
    pub tokens: usize,
    /// Columns that stand before these tokens in the caches of a generation; 0 without.
    pub past: usize,
    /// One list an axis, each `[batch · tokens]` row by row: one axis for most models, three (time, height, width) for Qwen's
    /// M-RoPE. At padding the value means nothing.
    pub axes: Vec<Vec<i64>>,
    /// `[batch · (past + tokens)]` row by row: a token sees itself and the earlier tokens of its own segment and of segment 0.
    /// -1 is padding, which nobody sees.
    pub segments: Vec<i64>,
}

impl Positions {
    /// One axis that counts the tokens of each row.
    ///
    /// # Errors
    /// As [`ModelInput::segments`].
    pub fn of<B: Backend>(input: &ModelInput<B>) -> Result<Self> {
        let [batch, tokens] = input.input_ids.dims();
        Ok(Self::count(batch, tokens, input.segments()?))
    }

    /// One axis on which a token stands at the number of earlier tokens that it sees: padding is left out, and each answer
    /// of a packed row `prompt ‖ chosen ‖ rejected` goes on where the prompt ended. `segments` is `[batch · tokens]`.
    pub fn count(batch: usize, tokens: usize, segments: Vec<i64>) -> Self {
        let mut axis = Vec::with_capacity(segments.len());
        for row in segments.chunks(tokens.max(1)) {
            let mut seen = BTreeMap::<i64, i64>::new();
            for &segment in row {
                let all = seen.get(&0).copied().unwrap_or(0);
                let own = if segment > 0 { seen.get(&segment).copied().unwrap_or(0) } else { 0 };
                axis.push(if segment < 0 { 0 } else { all + own });
                *seen.entry(segment).or_default() += 1;
            }
        }
        Self { batch, tokens, past: 0, axes: vec![axis], segments }
    }

    /// The first axis as `[batch, tokens]` indices into a table of `rows` learned positions.
    ///
    /// # Errors
    /// A position that the table does not have.
    pub fn lookup<B: Backend>(&self, rows: usize, device: &B::Device) -> Result<Tensor<B, 2, Int>> {
        let axis = &self.axes[0];
        if let Some(far) = axis.iter().find(|&&position| position >= rows as i64) {
            let reason =
                format!("position {far}, but the model has {rows}: shorten the row, or generate less");
            return Err(Error::input("input", reason));
        }
        Ok(Tensor::from_data(TensorData::new(axis.clone(), [self.batch, self.tokens]), device))
    }

    /// Where row `row` goes on: one beyond the largest position of its real tokens on any axis.
    pub fn next(&self, row: usize) -> i64 {
        let width = self.past + self.tokens;
        let real = (0..self.tokens).filter(|token| self.segments[row * width + self.past + token] >= 0);
        let ends =
            real.flat_map(|token| self.axes.iter().map(move |axis| axis[row * self.tokens + token] + 1));
        ends.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_on_where_the_prompt_ended() {
        let packed = Positions::count(2, 8, vec![0, 0, 0, 1, 1, 2, 2, 2, -1, -1, 0, 0, 1, 1, 2, -1]);
        assert_eq!(packed.axes, [vec![0, 1, 2, 3, 4, 3, 4, 5, 0, 0, 0, 1, 2, 3, 2, 0]]);
        assert_eq!([packed.next(0), packed.next(1)], [6, 4]);
    }

    #[test]
    fn a_row_goes_on_beyond_the_largest_position_of_any_axis() {
        // A picture of 1 × 3 after one token: its width reaches further than the count of time.
        let axes = vec![vec![0, 1, 1, 1], vec![0, 1, 1, 1], vec![0, 1, 2, 3]];
        let positions = Positions { batch: 1, tokens: 4, past: 0, axes, segments: vec![0; 4] };
        assert_eq!(positions.next(0), 4);
    }
}
