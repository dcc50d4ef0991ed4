//! `vision_config` of the models that see by SigLIP.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config;
use crate::error::{Error, Result};
use crate::nn::Activation;

/// What the tower has been called; hub files of Idefics3 name the whole model here.
const NAMES: [&str; 5] = ["siglip_vision_model", "idefics3_vision", "smolvlm_vision", "idefics3", "smolvlm"];

/// SigLIP's image tower; fields a config leaves out take the defaults of Hugging Face's `siglip_vision_model`, unless the
/// model around it has others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiglipVisionConfig {
    /// `siglip_vision_model`, `idefics3_vision` or `smolvlm_vision`, which are the same.
    pub model_type: String,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Always 3.
    pub num_channels: usize,
    /// Height and width of a tile in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Norm epsilon.
    pub layer_norm_eps: f64,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for SiglipVisionConfig {
    fn default() -> Self {
        Self {
            model_type: "siglip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: Activation::GeluTanh,
            layer_norm_eps: 1e-6,
            extra: Map::new(),
        }
    }
}

impl SiglipVisionConfig {
    /// Whole patches along an edge of a tile: 27 where 384 pixels are cut into patches of 14, the last 6 of which are not
    /// looked at.
    pub fn edge(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Patches of a tile.
    pub fn patches(&self) -> usize {
        self.edge().pow(2)
    }

    pub(crate) fn check(&self, at: &str) -> Result<()> {
        config::expect_type(&self.model_type, &NAMES, "siglip_vision_model")?;
        config::check_sizes(
            at,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("image_size", self.image_size),
                ("patch_size", self.patch_size),
            ],
        )?;
        config::check_layers(at, self.num_hidden_layers)?;
        config::check_heads(at, self.hidden_size, self.num_attention_heads)?;
        if self.num_channels != 3 {
            let reason = format!("{}; pictures have 3", self.num_channels);
            return Err(Error::config(format!("{at}.num_channels"), reason));
        }
        if self.edge() == 0 {
            return Err(Error::config(format!("{at}.patch_size"), "a patch is larger than image_size"));
        }
        config::refuse_others(at, &self.extra, &[("attention_dropout", &|value| value.as_f64() == Some(0.0))])
    }
}
