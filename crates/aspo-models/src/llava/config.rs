//! `config.json` of LLaVA-1.5.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::clip::{ClipVisionConfig, layer_index};
use crate::config::{self, ModelConfig};
use crate::error::{Error, Result};
use crate::llama::LlamaConfig;
use crate::nn::Activation;

/// Which of the tower's vectors are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureSelect {
    /// The patches, without the class token.
    Default,
    /// All, class token first.
    Full,
}

/// LLaVA-1.5; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlavaConfig {
    /// Always `llava`.
    pub model_type: String,
    /// The image tower.
    pub vision_config: ClipVisionConfig,
    /// The language model; nested configs give only what differs from LLaMA's defaults.
    pub text_config: LlamaConfig,
    /// Id in whose places image features are put (`image_token_id` in newer configs).
    pub image_token_index: u32,
    /// Hidden state of the tower that is read; negative counts from the end.
    pub vision_feature_layer: i64,
    /// Which vectors of it.
    pub vision_feature_select_strategy: FeatureSelect,
    /// Activation between the projector's two layers.
    pub projector_hidden_act: Activation,
    /// Biases in the projector.
    pub multimodal_projector_bias: bool,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for LlavaConfig {
    fn default() -> Self {
        Self {
            model_type: "llava".into(),
            vision_config: ClipVisionConfig {
                hidden_size: 1024,
                intermediate_size: 4096,
                num_hidden_layers: 24,
                num_attention_heads: 16,
                image_size: 336,
                patch_size: 14,
                ..Default::default()
            },
            text_config: LlamaConfig::default(),
            image_token_index: 32000,
            vision_feature_layer: -2,
            vision_feature_select_strategy: FeatureSelect::Default,
            projector_hidden_act: Activation::Gelu,
            multimodal_projector_bias: true,
            extra: config::architectures("LlavaForConditionalGeneration"),
        }
    }
}

impl ModelConfig for LlavaConfig {
    const MODEL_TYPE: &'static str = "llava";
    const ARCHITECTURES: &'static [&'static str] = &["LlavaForConditionalGeneration"];

    fn normalize(json: &mut Map<String, Value>) {
        if let Some(id) = json.remove("image_token_id") {
            json.entry("image_token_index").or_insert(id);
        }
        // A list of one layer is that layer; longer lists are refused by the type.
        if let Some(Value::Array(layers)) = json.get("vision_feature_layer")
            && let [only] = layers.as_slice()
        {
            let only = only.clone();
            json.insert("vision_feature_layer".into(), only);
        }
    }

    fn check(&self) -> Result<()> {
        self.vision_config.check("vision_config")?;
        self.text_config.check_at("text_config", &["llama"])?;
        config::check_id("image_token_index", self.image_token_index)?;
        if layer_index(self.vision_config.num_hidden_layers, self.vision_feature_layer).is_none() {
            let layers = self.vision_config.num_hidden_layers;
            let reason = format!("{} of a tower with {layers} layers", self.vision_feature_layer);
            return Err(Error::config("vision_feature_layer", reason));
        }
        Ok(())
    }
}

impl LlavaConfig {
    /// Height and width of a picture in pixels.
    pub fn image_size(&self) -> usize {
        self.vision_config.image_size
    }

    /// Image tokens that a picture takes.
    pub fn tokens_per_image(&self) -> usize {
        let class = usize::from(self.vision_feature_select_strategy == FeatureSelect::Full);
        self.vision_config.patches() + class
    }
}
