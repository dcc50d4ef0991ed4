//! Linear layers with their adapters, and what happens to their input, as records.

use burn::tensor::{Tensor, backend::Backend};

/// An activation function, of each value by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x σ(x)`.
    Silu,
    /// `x σ(1.702 x)`, CLIP's approximation of GELU.
    QuickGelu,
    /// `x Φ(x)` with the error function.
    Gelu,
    /// GELU by tanh: `x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A layer, `x Wᵀ + b + scale · (drop(x) Aᵀ) Bᵀ`.
#[derive(Debug, Clone)]
pub struct Layer<B: Backend> {
    /// `W`, `[out, in]`, as Hugging Face stores it.
    pub weight: Tensor<B, 2>,
    /// `b`, `[out]`.
    pub bias: Option<Tensor<B, 1>>,
    /// The low-rank adapter (Hu et al. 2021, arXiv 2106.09685).
    pub lora: Option<Factors<B>>,
}

/// A low-rank adapter of a [`Layer`]. Its products are done in the type of `A`.
#[derive(Debug, Clone)]
pub struct Factors<B: Backend> {
    /// `A`, `[rank, in]`.
    pub a: Tensor<B, 2>,
    /// `B`, `[out, rank]`.
    pub b: Tensor<B, 2>,
    /// What the product is multiplied by.
    pub scale: f64,
    /// Probability that an input of `A` is zeroed, drawn anew for each layer, on an autodiff backend; 0 is off.
    pub dropout: f64,
}

/// What happens to the input of a group of layers. Its result is made again in the backward instead of being kept.
#[derive(Debug, Clone)]
pub enum Before<B: Backend> {
    /// It is read as it is.
    Nothing,
    /// [`rms_norm`](crate::rms_norm).
    RmsNorm {
        /// `[in]`.
        weight: Tensor<B, 1>,
        /// Added to the mean square.
        eps: f64,
    },
    /// [`layer_norm`](crate::layer_norm).
    LayerNorm {
        /// `[in]`.
        weight: Tensor<B, 1>,
        /// `[in]`.
        bias: Tensor<B, 1>,
        /// Added to the variance.
        eps: f64,
    },
    /// An activation function.
    Activation(Activation),
    /// `act(gate) · up` of gate and up side by side: the input is `[.., 2 in]` (SwiGLU with [`Activation::Silu`]; Shazeer
    /// 2020, arXiv 2002.05202).
    Gated(Activation),
}

/// Layers that one call takes at most.
pub const GROUP: usize = 3;

/// Rows and values that the layers read.
pub(crate) fn read_shape<B: Backend, const D: usize>(x: &Tensor<B, D>, before: &Before<B>) -> [usize; 2] {
    let shape = x.dims();
    let width = match before {
        Before::Gated(_) => {
            assert!(shape[D - 1].is_multiple_of(2), "gate and up side by side are an even number");
            shape[D - 1] / 2
        }
        _ => shape[D - 1],
    };
    [shape[..D - 1].iter().product(), width]
}
