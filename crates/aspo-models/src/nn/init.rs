//! Lazy parameters, and seeded values for models trained from nothing.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::walk::{Change, change, path_hash};

/// Lazy: nothing is allocated until the first use, and never if a checkpoint is loaded first.
pub(crate) fn normal<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Initializer::Normal { mean: 0.0, std: 0.02 }.init(shape, device)
}

pub(crate) fn zeros<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Initializer::Zeros.init(shape, device)
}

pub(crate) fn ones<B: Backend, const D: usize>(shape: [usize; D], device: &B::Device) -> Param<Tensor<B, D>> {
    Initializer::Ones.init(shape, device)
}

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform in `(-bound, bound)`.
    Uniform(f64),
    /// One value everywhere.
    Constant(f64),
    /// Leave what is there.
    Keep,
}

impl Init {
    /// `n` values from the stream of `rng`, the same on every backend.
    pub(crate) fn draw(self, n: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
        match self {
            Self::Normal(std) => {
                let mut out = Vec::with_capacity(n + 1);
                while out.len() < n {
                    // Box-Muller; 1 - u keeps the logarithm finite.
                    let r = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt() * std;
                    let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
                    out.extend([(r * cos) as f32, (r * sin) as f32]);
                }
                out.truncate(n);
                out
            }
            Self::Uniform(bound) => {
                (0..n).map(|_| ((rng.random::<f64>() * 2.0 - 1.0) * bound) as f32).collect()
            }
            Self::Constant(value) => vec![value as f32; n],
            Self::Keep => Vec::new(),
        }
    }
}

/// A generator of its own for each path, so that adding a layer does not change the others.
pub(crate) fn rng_for(seed: u64, path: &str) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(path_hash(path));
    rng
}

/// Give every parameter a seeded starting value by `rule(path, shape)`, in `f32`.
///
/// Each parameter draws from a ChaCha stream named by its path, so values do not depend on the backend nor on the
/// order of layers.
pub fn initialize<B: Backend, M: Module<B>>(
    module: M,
    seed: u64,
    rule: impl Fn(&str, &[usize]) -> Init,
) -> M {
    struct Start<F> {
        seed: u64,
        rule: F,
    }
    impl<B: Backend, F: Fn(&str, &[usize]) -> Init> Change<B> for Start<F> {
        fn change<const D: usize>(&mut self, path: &str, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let shape = param.lazy_shape();
            let init = (self.rule)(path, shape.as_slice());
            if init == Init::Keep {
                return param;
            }
            let values = init.draw(shape.num_elements(), &mut rng_for(self.seed, path));
            let device = param.lazy_device();
            let id = param.id;
            let values = Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32));
            param.transform_for_load(values, id)
        }
    }
    change(module, &mut Start { seed, rule })
}
