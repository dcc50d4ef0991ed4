//! Concatenation keeps gradients whatever other threads do.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::backend::Autodiff;
use burn::tensor::{Distribution, Tensor};
use burn_ndarray::NdArray;

type A = Autodiff<NdArray>;

/// Burn 0.21's autodiff lets go of what is concatenated while it is copied; a backward pass that ends elsewhere meanwhile takes
/// the graph away. With `Tensor::cat` here, gradients are missing within a few rounds.
#[test]
fn backward_passes_of_other_threads_take_no_gradient() {
    let device = Default::default();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let x = Tensor::<A, 1>::ones([4], &device).require_grad();
                x.powi_scalar(2).sum().backward();
            }
        });
        let weight = Tensor::<A, 2>::random([256, 2048], Distribution::Default, &device).require_grad();
        let blank = Tensor::<A, 2>::zeros([256, 2048], &device);
        let mut lost = 0;
        for _ in 0..40 {
            // Nothing but the concatenation holds on to the product.
            let joined = aspo_kernels::cat(vec![weight.clone().mul_scalar(2.0), blank.clone()], 1);
            let gradients = joined.sum().backward();
            let whole = weight.grad(&gradients).is_some_and(|gradient| {
                let sum: f32 = gradient.sum().into_scalar();
                sum == (2 * 256 * 2048) as f32
            });
            lost += usize::from(!whole);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(lost, 0, "of 40 gradients");
    });
}
