//! Layer normalisation and RMS normalisation, computed in `f32`.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{ones, zeros};

/// `(x - mean) / sqrt(var + eps) · weight + bias` over the last axis, biased variance.
#[derive(Module, Debug)]
pub struct LayerNorm<B: Backend> {
    /// Scale, `[features]`.
    pub weight: Param<Tensor<B, 1>>,
    /// Shift, `[features]`.
    pub bias: Param<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> LayerNorm<B> {
    /// A norm over `features` values.
    pub fn new(features: usize, eps: f64, device: &B::Device) -> Self {
        Self { weight: ones([features], device), bias: zeros([features], device), eps }
    }

    /// Normalise the last axis; the result has the dtype of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = x.dtype();
        let x = f32(x);
        let x = x.clone() - x.mean_dim(D - 1);
        let inverse = (x.clone().square().mean_dim(D - 1) + self.eps).sqrt().recip();
        cast(x * inverse * f32(self.weight.val()).unsqueeze() + f32(self.bias.val()).unsqueeze(), dtype)
    }
}

/// `x / sqrt(mean(x²) + eps) · weight` over the last axis (LLaMA).
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// Scale, `[features]`.
    pub weight: Param<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// A norm over `features` values.
    pub fn new(features: usize, eps: f64, device: &B::Device) -> Self {
        Self { weight: ones([features], device), eps }
    }

    /// Normalise in `f32`, cast back, then scale, in this order, as Hugging Face does.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let dtype = x.dtype();
        let x = f32(x);
        let inverse = (x.clone().square().mean_dim(D - 1) + self.eps).sqrt().recip();
        cast(x * inverse, dtype) * cast(self.weight.val(), dtype).unsqueeze()
    }
}

/// To `f32`, free where it is already.
pub(crate) fn f32<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    cast(x, DType::F32)
}

pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
