//! LoRA adapters by PEFT's rules, in and out of PEFT's files (Hu et al. 2021).
//!
//! [`attach`] puts factors beside the layers a [`LoraConfig`] names and freezes all else; [`without_adapters`] is
//! the base model over the same storage, which makes it the reference model of preference training for free.

mod config;
mod file;
mod target;
mod whole;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::checkpoint::{Layout, Pretrained, stable_ids};
use crate::error::{Error, Result};
use crate::nn::{EachLinear, Init, Linear, Lora, cast, f32, rng_for};

pub use config::{Indices, InitLora, LoraConfig, Names, Patterns};
pub use file::{Adapter, load_adapter, save_adapter};
pub use target::Adapted;
use target::{Selection, is_head};

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
fn attach_to<B, M>(
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

/// Paths of all linear layers, in the model's order.
fn linear_paths<B: Backend>(module: &mut impl EachLinear<B>) -> Vec<String> {
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

/// The same model with its adapters off: the weights are shared, nothing is copied. Modules that an adapter held whole
/// (`modules_to_save`) are the base's again; biases and a head's own weight that came with an adapter stay, as in PEFT.
pub fn without_adapters<B, M>(module: &M) -> M
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let mut base = module.clone();
    base.each_linear("", &mut |_, linear| linear.restore());
    base.each_table("", &mut |_, table| table.restore());
    base
}

/// Add each adapter's product to its weight, `W + scale · B A`; the factors stay for [`unmerge`]. Modules that an adapter
/// holds whole are there to stay.
///
/// To export a plain model, [`without_adapters`] of the result is it.
pub fn merge<B, M>(module: M) -> M
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    fold(module, true)
}

/// Take the products out again; weights return to what they were but for rounding.
pub fn unmerge<B, M>(module: M) -> M
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    fold(module, false)
}

fn fold<B, M>(mut module: M, merged: bool) -> M
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    module.each_table("", &mut |_, table| {
        table.original.as_mut().into_iter().for_each(|original| original.merged = merged);
    });
    module.each_linear("", &mut |_, linear| {
        linear.original.as_mut().into_iter().for_each(|original| original.merged = merged);
        let Some(lora) = linear.lora.as_mut().filter(|lora| lora.merged != merged) else {
            return;
        };
        lora.merged = merged;
        let sign = if merged { lora.scale } else { -lora.scale };
        let delta = lora.lora_b.val().detach().matmul(lora.lora_a.val().detach()).mul_scalar(sign);
        linear.weight = linear.weight.clone().map(|weight| {
            let (dtype, tracked) = (weight.dtype(), weight.is_require_grad());
            cast(f32(weight.detach()) + delta, dtype).set_require_grad(tracked)
        });
    });
    module
}

/// Adapters of a module with their paths, `A` then `B` of each layer, for files.
pub(crate) fn factors<B, M>(module: &M) -> Vec<(String, Tensor<B, 2>)>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let mut out = Vec::new();
    // A clone shares storage; the walk needs it only because it may also change layers.
    module.clone().each_linear("", &mut |path, linear| {
        if let Some(lora) = &linear.lora {
            out.push((format!("{path}.lora_A.weight"), lora.lora_a.val()));
            out.push((format!("{path}.lora_B.weight"), lora.lora_b.val()));
        }
    });
    out
}

/// An [`Adapter`] for a module whose factors were just [attached](attach): PEFT's own names, single precision.
impl From<LoraConfig> for Adapter {
    fn from(config: LoraConfig) -> Self {
        Self {
            config,
            layout: Layout::tree(),
            precision: crate::checkpoint::Precision::F32,
            warnings: Vec::new(),
            whole: Default::default(),
        }
    }
}
