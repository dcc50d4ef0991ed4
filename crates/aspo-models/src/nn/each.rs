//! Every linear layer of a module, by its path.

use burn::tensor::backend::Backend;

use super::embedding::Embedding;
use super::linear::Linear;

/// Modules that can hand out every [`Linear`] they hold, with its path.
///
/// Adapters are attached, removed and written through it; a new model implements it by naming its parts.
pub trait EachLinear<B: Backend> {
    /// Call `f` with the path and the layer, for every layer below `path`.
    fn each_linear(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Linear<B>));

    /// Call `f` with the path and the table, for every table of the decoder's tokens below `path`.
    fn each_table(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Embedding<B>)) {
        let _ = (path, f);
    }
}

impl<B: Backend> EachLinear<B> for Linear<B> {
    fn each_linear(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Linear<B>)) {
        f(path, self);
    }
}

impl<B: Backend> EachLinear<B> for Embedding<B> {
    fn each_linear(&mut self, _: &str, _: &mut dyn FnMut(&str, &mut Linear<B>)) {}

    fn each_table(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Embedding<B>)) {
        f(path, self);
    }
}

impl<B: Backend, M: EachLinear<B>> EachLinear<B> for Vec<M> {
    fn each_linear(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Linear<B>)) {
        for (i, module) in self.iter_mut().enumerate() {
            module.each_linear(&join(path, &i.to_string()), f);
        }
    }

    fn each_table(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Embedding<B>)) {
        for (i, module) in self.iter_mut().enumerate() {
            module.each_table(&join(path, &i.to_string()), f);
        }
    }
}

impl<B: Backend, M: EachLinear<B>> EachLinear<B> for Option<M> {
    fn each_linear(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Linear<B>)) {
        if let Some(module) = self {
            module.each_linear(path, f);
        }
    }

    fn each_table(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut Embedding<B>)) {
        if let Some(module) = self {
            module.each_table(path, f);
        }
    }
}

/// `path.name`, or `name` at the root.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Implement [`EachLinear`](crate::EachLinear) by listing the fields that hold linear layers, and the table of the decoder's
/// tokens.
///
/// A field is a [`Linear`](crate::nn::Linear), a module with linear layers below, or a `Vec` or `Option` of these. What is not
/// listed cannot be adapted. The module has one parameter, its backend.
///
/// ```
/// use aspo_models::{each_linear, nn::Linear};
/// use burn::module::Module;
/// use burn::tensor::backend::Backend;
///
/// #[derive(Module, Debug)]
/// struct Mlp<B: Backend> {
///     wide: Linear<B>,
///     narrow: Linear<B>,
/// }
/// each_linear!(Mlp: wide, narrow);
/// ```
#[macro_export]
macro_rules! each_linear {
    ($module:ident: $($field:ident),+ $(,)?) => {
        impl<B: burn::tensor::backend::Backend> $crate::nn::EachLinear<B> for $module<B> {
            fn each_linear(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut $crate::nn::Linear<B>)) {
                $($crate::nn::EachLinear::each_linear(
                    &mut self.$field, &$crate::nn::join(path, stringify!($field)), f);)+
            }

            fn each_table(&mut self, path: &str, f: &mut dyn FnMut(&str, &mut $crate::nn::Embedding<B>)) {
                $($crate::nn::EachLinear::each_table(
                    &mut self.$field, &$crate::nn::join(path, stringify!($field)), f);)+
            }
        }
    };
}
