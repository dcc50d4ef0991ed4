//! Activation functions.

use burn::tensor::{Tensor, activation, backend::Backend};

use crate::layer::Activation;

impl Activation {
    /// Of every element, in the shape of `x`. Keeps `x`; `dx = dy f'(x)`. One pass over memory forward (8 bytes a value) and one
    /// backward (12).
    pub fn forward<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        #[cfg(feature = "flex")]
        if crate::cpu::ops::takes(&x) {
            return crate::cpu::ops::activation(x, self);
        }
        #[cfg(feature = "cube")]
        if let Some(y) = crate::cube::activation(&x, self) {
            return y;
        }
        self.generic(x)
    }

    pub(crate) fn generic<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        match self {
            Self::Silu => activation::silu(x),
            Self::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
            // Written out: the slope of Burn's own is that of an approximation, off by up to 2e-4.
            Self::Gelu => {
                x.clone() * (x.mul_scalar(core::f64::consts::FRAC_1_SQRT_2).erf() + 1.0).mul_scalar(0.5)
            }
            Self::GeluTanh => activation::gelu_approximate(x),
            Self::Relu => activation::relu(x),
        }
    }
}
