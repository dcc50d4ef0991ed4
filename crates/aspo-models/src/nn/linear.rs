//! A linear layer in Hugging Face's layout, with a place for a LoRA adapter.

use aspo_kernels::{self as kernels, Before, Factors, Layer, has_kernels};
use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::norm::{cast, f32};
use super::{Embedding, normal, zeros};

/// `x Wᵀ + b`, plus the adapter's `scale · (x Aᵀ) Bᵀ` where one is attached.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[out, in]`, as Hugging Face stores it.
    pub weight: Param<Tensor<B, 2>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The low-rank adapter; `None` is the base model.
    pub lora: Option<Lora<B>>,
    /// The base's own parameters, where an adapter put a whole layer in their place.
    pub original: Option<Original<B>>,
}

/// Parameters of the base that an adapter's own (PEFT's `modules_to_save`) stand in for.
#[derive(Module, Debug)]
pub struct Original<B: Backend> {
    /// As of the layer.
    pub weight: Param<Tensor<B, 2>>,
    /// As of the layer.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// The adapter's are there to stay (see [`merge`](crate::lora::merge)).
    pub merged: bool,
}

/// A low-rank adapter in PEFT's layout, always `f32`: `ΔW = scale · B A` (Hu et al. 2021, eq. 3).
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// `[rank, in]`.
    pub lora_a: Param<Tensor<B, 2>>,
    /// `[out, rank]`.
    pub lora_b: Param<Tensor<B, 2>>,
    /// `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub scale: f64,
    /// The product is already in the base weight (see [`merge`](crate::lora::merge)), so it is not added again.
    pub merged: bool,
    /// Probability that an input of `A` is zeroed in training (on an autodiff backend); 0 is off.
    pub dropout: f64,
}

impl<B: Backend> Linear<B> {
    /// A layer of `inputs` to `outputs` features.
    pub fn new(inputs: usize, outputs: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: normal([outputs, inputs], device),
            bias: bias.then(|| zeros([outputs], device)),
            lora: None,
            original: None,
        }
    }

    /// `W + scale · B A`, `[out, in]`: the weight of [`forward`](Self::forward) but for the bias and an adapter's
    /// dropout. In `f32` where an adapter is attached, with gradients to `A` and `B`.
    pub fn adapted_weight(&self) -> Tensor<B, 2> {
        match &self.lora {
            Some(lora) if !lora.merged => {
                let delta = lora.lora_b.val().matmul(lora.lora_a.val()).mul_scalar(lora.scale);
                f32(self.weight.val()) + delta
            }
            _ => self.weight.val(),
        }
    }

    /// Keep the parameters, before an adapter's take their place.
    pub(crate) fn keep_original(&mut self) {
        let (weight, bias) = (self.weight.clone(), self.bias.clone());
        self.original = Some(Original { weight, bias, merged: false });
    }

    /// Without adapter: the base's own parameters, unless the adapter's were merged.
    pub(crate) fn restore(&mut self) {
        self.lora = None;
        if let Some(original) = self.original.take().filter(|original| !original.merged) {
            self.weight = original.weight;
            self.bias = original.bias;
        }
    }

    /// `[.., in]` to `[.., out]`, in the dtype of the weight; where kernels take it, in that of `x`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        apply(self.layer(), x)
    }

    /// The layer, to be one of a group that reads the same input (see [`linear`](crate::nn::linear)).
    pub fn layer(&self) -> Layer<B> {
        let lora = self.lora.as_ref().filter(|lora| !lora.merged);
        Layer {
            weight: self.weight.val(),
            bias: self.bias.as_ref().map(|bias| bias.val()),
            lora: lora.map(|lora| Factors {
                a: lora.lora_a.val(),
                b: lora.lora_b.val(),
                scale: lora.scale,
                dropout: lora.dropout,
            }),
        }
    }
}

/// `x Wᵀ`, `weight` `[out, in]`, in the dtype of the weight; where kernels take it, in that of `x`.
pub(crate) fn project<B: Backend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 2>) -> Tensor<B, D> {
    apply(Layer { weight, bias: None, lora: None }, x)
}

fn apply<B: Backend, const D: usize>(layer: Layer<B>, x: Tensor<B, D>) -> Tensor<B, D> {
    let x = if has_kernels::<B>() { x } else { cast(x, layer.weight.dtype()) };
    kernels::linear(x, Before::Nothing, &[layer], None)
}

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
