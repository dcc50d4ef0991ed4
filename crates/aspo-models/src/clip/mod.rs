//! CLIP: an image tower and a text tower whose projections share a space (Radford et al. 2021).

mod config;
mod parts;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::checkpoint::Pretrained;
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::nn::{Init, Linear, each_linear, initialize};

pub(crate) use config::tower_init;
pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig};
pub use parts::{ClipEncoder, ClipEncoderLayer, ClipTextModel, ClipVisionModel, VisionOutput};
pub(crate) use parts::{ClipMlp, layer_index};

/// Both towers with their projections, as Hugging Face's `CLIPModel`.
#[derive(Module, Debug)]
pub struct Clip<B: Backend> {
    /// Text tower.
    pub text_model: ClipTextModel<B>,
    /// Image tower.
    pub vision_model: ClipVisionModel<B>,
    /// `[projection, vision hidden]`, no bias.
    pub visual_projection: Linear<B>,
    /// `[projection, text hidden]`, no bias.
    pub text_projection: Linear<B>,
    /// Logarithm of the temperature, `[1]` (a scalar in files).
    pub logit_scale: Param<Tensor<B, 1>>,
    #[module(skip)]
    pub(crate) config: ClipConfig,
}

each_linear!(Clip: text_model, vision_model, visual_projection, text_projection);

impl<B: Backend> Clip<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// `[images, 3, size, size]` normalised pixels to `[images, projection]`, not unit length.
    ///
    /// # Errors
    /// Pixels of another size or number of channels than the config's.
    pub fn image_embeds(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 2>> {
        self.config.vision_config.check_pixels(pixels.dims())?;
        Ok(self.visual_projection.forward(self.vision_model.forward(pixels).pooled))
    }

    /// `[texts, tokens]` ids and mask (1 = real) to `[texts, projection]`, not unit length.
    ///
    /// The vector of the end-of-text token is taken: its first place, or with the old `eos_token_id` of 2 the
    /// place of the largest id, as Hugging Face does.
    ///
    /// # Errors
    /// More tokens than the tower has positions (nothing is cut silently), an id outside the vocabulary, or a mask
    /// of another shape.
    pub fn text_embeds(
        &self,
        ids: impl Into<Ids<B>>,
        attention_mask: impl Into<Ids<B>>,
    ) -> Result<Tensor<B, 2>> {
        let (ids, attention_mask) = (ids.into(), attention_mask.into());
        let config = &self.config.text_config;
        let [texts, tokens] = ids.dims();
        if tokens > config.max_position_embeddings || texts * tokens == 0 {
            return Err(Error::input(
                "ids",
                format!(
                    "{texts} texts of {tokens} tokens; the text tower has {} positions, and needs one token",
                    config.max_position_embeddings
                ),
            ));
        }
        if attention_mask.dims() != [texts, tokens] {
            return Err(Error::input(
                "attention_mask",
                format!("{:?}, not [{texts}, {tokens}]", attention_mask.dims()),
            ));
        }
        crate::input::check_ids(&ids, config.vocab_size)?;
        let (host, device) = (ids.values(), ids.device().clone());
        let hidden = self.text_model.forward(ids.tensor(), attention_mask);
        let eos = config.eos_token_id;
        let places: Vec<i64> = host
            .chunks(tokens)
            .enumerate()
            .map(|(row, ids)| {
                let place = if eos == 2 {
                    (0..tokens).rev().max_by_key(|&i| ids[i]).unwrap_or(0)
                } else {
                    ids.iter().position(|&id| id == i64::from(eos)).unwrap_or(0)
                };
                (row * tokens + place) as i64
            })
            .collect();
        let width = hidden.dims()[2];
        let places = Tensor::from_data(TensorData::new(places, [texts]), &device);
        let pooled = hidden.reshape([texts * tokens, width]).select(0, places);
        Ok(self.text_projection.forward(pooled))
    }

    /// `exp(logit_scale) · cos(image, text)`, `[images, texts]`.
    pub fn logits_per_image(&self, image_embeds: Tensor<B, 2>, text_embeds: Tensor<B, 2>) -> Tensor<B, 2> {
        let unit = |x: Tensor<B, 2>| {
            let x = crate::nn::to_f32(x);
            x.clone() / x.square().sum_dim(1).sqrt()
        };
        unit(image_embeds).matmul(unit(text_embeds).transpose())
            * crate::nn::to_f32(self.logit_scale.val()).exp().unsqueeze()
    }
}

impl ClipConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Clip<B> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        Clip {
            text_model: ClipTextModel::new(text, device),
            vision_model: ClipVisionModel::new(vision, device),
            visual_projection: Linear::new(vision.hidden_size, self.projection_dim, false, device),
            text_projection: Linear::new(text.hidden_size, self.projection_dim, false, device),
            logit_scale: Initializer::Constant { value: self.logit_scale_init_value }.init([1], device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, with Hugging Face's spreads, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> Clip<B> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let (tw, tl) = (text.hidden_size, text.num_hidden_layers);
        let (vw, vl) = (vision.hidden_size, vision.num_hidden_layers);
        initialize(self.init(device), seed, |path, shape| match path {
            "logit_scale" => Init::Constant(self.logit_scale_init_value),
            "visual_projection.weight" => Init::Normal((vw as f64).powf(-0.5)),
            "text_projection.weight" => Init::Normal((tw as f64).powf(-0.5)),
            _ if path.starts_with("text_model") => tower_init(path, shape, tw, tl),
            _ => tower_init(path, shape, vw, vl),
        })
    }
}

impl<B: Backend> Pretrained<B> for Clip<B> {
    type Config = ClipConfig;

    fn from_config(config: &ClipConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &ClipConfig {
        self.config()
    }
}
