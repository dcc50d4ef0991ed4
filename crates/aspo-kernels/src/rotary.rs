//! Rotary positions, rotate-half as in LLaMA (Su et al. 2021, arXiv 2104.09864; GPT-NeoX's channel order).

use burn::tensor::{DType, Tensor, TensorData, backend::Backend, s};

use crate::cast;

/// Cosines and sines of the angle of each token and pair of channels, on the host.
///
/// The pair `(i, i + dim / 2)` of a head turns by `position / factor · theta^(-2i / dim)`:
/// `(x, y)` becomes `(x cos - y sin, y cos + x sin)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// `[tokens, half]`.
    pub(crate) cos: Vec<f32>,
    /// `[tokens, half]`.
    pub(crate) sin: Vec<f32>,
    pub(crate) half: usize,
}

impl Rotary {
    /// Of `positions` of all tokens, row by row, for heads of `dim` channels.
    ///
    /// `theta` is the base, 10 000 for LLaMA; `factor` is 1 but for linear scaling.
    ///
    /// # Panics
    /// If `dim` is odd.
    pub fn new(positions: &[i64], dim: usize, theta: f64, factor: f64) -> Self {
        assert!(dim.is_multiple_of(2), "heads of {dim} channels have no pairs");
        let half = dim / 2;
        let inverse: Vec<f32> =
            (0..half).map(|i| (1.0 / theta.powf(2.0 * i as f64 / dim as f64) / factor) as f32).collect();
        let angles = positions.iter().flat_map(|&p| inverse.iter().map(move |i| p as f32 * i));
        Self::from_angles(&angles.collect::<Vec<f32>>(), half)
    }

    /// Of the angles themselves, `[tokens, half]` in radians: positions of several axes, or a base of their own.
    ///
    /// # Panics
    /// If `half` does not divide the angles.
    pub fn from_angles(angles: &[f32], half: usize) -> Self {
        assert!(half > 0 && angles.len().is_multiple_of(half), "{half} angles a token");
        let all = |of: fn(f32) -> f32| angles.iter().map(|&angle| of(angle)).collect();
        Self { cos: all(f32::cos), sin: all(f32::sin), half }
    }
}

/// The same as tensors, for operations that have no rotation of their own.
#[derive(Debug, Clone)]
pub struct Tables<B: Backend> {
    /// `[1, tokens · dim]`, each half of a head alike.
    pub(crate) cos: Tensor<B, 2>,
    /// As `cos`, the first half of a head negated.
    pub(crate) sin: Tensor<B, 2>,
}

impl<B: Backend> Tables<B> {
    /// On a device.
    pub fn new(rotary: &Rotary, device: &B::Device) -> Self {
        let row = |halves: &[f32], sign: f32| {
            let values: Vec<f32> = halves
                .chunks(rotary.half.max(1))
                .flat_map(|half| half.iter().map(move |x| sign * x).chain(half.iter().copied()))
                .collect();
            let shape = [1, values.len()];
            Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
        };
        Self { cos: row(&rotary.cos, 1.0), sin: row(&rotary.sin, -1.0) }
    }

    /// Rotate `[batch, tokens, heads, dim]` and put heads first: `[batch, heads, tokens, dim]`.
    ///
    /// `x cos + (halves of x swapped) sin`, with all tokens of a head in one row, so that the tables are rows
    /// which all heads share.
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, tokens, heads, dim] = x.dims();
        let dtype = x.dtype();
        let rows = batch * tokens;
        let x = cast(x, DType::F32).reshape([rows, heads, dim]).swap_dims(0, 1).reshape([heads * rows, dim]);
        let (left, right) = (x.clone().slice(s![.., 0..dim / 2]), x.clone().slice(s![.., dim / 2..]));
        let swapped = crate::cat(vec![right, left], 1).reshape([heads, rows * dim]);
        let out = x.reshape([heads, rows * dim]) * self.cos.clone() + swapped * self.sin.clone();
        cast(out.reshape([heads, batch, tokens, dim]).swap_dims(0, 1), dtype)
    }
}
