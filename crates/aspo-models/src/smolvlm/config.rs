//! `config.json` of Idefics3, SmolVLM and SmolVLM2.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{self, ModelConfig, OneOrMany};
use crate::error::{Error, Result};
use crate::llama::LlamaConfig;
use crate::siglip::SiglipVisionConfig;

/// Idefics3 (SmolVLM) or SmolVLM2, which differ by name; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SmolVlmConfig {
    /// `idefics3` (the first SmolVLM too) or `smolvlm` (SmolVLM2).
    pub model_type: String,
    /// The language model.
    pub text_config: LlamaConfig,
    /// The image tower.
    pub vision_config: SiglipVisionConfig,
    /// Id in whose places image features are put.
    pub image_token_id: u32,
    /// Edge of the square of patches that becomes one image token.
    pub scale_factor: usize,
    /// The output head is the token table; what `text_config` says of it does not count.
    pub tie_word_embeddings: bool,
    /// Ends of an answer, taken from `generation_config.json` where the folder has one: `<end_of_utterance>` in the published
    /// models. Left out, those of `text_config`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<OneOrMany>,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl ModelConfig for SmolVlmConfig {
    const MODEL_TYPE: &'static str = "smolvlm";
    const MODEL_TYPES: &'static [&'static str] = &["smolvlm", "idefics3"];
    const ARCHITECTURES: &'static [&'static str] =
        &["SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration"];

    fn normalize(json: &mut Map<String, Value>) {
        let architecture = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
        let older = architecture == Some("Idefics3ForConditionalGeneration");
        json.entry("model_type").or_insert_with(|| if older { "idefics3" } else { "smolvlm" }.into());
        json.entry("image_token_id").or_insert(json!(128_257));
        json.entry("scale_factor").or_insert(json!(2));
        let tied = json.entry("tie_word_embeddings").or_insert(json!(false)).clone();
        let text = json.entry("text_config").or_insert_with(|| json!({ "rms_norm_eps": 1e-5 }));
        if let Value::Object(text) = text {
            text.insert("tie_word_embeddings".into(), tied);
        }
        let tower = [
            ("hidden_size", json!(1152)),
            ("intermediate_size", json!(3072)),
            ("num_hidden_layers", json!(12)),
            ("num_attention_heads", json!(16)),
            ("patch_size", json!(32)),
        ];
        if let Value::Object(vision) = json.entry("vision_config").or_insert_with(|| json!({})) {
            for (name, value) in tower {
                vision.entry(name).or_insert(value);
            }
        }
    }

    fn check(&self) -> Result<()> {
        self.text_config.check_at("text_config", &["llama"])?;
        self.vision_config.check("vision_config")?;
        config::check_id("image_token_id", self.image_token_id)?;
        let edge = self.vision_config.edge();
        if self.scale_factor == 0 || !edge.is_multiple_of(self.scale_factor) {
            let reason =
                format!("{} does not divide the {edge} patches along an edge of a tile", self.scale_factor);
            return Err(Error::config("scale_factor", reason));
        }
        config::check_sizes("", &[("hidden_size · scale_factor²", self.folded_width())])
    }

    fn set_end_tokens(&mut self, ids: OneOrMany) {
        self.eos_token_id = Some(ids);
    }
}

impl SmolVlmConfig {
    /// Height and width of a tile in pixels.
    pub fn image_size(&self) -> usize {
        self.vision_config.image_size
    }

    /// SmolVLM-256M: 256 million parameters in 471 tensors, 64 tokens a tile of 512 pixels.
    pub fn smolvlm_256m() -> Self {
        let json = json!({
            "architectures": ["Idefics3ForConditionalGeneration"],
            "model_type": "idefics3",
            "image_token_id": 49_190,
            "scale_factor": 4,
            "eos_token_id": 49_279,
            "text_config": {
                "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                "num_attention_heads": 9, "num_key_value_heads": 3, "rope_theta": 100_000.0, "vocab_size": 49_280,
                "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
            },
            "vision_config": {
                "model_type": "idefics3_vision", "hidden_size": 768, "intermediate_size": 3072,
                "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512, "patch_size": 16,
            },
        });
        Self::from_json(json).expect("its parts fit each other")
    }

    /// Image tokens of a tile.
    pub fn tokens_per_tile(&self) -> usize {
        (self.vision_config.edge() / self.scale_factor).pow(2)
    }

    /// Ids that end an answer.
    pub fn end_tokens(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map_or_else(|| self.text_config.eos(), OneOrMany::to_vec)
    }

    /// Width of a square of patches, side by side.
    pub(super) fn folded_width(&self) -> usize {
        self.vision_config.hidden_size.saturating_mul(self.scale_factor.saturating_pow(2))
    }
}
