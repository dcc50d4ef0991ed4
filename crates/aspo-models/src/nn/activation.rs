//! Activation functions by their Hugging Face names.

use aspo_kernels as kernels;
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

/// An activation as `hidden_act` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x σ(1.702 x)`, CLIP's approximation of GELU.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// `x Φ(x)` with the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// GELU by tanh (`gelu_new`, `gelu_pytorch_tanh`).
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// `x σ(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

impl Activation {
    /// Apply to every element.
    pub fn forward<B: Backend, const D: usize>(self, x: Tensor<B, D>) -> Tensor<B, D> {
        kernels::Activation::from(self).forward(x)
    }
}

impl From<Activation> for kernels::Activation {
    fn from(act: Activation) -> Self {
        match act {
            Activation::QuickGelu => Self::QuickGelu,
            Activation::Gelu => Self::Gelu,
            Activation::GeluTanh => Self::GeluTanh,
            Activation::Silu => Self::Silu,
            Activation::Relu => Self::Relu,
        }
    }
}
