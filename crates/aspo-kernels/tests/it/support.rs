//! Numbers, derivatives and comparisons shared by the tests.

use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

/// Instantiate generic tests for every backend that is built in.
macro_rules! on_backends {
    ($($test:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $test() { super::$test::<burn_flex::Flex>(); })+
        }
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn_ndarray::NdArray>(); })+
        }
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $test() { super::$test::<burn::backend::Wgpu>(); })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $test() { super::$test::<burn::backend::Cuda>(); })+
        }
    };
}
pub(crate) use on_backends;

/// The GPU backend of this build: CUDA, or wgpu where that is not built in.
#[cfg(feature = "cuda")]
pub type Gpu = burn::backend::Cuda;
#[cfg(all(feature = "wgpu", not(feature = "cuda")))]
pub type Gpu = burn::backend::Wgpu;

/// The halves that it has, with the size of a rounding: wgpu has no bf16.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub fn halves() -> Vec<(burn::tensor::DType, f64)> {
    let f16 = (burn::tensor::DType::F16, 1.0 / 2048.0);
    match cfg!(feature = "cuda") {
        true => vec![f16, (burn::tensor::DType::BF16, 1.0 / 256.0)],
        false => vec![f16],
    }
}

/// Values between -1 and 1, the same for the same seed.
pub fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Exact in f32, so that both sides read the same numbers.
        f64::from((state >> 40) as f32 / f32::from(1u16 << 15) / 256.0 - 1.0)
    };
    (0..n).map(|_| next()).collect()
}

pub fn tensor<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<B, D> {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// A leaf that wants a gradient.
pub fn leaf<B: Backend, const D: usize>(values: &[f64], shape: [usize; D]) -> Tensor<Autodiff<B>, D> {
    tensor(values, shape).require_grad()
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// `∂ Σ f(x) g / ∂x` by central differences in f64.
pub fn slope(x: &[f64], g: &[f64], f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    const H: f64 = 1e-5;
    let along = |i: usize, h: f64| -> f64 {
        let mut x = x.to_vec();
        x[i] += h;
        f(&x).iter().zip(g).map(|(y, g)| y * g).sum()
    };
    (0..x.len()).map(|i| (along(i, H) - along(i, -H)) / (2.0 * H)).collect()
}

/// Equal to `tolerance` of the largest value expected, or of 1 where all are small.
#[track_caller]
pub fn close(what: &str, found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let far = (found - expected).abs() / scale;
        assert!(far <= tolerance, "{what}: {found} at {i}, expected {expected}, off by {far:.1e}");
    }
}
