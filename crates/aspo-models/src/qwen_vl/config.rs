//! `config.json` of Qwen2-VL and Qwen2.5-VL, as written by transformers before 5 (the language model's fields at the top) and
//! since (in `text_config`).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::{self, ModelConfig};
use crate::error::{Error, Result};
use crate::llama::LlamaConfig;
use crate::nn::Activation;

/// The frames that a still picture is taken for.
pub(super) const FRAMES: usize = 2;

/// Sections of the published models.
const SECTIONS: [usize; 3] = [16, 24, 24];

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// Qwen2-VL: layer norms, a plain MLP, full attention.
    Two,
    /// Qwen2.5-VL: RMS norms, a gated MLP, attention within windows in most blocks.
    TwoAndAHalf,
}

/// The image tower; its fields as Hugging Face names them, which mean other widths in either generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct QwenVisionConfig {
    /// Blocks.
    pub depth: usize,
    /// Qwen2-VL: width of the tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embed_dim: Option<usize>,
    /// Qwen2-VL: width of what it gives. Qwen2.5-VL: width of the tower.
    pub hidden_size: usize,
    /// Qwen2.5-VL: width of what it gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out_hidden_size: Option<usize>,
    /// Qwen2.5-VL: width inside the MLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intermediate_size: Option<usize>,
    /// Qwen2-VL: width inside the MLP, over that of the tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlp_ratio: Option<f64>,
    /// The MLP's activation; left out, `quick_gelu` (Qwen2-VL) or `silu` (Qwen2.5-VL).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_act: Option<Activation>,
    /// Heads.
    pub num_heads: usize,
    /// Always 3.
    #[serde(alias = "in_chans")]
    pub in_channels: usize,
    /// Edge of a patch in pixels.
    pub patch_size: usize,
    /// Edge of the square of patches that becomes one image token.
    pub spatial_merge_size: usize,
    /// Always 2: a still picture is two frames.
    pub temporal_patch_size: usize,
    /// Qwen2.5-VL: edge of a window in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_size: Option<usize>,
    /// Qwen2.5-VL: blocks that attend over the whole picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fullatt_block_indexes: Option<Vec<usize>>,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for QwenVisionConfig {
    fn default() -> Self {
        Self {
            depth: 32,
            embed_dim: None,
            hidden_size: 3584,
            out_hidden_size: None,
            intermediate_size: None,
            mlp_ratio: None,
            hidden_act: None,
            num_heads: 16,
            in_channels: 3,
            patch_size: 14,
            spatial_merge_size: 2,
            temporal_patch_size: FRAMES,
            window_size: None,
            fullatt_block_indexes: None,
            extra: Map::new(),
        }
    }
}

impl QwenVisionConfig {
    /// Width of the tower.
    pub fn width(&self, generation: Generation) -> usize {
        match generation {
            Generation::Two => self.embed_dim.unwrap_or(1280),
            Generation::TwoAndAHalf => self.hidden_size,
        }
    }

    /// Width of an image token.
    pub fn output(&self, generation: Generation) -> usize {
        match generation {
            Generation::Two => self.hidden_size,
            Generation::TwoAndAHalf => self.out_hidden_size.unwrap_or(3584),
        }
    }

    /// Width inside the MLP.
    pub fn inner(&self, generation: Generation) -> usize {
        match generation {
            Generation::Two => (self.width(generation) as f64 * self.mlp_ratio.unwrap_or(4.0)) as usize,
            Generation::TwoAndAHalf => self.intermediate_size.unwrap_or(3420),
        }
    }

    /// The MLP's activation.
    pub fn act(&self, generation: Generation) -> Activation {
        self.hidden_act.unwrap_or(match generation {
            Generation::Two => Activation::QuickGelu,
            Generation::TwoAndAHalf => Activation::Silu,
        })
    }

    /// Edge of the square of pixels that becomes one image token.
    pub fn factor(&self) -> usize {
        self.patch_size * self.spatial_merge_size
    }

