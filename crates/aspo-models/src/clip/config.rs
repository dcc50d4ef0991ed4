//! `config.json` of CLIP.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{self, ModelConfig};
use crate::error::{Error, Result};
use crate::nn::{Activation, Init};

/// Hugging Face's code would drop weights of attention in training, ours does not.
const NO_DROPOUT: config::Only = ("attention_dropout", &|value| value.as_f64() == Some(0.0));

/// The image tower; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipVisionConfig {
    /// Always `clip_vision_model`.
    pub model_type: String,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Colours.
    pub num_channels: usize,
    /// Height and width in pixels.
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

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_vision_model".into(),
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            extra: Map::new(),
        }
    }
}

impl ClipVisionConfig {
    /// Patches of an image, without the class token.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    pub(crate) fn check(&self, at: &str) -> Result<()> {
        config::expect_type(&self.model_type, &["clip_vision_model"], "clip_vision_model")?;
        config::check_sizes(
            at,
            &[
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_channels", self.num_channels),
                ("image_size", self.image_size),
                ("patch_size", self.patch_size),
            ],
        )?;
        config::check_layers(at, self.num_hidden_layers)?;
        config::check_heads(at, self.hidden_size, self.num_attention_heads)?;
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(Error::config(format!("{at}.patch_size"), "does not divide image_size"));
        }
        config::refuse_others(at, &self.extra, &[NO_DROPOUT])
    }

    pub(crate) fn check_pixels(&self, found: [usize; 4]) -> Result<()> {
        let [images, channels, height, width] = found;
        if images > 0 && (channels, height, width) == (self.num_channels, self.image_size, self.image_size) {
            return Ok(());
        }
        let (c, s) = (self.num_channels, self.image_size);
        Err(Error::input("pixels", format!("shape {found:?}, expected [images, {c}, {s}, {s}]")))
    }
}

/// The text tower; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipTextConfig {
    /// Always `clip_text_model`.
    pub model_type: String,
    /// Tokens known.
    pub vocab_size: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest text in tokens.
    pub max_position_embeddings: usize,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Norm epsilon.
    pub layer_norm_eps: f64,
    /// End of text; 2 stands for "the largest id" in configs of 2021.
    pub eos_token_id: u32,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            model_type: "clip_text_model".into(),
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
            extra: Map::new(),
        }
    }
}

/// Both towers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClipConfig {
    /// Always `clip`.
    pub model_type: String,
    /// The text tower.
    pub text_config: ClipTextConfig,
    /// The image tower.
    pub vision_config: ClipVisionConfig,
    /// Width of the shared space.
    pub projection_dim: usize,
    /// Start of the logarithm of the temperature.
    pub logit_scale_init_value: f64,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            model_type: "clip".into(),
            text_config: ClipTextConfig::default(),
            vision_config: ClipVisionConfig::default(),
            projection_dim: 512,
            logit_scale_init_value: 2.6592,
            extra: config::architectures("CLIPModel"),
        }
    }
}

impl ModelConfig for ClipConfig {
    const MODEL_TYPE: &'static str = "clip";
    const ARCHITECTURES: &'static [&'static str] = &["CLIPModel"];

    /// Configs of 2021 repeat the towers as `text_config_dict` and `vision_config_dict`, which win.
    fn normalize(json: &mut Map<String, Value>) {
        for (old, new) in [("text_config_dict", "text_config"), ("vision_config_dict", "vision_config")] {
            if let Some(Value::Object(over)) = json.remove(old)
                && let Value::Object(into) =
                    json.entry(new.to_owned()).or_insert_with(|| Value::Object(Map::new()))
            {
                into.extend(over);
            }
        }
    }

    fn check(&self) -> Result<()> {
        let text = &self.text_config;
        config::expect_type(&text.model_type, &["clip_text_model"], "clip_text_model")?;
        config::check_sizes(
            "text_config",
            &[
                ("hidden_size", text.hidden_size),
                ("intermediate_size", text.intermediate_size),
                ("vocab_size", text.vocab_size),
                ("max_position_embeddings", text.max_position_embeddings),
            ],
        )?;
        config::check_layers("text_config", text.num_hidden_layers)?;
        config::check_heads("text_config", text.hidden_size, text.num_attention_heads)?;
        config::refuse_others("text_config", &text.extra, &[NO_DROPOUT])?;
        self.vision_config.check("vision_config")?;
        config::check_sizes("", &[("projection_dim", self.projection_dim)])
    }
}

/// Starting values of a tower of this width and depth (`CLIPPreTrainedModel._init_weights`).
pub(crate) fn tower_init(path: &str, shape: &[usize], width: usize, layers: usize) -> Init {
    let narrow = (width as f64).powf(-0.5);
    let deep = (2.0 * layers.max(1) as f64).powf(-0.5);
    if path.ends_with(".bias") {
        Init::Constant(0.0)
    } else if path.contains("norm") {
        Init::Constant(1.0)
    } else if path.ends_with("class_embedding") || path.ends_with("out_proj.weight") {
        Init::Normal(narrow)
    } else if path.ends_with("fc1.weight") {
        Init::Normal((2.0 * width as f64).powf(-0.5))
    } else if path.contains("self_attn") || path.ends_with("fc2.weight") {
        Init::Normal(narrow * deep)
    } else {
        debug_assert!(shape.len() >= 2, "embeddings are tables: {path}");
        Init::Normal(0.02)
    }
}
