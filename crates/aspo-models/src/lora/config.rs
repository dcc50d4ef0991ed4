//! `adapter_config.json` of PEFT.

use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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

/// Values by regular expressions of paths, in the order of the file: the first that matches counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns<T>(pub Vec<(String, T)>);

/// How the factors start, as `init_lora_weights` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitLora {
    /// `true`: `A` uniform, `B` zero. `false`: both random, so that an adapter changes the model before it is trained.
    Plain(bool),
    /// `gaussian` (`A` normal with deviation `1 / r`, `B` zero), or another of PEFT's names.
    Named(String),
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
    pub rank_pattern: Patterns<usize>,
    /// Alphas of layers whose path matches the key.
    #[serde(serialize_with = "numbers")]
    pub alpha_pattern: Patterns<f64>,
    /// Scale by `lora_alpha / sqrt(r)` (rank-stabilised).
    pub use_rslora: bool,
    /// Indices of the layers to adapt; all by default.
    pub layers_to_transform: Option<Indices>,
    /// Name of the list those indices count; the last list of a path by default.
    pub layers_pattern: Option<Names>,
    /// How the factors start; `true` by default.
    pub init_lora_weights: Option<InitLora>,
    /// Modules that the adapter holds whole beside its factors; read from files, not trained here.
    pub modules_to_save: Option<Vec<String>>,
    /// Biases that the adapter holds: `none`, of the adapted layers (`lora_only`), or `all`; read from files, not
    /// trained here.
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
            rank_pattern: Patterns::default(),
            alpha_pattern: Patterns::default(),
            use_rslora: false,
            layers_to_transform: None,
            layers_pattern: None,
            init_lora_weights: Some(InitLora::Plain(true)),
            modules_to_save: None,
            bias: "none".into(),
            task_type: Some("CAUSAL_LM".into()),
            extra: Map::from_iter([
                ("fan_in_fan_out".to_owned(), Value::Bool(false)),
                ("inference_mode".to_owned(), Value::Bool(true)),
                ("use_dora".to_owned(), Value::Bool(false)),
            ]),
            source: None,
        }
    }
}

/// A rank beyond any model's; products with it stay far from overflow.
const MAX_RANK: usize = 1 << 20;

