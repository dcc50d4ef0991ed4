//! A linear layer in Hugging Face's layout, with a place for a LoRA adapter.

use aspo_kernels::{self as kernels, Before, Factors, Layer, widens};
use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};

use super::init::{normal, zeros};
use super::norm::{cast, to_f32};

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
    /// Products are done in bf16; the factors stay `f32`.
    pub bf16: bool,
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
                to_f32(self.weight.val()) + delta
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
            lora: lora.map(|lora| {
                let dtype = if lora.bf16 { DType::BF16 } else { DType::F32 };
                let [a, b] = [&lora.lora_a, &lora.lora_b].map(|factor| cast(factor.val(), dtype));
                Factors { a, b, scale: lora.scale, dropout: lora.dropout }
            }),
        }
    }
}

/// `x Wᵀ`, `weight` `[out, in]`, in the dtype of the weight; where kernels take it, in that of `x`.
pub(crate) fn project<B: Backend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 2>) -> Tensor<B, D> {
    apply(Layer { weight, bias: None, lora: None }, x)
}

fn apply<B: Backend, const D: usize>(layer: Layer<B>, x: Tensor<B, D>) -> Tensor<B, D> {
    let x = if widens::<B>() { x } else { cast(x, layer.weight.dtype()) };
    kernels::linear(x, Before::Nothing, &[layer], None)
}
