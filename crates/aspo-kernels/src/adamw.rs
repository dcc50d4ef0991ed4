//! What happens to all parameters of a step at once, where a launch each would cost more than the work: AdamW, and the norm
//! of the gradients.

use burn::tensor::{DType, Tensor, backend::Backend};

pub use crate::slot::{AdamW, Slot};

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
