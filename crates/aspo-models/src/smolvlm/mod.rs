//! SmolVLM, SmolVLM2 and Idefics3: SigLIP over the tiles of a picture, squares of patches folded into one token, LLaMA (Laurençon
//! et al. 2024, arXiv 2408.12637; Marafioti et al. 2025, arXiv 2504.05299).

mod config;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::checkpoint::Pretrained;
use crate::clip::tower_init;
use crate::error::Result;
use crate::input::ModelInput;
use crate::llama::{LlamaModel, llama_init};
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Linear, each_linear, initialize};
use crate::picture::{ImageFeatures, Picture, PictureShape};
use crate::siglip::SiglipVisionModel;

pub use config::SmolVlmConfig;

/// The width of a square of patches to language width, without bias.
#[derive(Module, Debug)]
pub struct ModalityProjection<B: Backend> {
    proj: Linear<B>,
}
each_linear!(ModalityProjection: proj);

/// What stands between tower and decoder.
#[derive(Module, Debug)]
pub struct Connector<B: Backend> {
    modality_projection: ModalityProjection<B>,
}
each_linear!(Connector: modality_projection);

/// Tower, connector and decoder, as Hugging Face's `Idefics3Model` and `SmolVLMModel`.
#[derive(Module, Debug)]
pub struct SmolVlmModel<B: Backend> {
    /// The image tower.
    pub vision_model: SiglipVisionModel<B>,
    /// Vision width to language width.
    pub connector: Connector<B>,
    /// The decoder.
    pub text_model: LlamaModel<B>,
}
each_linear!(SmolVlmModel: vision_model, connector, text_model);

/// The model with its output head, as Hugging Face's `Idefics3ForConditionalGeneration` and
/// `SmolVLMForConditionalGeneration`.
#[derive(Module, Debug)]
pub struct SmolVlm<B: Backend> {
    /// All but the head.
    pub model: SmolVlmModel<B>,
    /// `[vocabulary, hidden]`; `None` where the head is the token table.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    pub(crate) config: SmolVlmConfig,
}
each_linear!(SmolVlm: model, lm_head);

impl<B: Backend> SmolVlm<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &SmolVlmConfig {
        &self.config
    }

    /// Squares of `scale_factor · scale_factor` patches as one row each: `[tiles, patches, width]` to `[tiles, tokens of a tile,
    /// width · scale_factor²]`, rows of squares from the top, in a square patches row by row.
    fn fold(&self, seen: Tensor<B, 3>) -> Tensor<B, 3> {
        let [tiles, _, width] = seen.dims();
        let fold = self.config.scale_factor;
        let edge = self.config.vision_config.edge() / fold;
        seen.reshape([tiles, edge, fold, edge, fold, width]).permute([0, 1, 3, 2, 4, 5]).reshape([
            tiles,
            edge * edge,
            fold * fold * width,
        ])
    }
}

impl<B: Backend> Pretrained<B> for SmolVlm<B> {
    type Config = SmolVlmConfig;

    fn from_config(config: &SmolVlmConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &SmolVlmConfig {
        self.config()
    }
}

impl<B: Backend> LanguageModel<B> for SmolVlm<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model.text_model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.model.text_model.head(self.lm_head.as_ref())
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let width = self.config.folded_width();
        let features = ImageFeatures::ragged(&input.image_features, |shape| self.tokens(shape), width)?;
        let projection = &self.model.connector.modality_projection.proj;
        let features = features.map(|features| projection.forward(features));
        embed_with_images(self.decoder(), input, self.image_token(), features)
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.config.end_tokens()
    }
}

impl<B: Backend> VisionLanguageModel<B> for SmolVlm<B> {
    fn image_token(&self) -> u32 {
        self.config.image_token_id
    }

    fn tokens(&self, shape: &PictureShape) -> usize {
        shape.tiles() * self.config.tokens_per_tile()
    }

    fn image_size(&self) -> usize {
        self.config.image_size()
    }

    fn frozen(&self) -> &'static [&'static str] {
        &["model.vision_model"]
    }

    /// One row an image token: its square of patches.
    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        let size = self.image_size();
        let seen = self.model.vision_model.forward(Picture::tiles(pictures, [size, size])?);
        Ok(ImageFeatures::each(self.fold(seen), pictures))
    }
}

impl SmolVlmConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> SmolVlm<B> {
        let proj = Linear::new(self.folded_width(), self.text_config.hidden_size, false, device);
        SmolVlm {
            model: SmolVlmModel {
                vision_model: SiglipVisionModel::new(&self.vision_config, device),
                connector: Connector { modality_projection: ModalityProjection { proj } },
                text_model: LlamaModel::new(&self.text_config, device),
            },
            lm_head: self.text_config.head(device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> SmolVlm<B> {
        let vision = &self.vision_config;
        initialize(self.init(device), seed, |path, shape| {
            if path.contains("vision_model") {
                tower_init(path, shape, vision.hidden_size, vision.num_hidden_layers)
            } else {
                llama_init(path, self.text_config.initializer_range)
            }
        })
    }
}
