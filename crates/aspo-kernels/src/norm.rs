//! Layer normalisation and RMS normalisation over the last axis, computed in f32.

use burn::tensor::{DType, Tensor, backend::Backend};

use crate::cast;

/// `x / sqrt(mean(x²) + eps) · weight` (Zhang and Sennrich 2019, arXiv 1910.07467), `weight` `[features]`.
///
/// Normalised in f32, cast back to the type of `x`, then scaled, in this order, as Hugging Face does. Keeps `x`. With
/// `n = x / rms` and `g = weight dy`: `dx = (g - n mean(g n)) / rms`, `dweight = Σ n dy`. One pass over memory forward
/// (8 bytes a value) and one backward (12).
pub fn rms_norm<B: Backend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 1>, eps: f64) -> Tensor<B, D> {
    #[cfg(feature = "flex")]
    if crate::cpu::ops::takes(&x) {
        return crate::cpu::ops::rms_norm(x, weight, eps);
    }
    #[cfg(feature = "cube")]
    if let Some(y) = crate::cube::rms_norm(&x, &weight, eps) {
        return y;
    }
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let inverse = (x.clone().square().mean_dim(D - 1) + eps).sqrt().recip();
    cast(x * inverse, dtype) * cast(weight, dtype).unsqueeze()
}

/// `(x - mean) / sqrt(var + eps) · weight + bias` (Ba et al. 2016, arXiv 1607.06450), biased variance, `weight` and `bias`
/// `[features]`.
///
/// The result has the type of `x`. Keeps `x`. With `n` the normed row and `g = weight dy`:
/// `dx = (g - mean(g) - n mean(g n)) / sd`, `dweight = Σ n dy`, `dbias = Σ dy`. One pass over memory forward (8 bytes a
/// value) and one backward (12).
pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    #[cfg(feature = "flex")]
    if crate::cpu::ops::takes(&x) {
        return crate::cpu::ops::layer_norm(x, weight, bias, eps);
    }
    #[cfg(feature = "cube")]
    if let Some(y) = crate::cube::layer_norm(&x, &weight, &bias, eps) {
        return y;
    }
    let dtype = x.dtype();
    let x = cast(x, DType::F32);
    let x = x.clone() - x.mean_dim(D - 1);
    let inverse = (x.clone().square().mean_dim(D - 1) + eps).sqrt().recip();
    let scaled = x * inverse * cast(weight, DType::F32).unsqueeze();
    cast(scaled + cast(bias, DType::F32).unsqueeze(), dtype)
}
