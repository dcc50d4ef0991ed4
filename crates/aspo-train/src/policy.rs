//! What a run needs of a model.

use aspo_models::{Pretrained, VisionLanguageModel};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;

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
