//! The adapter's options in the file of a run.

use aspo_models::lora::{Indices, InitLora, LoraConfig, Names, Patterns};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What [`LoraConfig`] honours in training, as the file has it: a key that is left out keeps the run's default, one that
/// does not exist here is an error.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    use_rslora: Option<bool>,
    layers_to_transform: Option<Indices>,
    layers_pattern: Option<Names>,
    init_lora_weights: Option<InitLora>,
    bias: Option<String>,
    modules_to_save: Option<Vec<String>>,
    rank_pattern: Option<Patterns<usize>>,
    alpha_pattern: Option<Patterns<f64>>,
}

/// Rank 128, alpha 256, every linear layer of the language model: SeVa's layers.
pub(crate) fn default() -> LoraConfig {
    let layers =
        r".*(language_model|text_model).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)";
    LoraConfig::new(128, 256.0, Names::Pattern(layers.into()))
}

pub(crate) fn serialize<S: Serializer>(lora: &LoraConfig, serializer: S) -> Result<S::Ok, S::Error> {
    let lora = lora.clone();
    Keys {
        r: Some(lora.r),
        lora_alpha: Some(lora.lora_alpha),
        lora_dropout: Some(lora.lora_dropout),
        target_modules: lora.target_modules,
        exclude_modules: lora.exclude_modules,
        use_rslora: Some(lora.use_rslora),
        layers_to_transform: lora.layers_to_transform,
        layers_pattern: lora.layers_pattern,
        init_lora_weights: lora.init_lora_weights,
        bias: Some(lora.bias),
        modules_to_save: lora.modules_to_save,
        rank_pattern: Some(lora.rank_pattern),
        alpha_pattern: Some(lora.alpha_pattern),
    }
    .serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LoraConfig, D::Error> {
    let (keys, default) = (Keys::deserialize(deserializer)?, default());
    Ok(LoraConfig {
        r: keys.r.unwrap_or(default.r),
        lora_alpha: keys.lora_alpha.unwrap_or(default.lora_alpha),
        lora_dropout: keys.lora_dropout.unwrap_or(default.lora_dropout),
        target_modules: keys.target_modules.or(default.target_modules),
        exclude_modules: keys.exclude_modules,
        use_rslora: keys.use_rslora.unwrap_or(default.use_rslora),
        layers_to_transform: keys.layers_to_transform,
        layers_pattern: keys.layers_pattern,
        init_lora_weights: keys.init_lora_weights.or(default.init_lora_weights),
        bias: keys.bias.unwrap_or(default.bias),
        modules_to_save: keys.modules_to_save,
        rank_pattern: keys.rank_pattern.unwrap_or_default(),
        alpha_pattern: keys.alpha_pattern.unwrap_or_default(),
        ..LoraConfig::default()
    })
}
