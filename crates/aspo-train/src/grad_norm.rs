//! Clipping by the global norm (`max_grad_norm`); Burn's own clips each tensor by itself.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, ElementConversion, Tensor};

/// Scales all gradients of `module` so that their common Euclidean norm is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does. Gives the norm before clipping; `None` leaves the gradients as they are.
pub fn clip_grad_norm<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &mut GradientsParams,
    max_norm: Option<f64>,
) -> f64 {
    let norm = grad_norm::<B, M>(module, gradients).map_or(0.0, |norm| norm.into_scalar().elem::<f64>());
    clip_by_norm::<B, M>(module, gradients, norm, max_norm);
    norm
}

/// The common Euclidean norm of all gradients of `module`, `[1]`, on the device; none without gradients.
pub(crate) fn grad_norm<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &GradientsParams,
) -> Option<Tensor<B::InnerBackend, 1>> {
    let mut squares = Squares { gradients, sum: None };
    module.visit(&mut squares);
    squares.sum.map(|sum: Tensor<B::InnerBackend, 1>| sum.sqrt())
}

/// Scales gradients of this norm so that it is at most `max_norm`.
pub(crate) fn clip_by_norm<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &mut GradientsParams,
    norm: f64,
    max_norm: Option<f64>,
) {
    // The small constant is torch's.
    if let Some(factor) = max_norm.map(|max| max / (norm + 1e-6)).filter(|factor| *factor < 1.0) {
        module.visit(&mut Scale { gradients, factor });
    }
}

struct Squares<'a, I: Backend> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<I, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
            let square = gradient.cast(DType::F32).square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Scale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            self.gradients.register::<B::InnerBackend, D>(param.id, gradient.mul_scalar(self.factor));
        }
    }
}
