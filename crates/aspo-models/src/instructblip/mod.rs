//! InstructBLIP: a ViT, a Q-Former that reads the instruction, and Vicuna (Dai et al. 2023).

mod config;
mod qformer;
mod vision;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use crate::error::{Error, Result};
use crate::input::{self, ModelInput};
use crate::llama::{Llama, LlamaModel};
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Linear, each_linear};

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

    /// The queries' last states, `[images, queries, Q-Former width]`, from the tower's `[images, patches, width]` and
    /// the instruction in `input`.
    ///
    /// # Errors
    /// Features of another shape than the tower's; no instruction, not one for each picture, or one that is too
    /// long or outside the Q-Former's vocabulary.
    pub fn query(&self, features: Tensor<B, 3>, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let (vision, qformer) = (&self.config.vision_config, &self.config.qformer_config);
        let [images, patches, width] = features.dims();
        if (patches, width) != (vision.patches() + 1, vision.hidden_size) {
            let (p, w) = (vision.patches() + 1, vision.hidden_size);
            let reason = format!("{:?}, expected [images, {p}, {w}]", features.dims());
            return Err(Error::input("image_features", reason));
        }
        let Some(ids) = input.qformer_input_ids.clone() else {
            return Err(Error::input("qformer_input_ids", "missing: the Q-Former reads the instruction too"));
        };
        let [rows, tokens] = ids.dims();
        if rows != images || tokens > qformer.max_position_embeddings {
            let reason = format!(
                "shape [{rows}, {tokens}]; one row for each of {images} pictures and at most {} tokens are possible",
                qformer.max_position_embeddings
            );
            return Err(Error::input("qformer_input_ids", reason));
        }
        input::ids(&ids, qformer.vocab_size)?;
        let mask = input.qformer_attention_mask.clone().unwrap_or_else(|| ids.ones_like());
        if mask.dims() != ids.dims() {
            return Err(Error::input(
                "qformer_attention_mask",
                format!("{:?}, not {:?}", mask.dims(), ids.dims()),
            ));
        }
        let queries = self.query_tokens.val();
        let [_, count, width] = queries.dims();
        Ok(self.qformer.forward(queries.expand([images, count, width]), features, Some((ids, mask))))
    }
}

impl<B: Backend> LanguageModel<B> for InstructBlip<B> {
    fn decoder(&self) -> &LlamaModel<B> {
        &self.language_model.model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.language_model.head()
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let features = match input.image_features.clone() {
            Some(features) if features.dims()[0] > 0 => {
                Some(self.language_projection.forward(self.query(features, input)?))
            }
            _ => None,
        };
        embed_with_images(self.decoder(), input, self.image_token(), features)
    }
}

impl<B: Backend> VisionLanguageModel<B> for InstructBlip<B> {
    fn tokens_per_image(&self) -> usize {
        self.config.num_query_tokens
    }

    fn image_token(&self) -> u32 {
        self.config.image_token_index
    }

    fn image_size(&self) -> usize {
        self.config.vision_config.image_size
    }

    fn tower(&self) -> &'static str {
        "vision_model"
    }

    fn vision_features(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 3>> {
        let size = self.image_size();
        let [images, channels, height, width] = pixels.dims();
        if images == 0 || (channels, height, width) != (3, size, size) {
            let reason = format!("shape {:?}, expected [images, 3, {size}, {size}]", pixels.dims());
            return Err(Error::input("pixels", reason));
        }
        Ok(self.vision_model.forward(pixels))
    }
}
