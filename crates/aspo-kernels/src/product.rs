//! A product of matrices.

use burn::tensor::{Tensor, backend::Backend};

/// `a b`, `[m, k]` by `[k, n]`: Burn's product, but in f32 with all bits of f32 on devices where Burn's rounds factors to TF32, of ten
/// bits (NVIDIA's tensor cores). Where a gradient is asked of either it is Burn's.
///
/// # Panics
/// If `k` differs.
pub fn product<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    #[cfg(feature = "cube")]
    if let Some(found) = crate::cube::plain_product(&a, &b) {
        return found;
    }
    a.matmul(b)
}
