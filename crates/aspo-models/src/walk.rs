//! The parameters of a module by their paths.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, backend::Backend};

/// Looks at every float parameter with its path.
pub(crate) trait Look<B: Backend> {
    fn look<const D: usize>(&mut self, path: &str, param: &Param<Tensor<B, D>>);
}

/// Puts another in the place of every float parameter, by its path.
pub(crate) trait Change<B: Backend> {
    fn change<const D: usize>(&mut self, path: &str, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>>;
}

/// Show all parameters of `module`, in its order.
pub(crate) fn look<B: Backend>(module: &impl Module<B>, with: &mut impl Look<B>) {
    module.visit(&mut At { path: Vec::new(), with });
}

/// The module with its parameters changed, in its order.
pub(crate) fn change<B: Backend, M: Module<B>>(module: M, with: &mut impl Change<B>) -> M {
    module.map(&mut At { path: Vec::new(), with })
}

struct At<'a, W> {
    path: Vec<String>,
    with: &'a mut W,
}

impl<B: Backend, W: Look<B>> ModuleVisitor<B> for At<'_, W> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.with.look(&self.path.join("."), param);
    }
}

impl<B: Backend, W: Change<B>> ModuleMapper<B> for At<'_, W> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        self.with.change(&self.path.join("."), param)
    }
}

/// Whether a parameter is there for an adapter's sake: a factor, or what of the base the adapter took the place of.
pub(crate) fn is_adapters(path: &str) -> bool {
    path.split('.').any(|part| part == "lora" || part == "original")
}

/// FNV-1a of a path: the same in every process, unlike std's hasher.
pub(crate) fn path_hash(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The module with parameter ids derived from their paths instead of drawn at random, so that optimiser state
/// finds its parameters again in another process.
pub fn stable_ids<B: Backend, M: Module<B>>(module: M) -> M {
    struct Ids;
    impl<B: Backend> Change<B> for Ids {
        fn change<const D: usize>(
            &mut self,
            path: &str,
            mut param: Param<Tensor<B, D>>,
        ) -> Param<Tensor<B, D>> {
            param.id = ParamId::from(path_hash(path));
            param
        }
    }
    change(module, &mut Ids)
}
