//! What a run needs of a model.

use aspo_models::{EachLinear, Pretrained, VisionLanguageModel};
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

/// Refuses adapters on the vision tower: what it sees in a picture is computed once, without gradients.
pub(crate) fn check_targets<B: Backend>(adapted: &mut impl EachLinear<B>) -> Result<()> {
    let mut found = None;
    adapted.each_linear("", &mut |path, linear| {
        if linear.lora.is_some() && path.contains("vision") {
            found.get_or_insert_with(|| path.to_owned());
        }
    });
    match found {
        None => Ok(()),
        Some(path) => Err(Error::option(
            "lora.target_modules",
            format!("matches {path} of the vision tower, which is not trained"),
            "leave it out (every linear layer of the language model), or give a regular expression that matches no such path",
        )),
    }
}
