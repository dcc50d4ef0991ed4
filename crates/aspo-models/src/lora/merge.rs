//! The base without its adapters, and adapters within the base's weights.

use burn::module::Module;
use burn::tensor::backend::Backend;

use crate::nn::{EachLinear, cast, to_f32};

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
            cast(to_f32(weight.detach()) + delta, dtype).set_require_grad(tracked)
        });
    });
    module
}
