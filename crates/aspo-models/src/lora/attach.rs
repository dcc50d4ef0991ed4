//! Factors beside the layers that a config names.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::config::{InitLora, LoraConfig};
use super::merge::without_adapters;
use super::target::{Adapted, Selection, is_head};
use crate::checkpoint::Pretrained;
use crate::error::{Error, Result};
use crate::nn::{EachLinear, Init, Linear, Lora, rng_for};
use crate::walk::stable_ids;

/// Freeze every parameter and put an adapter beside each layer that the config names.
///
/// `A` starts uniform within `±1/sqrt(in)` (PEFT's Kaiming with a = √5), or with `init_lora_weights = "gaussian"` normal
/// with deviation `1/r`, drawn from a stream of `seed` for each path; `B` starts at zero, so the model's results do not
/// change. Parameter ids are made [stable](stable_ids). Adapters already there are replaced.
///
/// Layers are named as in the module tree, or all of them as older transformers had them (`language_model.model.layers…`).
///
/// # Errors
/// Options we do not honour in training ([`check_training`](LoraConfig::check_training)), an expression that is none,
/// names, expressions and indices that match nothing, and dropout on the output head.
pub fn attach<B, M>(mut module: M, config: &LoraConfig, seed: u64) -> Result<M>
where
    B: Backend,
    M: Pretrained<B> + EachLinear<B>,
{
    let layers = adapted_layers(&mut module, config)?;
    let gaussian = matches!(&config.init_lora_weights, Some(InitLora::Named(name)) if name.eq_ignore_ascii_case("gaussian"));
    attach_to(module, config, &layers, |path, rank, linear| {
        let [outputs, inputs] = linear.weight.lazy_shape().dims();
        let device = linear.weight.lazy_device();
        let start = match gaussian {
            true => Init::Normal(1.0 / rank as f64),
            false => Init::Uniform((inputs.max(1) as f64).powf(-0.5)),
        };
        let a = start.draw(rank * inputs, &mut rng_for(seed, path));
        let a = Tensor::from_data(TensorData::new(a, [rank, inputs]), (&device, DType::F32));
        Ok((a, Tensor::zeros([outputs, rank], (&device, DType::F32))))
    })
}

/// The layers that [`attach`] would adapt, in the model's order; nothing is made.
///
/// # Errors
/// As [`attach`].
pub fn adapted_layers<B, M>(module: &mut M, config: &LoraConfig) -> Result<Vec<Adapted>>
where
    B: Backend,
    M: Pretrained<B> + EachLinear<B>,
{
    config.check_training()?;
    let layers = Selection::of_own(config, &linear_paths(module), M::PREFIXES)?.layers;
    match layers.iter().find(|layer| is_head(&layer.path)) {
        Some(head) if config.lora_dropout > 0.0 => {
            let reason =
                "its adapter is trained as one weight `W + scale · B A`, whose input takes no dropout";
            let remedy = "set lora_dropout to 0, or leave the head out";
            Err(Error::Adapter(format!("lora_dropout with `{}`: {reason}; {remedy}", head.path)))
        }
        _ => Ok(layers),
    }
}

/// Freeze every parameter and put factors `A` and `B`, made by `make(path, rank, layer)`, beside the selected layers.
pub(super) fn attach_to<B, M>(
    module: M,
    config: &LoraConfig,
    layers: &[Adapted],
    mut make: impl FnMut(&str, usize, &Linear<B>) -> Result<(Tensor<B, 2>, Tensor<B, 2>)>,
) -> Result<M>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let mut module = frozen(without_adapters(&module));
    // Both are in the model's order.
    let mut layers = layers.iter().peekable();
    let mut failed = None;
    module.each_linear("", &mut |path, linear| {
        let Some(layer) = layers.next_if(|layer| layer.path == path) else { return };
        match make(path, layer.rank, linear) {
            Ok((a, b)) => {
                linear.lora = Some(Lora {
                    lora_a: Param::from_tensor(a),
                    lora_b: Param::from_tensor(b),
                    scale: layer.scale,
                    merged: false,
                    dropout: config.lora_dropout,
                    bf16: false,
                });
            }
            Err(error) => failed = failed.take().or(Some(error)),
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(stable_ids(module)),
    }
}

/// The products of all adapters in bf16, as torch's autocast has them, or in f32; factors stay f32. The output head's, which is
/// trained as one weight, is as before.
pub fn with_products_in_bf16<B: Backend, M: EachLinear<B>>(mut module: M, bf16: bool) -> M {
    module.each_linear("", &mut |_, linear| {
        if let Some(lora) = &mut linear.lora {
            lora.bf16 = bf16;
        }
    });
    module
}

/// Paths of all linear layers, in the model's order.
pub(super) fn linear_paths<B: Backend>(module: &mut impl EachLinear<B>) -> Vec<String> {
    let mut paths = Vec::new();
    module.each_linear("", &mut |path, _| paths.push(path.to_owned()));
    paths
}

/// No parameter wants a gradient. Burn's `no_grad` makes lazy parameters on the way, a whole model of them; this does not.
fn frozen<B: Backend, M: Module<B>>(module: M) -> M {
    struct Freeze;
    impl<B: Backend> ModuleMapper<B> for Freeze {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.set_require_grad(false)
        }
    }
    module.map(&mut Freeze)
}
