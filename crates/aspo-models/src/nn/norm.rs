//! Layer normalisation and RMS normalisation, computed in `f32`.

use aspo_kernels::{self as kernels, Before};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::init::{ones, zeros};

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
        kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }

    /// The norm as the first thing that a group of layers does (see [`linear`](crate::nn::linear)).
    pub fn before(&self) -> Before<B> {
        Before::LayerNorm { weight: self.weight.val(), bias: self.bias.val(), eps: self.eps }
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
        kernels::rms_norm(x, self.weight.val(), self.eps)
    }

    /// The norm as the first thing that a group of layers does (see [`linear`](crate::nn::linear)).
    pub fn before(&self) -> Before<B> {
        Before::RmsNorm { weight: self.weight.val(), eps: self.eps }
    }
}

/// To `f32`, free where it is already.
pub(crate) fn to_f32<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    cast(x, DType::F32)
}

/// Values as they run through a decoder: `f32` where kernels take them so over weights of any type.
pub(crate) fn wide<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    if kernels::widens::<B>() { to_f32(x) } else { x }
}

pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
