//! InstructBLIP: a ViT, a Q-Former that reads the instruction, and Vicuna (Dai et al. 2023).

mod config;
mod qformer;
mod vision;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::checkpoint::{Prefix, Pretrained};
use crate::error::{Error, Result};
use crate::input::{self, Instruction, ModelInput};
use crate::llama::{Llama, LlamaModel, llama_init};
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Linear, each_linear, initialize, zeros};
use crate::picture::{ImageFeatures, Picture, PictureShape};

pub use config::{BlipVisionConfig, InstructBlipConfig, QFormerConfig};
pub use qformer::QFormer;
pub use vision::BlipVisionModel;

/// The model, as Hugging Face's `InstructBlipForConditionalGeneration`.
#[derive(Module, Debug)]
pub struct InstructBlip<B: Backend> {
    /// The image tower.
    pub vision_model: BlipVisionModel<B>,
    /// Learned queries, `[1, queries, Q-Former width]`.
    pub query_tokens: Param<Tensor<B, 3>>,
    /// Reads the picture by the instruction.
    pub qformer: QFormer<B>,
    /// Q-Former width to language width.
    pub language_projection: Linear<B>,
    /// The decoder with its head.
    pub language_model: Llama<B>,
    #[module(skip)]
    pub(crate) config: InstructBlipConfig,
}
each_linear!(InstructBlip: vision_model, qformer, language_projection, language_model);

impl<B: Backend> InstructBlip<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &InstructBlipConfig {
        &self.config
    }

    /// The queries' last states, `[images, queries, Q-Former width]`, from the tower's features and the instruction of `input`;
    /// `None` without pictures.
    ///
    /// # Errors
    /// Features of another shape than the tower's; no instruction, not one for each picture, or one that is too
    /// long or outside the Q-Former's vocabulary.
    pub fn query(&self, input: &ModelInput<B>) -> Result<Option<Tensor<B, 3>>> {
        let (vision, qformer) = (&self.config.vision_config, &self.config.qformer_config);
        let (patches, width) = (vision.patches() + 1, vision.hidden_size);
        let Some(features) = ImageFeatures::stacked(&input.image_features, patches, width)? else {
            return Ok(None);
        };
        let images = input.image_features.len();
        let Some(Instruction { ids, attention_mask }) = input.instruction.clone() else {
            return Err(Error::input("instruction", "missing: the Q-Former reads it beside the picture"));
        };
        let [rows, tokens] = ids.dims();
        if rows != images || tokens > qformer.max_position_embeddings {
            let reason = format!(
                "shape [{rows}, {tokens}]; one row for each of {images} pictures and at most {} tokens are possible",
                qformer.max_position_embeddings
            );
            return Err(Error::input("instruction", reason));
        }
        input::check_ids(&ids, qformer.vocab_size)?;
        if attention_mask.dims() != ids.dims() {
            let reason = format!("its mask has shape {:?}, not {:?}", attention_mask.dims(), ids.dims());
            return Err(Error::input("instruction", reason));
        }
        let queries = self.query_tokens.val();
        let [_, count, inner] = queries.dims();
        let queries = queries.expand([images, count, inner]);
        let features = features.reshape([images, patches, width]);
        Ok(Some(self.qformer.forward(queries, features, Some((ids, attention_mask)))))
    }
}

impl<B: Backend> LanguageModel<B> for InstructBlip<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.language_model.model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.language_model.head()
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let features = self.query(input)?.map(|queries| {
            let projected = self.language_projection.forward(queries);
            let [images, count, width] = projected.dims();
            projected.reshape([images * count, width])
        });
        embed_with_images(self.decoder(), input, self.image_token(), features)
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.language_model.end_tokens()
    }
}

impl<B: Backend> VisionLanguageModel<B> for InstructBlip<B> {
    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn tokens(&self, _: &PictureShape) -> usize {
        self.config.num_query_tokens
    }

    fn image_size(&self) -> usize {
        self.config.image_size()
    }

    fn frozen(&self) -> &'static [&'static str] {
        &["vision_model"]
    }

    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        let pixels = Picture::squares(pictures, self.image_size())?;
        Ok(ImageFeatures::each(self.vision_model.forward(pixels), pictures))
    }
}

impl InstructBlipConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> InstructBlip<B> {
        let (from, to) = (self.qformer_config.hidden_size, self.text_config.hidden_size);
        InstructBlip {
            vision_model: BlipVisionModel::new(&self.vision_config, device),
            query_tokens: zeros([1, self.num_query_tokens, from], device),
            qformer: QFormer::new(&self.qformer_config, self.vision_config.hidden_size, device),
            language_projection: Linear::new(from, to, true, device),
            language_model: self.text_config.init(device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> InstructBlip<B> {
        let spread = self.text_config.initializer_range;
        initialize(self.init(device), seed, |path, _| llama_init(&path.to_lowercase(), spread))
    }
}

impl<B: Backend> Pretrained<B> for InstructBlip<B> {
    type Config = InstructBlipConfig;
    const PREFIXES: &'static [Prefix] = &[
        Prefix {
            module: "language_model.model.",
            files: &["language_model.model.", "model.language_model."],
        },
        Prefix { module: "language_model.lm_head.", files: &["language_model.lm_head.", "lm_head."] },
        Prefix { module: "vision_model.", files: &["vision_model.", "model.vision_model."] },
        Prefix { module: "qformer.", files: &["qformer.", "model.qformer."] },
        Prefix { module: "query_tokens", files: &["query_tokens", "model.query_tokens"] },
        Prefix {
            module: "language_projection.",
            files: &["language_projection.", "model.language_projection."],
        },
    ];

    fn from_config(config: &InstructBlipConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &InstructBlipConfig {
        self.config()
    }
}
