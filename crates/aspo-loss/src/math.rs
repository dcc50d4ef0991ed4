//! The few numerical functions that every objective shares, finite over all of f32.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};

/// The tensor in f32, untouched where it already is.
pub(crate) fn to_f32<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, D> {
    tensor.cast(FloatDType::F32)
}

/// A vector of host numbers as an f32 tensor.
pub(crate) fn constant<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

/// A vector of host indices as an integer tensor of the backend's own width.
pub(crate) fn indices<B: Backend>(values: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n]), device)
}

/// The tensor as a constant. (Burn's `detach` gives a leaf that requires a gradient again where it got one.)
pub(crate) fn detached<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, D> {
    tensor.set_require_grad(false)
}

/// The values of a tensor on the host, outside any graph.
pub(crate) fn host<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f32> {
    detached(tensor.clone()).into_data().iter::<f32>().collect()
}

/// `log σ(x) = ½(x - |x|) - log(1 + exp(-|x|))`: exact to rounding and with a finite gradient for all |x| up to half of f32's
/// largest number (½ at 0, where policy equals reference).
pub(crate) fn log_sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let magnitude = x.clone().abs();
    (x - magnitude.clone()).mul_scalar(0.5) - magnitude.neg().exp().log1p()
}

/// `σ(x)`.
pub(crate) fn sigmoid<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    burn::tensor::activation::sigmoid(x)
}

/// `log(1 - exp(x))` for `x ≤ 0`, clamped to `x ≤ -1e-6` where the logarithm would leave f32's reach; written with
/// `1 - eˣ = -tanh(x/2)(1 + eˣ)`, which does not cancel near 0.
pub(crate) fn log1mexp<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let x = x.clamp_max(-1e-6);
    x.clone().mul_scalar(0.5).tanh().neg().log() + x.exp().log1p()
}
