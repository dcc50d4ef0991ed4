//! What a pass of the output head is asked for and leaves behind.

use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};

/// What [`head_pass`](crate::head_pass) makes beside log-probabilities.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadWant {
    /// [`HeadPass::dlogp_dh`]: all that the backward of a frozen head needs.
    pub dlogp_dh: bool,
    /// How many values `exp(W h)` are kept for [`HeadPass::gradients`], which makes the others again: of three products
    /// beside the pass's own one, that saves up to one.
    pub keep: usize,
}

/// What [`head_pass`](crate::head_pass) leaves behind.
#[derive(Debug, Clone)]
pub struct HeadPass<B: Backend> {
    /// `log softmax(W h)[target]`, `[N]`.
    pub log_probs: Tensor<B, 1>,
    /// `log Σ exp(W h)`, `[N]`.
    pub log_sum_exp: Tensor<B, 1>,
    /// `∂ log p / ∂h = W[target] - softmax(W h) W`, `[N, D]`, if asked for.
    pub dlogp_dh: Option<Tensor<B, 2>>,
    #[cfg_attr(not(feature = "flex"), allow(dead_code))]
    pub(crate) kept: Arc<Vec<Tile>>,
}

/// A tile of exponentials `exp(z - top)`, each row with its own `top`.
#[derive(Debug)]
#[cfg_attr(not(feature = "flex"), allow(dead_code))]
pub(crate) struct Tile {
    pub exp: Vec<f32>,
    pub top: Vec<f32>,
}

/// What [`HeadPass::gradients`] gives.
#[derive(Debug, Clone)]
pub struct HeadGradients<B: Backend> {
    /// Of the hidden states, `[N, D]`, if asked for.
    pub hidden: Option<Tensor<B, 2>>,
    /// Of the weight, `[V, D]`, in f32.
    pub head: Tensor<B, 2>,
}