/// Fields of PEFT's files that change nothing in what an adapter computes. Whatever else is switched on is refused.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

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
        config.check().map_err(|error| match error {
            Error::Adapter(reason) => Error::Adapter(format!("{}: {reason}", path.display())),
            other => other,
        })?;
        Ok(config)
    }

    /// Write `adapter_config.json` into a folder: the bytes that were read while the config is as it was read, else
    /// in PEFT's form (sorted keys, two spaces), but patterns in their order.
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
        let Value::Object(options) = serde_json::to_value(self).map_err(broken)? else {
            unreachable!("a config is an object");
        };
        write_file(&path, &serde_json::to_vec_pretty(&Sorted(self, options)).map_err(broken)?)
    }

    /// Refuse what is not honoured, be it read or trained.
    ///
    /// # Errors
    /// The first such option, by name.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Adapter(what));
        if self.peft_type != "LORA" {
            return refuse(format!("peft_type `{}`; LORA is what is implemented", self.peft_type));
        }
        if !["none", "lora_only", "all"].contains(&self.bias.as_str()) {
            return refuse(format!("bias `{}`; it is none, lora_only or all", self.bias));
        }
        let ranks = self.rank_pattern.0.iter().map(|(key, r)| (format!("rank_pattern `{key}`"), *r));
        for (option, rank) in std::iter::once(("r".to_owned(), self.r)).chain(ranks) {
            if !(1..=MAX_RANK).contains(&rank) {
                return refuse(format!("{option}: a rank of {rank}; it is 1 to {MAX_RANK}"));
            }
        }
        let alphas = self.alpha_pattern.0.iter().map(|(key, a)| (format!("alpha_pattern `{key}`"), *a));
        for (option, alpha) in std::iter::once(("lora_alpha".to_owned(), self.lora_alpha)).chain(alphas) {
            if !alpha.is_finite() {
                return refuse(format!("{option}: {alpha} is not finite"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return refuse(format!("lora_dropout {} is not within 0 and 1", self.lora_dropout));
        }
        // PEFT refuses these two as well.
        let indices = match &self.layers_to_transform {
            None => false,
            Some(Indices::One(_)) => true,
            Some(Indices::Many(list)) => !list.is_empty(),
        };
        if indices && matches!(self.target_modules, Some(Names::Pattern(_))) {
            let remedy = "give target_modules as a list of names, or write the indices into the expression";
            return refuse(format!("layers_to_transform beside one expression for target_modules: {remedy}"));
        }
        let pattern = match &self.layers_pattern {
            None => false,
            Some(Names::Pattern(one)) => !one.is_empty(),
            Some(Names::List(list)) => !list.is_empty(),
        };
        if pattern && !indices {
            return refuse(
                "layers_pattern without layers_to_transform: give the indices, or leave it out".into(),
            );
        }
        match &self.init_lora_weights {
            None | Some(InitLora::Plain(_)) => {}
            Some(InitLora::Named(name))
                if ["true", "false", "gaussian", "eva", "orthogonal"]
                    .contains(&name.to_lowercase().as_str()) => {}
            Some(InitLora::Named(name)) => {
                return refuse(format!(
                    "init_lora_weights `{name}`: the adapter belongs to a base from which its start was taken off, or \
                     that was quantised, which is not rebuilt here; let PEFT convert it to plain LoRA \
                     (`path_initial_model_for_weight_conversion` of save_pretrained)"
                ));
            }
        }
        match self.extra.iter().find(|(name, value)| is_on(value) && !HARMLESS.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, value)) => {
                let value = value.to_string();
                let shown: String = value.chars().take(80).collect();
                refuse(format!("option `{name}` = {shown} is not implemented; switch it off"))
            }
        }
    }

    /// Refuse what can be read but not trained; [`attach`](super::attach) asks it.
    ///
    /// # Errors
    /// As [`check`](Self::check), and `modules_to_save`, a `bias` other than `none`, a start of the factors other than
    /// `true` and `gaussian`.
    pub fn check_training(&self) -> Result<()> {
        self.check()?;
        let refuse = |what: String| Err(Error::Adapter(what));
        if let Some(names) = self.modules_to_save.as_ref().filter(|names| !names.is_empty()) {
            return refuse(format!(
                "modules_to_save {}: whole modules are not trained here; leave it out, or give their linear layers as \
                 target_modules",
                names.join(", ")
            ));
        }
        if self.bias != "none" {
            return refuse(format!("bias `{}`: biases are not trained here; use none", self.bias));
        }
        match &self.init_lora_weights {
            Some(InitLora::Plain(true)) => Ok(()),
            Some(InitLora::Named(name)) if ["true", "gaussian"].contains(&name.to_lowercase().as_str()) => {
                Ok(())
            }
            other => {
                let shown = match other {
                    None => "null".to_owned(),
                    Some(InitLora::Plain(plain)) => plain.to_string(),
                    Some(InitLora::Named(name)) => name.clone(),
                };
                refuse(format!("init_lora_weights {shown}: a start that is implemented is true or gaussian"))
            }
        }
    }

    pub(crate) fn targets(&self) -> String {
        match &self.target_modules {
            None => "(none)".into(),
            Some(Names::Pattern(pattern)) => format!("`{pattern}`"),
            Some(Names::List(names)) => names.join(", "),
        }
    }
}

impl<T> Default for Patterns<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const N: usize> From<[(String, T); N]> for Patterns<T> {
    fn from(pairs: [(String, T); N]) -> Self {
        Self(pairs.into())
    }
}

impl<T: Serialize> Serialize for Patterns<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a map from regular expressions to numbers")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Patterns::default())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(String, T)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    // As Python reads a key that comes twice: its first place, its last value.
                    match pairs.iter_mut().find(|(known, _)| *known == key) {
                        Some((_, old)) => *old = value,
                        None => pairs.push((key, value)),
                    }
                }
                Ok(Patterns(pairs))
            }
        }
        deserializer.deserialize_any(InOrder(PhantomData))
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

fn numbers<S: Serializer>(patterns: &Patterns<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    Patterns(patterns.0.iter().map(|(key, value)| (key.clone(), as_number(*value))).collect())
        .serialize(serializer)
}

/// A config with its options as a map, whose keys are sorted; that of the patterns' would sort theirs too.
struct Sorted<'a>(&'a LoraConfig, Map<String, Value>);

impl Serialize for Sorted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Numbers<'a>(&'a Patterns<f64>);
        impl Serialize for Numbers<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                numbers(self.0, serializer)
            }
        }
        let Self(config, options) = self;
        let mut map = serializer.serialize_map(Some(options.len()))?;
        for (name, value) in options {
            match name.as_str() {
                "rank_pattern" => map.serialize_entry(name, &config.rank_pattern)?,
                "alpha_pattern" => map.serialize_entry(name, &Numbers(&config.alpha_pattern))?,
                _ => map.serialize_entry(name, value)?,
            }
        }
        map.end()
    }
}

fn as_number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 2f64.powi(53) {
        Value::from(value as i64)
    } else {
        Value::from(value)
    }
}
