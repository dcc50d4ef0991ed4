//! `config.json` of LLaVA-OneVision.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::anyres::Kept;
use crate::clip::layer_index;
use crate::config::{self, ModelConfig, OneOrMany};
use crate::error::{Error, Result};
use crate::llama::LlamaConfig;
use crate::llava::FeatureSelect;
use crate::nn::Activation;
use crate::picture::PictureShape;
use crate::siglip::SiglipVisionConfig;

/// LLaVA-OneVision; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlavaOnevisionConfig {
    /// Always `llava_onevision`.
    pub model_type: String,
    /// The image tower.
    pub vision_config: SiglipVisionConfig,
    /// The language model, Qwen2.
    pub text_config: LlamaConfig,
    /// Id in whose places image features are put (`image_token_id` in some configs).
    pub image_token_index: u32,
    /// `anyres_max_N`: image tokens of about `N` tiles may stay of a cut picture; of larger ones less is kept.
    pub vision_aspect_ratio: String,
    /// Hidden state of the tower that is read; negative counts from the end.
    pub vision_feature_layer: i64,
    /// Always `full`: SigLIP has no class token to leave out.
    pub vision_feature_select_strategy: FeatureSelect,
    /// Activation between the projector's two layers.
    pub projector_hidden_act: Activation,
    /// Biases in the projector.
    pub multimodal_projector_bias: bool,
    /// The output head is the token table.
    pub tie_word_embeddings: bool,
    /// Ends of an answer, taken from `generation_config.json` where the folder has one. Left out, those of `text_config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<OneOrMany>,
    /// Fields we keep but do not read; `image_grid_pinpoints`, which say how a picture is cut, are the image processor's.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for LlavaOnevisionConfig {
    fn default() -> Self {
        Self::from_json(json!({ "model_type": "llava_onevision" })).expect("defaults fit each other")
    }
}

impl ModelConfig for LlavaOnevisionConfig {
    const MODEL_TYPE: &'static str = "llava_onevision";
    const ARCHITECTURES: &'static [&'static str] = &["LlavaOnevisionForConditionalGeneration"];

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
        let qwen2 = [
            ("model_type", json!("qwen2")),
            ("vocab_size", json!(151_936)),
            ("intermediate_size", json!(22_016)),
            ("max_position_embeddings", json!(32_768)),
        ];
        let tied = |map: &Map<String, Value>| map.get("tie_word_embeddings") == Some(&Value::Bool(true));
        let mut tie = tied(json);
        if let Value::Object(text) = json.entry("text_config").or_insert_with(|| json!({})) {
            for (name, value) in qwen2 {
                text.entry(name).or_insert(value);
            }
            // Either place may tie.
            tie |= tied(text);
            text.insert("tie_word_embeddings".into(), tie.into());
        }
        let given = [
            ("model_type", json!("llava_onevision")),
            ("image_token_index", json!(151_646)),
            ("vision_aspect_ratio", json!("anyres_max_9")),
            ("vision_feature_layer", json!(-1)),
            ("vision_feature_select_strategy", json!("full")),
            ("projector_hidden_act", json!("gelu")),
            ("multimodal_projector_bias", json!(true)),
            ("tie_word_embeddings", json!(tie)),
            (
                "vision_config",
                json!({
                    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 26,
                    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": false,
                }),
            ),
        ];
        for (name, value) in given {
            json.entry(name).or_insert(value);
        }
        if tie {
            json.insert("tie_word_embeddings".into(), true.into());
        }
    }

    fn check(&self) -> Result<()> {
        self.vision_config.check("vision_config")?;
        self.text_config.check_at("text_config", &["qwen2"])?;
        config::check_id("image_token_index", self.image_token_index)?;
        let layers = self.vision_config.num_hidden_layers;
        if layer_index(layers, self.vision_feature_layer).is_none() {
            let reason = format!("{} of a tower with {layers} layers", self.vision_feature_layer);
            return Err(Error::config("vision_feature_layer", reason));
        }
        if self.vision_feature_select_strategy != FeatureSelect::Full {
            let reason = "`default` leaves out a class token, which SigLIP has not; `full` is implemented";
            return Err(Error::config("vision_feature_select_strategy", reason));
        }
        match self.limit() {
            Some(tiles) => config::check_sizes("", &[("vision_aspect_ratio", tiles)]),
            None => {
                let reason = format!("`{}`; `anyres_max_N` is implemented", self.vision_aspect_ratio);
                Err(Error::config("vision_aspect_ratio", reason))
            }
        }
    }

    fn set_end_tokens(&mut self, ids: OneOrMany) {
        self.eos_token_id = Some(ids);
    }
}

impl LlavaOnevisionConfig {
    /// Height and width of a tile in pixels.
    pub fn image_size(&self) -> usize {
        self.vision_config.image_size
    }

    fn limit(&self) -> Option<usize> {
        self.vision_aspect_ratio.strip_prefix("anyres_max_")?.parse().ok()
    }

    /// Of how many tiles' worth of image tokens a cut picture may keep.
    pub(super) fn max_tiles(&self) -> usize {
        self.limit().unwrap_or(9)
    }

    /// Image tokens of a picture of this shape: alone in its conversation and cut, or one of several and a single tile.
    pub fn tokens(&self, shape: &PictureShape) -> usize {
        let patches = self.vision_config.patches();
        if shape.tiles() == 1 {
            return patches + 1;
        }
        let [rows, columns] = Kept::new(shape, self.vision_config.edge(), self.max_tiles()).size();
        patches + rows * (columns + 1)
    }

    /// Ids that end an answer.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map_or_else(|| self.text_config.eos(), OneOrMany::to_vec)
    }
}
