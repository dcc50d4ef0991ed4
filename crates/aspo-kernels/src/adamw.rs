//! What happens to all parameters of a step at once, where a launch each would cost more than the work: AdamW, and the norm
//! of the gradients.

use burn::tensor::{DType, Tensor, backend::Backend};

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

/// A step of AdamW for all parameters at once, on CubeCL's backends (wgpu, CUDA); `false`, and nothing done, on others:
///
/// ```text
/// m ← β₁ m + (1 - β₁) g        v ← β₂ v + (1 - β₂) g²
/// x ← (1 - rate · decay) x - rate · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + ε)
/// ```
///
/// One launch for six parameters.
///
/// # Panics
/// If a tensor is not f32, or has another number of values than its parameter.
pub fn adamw<B: Backend>(slots: &mut [Slot<B>], constants: &AdamW) -> bool {
    for Slot { value, gradient, moments: [first, second], time } in slots.iter() {
        for tensor in [value, gradient, first, second] {
            assert_eq!(tensor.dims(), value.dims(), "values of a parameter");
            check(tensor);
        }
        assert!(*time > 0, "steps are counted from 1");
    }
    #[cfg(feature = "cube")]
    return crate::cube::adamw(slots, constants);
    #[cfg(not(feature = "cube"))]
    {
        let _ = constants;
        false
    }
}

/// The sum of the squares of all values of all tensors, `[1]`, on CubeCL's backends; `None` on others, and of no values.
///
/// A launch for 29 tensors, and one more; summed in an order that depends on shapes alone.
///
/// # Panics
/// If a tensor is not f32.
pub fn squares<B: Backend>(tensors: &[Tensor<B, 1>]) -> Option<Tensor<B, 1>> {
    tensors.iter().for_each(check);
    #[cfg(feature = "cube")]
    return crate::cube::squares(tensors);
    #[cfg(not(feature = "cube"))]
    None
}

/// All tensors times a factor, on CubeCL's backends; `None` on others. A launch for 15 tensors.
///
/// # Panics
/// If a tensor is not f32.
pub fn scaled<B: Backend>(tensors: &[Tensor<B, 1>], factor: f64) -> Option<Vec<Tensor<B, 1>>> {
    tensors.iter().for_each(check);
    #[cfg(feature = "cube")]
    return crate::cube::scaled(tensors, factor);
    #[cfg(not(feature = "cube"))]
    {
        let _ = factor;
        None
    }
}

/// Whether [`adamw`], [`squares`] and [`scaled`] do anything for tensors of this backend.
pub fn all_at_once<B: Backend>() -> bool {
    #[cfg(feature = "cube")]
    return crate::cube::is_cube::<B>();
    #[cfg(not(feature = "cube"))]
    false
}

fn check<B: Backend>(tensor: &Tensor<B, 1>) {
    assert_eq!(tensor.dtype(), DType::F32, "parameters, gradients and moments are f32");
}
