//! LLaVA-1.5: CLIP's patches, a two-layer projector, and LLaMA (Liu et al. 2024, "Improved baselines with visual
//! instruction tuning").

mod config;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend, s};

use crate::checkpoint::{Prefix, Pretrained};
use crate::clip::{ClipVisionModel, tower_init};
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::llama::{LlamaModel, llama_init};
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Activation, Before, Linear, each_linear, initialize, linear};
use crate::picture::{ImageFeatures, Picture, PictureShape};

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
    pub(crate) fn new(from: usize, to: usize, bias: bool, act: Activation, device: &B::Device) -> Self {
        let linear_1 = Linear::new(from, to, bias, device);
        Self { linear_1, linear_2: Linear::new(to, to, bias, device), act }
    }

    /// `[.., vision width]` to `[.., hidden]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
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
}

impl<B: Backend> LanguageModel<B> for Llava<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model.language_model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.model.language_model.head(self.lm_head.as_ref())
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let (tokens, width) = (self.config.tokens_per_image(), self.config.vision_config.hidden_size);
        let features = ImageFeatures::stacked(&input.image_features, tokens, width)?;
        let features = features.map(|features| self.model.multi_modal_projector.forward(features));
        embed_with_images(self.decoder(), input, self.image_token(), features)
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.config.text_config.eos()
    }
}

impl<B: Backend> VisionLanguageModel<B> for Llava<B> {
    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn tokens(&self, _: &PictureShape) -> usize {
        self.config.tokens_per_image()
    }

    fn image_size(&self) -> usize {
        self.config.image_size()
    }

    fn frozen(&self) -> &'static [&'static str] {
        &["model.vision_tower"]
    }

    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        let pixels = Picture::squares(pictures, self.image_size())?;
        let layer = self.config.vision_feature_layer;
        let Some(state) = self.model.vision_tower.hidden_state(pixels, layer) else {
            return Err(Error::config(
                "vision_feature_layer",
                format!("{layer} is beyond the tower's layers"),
            ));
        };
        let state = match self.config.vision_feature_select_strategy {
            FeatureSelect::Full => state,
            FeatureSelect::Default => state.slice(s![.., 1.., ..]),
        };
        Ok(ImageFeatures::each(state, pictures))
    }
}

impl LlavaConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llava<B> {
        let (from, to) = (self.vision_config.hidden_size, self.text_config.hidden_size);
        let (act, bias) = (self.projector_hidden_act, self.multimodal_projector_bias);
        Llava {
            model: LlavaModel {
                vision_tower: ClipVisionModel::new(&self.vision_config, device),
                multi_modal_projector: Projector::new(from, to, bias, act, device),
                language_model: LlamaModel::new(&self.text_config, device),
            },
            lm_head: self.text_config.head(device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> Llava<B> {
        let vision = &self.vision_config;
        initialize(self.init(device), seed, |path, shape| {
            if path.contains("vision_tower") {
                tower_init(path, shape, vision.hidden_size, vision.num_hidden_layers)
            } else {
                llama_init(path, self.text_config.initializer_range)
            }
        })
    }
}

impl<B: Backend> Pretrained<B> for Llava<B> {
    type Config = LlavaConfig;
    const PREFIXES: &'static [Prefix] = &[
        Prefix {
            module: "model.language_model.",
            files: &["language_model.model.", "model.language_model."],
        },
        Prefix { module: "lm_head.", files: &["language_model.lm_head.", "lm_head."] },
        Prefix {
            module: "model.vision_tower.",
            files: &[
                "vision_tower.vision_model.",
                "vision_tower.",
                "model.vision_tower.vision_model.",
                "model.vision_tower.",
            ],
        },
        Prefix {
            module: "model.multi_modal_projector.",
            files: &["multi_modal_projector.", "model.multi_modal_projector."],
        },
    ];

    fn from_config(config: &LlavaConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &LlavaConfig {
        self.config()
    }
}
