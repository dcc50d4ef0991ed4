//! LLaVA-OneVision: SigLIP over the tiles of a picture and over the whole of it, a two-layer projector, Qwen2 (Li et al. 2024,
//! arXiv 2408.03326).

mod anyres;
mod config;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend, s};

use crate::checkpoint::{Prefix, Pretrained};
use crate::clip::tower_init;
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::llama::{LlamaModel, llama_init};
use crate::llava::Projector;
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Init, Linear, cast, each_linear, initialize, normal};
use crate::picture::{ImageFeatures, Picture, PictureShape};
use crate::siglip::SiglipVisionModel;

use anyres::Kept;
pub use config::LlavaOnevisionConfig;

/// Tower, projector and decoder, as Hugging Face's `LlavaOnevisionModel`.
#[derive(Module, Debug)]
pub struct LlavaOnevisionModel<B: Backend> {
    /// The image tower.
    pub vision_tower: SiglipVisionModel<B>,
    /// Vision width to language width.
    pub multi_modal_projector: Projector<B>,
    /// The decoder.
    pub language_model: LlamaModel<B>,
    /// Ends each row of a picture, `[hidden]`.
    pub image_newline: Param<Tensor<B, 1>>,
}
each_linear!(LlavaOnevisionModel: vision_tower, multi_modal_projector, language_model);

/// The model with its output head, as Hugging Face's `LlavaOnevisionForConditionalGeneration`.
///
/// A picture that is the only one of its conversation is seen whole and cut into tiles; its [`PictureShape::grid`] is that of
/// the cut, 1 × 1 too. One of several is a single tile, not cut.
#[derive(Module, Debug)]
pub struct LlavaOnevision<B: Backend> {
    /// All but the head.
    pub model: LlavaOnevisionModel<B>,
    /// `[vocabulary, hidden]`; `None` where the head is the token table.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    pub(crate) config: LlavaOnevisionConfig,
}
each_linear!(LlavaOnevision: model, lm_head);

impl<B: Backend> LlavaOnevision<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &LlavaOnevisionConfig {
        &self.config
    }

    /// The image tokens of one picture, `[tokens, hidden]`, from its projected patches `[tiles · patches, hidden]`.
    fn arrange(&self, patches: Tensor<B, 2>, shape: &PictureShape) -> Tensor<B, 2> {
        let newline = cast(self.model.image_newline.val(), patches.dtype());
        if shape.tiles() == 1 {
            return aspo_kernels::cat(vec![patches, newline.unsqueeze()], 0);
        }
        let whole = self.config.vision_config.patches();
        let kept = self.kept(shape).tokens(patches.clone().slice(s![whole..]), newline);
        let mut parts = vec![patches.slice(s![..whole])];
        parts.extend(kept);
        aspo_kernels::cat(parts, 0)
    }

    fn kept(&self, shape: &PictureShape) -> Kept {
        Kept::new(shape, self.config.vision_config.edge(), self.config.max_tiles())
    }
}

impl<B: Backend> Pretrained<B> for LlavaOnevision<B> {
    type Config = LlavaOnevisionConfig;
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
        Prefix { module: "model.image_newline", files: &["image_newline", "model.image_newline"] },
    ];

    fn from_config(config: &LlavaOnevisionConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &LlavaOnevisionConfig {
        self.config()
    }
}

impl<B: Backend> LanguageModel<B> for LlavaOnevision<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model.language_model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.model.language_model.head(self.lm_head.as_ref())
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let vision = &self.config.vision_config;
        let rows = |shape: &PictureShape| shape.tiles() * vision.patches();
        let patches = ImageFeatures::ragged(&input.image_features, rows, vision.hidden_size)?;
        let tokens = patches.map(|patches| {
            let projected = self.model.multi_modal_projector.forward(patches);
            let mut next = 0;
            let arrange = |ImageFeatures { shape, .. }: &ImageFeatures<B>| {
                let own = next..next + rows(shape);
                next = own.end;
                self.arrange(projected.clone().slice(s![own]), shape)
            };
            aspo_kernels::cat(input.image_features.iter().map(arrange).collect(), 0)
        });
        embed_with_images(self.decoder(), input, self.image_token(), tokens)
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.config.end_tokens()
    }
}

impl<B: Backend> VisionLanguageModel<B> for LlavaOnevision<B> {
    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn tokens(&self, shape: &PictureShape) -> usize {
        self.config.tokens(shape)
    }

    fn image_size(&self) -> usize {
        self.config.image_size()
    }

    fn frozen(&self) -> &'static [&'static str] {
        &["model.vision_tower"]
    }

    /// The patches of all tiles, the whole picture first.
    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        let size = self.image_size();
        let layer = self.config.vision_feature_layer;
        let pixels = Picture::tiles(pictures, [size, size])?;
        let Some(seen) = self.model.vision_tower.hidden_state(pixels, layer) else {
            let reason = format!("{layer} is beyond the tower's layers");
            return Err(Error::config("vision_feature_layer", reason));
        };
        Ok(ImageFeatures::each(seen, pictures))
    }
}

impl LlavaOnevisionConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> LlavaOnevision<B> {
        let (from, to) = (self.vision_config.hidden_size, self.text_config.hidden_size);
        let (act, bias) = (self.projector_hidden_act, self.multimodal_projector_bias);
        LlavaOnevision {
            model: LlavaOnevisionModel {
                vision_tower: SiglipVisionModel::new(&self.vision_config, device),
                multi_modal_projector: Projector::new(from, to, bias, act, device),
                language_model: LlamaModel::new(&self.text_config, device),
                image_newline: normal([to], device),
            },
            lm_head: self.text_config.head(device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> LlavaOnevision<B> {
        let (vision, text) = (&self.vision_config, &self.text_config);
        initialize(self.init(device), seed, |path, shape| {
            if path.contains("vision_tower") {
                tower_init(path, shape, vision.hidden_size, vision.num_hidden_layers)
            } else if path.ends_with("image_newline") {
                Init::Normal((text.hidden_size as f64).powf(-0.5))
            } else {
                llama_init(path, text.initializer_range)
            }
        })
    }
}