    /// Edge of a window in image tokens, where blocks attend within windows.
    pub(super) fn window(&self, generation: Generation) -> Option<usize> {
        let pixels = (generation == Generation::TwoAndAHalf).then(|| self.window_size.unwrap_or(112))?;
        Some(pixels / self.spatial_merge_size / self.patch_size)
    }

    /// Whether this block attends over the whole picture.
    pub(super) fn is_full(&self, generation: Generation, block: usize) -> bool {
        let published = [7, 15, 23, 31];
        let full = self.fullatt_block_indexes.as_deref().unwrap_or(&published);
        generation == Generation::Two || full.contains(&block)
    }

    /// Base of the rotary positions.
    pub(super) fn theta(&self) -> f64 {
        let given = self.extra.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
        given.and_then(Value::as_f64).unwrap_or(10_000.0)
    }

    fn check(&self, generation: Generation) -> Result<()> {
        let at = "vision_config";
        config::check_sizes(
            at,
            &[
                ("width", self.width(generation)),
                ("output width", self.output(generation)),
                ("width of the MLP", self.inner(generation)),
                ("num_heads", self.num_heads),
                ("patch_size", self.patch_size),
                ("spatial_merge_size", self.spatial_merge_size),
                ("window_size", self.window(generation).unwrap_or(1)),
            ],
        )?;
        config::check_layers(at, self.depth)?;
        config::check_heads(at, self.width(generation), self.num_heads)?;
        let refuse = |field: &str, reason: String| Err(Error::config(format!("{at}.{field}"), reason));
        if !(self.width(generation) / self.num_heads).is_multiple_of(4) {
            return refuse(
                "num_heads",
                "positions of two axes need heads of a multiple of 4 channels".into(),
            );
        }
        if self.in_channels != 3 {
            return refuse("in_channels", format!("{}; pictures have 3", self.in_channels));
        }
        if self.temporal_patch_size != FRAMES {
            let found = self.temporal_patch_size;
            return refuse("temporal_patch_size", format!("{found}; {FRAMES} is implemented"));
        }
        if !(self.theta().is_finite() && self.theta() > 0.0) {
            return refuse("rope_parameters.rope_theta", format!("{}; it must be positive", self.theta()));
        }
        Ok(())
    }
}

/// Qwen2-VL or Qwen2.5-VL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QwenVlConfig {
    /// `qwen2_vl` or `qwen2_5_vl`.
    pub model_type: String,
    /// The language model: Qwen2 with positions of three axes.
    pub text_config: LlamaConfig,
    /// The image tower.
    pub vision_config: QwenVisionConfig,
    /// Id in whose places image features are put.
    pub image_token_id: u32,
    /// The output head is the token table.
    pub tie_word_embeddings: bool,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for QwenVlConfig {
    fn default() -> Self {
        Self::from_json(json!({ "model_type": "qwen2_5_vl" })).expect("defaults fit each other")
    }
}

/// Fields of the top that are not the language model's.
const OF_THE_TOP: [&str; 14] = [
    "architectures",
    "model_type",
    "text_config",
    "vision_config",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
];

