//! One pass of an output head over hidden states.

use burn::tensor::{Tensor, backend::Backend};

/// What [`head_pass`] leaves behind.
#[derive(Debug, Clone)]
pub struct HeadPass<B: Backend> {
    /// `log softmax(W h)[target]`, `[N]`.
    pub log_probs: Tensor<B, 1>,
    /// `log Σ exp(W h)`, `[N]`.
    pub log_sum_exp: Tensor<B, 1>,
    /// `∂ log p / ∂h = W[target] - softmax(W h) W`, `[N, D]`, if asked for: all that the backward of a frozen head needs.
    pub slope: Option<Tensor<B, 2>>,
}

/// Log-probabilities of `targets` from `hidden` `[N, D]` and the head's weight `head` `[V, D]`, by tiles of logits of `tile`
/// rows and columns with running sums (Milakov and Gimelshein 2018, arXiv 1805.02867), where this backend has kernels and
/// the tensors are f32 in memory and no gradient is asked of them; the head may be bf16, widened tile by tile. `None` elsewhere.
///
/// Keeps nothing by itself; holds one tile of logits and the head's rows of a bf16 tile. Operations: `2 N V D`, with the
/// slope `4 N V D`. Bytes: the head once for each tile's rows.
///
/// # Panics
/// If shapes do not fit, or a target is outside the vocabulary.
pub fn head_pass<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    tile: [usize; 2],
    want_slope: bool,
) -> Option<HeadPass<B>> {
    let ([rows, width], [vocabulary, inputs]) = (hidden.dims(), head.dims());
    assert!(rows == targets.len() && width == inputs, "a target for each row, and a head for their width");
    assert!(targets.iter().all(|target| *target < vocabulary), "targets are within the vocabulary");
    #[cfg(feature = "flex")]
    return crate::cpu::ops::head_pass(hidden, head, targets, tile, want_slope);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (tile, want_slope);
        None
    }
}
