//! LoRA adapters by PEFT's rules, in and out of PEFT's files (Hu et al. 2021).
//!
//! [`attach`] puts factors beside the layers a [`LoraConfig`] names and freezes all else; [`without_adapters`] is
//! the base model over the same storage, which makes it the reference model of preference training for free.

mod config;
mod file;
mod target;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use crate::checkpoint::{Layout, stable_ids};
use crate::error::{Error, Result};
use crate::nn::{EachLinear, Init, Linear, Lora, cast, f32, rng_for};

pub use config::{LoraConfig, Names};
pub use file::{Adapter, load_adapter, save_adapter};
use target::Targets;

/// Freeze every parameter and put an adapter beside each layer that the config names.
///
/// `A` starts uniform within `±1/sqrt(in)` (PEFT's Kaiming with a = √5), drawn from a stream of `seed` for each
/// path; `B` starts at zero, so the model's results do not change. Parameter ids are made [stable](stable_ids).
/// Adapters already there are replaced.
///
/// # Errors
/// Options we do not honour, a pattern that is no regular expression, or targets that name no linear layer.
pub fn attach<B, M>(module: M, config: &LoraConfig, seed: u64) -> Result<M>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    attach_with(module, config, |path, rank, linear| {
        let [outputs, inputs] = linear.weight.lazy_shape().dims();
        let device = linear.weight.lazy_device();
        let bound = (inputs.max(1) as f64).powf(-0.5);
        let a = Init::Uniform(bound).draw(rank * inputs, &mut rng_for(seed, path));
        let a = Tensor::from_data(TensorData::new(a, [rank, inputs]), (&device, DType::F32));
        Ok((a, Tensor::zeros([outputs, rank], (&device, DType::F32))))
    })
}

/// [`attach`] with factors `A` and `B` made by `make(path, rank, layer)`.
pub(crate) fn attach_with<B, M>(
    module: M,
    config: &LoraConfig,
    mut make: impl FnMut(&str, usize, &Linear<B>) -> Result<(Tensor<B, 2>, Tensor<B, 2>)>,
) -> Result<M>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    config.check()?;
    let targets = Targets::new(config)?;
    let mut module = frozen(without_adapters(&module));
    let mut hits = 0;
    let mut failed = None;
    module.each_linear("", &mut |path, linear| {
        if failed.is_some() {
            return;
        }
        let mut adapter = || {
            if !targets.hit(path)? {
                return Ok(None);
            }
            let (rank, scale) = targets.rank_and_scale(path)?;
            make(path, rank, linear).map(|(a, b)| Some((a, b, scale)))
        };
        match adapter() {
            Ok(None) => {}
            Ok(Some((a, b, scale))) => {
                hits += 1;
                linear.lora = Some(Lora {
                    lora_a: Param::from_tensor(a),
                    lora_b: Param::from_tensor(b),
                    scale,
                    merged: false,
                    dropout: config.lora_dropout,
                });
            }
            Err(error) => failed = Some(error),
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if hits == 0 {
        return Err(Error::Adapter(format!(
            "target_modules {} name no linear layer of the model: give names or a pattern that do, or all-linear",
            config.targets()
        )));
    }
    Ok(stable_ids(module))
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

/// The same model with its adapters off: the weights are shared, nothing is copied.
pub fn without_adapters<B, M>(module: &M) -> M
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let mut base = module.clone();
    base.each_linear("", &mut |_, linear| linear.lora = None);
    base
}

/// Add each adapter's product to its weight, `W + scale · B A`; the factors stay for [`unmerge`].
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
    module.each_linear("", &mut |_, linear| {
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
        Self { config, layout: Layout::tree(), precision: crate::checkpoint::Precision::F32 }
    }
}