impl ModelConfig for QwenVlConfig {
    const MODEL_TYPE: &'static str = "qwen2_5_vl";
    const MODEL_TYPES: &'static [&'static str] = &["qwen2_5_vl", "qwen2_vl"];
    const ARCHITECTURES: &'static [&'static str] =
        &["Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration"];

    fn normalize(json: &mut Map<String, Value>) {
        let architecture = json.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
        let older = match json.get("model_type").and_then(Value::as_str) {
            Some(name) => name == "qwen2_vl",
            None => architecture == Some("Qwen2VLForConditionalGeneration"),
        };
        json.insert("model_type".into(), if older { "qwen2_vl" } else { "qwen2_5_vl" }.into());
        let mut text = match json.remove("text_config") {
            Some(Value::Object(text)) => text,
            Some(other) => {
                // Not an object: let the type say so.
                json.insert("text_config".into(), other);
                return;
            }
            None => Map::new(),
        };
        let flat: Vec<String> =
            json.keys().filter(|key| !OF_THE_TOP.contains(&key.as_str())).cloned().collect();
        for key in flat {
            let value = json.remove(&key).expect("its own key");
            text.entry(key).or_insert(value);
        }
        let kind = if older { "qwen2_vl_text" } else { "qwen2_5_vl_text" };
        text.insert("model_type".into(), kind.into());
        let defaults = [
            ("vocab_size", json!(152_064)),
            ("hidden_size", json!(8192)),
            ("intermediate_size", json!(29_568)),
            ("num_hidden_layers", json!(80)),
            ("num_attention_heads", json!(64)),
            ("num_key_value_heads", json!(8)),
            ("max_position_embeddings", json!(32_768)),
            ("rms_norm_eps", json!(1e-5)),
        ];
        // Head counts are of one piece: whoever gives one and not the other has as many of both.
        let alone = text.contains_key("num_attention_heads") && !text.contains_key("num_key_value_heads");
        for (name, value) in defaults {
            if !(alone && name == "num_key_value_heads") {
                text.entry(name).or_insert(value);
            }
        }
        let gives = |text: &Map<String, Value>, name: &str| {
            ["rope_parameters", "rope_scaling"]
                .iter()
                .any(|rope| text.get(*rope).is_some_and(|r| r.get(name).is_some()))
        };
        if !text.contains_key("rope_theta") && !gives(&text, "rope_theta") {
            text.insert("rope_theta".into(), json!(1e6));
        }
        if !gives(&text, "mrope_section") {
            let rope = if text.contains_key("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
            let rope = text.entry(rope).or_insert_with(|| json!({ "rope_type": "default" }));
            if let Value::Object(rope) = rope {
                rope.insert("mrope_section".into(), json!(SECTIONS));
            }
        }
        // Either place may tie.
        let tied = |map: &Map<String, Value>| map.get("tie_word_embeddings") == Some(&Value::Bool(true));
        if tied(json) || tied(&text) {
            json.insert("tie_word_embeddings".into(), true.into());
            text.insert("tie_word_embeddings".into(), true.into());
        }
        json.insert("text_config".into(), Value::Object(text));
        json.entry("vision_config").or_insert_with(|| json!({}));
        json.entry("image_token_id").or_insert(json!(151_655));
        json.entry("tie_word_embeddings").or_insert(json!(false));
    }

    fn check(&self) -> Result<()> {
        self.text_config.check_at("text_config", &["qwen2_5_vl_text", "qwen2_vl_text"])?;
        self.vision_config.check(self.generation())?;
        config::check_id("image_token_id", self.image_token_id)?;
        let (from, to) = (self.vision_config.output(self.generation()), self.text_config.hidden_size);
        if from != to {
            let reason = format!("the tower gives {from} values a token, the language model takes {to}");
            return Err(Error::config("vision_config", reason));
        }
        Ok(())
    }
}

impl QwenVlConfig {
    /// Which of the two.
    pub fn generation(&self) -> Generation {
        if self.model_type == "qwen2_vl" { Generation::Two } else { Generation::TwoAndAHalf }
    }

    /// How many pairs of channels turn by time, height and width.
    pub fn sections(&self) -> [usize; 3] {
        self.text_config.mrope_section().unwrap_or(SECTIONS)
    }

    /// Image tokens of a resized picture of this height and width in pixels, in rows and columns.
    pub fn image_grid(&self, [height, width]: [usize; 2]) -> [usize; 2] {
        let factor = self.vision_config.factor();
        [height / factor, width / factor]
    }

    /// The edge of the square of pixels that becomes one image token: edges of pictures are its multiples.
    pub fn image_size(&self) -> usize {
        self.vision_config.factor()
    }
}
