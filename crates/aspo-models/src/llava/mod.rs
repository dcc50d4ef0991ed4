//! LLaVA-1.5: CLIP's patches, a two-layer projector, and LLaMA (Liu et al. 2024, "Improved baselines with visual
//! instruction tuning").

mod config;

use aspo_kernels::{Before, linear};
use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::clip::ClipVisionModel;
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::llama::LlamaModel;
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Activation, Linear, each_linear};

pub use config::{FeatureSelect, LlavaConfig};

/// Vision width to language width: `linear_2(act(linear_1(x)))`.
#[derive(Module, Debug)]
pub struct Projector<B: Backend> {
    linear_1: Linear<B>,
    linear_2: Linear<B>,
    #[module(skip)]
    act: Activation,
}
each_linear!(Projector: linear_1, linear_2);

impl<B: Backend> Projector<B> {
    /// `[.., vision width]` to `[.., hidden]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let wide = self.linear_1.forward(x);
        linear(wide, Before::Activation(self.act.into()), &[self.linear_2.layer()], None)
    }
}

/// Tower, projector and decoder, as Hugging Face's `LlavaModel`.
#[derive(Module, Debug)]
pub struct LlavaModel<B: Backend> {
    /// The image tower.
    pub vision_tower: ClipVisionModel<B>,
    /// Vision width to language width.
    pub multi_modal_projector: Projector<B>,
    /// The decoder.
    pub language_model: LlamaModel<B>,
}
each_linear!(LlavaModel: vision_tower, multi_modal_projector, language_model);

/// The model with its output head, as Hugging Face's `LlavaForConditionalGeneration`.
#[derive(Module, Debug)]
pub struct Llava<B: Backend> {
    /// All but the head.
    pub model: LlavaModel<B>,
    /// `[vocabulary, hidden]`; `None` where the head is the token table.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    pub(crate) config: LlavaConfig,
}
each_linear!(Llava: model, lm_head);

impl<B: Backend> Llava<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// Vision features `[images, patches, vision width]` to `[images, patches, hidden]`.
    pub fn project(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        self.model.multi_modal_projector.forward(features)
    }

    /// Pixels to vectors of the decoder's width: [`project`](Self::project) of the vision features.
    ///
    /// # Errors
    /// Pixels of another shape than the tower's.
    pub fn image_features(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 3>> {
        Ok(self.project(self.vision_features(pixels)?))
    }
}

impl<B: Backend> LanguageModel<B> for Llava<B> {
    fn decoder(&self) -> &LlamaModel<B> {
        &self.model.language_model
    }

    fn head(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.adapted_weight(),
            None => self.model.language_model.embed_tokens.weight.val(),
        }
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let features = match &input.image_features {
            Some(features) if features.dims()[0] > 0 => {
                let [_, count, width] = features.dims();
                let expected = (self.tokens_per_image(), self.config.vision_config.hidden_size);
                if (count, width) != expected {
                    let reason =
                        format!("{:?}, expected [images, {}, {}]", features.dims(), expected.0, expected.1);
                    return Err(Error::input("image_features", reason));
                }
                Some(self.project(features.clone()))
            }
            _ => None,
        };
        embed_with_images(self.decoder(), input, self.image_token(), features)
    }
}

impl<B: Backend> VisionLanguageModel<B> for Llava<B> {
    fn tokens_per_image(&self) -> usize {
        self.config.tokens_per_image()
    }

    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn image_size(&self) -> usize {
        self.config.vision_config.image_size
    }

    fn tower(&self) -> &'static str {
        "model.vision_tower"
    }

    fn vision_features(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 3>> {
        self.config.vision_config.check_pixels(pixels.dims())?;
        let layer = self.config.vision_feature_layer;
        let Some(state) = self.model.vision_tower.hidden_state(pixels, layer) else {
            return Err(Error::config(
                "vision_feature_layer",
                format!("{layer} is beyond the tower's layers"),
            ));
        };
        Ok(match self.config.vision_feature_select_strategy {
            FeatureSelect::Full => state,
            FeatureSelect::Default => {
                let [images, states, width] = state.dims();
                state.slice([0..images, 1..states, 0..width])
            }
        })
    }
}
