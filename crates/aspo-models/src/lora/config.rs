//! `adapter_config.json` of PEFT.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::config::{read_json, write_file};
use crate::error::{Error, Result};

/// A pattern, or a list of names, as `target_modules` comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// A regular expression that matches whole paths, or `all-linear`.
    Pattern(String),
    /// Names, each matching the paths it is or ends.
    List(Vec<String>),
}

/// PEFT's LoRA options, with PEFT's names and defaults. Fields that are not listed are kept and written back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoraConfig {
    /// Always `LORA`.
    pub peft_type: String,
    /// Rank; 8 by default.
    pub r: usize,
    /// Numerator of the scale `lora_alpha / r`; 8 by default.
    #[serde(serialize_with = "number")]
    pub lora_alpha: f64,
    /// Layers to adapt: names, a regular expression, or `all-linear` (all but the output head).
    pub target_modules: Option<Names>,
    /// Layers to leave out, by the same rules.
    pub exclude_modules: Option<Names>,
    /// Probability that an input is dropped in training; 0 by default.
    pub lora_dropout: f64,
    /// Ranks of layers whose path matches the key.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of layers whose path matches the key.
    #[serde(serialize_with = "numbers")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale by `lora_alpha / sqrt(r)` (rank-stabilised).
    pub use_rslora: bool,
    /// Indices of the layers to adapt; all by default.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list those indices count; the last list of a path by default.
    pub layers_pattern: Option<Names>,
    /// Which biases are trained; only `none` is implemented.
    pub bias: String,
    /// Task, for Python's sake.
    pub task_type: Option<String>,
    /// Fields we keep but do not read, except to refuse what they switch on.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    /// The bytes of the file this was read from, written back as they were while no option has changed.
    #[serde(skip)]
    pub source: Option<Vec<u8>>,
}

/// One index or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Indices {
    /// One layer.
    One(usize),
    /// These layers.
    Many(Vec<usize>),
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            peft_type: "LORA".into(),
            r: 8,
            lora_alpha: 8.0,
            target_modules: None,
            exclude_modules: None,
            lora_dropout: 0.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            layers_to_transform: None,
            layers_pattern: None,
            bias: "none".into(),
            task_type: Some("CAUSAL_LM".into()),
            extra: Map::from_iter([
                ("base_model_name_or_path".to_owned(), Value::Null),
                ("fan_in_fan_out".to_owned(), Value::Bool(false)),
                ("inference_mode".to_owned(), Value::Bool(true)),
                ("init_lora_weights".to_owned(), Value::Bool(true)),
                ("modules_to_save".to_owned(), Value::Null),
                ("use_dora".to_owned(), Value::Bool(false)),
            ]),
            source: None,
        }
    }
}

impl LoraConfig {
    /// Rank and alpha on these layers.
    pub fn new(r: usize, lora_alpha: f64, target_modules: Names) -> Self {
        Self { r, lora_alpha, target_modules: Some(target_modules), ..Self::default() }
    }

    /// Read `adapter_config.json` of a folder.
    ///
    /// # Errors
    /// A missing or unreadable file, or options that are not honoured here.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("adapter_config.json");
        let mut config: Self = read_json(&path, "a PEFT adapter config")?;
        config.source = Some(std::fs::read(&path).map_err(Error::io(&path))?);
        config.check()?;
        Ok(config)
    }

    /// Write `adapter_config.json` into a folder: the bytes that were read while the config is as it was read,
    /// else in PEFT's form (sorted keys, two spaces).
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let path = folder.as_ref().join("adapter_config.json");
        if let Some(source) = &self.source {
            let read = serde_json::from_slice::<Self>(source);
            if read.is_ok_and(|read| Self { source: self.source.clone(), ..read } == *self) {
                return write_file(&path, source);
            }
        }
        let what = "a PEFT adapter config to write";
        let broken = |source| Error::Json { path: path.clone(), what, source };
        // Through a value, whose maps are sorted.
        let value = serde_json::to_value(self).map_err(broken)?;
        write_file(&path, &serde_json::to_vec_pretty(&value).map_err(broken)?)
    }

    /// Refuse what is not honoured.
    ///
    /// # Errors
    /// The first such option, by name.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Adapter(what));
        if self.peft_type != "LORA" {
            return refuse(format!("peft_type `{}`; LORA is what is implemented", self.peft_type));
        }
        if self.bias != "none" {
            return refuse(format!("bias `{}`; only `none` is implemented", self.bias));
        }
        if self.r == 0 || self.rank_pattern.values().any(|&r| r == 0) {
            return refuse("a rank of 0".into());
        }
        if !self.lora_alpha.is_finite() || self.alpha_pattern.values().any(|a| !a.is_finite()) {
            return refuse("lora_alpha is not finite".into());
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse(format!("lora_dropout {} is not within 0 and 1", self.lora_dropout));
        }
        // Anything else that would change the result, switched on.
        const OTHERS: &[&str] = &[
            "use_dora",
            "use_qalora",
            "use_bdlora",
            "lora_bias",
            "fan_in_fan_out",
            "modules_to_save",
            "target_parameters",
            "trainable_token_indices",
            "layer_replication",
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "velora_config",
            "monteclora_config",
            "ensure_weight_tying",
        ];
        for name in OTHERS {
            if self.extra.get(*name).is_some_and(is_on) {
                return refuse(format!("option `{name}` is not implemented; switch it off"));
            }
        }
        Ok(())
    }

    pub(crate) fn targets(&self) -> String {
        match &self.target_modules {
            None => "(none)".into(),
            Some(Names::Pattern(pattern)) => format!("`{pattern}`"),
            Some(Names::List(names)) => names.join(", "),
        }
    }
}

fn is_on(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// Whole numbers without a point, as Python writes an `int`.
fn number<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    as_number(*value).serialize(serializer)
}

fn numbers<S: Serializer>(map: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(key, value)| (key, as_number(*value))))
}

fn as_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 2f64.powi(53) {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}
