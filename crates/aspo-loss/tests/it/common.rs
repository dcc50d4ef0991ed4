//! What the modules share: the backends, tensors from numbers and back, and comparisons that say what differs.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::DType;

/// Instantiates test bodies, generic over the inner backend, for every backend that is built.
macro_rules! on_every_backend {
    ($($body:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $body() { super::$body::<burn_flex::Flex>(); })+
        }
        mod ndarray {
            $(#[test] fn $body() { super::$body::<burn_ndarray::NdArray>(); })+
        }
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $body() { super::$body::<burn::backend::Wgpu<f32, i32>>(); })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $body() { super::$body::<burn::backend::Cuda<f32, i32>>(); })+
        }
    };
}
pub(crate) use on_every_backend;

/// An f32 tensor.
pub fn tensor<B: Backend, const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<B, D> {
    let device = Default::default();
    Tensor::from_data(TensorData::new(values.to_vec(), shape), (&device, DType::F32))
}

/// An integer tensor.
pub fn ints<B: Backend, const D: usize>(values: &[i64], shape: [usize; D]) -> Tensor<B, D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &Default::default())
}

/// A tensor's values in f64.
pub fn values<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// The gradient of a leaf.
pub fn grad<B: Backend, const D: usize>(
    leaf: &Tensor<Autodiff<B>, D>,
    grads: &<Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients,
) -> Vec<f64> {
    values(&leaf.grad(grads).expect("the leaf takes part in the loss"))
}

/// Asserts `|found - expected| ≤ relative · |expected| + absolute`, element by element.
#[track_caller]
pub fn assert_close(what: &str, found: &[f64], expected: &[f64], relative: f64, absolute: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let allowed = relative * e.abs() + absolute;
        assert!((f - e).abs() <= allowed, "{what}[{i}]: found {f:e}, expected {e:e}, allowed {allowed:e}");
    }
}

/// Cases of a property: 1,000 on flex, fewer on ndarray, few where every kernel is compiled or launched apart.
/// `PROPTEST_CASES` overrides.
pub fn cases<B: Backend>() -> u32 {
    if let Some(cases) = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()) {
        return cases;
    }
    let name = B::name(&Default::default());
    let flex = name.contains("flex");
    if flex {
        1000
    } else if name.contains("ndarray") {
        200
    } else {
        10
    }
}

/// Runs a property over generated values, with a fixed seed.
#[track_caller]
pub fn check<S: proptest::strategy::Strategy>(
    cases: u32,
    strategy: S,
    property: impl Fn(S::Value) -> Result<(), proptest::test_runner::TestCaseError>,
) {
    if let Err(e) = aspo_loss::property::runner(cases).run(&strategy, property) {
        panic!("{e}");
    }
}
