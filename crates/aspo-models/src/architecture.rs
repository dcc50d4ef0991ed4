//! Which model a folder holds: the one place where a `model_type` becomes a type.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;

use crate::checkpoint::Pretrained;
use crate::config::{ModelConfig, model_type};
use crate::error::{Error, Result};
use crate::instructblip::{InstructBlip, InstructBlipConfig};
use crate::llama::LlamaConfig;
use crate::llava::{Llava, LlavaConfig};
use crate::llava_onevision::{LlavaOnevision, LlavaOnevisionConfig};
use crate::model::VisionLanguageModel;
use crate::qwen_vl::{QwenVl, QwenVlConfig};
use crate::smolvlm::{SmolVlm, SmolVlmConfig};

/// A vision-language model of this crate, known by its config.
pub trait Architecture: ModelConfig {
    /// The model, on any backend.
    type Model<B: Backend>: VisionLanguageModel<B> + Pretrained<B, Config = Self>;

    /// The same where gradients are taken: `Model<Autodiff<B>>`.
    type Trained<B: Backend>: VisionLanguageModel<Autodiff<B>>
        + Pretrained<Autodiff<B>, Config = Self>
        + AutodiffModule<Autodiff<B>, InnerModule = Self::Model<B>>;

    /// The language model's part of the config.
    fn text_config(&self) -> &LlamaConfig;

    /// Height and width of a tile in pixels, as [`VisionLanguageModel::image_size`].
    fn image_size(&self) -> usize;
}

/// What is to be done with whatever model a folder holds; see [`on_architecture`].
pub trait OnArchitecture {
    /// What it gives.
    type Output;

    /// Do it, with the folder's config.
    fn run<A: Architecture>(self, config: A) -> Self::Output;
}

macro_rules! architectures {
    ($($config:ident => $model:ident),+ $(,)?) => {
        $(impl Architecture for $config {
            type Model<B: Backend> = $model<B>;
            type Trained<B: Backend> = $model<Autodiff<B>>;

            fn text_config(&self) -> &LlamaConfig {
                &self.text_config
            }

            fn image_size(&self) -> usize {
                $config::image_size(self)
            }
        })+

        /// Do `what` with the model that a folder holds, by `model_type` of its `config.json`.
        ///
        /// ```no_run
        /// use aspo_models::{Architecture, LoadOptions, OnArchitecture, Pretrained, VisionLanguageModel, on_architecture};
        /// use burn_flex::Flex;
        ///
        /// struct Load<'a>(&'a str);
        ///
        /// impl OnArchitecture for Load<'_> {
        ///     type Output = aspo_models::Result<u32>;
        ///
        ///     fn run<A: Architecture>(self, _: A) -> Self::Output {
        ///         let options = LoadOptions::default();
        ///         let (model, _) = A::Model::<Flex>::from_pretrained(self.0, &options, &Default::default())?;
        ///         Ok(model.image_token())
        ///     }
        /// }
        ///
        /// # fn main() -> aspo_models::Result<()> {
        /// let token = on_architecture("llava-1.5-7b-hf", Load("llava-1.5-7b-hf"))??;
        /// # Ok(())
        /// # }
        /// ```
        ///
        /// # Errors
        /// A config that cannot be read, or of a model that is not implemented here.
        pub fn on_architecture<W: OnArchitecture>(folder: impl AsRef<Path>, what: W) -> Result<W::Output> {
            let folder = folder.as_ref();
            let found = model_type(folder)?;
            $(if $config::MODEL_TYPES.contains(&found.as_str()) {
                return Ok(what.run($config::load(folder)?));
            })+
            let known = [$($config::MODEL_TYPES),+].concat().join(", ");
            let reason = format!("model_type `{found}` is not implemented; give one of {known}");
            Err(Error::Checkpoint { path: folder.to_owned(), reason })
        }
    };
}

architectures!(
    LlavaConfig => Llava,
    InstructBlipConfig => InstructBlip,
    QwenVlConfig => QwenVl,
    SmolVlmConfig => SmolVlm,
    LlavaOnevisionConfig => LlavaOnevision,
);
