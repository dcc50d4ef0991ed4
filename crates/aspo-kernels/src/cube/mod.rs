//! Kernels in CubeCL, for Burn's backends on GPUs (wgpu, CUDA): what Burn's own operations do in many launches, in one.
//!
//! Products stay Burn's, but for those of f32 on devices that would round their factors (`product`). `row` holds norms and activations, `join` the sums around products, `rotary` and `softmax` what is
//! between the products of attention, `logits` what is between those of the output head; `linear`, `attention` and `head` are
//! the operations made of them. Everything is computed in f32, read and written in the type of its tensor. A kernel either
//! gives each value to one unit, or each row to one cube, whose units sum it in one order: results do not depend on
//! scheduling.

mod adamw;
mod attention;
mod head;
mod join;
mod launch;
mod linear;
mod logits;
mod product;
mod rotary;
mod row;
mod softmax;
mod stack;
#[cfg(all(test, any(feature = "wgpu", feature = "cuda")))]
mod tests;

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorPrimitive};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, tensor::CubeTensor};

pub(crate) use adamw::{adamw, scaled, squares};
pub(crate) use attention::{attend, attention, split};
pub(crate) use head::{head_gradients, head_pass};
pub(crate) use linear::{activation, layer_norm, linear, rms_norm};
pub(crate) use product::plain_product;

/// A backend whose tensors lie in CubeCL's memory.
pub(crate) trait Home:
    Backend
    + BackendTypes<
        FloatTensorPrimitive = CubeTensor<Self::Runtime>,
        IntTensorPrimitive = CubeTensor<Self::Runtime>,
    >
{
    type Runtime: CubeRuntime;
}

impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> Home for CubeBackend<R, F, I, BT> {
    type Runtime = R;
}

/// Returns the expression, with `$home` for the backend, if `$backend` is one of those that have kernels, or autodiff of
/// one. Under fusion Burn's backends are others, which do not.
macro_rules! at_home {
    ($backend:ty, $home:ident => $do:expr) => {{
        #[cfg(feature = "wgpu")]
        {
            type OfWgpu = burn_cubecl::CubeBackend<burn::backend::wgpu::WgpuRuntime, f32, i32, u32>;
            if crate::bridge::lives_in::<$backend, OfWgpu>() {
                type $home = OfWgpu;
                return $do;
            }
        }
        #[cfg(feature = "cuda")]
        {
            type OfCuda = burn_cubecl::CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8>;
            if crate::bridge::lives_in::<$backend, OfCuda>() {
                type $home = OfCuda;
                return $do;
            }
        }
    }};
}
pub(crate) use at_home;

/// Whether tensors of this backend lie in CubeCL's memory.
pub(crate) fn is_cube<B: Backend>() -> bool {
    #[cfg(feature = "wgpu")]
    if crate::bridge::lives_in::<B, burn::backend::Wgpu>() {
        return true;
    }
    #[cfg(feature = "cuda")]
    if crate::bridge::lives_in::<B, burn::backend::Cuda>() {
        return true;
    }
    false
}

/// Types that the kernels read.
pub(crate) fn reads(dtype: DType) -> bool {
    [DType::F32, DType::F16, DType::BF16].contains(&dtype)
}

fn wrap<H: Home, const D: usize>(primitive: FloatTensor<H>) -> Tensor<H, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn unwrap<H: Home, const D: usize>(tensor: Tensor<H, D>) -> CubeTensor<H::Runtime> {
    tensor.into_primitive().tensor()
}
