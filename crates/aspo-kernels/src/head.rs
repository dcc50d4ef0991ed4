//! An output head's log-probabilities and their gradients, by tiles of logits.

use burn::tensor::{Tensor, backend::Backend};

use crate::pass::{HeadGradients, HeadPass, HeadWant};

/// Log-probabilities of `targets` from `hidden` `[N, D]` and the head's weight `head` `[V, D]`, by tiles of logits of `tile`
/// rows and columns with running sums (Milakov and Gimelshein 2018, arXiv 1805.02867), where this backend has kernels and
/// no gradient is asked of the tensors. On the CPU hidden states are f32, and a bf16 head is widened tile by tile. On GPUs
/// products are of factors in the type of both, or of f32 where they differ, and are summed and told in f32; of a bf16 head's
/// gradients the factors are bf16 too. `None` elsewhere.
///
/// Keeps what [`HeadWant`] says; holds one tile of logits and the head's rows of a bf16 tile. Operations: `2 N V D`, with
/// `dlogp_dh` `4 N V D`. Bytes: the head once for each tile's rows.
///
/// # Panics
/// If shapes do not fit, or a target is outside the vocabulary.
pub fn head_pass<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    tile: [usize; 2],
    want: HeadWant,
) -> Option<HeadPass<B>> {
    check(hidden, head, targets);
    #[cfg(feature = "flex")]
    if let Some(pass) = crate::cpu::ops::head_pass(hidden, head, targets, tile, want) {
        return Some(pass);
    }
    #[cfg(feature = "cube")]
    if let Some(pass) = crate::cube::head_pass(hidden, head, targets, tile, want) {
        return Some(pass);
    }
    let _ = (tile, want);
    None
}

impl<B: Backend> HeadPass<B> {
    /// Gradients of a head that trains, from `grad` `[N]` of the log-probabilities: with
    /// `dz = grad (onehot(target) - softmax(W h))`, `dh = dz W` and `dW = dzᵀ h`. `hidden`, `head`, `targets` and `tile` are
    /// those of the pass. `None` where [`head_pass`] gives none.
    ///
    /// Holds one tile of logits. Operations: `6 N V D`, less up to a third for what was kept, and `2 N V D` less where
    /// `want_hidden` is not set.
    ///
    /// # Panics
    /// If shapes do not fit, or a target is outside the vocabulary.
    pub fn gradients(
        &self,
        hidden: &Tensor<B, 2>,
        head: &Tensor<B, 2>,
        targets: &[usize],
        grad: &Tensor<B, 1>,
        tile: [usize; 2],
        want_hidden: bool,
    ) -> Option<HeadGradients<B>> {
        check(hidden, head, targets);
        assert!(grad.dims() == [targets.len()], "a gradient for each row");
        #[cfg(feature = "flex")]
        if let Some(found) =
            crate::cpu::ops::head_gradients(self, hidden, head, targets, grad, tile, want_hidden)
        {
            return Some(found);
        }
        #[cfg(feature = "cube")]
        if let Some(found) = crate::cube::head_gradients(self, hidden, head, targets, grad, tile, want_hidden)
        {
            return Some(found);
        }
        let _ = (tile, want_hidden);
        None
    }
}

fn check<B: Backend>(hidden: &Tensor<B, 2>, head: &Tensor<B, 2>, targets: &[usize]) {
    let ([rows, width], [vocabulary, inputs]) = (hidden.dims(), head.dims());
    assert!(rows == targets.len() && width == inputs, "a target for each row, and a head for their width");
    assert!(targets.iter().all(|target| *target < vocabulary), "targets are within the vocabulary");
}
