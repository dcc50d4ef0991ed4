//! What a run needs of a model.

use aspo_models::lora::{Adapted, LoraConfig, adapted_layers};
use aspo_models::{Pretrained, VisionLanguageModel};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;

use crate::error::{Error, Result};

/// A vision-language model that can be trained on `Autodiff<B>` and run on `B`. Every model of `aspo-models` is one.
pub trait Policy<B: Backend>:
    VisionLanguageModel<Autodiff<B>>
    + Pretrained<Autodiff<B>>
    + AutodiffModule<Autodiff<B>, InnerModule = Self::Plain>
{
    /// The same model without gradients.
    type Plain: VisionLanguageModel<B> + Pretrained<B>;
}

impl<B, M> Policy<B> for M
where
    B: Backend,
    M: VisionLanguageModel<Autodiff<B>> + Pretrained<Autodiff<B>> + AutodiffModule<Autodiff<B>>,
    M::InnerModule: VisionLanguageModel<B> + Pretrained<B>,
{
    type Plain = M::InnerModule;
}

/// The layers that `lora` adapts. Refuses those of the model's frozen modules: what they see in a picture is computed once,
/// without gradients.
pub(crate) fn targets<B, M>(model: &mut M, lora: &LoraConfig) -> Result<Vec<Adapted>>
where
    B: Backend,
    M: VisionLanguageModel<B> + Pretrained<B>,
{
    let layers = adapted_layers(model, lora)?;
    let frozen = |path: &str| {
        let below = |module: &&str| path.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        model.frozen().iter().any(below)
    };
    match layers.iter().find(|layer| frozen(&layer.path)) {
        None => Ok(layers),
        Some(Adapted { path, .. }) => Err(Error::option(
            "lora.target_modules",
            format!("matches {path} of the vision tower, which is not trained"),
            "leave it out (every linear layer of the language model), or give a regular expression that matches no such path",
        )),
    }
}
