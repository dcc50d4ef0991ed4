//! Clipping by the global norm (`max_grad_norm`); Burn's own clips each tensor by itself.

use aspo_kernels::adamw::{scaled, squares};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{DType, ElementConversion, Tensor};

use crate::adamw::flat;

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
    let mut all = All { gradients, flat: vec![] };
    module.visit(&mut all);
    let wide = all.flat.into_iter().map(|gradient: Tensor<B::InnerBackend, 1>| gradient.cast(DType::F32));
    let wide: Vec<_> = wide.collect();
    let sum = squares(&wide).or_else(|| wide.into_iter().map(|one| one.square().sum()).reduce(|a, b| a + b));
    sum.map(Tensor::sqrt)
}

/// Scales gradients of this norm so that it is at most `max_norm`.
pub(crate) fn clip_by_norm<B: AutodiffBackend, M: Module<B>>(
    module: &M,
    gradients: &mut GradientsParams,
    norm: f64,
    max_norm: Option<f64>,
) {
    // The small constant is torch's.
    let Some(factor) = max_norm.map(|max| max / (norm + 1e-6)).filter(|factor| *factor < 1.0) else { return };
    let mut all = All { gradients, flat: vec![] };
    module.visit(&mut all);
    let narrow = all.flat.iter().any(|gradient: &Tensor<B::InnerBackend, 1>| gradient.dtype() != DType::F32);
    let together = if narrow { None } else { scaled(&all.flat, factor) };
    let scaled = together.unwrap_or_else(|| all.flat.into_iter().map(|one| one.mul_scalar(factor)).collect());
    module.visit(&mut Put { gradients, scaled: scaled.into_iter() });
}

/// Reads all gradients, flat, in the order of the module.
struct All<'a, I: Backend> {
    gradients: &'a GradientsParams,
    flat: Vec<Tensor<I, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for All<'_, B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.flat.extend(self.gradients.get::<B::InnerBackend, D>(param.id).map(flat));
    }
}

/// Puts others in their place.
struct Put<'a, I: Backend> {
    gradients: &'a mut GradientsParams,
    scaled: std::vec::IntoIter<Tensor<I, 1>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Put<'_, B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(old) = self.gradients.remove::<B::InnerBackend, D>(param.id) {
            let new = self.scaled.next().expect("one for each gradient").reshape(old.dims());
            self.gradients.register::<B::InnerBackend, D>(param.id, new);
        }
    }
}
