//! Rotary position embedding, rotate-half as in LLaMA (Su et al. 2021; GPT-NeoX's channel order).

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::norm::{cast, f32};

/// Cosines and sines of one batch of positions, `f32`, made once a forward pass.
#[derive(Debug, Clone)]
pub struct Rope<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
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
        let inverse = Tensor::<B, 4>::from_data(TensorData::new(inverse, [1, 1, 1, half]), &device);
        let [batch, tokens] = positions.dims();
        let angle = f32(positions.float()).reshape([batch, tokens, 1, 1]) * inverse;
        Self { cos: angle.clone().cos(), sin: angle.sin() }
    }

    /// Rotate `[batch, tokens, heads, head_dim]`.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let dtype = x.dtype();
        let mut halves = f32(x).chunk(2, 3);
        let (Some(b), Some(a)) = (halves.pop(), halves.pop()) else { unreachable!("head_dim is even") };
        let left = a.clone() * self.cos.clone() - b.clone() * self.sin.clone();
        let right = b * self.cos.clone() + a * self.sin.clone();
        cast(Tensor::cat(vec![left, right], 3), dtype)
    }

    /// The tables of the inner backend as those of an autodiff backend, and the reverse, go through these parts.
    pub(crate) fn parts(&self) -> (Tensor<B, 4>, Tensor<B, 4>) {
        (self.cos.clone(), self.sin.clone())
    }

    pub(crate) fn from_parts(cos: Tensor<B, 4>, sin: Tensor<B, 4>) -> Self {
        Self { cos, sin }
    }
}
