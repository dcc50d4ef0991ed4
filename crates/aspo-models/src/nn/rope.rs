//! Rotary position embedding, rotate-half as in LLaMA (Su et al. 2021; GPT-NeoX's channel order).

use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, backend::Backend, s};

use super::norm::{cast, f32};

/// Cosines and sines of one batch of positions, `f32`, made once a forward pass.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    /// `[1, batch · tokens · head_dim]`, each half of a head alike.
    cos: Tensor<B, 2>,
    /// As `cos`, the first half of a head negated.
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rope<B> {
    /// Tables for `positions` `[batch, tokens]`: angle `= position / factor · theta^(-2i / head_dim)`.
    ///
    /// `theta` is the base, 10 000 for LLaMA; `factor` is 1 but for linear scaling.
    pub fn new(positions: Tensor<B, 2, Int>, head_dim: usize, theta: f64, factor: f64) -> Self {
        let device = positions.device();
        let half = head_dim / 2;
        let inverse: Vec<f32> =
            (0..half).map(|i| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64) / factor) as f32).collect();
        // In `f32` by name: a backend whose floats are of 16 bits by default would round positions and frequencies.
        let inverse = Tensor::<B, 2>::from_data(TensorData::new(inverse, [1, half]), (&device, DType::F32));
        let [batch, tokens] = positions.dims();
        let angle = positions.cast(FloatDType::F32).reshape([batch * tokens, 1]) * inverse;
        let (cos, sin) = (angle.clone().cos(), angle.sin());
        let row = |left, right| Tensor::cat(vec![left, right], 1).reshape([1, batch * tokens * head_dim]);
        Self { cos: row(cos.clone(), cos), sin: row(sin.clone().neg(), sin) }
    }

    /// Rotate `[batch, tokens, heads, head_dim]` and put heads first: `[batch, heads, tokens, head_dim]`.
    ///
    /// `x cos + (halves of x swapped) sin`, with all tokens of a head in one row, so that the tables are rows
    /// which all heads share.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, tokens, heads, dim] = x.dims();
        let dtype = x.dtype();
        let rows = batch * tokens;
        let x = f32(x).reshape([rows, heads, dim]).swap_dims(0, 1).reshape([heads * rows, dim]);
        let (left, right) = (x.clone().slice(s![.., 0..dim / 2]), x.clone().slice(s![.., dim / 2..]));
        let swapped = Tensor::cat(vec![right, left], 1).reshape([heads, rows * dim]);
        let out = x.reshape([heads, rows * dim]) * self.cos.clone() + swapped * self.sin.clone();
        cast(out.reshape([heads, batch, tokens, dim]).swap_dims(0, 1), dtype)
    }

    /// The tables, to carry them to the inner backend.
    pub(crate) fn parts(&self) -> (Tensor<B, 2>, Tensor<B, 2>) {
        (self.cos.clone(), self.sin.clone())
    }

    pub(crate) fn from_parts(cos: Tensor<B, 2>, sin: Tensor<B, 2>) -> Self {
        Self { cos, sin }
    }
}
