//! A parameter in an optimiser's step, and the step's constants.

use burn::tensor::{Tensor, backend::Backend};

/// The constants of a step of AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub rate: f64,
    /// Of the mean of gradients.
    pub beta_1: f32,
    /// Of the mean of their squares.
    pub beta_2: f32,
    /// Added to the root of that.
    pub epsilon: f32,
    /// Times the rate: what a value loses of itself.
    pub weight_decay: f32,
}

/// A parameter under way, laid out flat, in f32.
#[derive(Debug, Clone)]
pub struct Slot<B: Backend> {
    /// The parameter; its memory is not written.
    pub value: Tensor<B, 1>,
    /// Its gradient.
    pub gradient: Tensor<B, 1>,
    /// The means of gradients and of their squares, in memory that is written: nothing else may hold them. Before the first step, zeros.
    pub moments: [Tensor<B, 1>; 2],
    /// The step that this is, from 1.
    pub time: usize,
}
