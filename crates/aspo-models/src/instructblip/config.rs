//! `config.json` of InstructBLIP.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{self, ModelConfig};
use crate::error::{Error, Result};
use crate::llama::LlamaConfig;
use crate::nn::Activation;

/// The image tower, a ViT with fused projections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlipVisionConfig {
    /// Always `instructblip_vision_model`.
    pub model_type: String,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Height and width in pixels.
    pub image_size: usize,
    /// Height and width of a patch in pixels.
    pub patch_size: usize,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Norm epsilon.
    pub layer_norm_eps: f64,
    /// A bias in the fused projection.
    pub qkv_bias: bool,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for BlipVisionConfig {
    fn default() -> Self {
        Self {
            model_type: "instructblip_vision_model".into(),
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            extra: Map::new(),
        }
    }
}

impl BlipVisionConfig {
    /// Patches of an image, without the class token.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }
}

/// The Q-Former.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QFormerConfig {
    /// Always `instructblip_qformer`.
    pub model_type: String,
    /// Tokens of its own (BERT's) vocabulary.
    pub vocab_size: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Longest instruction in tokens.
    pub max_position_embeddings: usize,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Norm epsilon.
    pub layer_norm_eps: f64,
    /// Every how many layers the queries look at the picture.
    pub cross_attention_frequency: usize,
    /// Position embedding; only `absolute` is implemented.
    pub position_embedding_type: String,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            model_type: "instructblip_qformer".into(),
            vocab_size: 30522,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 512,
            hidden_act: Activation::Gelu,
            layer_norm_eps: 1e-12,
            cross_attention_frequency: 2,
            position_embedding_type: "absolute".into(),
            extra: Map::new(),
        }
    }
}

/// InstructBLIP with a LLaMA (Vicuna) language model; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstructBlipConfig {
    /// Always `instructblip`.
    pub model_type: String,
    /// The image tower.
    pub vision_config: BlipVisionConfig,
    /// The Q-Former.
    pub qformer_config: QFormerConfig,
    /// The language model; OPT and T5 are refused by name.
    pub text_config: LlamaConfig,
    /// Learned queries, the image tokens of a picture.
    pub num_query_tokens: usize,
    /// Id in whose places they are put; configs older than this field mean 32000, which Vicuna's tokenizer gained.
    pub image_token_index: u32,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for InstructBlipConfig {
    fn default() -> Self {
        Self {
            model_type: "instructblip".into(),
            vision_config: BlipVisionConfig::default(),
            qformer_config: QFormerConfig::default(),
            text_config: LlamaConfig::default(),
            num_query_tokens: 32,
            image_token_index: 32000,
            extra: config::architectures("InstructBlipForConditionalGeneration"),
        }
    }
}

impl ModelConfig for InstructBlipConfig {
    const MODEL_TYPE: &'static str = "instructblip";
    const ARCHITECTURES: &'static [&'static str] = &["InstructBlipForConditionalGeneration"];

    fn normalize(json: &mut Map<String, Value>) {
        if let Some(id) = json.remove("image_token_id") {
            json.entry("image_token_index").or_insert(id);
        }
        // Hugging Face reads a language model without a name as OPT here.
        let text = json.entry("text_config").or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(text) = text {
            text.entry("model_type").or_insert_with(|| "opt".into());
        }
    }

    fn check(&self) -> Result<()> {
        let (v, q) = (&self.vision_config, &self.qformer_config);
        config::expect_type(&v.model_type, &["instructblip_vision_model"], "instructblip_vision_model")?;
        config::expect_type(&q.model_type, &["instructblip_qformer"], "instructblip_qformer")?;
        config::check_sizes(
            "vision_config",
            &[
                ("hidden_size", v.hidden_size),
                ("intermediate_size", v.intermediate_size),
                ("image_size", v.image_size),
                ("patch_size", v.patch_size),
            ],
        )?;
        config::check_sizes(
            "qformer_config",
            &[
                ("vocab_size", q.vocab_size),
                ("hidden_size", q.hidden_size),
                ("intermediate_size", q.intermediate_size),
                ("max_position_embeddings", q.max_position_embeddings),
                ("cross_attention_frequency", q.cross_attention_frequency),
            ],
        )?;
        config::check_sizes("", &[("num_query_tokens", self.num_query_tokens)])?;
        config::check_layers("vision_config", v.num_hidden_layers)?;
        config::check_layers("qformer_config", q.num_hidden_layers)?;
        config::check_heads("vision_config", v.hidden_size, v.num_attention_heads)?;
        config::check_heads("qformer_config", q.hidden_size, q.num_attention_heads)?;
        if !v.image_size.is_multiple_of(v.patch_size) {
            return Err(Error::config("vision_config.patch_size", "does not divide image_size"));
        }
        if q.position_embedding_type != "absolute" {
            let reason = format!("`{}`; only `absolute` is implemented", q.position_embedding_type);
            return Err(Error::config("qformer_config.position_embedding_type", reason));
        }
        config::check_id("image_token_index", self.image_token_index)?;
        self.text_config.check_at("text_config", &["llama"])
    }
}

impl InstructBlipConfig {
    /// Height and width of a picture in pixels.
    pub fn image_size(&self) -> usize {
        self.vision_config.image_size
    }
}
