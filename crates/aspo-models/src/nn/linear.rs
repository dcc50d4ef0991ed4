//! A linear layer in Hugging Face's layout, with a place for a LoRA adapter.

use burn::module::{Module, Param};
use burn::tensor::{Distribution, Tensor, backend::Backend, module::linear};

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

    /// `[.., in]` to `[.., out]`, in the dtype of the weight.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        let mut shape = x.shape();
        let inputs = shape[D - 1];
        let rows = shape.num_elements() / inputs.max(1);
        // Two axes make the weight's gradient one product instead of a batch of them and a sum.
        let x = x.reshape([rows, inputs]);
        let weight = self.weight.val();
        let dtype = weight.dtype();
        let base = linear(
            cast(x.clone(), dtype),
            weight.transpose(),
            self.bias.as_ref().map(|bias| cast(bias.val(), dtype)),
        );
        let out = match &self.lora {
            Some(lora) if !lora.merged => base + cast(lora.delta(x), dtype),
            _ => base,
        };
        shape[D - 1] = out.dims()[1];
        out.reshape(shape)
    }
}

impl<B: Backend> Lora<B> {
    /// `scale · (x Aᵀ) Bᵀ` in `f32`; the scale goes onto the narrow middle.
    fn delta(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let x = self.drop(f32(x));
        let down = linear(x, self.lora_a.val().transpose(), None).mul_scalar(self.scale);
        linear(down, self.lora_b.val().transpose(), None)
    }

    fn drop(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.dropout <= 0.0 || !B::ad_enabled(&x.device()) {
            return x;
        }
        let keep = 1.0 - self.dropout;
        let mask = x.random_like(Distribution::Bernoulli(keep));
        x * mask.div_scalar(keep)
    }
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

/// Implement [`EachLinear`] by listing the fields that hold linear layers, and the table of the decoder's tokens.
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
pub(crate) use each_linear;
