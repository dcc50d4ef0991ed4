//! `config.json` of LLaMA, alone or nested.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{self, ModelConfig, OneOrMany};
use crate::error::{Error, Result};
use crate::nn::{Activation, Init};

/// LLaMA; fields a config leaves out take Hugging Face's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlamaConfig {
    /// `llama`; inside vision-language models also Qwen2's names, which mean biases on queries, keys and values.
    pub model_type: String,
    /// Tokens known.
    pub vocab_size: usize,
    /// Width of the layers.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; left out, as many as query heads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; left out, `hidden_size / num_attention_heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// MLP activation.
    pub hidden_act: Activation,
    /// Longest row the model was trained for.
    pub max_position_embeddings: usize,
    /// Norm epsilon.
    pub rms_norm_eps: f64,
    /// Older spelling of the rotary base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Older spelling of the rotary scaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeParameters>,
    /// Newer spelling of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<RopeParameters>,
    /// Biases in the attention's projections.
    pub attention_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// The output head is the token table.
    pub tie_word_embeddings: bool,
    /// Spread of the weights of a model made from nothing.
    pub initializer_range: f64,
    /// Start of a text.
    #[serde(deserialize_with = "config::id_or_none", skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<u32>,
    /// End of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<OneOrMany>,
    /// Filler; the -1 of the first LLaMA configs is none.
    #[serde(deserialize_with = "config::id_or_none", skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<u32>,
    /// Fields we keep but do not read.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// Rotary base and scaling, as `rope_parameters` and `rope_scaling` have them. A scaling other than `default` and
/// `linear`, a linear one without its factor, and keys that mean something else are refused when it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RopeJson", into = "RopeJson")]
pub struct RopeParameters {
    /// The base, where it is given here.
    pub rope_theta: Option<f64>,
    /// Positions are divided by it; 1 is no scaling.
    pub factor: f64,
    /// Qwen2-VL's: how many pairs of a head's channels turn by time, by height and by width (M-RoPE).
    pub mrope_section: Option<[usize; 3]>,
    /// The key of the kind was `type`, as before transformers 4.43.
    old_key: bool,
}

/// [`RopeParameters`] as written.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RopeJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_theta: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rope_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    factor: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mrope_section: Option<[usize; 3]>,
    #[serde(skip_serializing)]
    partial_rotary_factor: Option<f64>,
}

impl TryFrom<RopeJson> for RopeParameters {
    type Error = String;

    fn try_from(json: RopeJson) -> Result<Self, String> {
        if let Some(part) = json.partial_rotary_factor.filter(|&part| part != 1.0) {
            return Err(format!("partial_rotary_factor {part}: the whole width of a head is rotated here"));
        }
        let old_key = json.rope_type.is_none() && json.r#type.is_some();
        let kind = match (json.rope_type, json.r#type) {
            (Some(new), Some(old)) if new != old => {
                return Err(format!("rope_type `{new}`, but type `{old}`"));
            }
            (Some(kind), _) | (None, Some(kind)) => kind,
            (None, None) if json.factor.is_some() => {
                return Err("a factor of rotary scaling without rope_type".into());
            }
            (None, None) => "default".into(),
        };
        let factor = match (kind.as_str(), json.factor) {
            ("mrope", _) if json.mrope_section.is_none() => {
                return Err("rope_type `mrope` without its mrope_section".into());
            }
            ("default" | "mrope", None | Some(1.0)) => 1.0,
            (kind @ ("default" | "mrope"), Some(factor)) => {
                return Err(format!("factor {factor} beside rope_type `{kind}`, which has none"));
            }
            ("linear", Some(factor)) => factor,
            ("linear", None) => return Err("rope_type `linear` without its factor".into()),
            (other, _) => {
                return Err(format!(
                    "rotary scaling `{other}` is not implemented; `default` and `linear` are"
                ));
            }
        };
        Ok(Self { rope_theta: json.rope_theta, factor, mrope_section: json.mrope_section, old_key })
    }
}

impl From<RopeParameters> for RopeJson {
    fn from(rope: RopeParameters) -> Self {
        let linear = rope.factor != 1.0;
        let kind = match rope.mrope_section {
            _ if linear => "linear",
            // The older key's word for it.
            Some(_) if rope.old_key => "mrope",
            _ => "default",
        };
        let kind = Some(kind.to_owned());
        let (rope_type, r#type) = if rope.old_key { (None, kind) } else { (kind, None) };
        Self {
            rope_theta: rope.rope_theta,
            rope_type,
            r#type,
            factor: linear.then_some(rope.factor),
            mrope_section: rope.mrope_section,
            partial_rotary_factor: None,
        }
    }
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            model_type: "llama".into(),
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: Activation::Silu,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: false,
            initializer_range: 0.02,
            bos_token_id: Some(1),
            eos_token_id: Some(OneOrMany::One(2)),
            pad_token_id: None,
            extra: config::architectures("LlamaForCausalLM"),
        }
    }
}

impl ModelConfig for LlamaConfig {
    const MODEL_TYPE: &'static str = "llama";
    const ARCHITECTURES: &'static [&'static str] = &["LlamaForCausalLM"];

    fn check(&self) -> Result<()> {
        if self.mrope_section().is_some() {
            let reason =
                "positions of pictures, which a language model alone has not; leave mrope_section out";
            return Err(Error::config("rope_scaling", reason));
        }
        self.check_at("", &["llama"])
    }
}

impl LlamaConfig {
    /// Key-value heads.
    pub fn key_value_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// Width of a head.
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// Whether this is Qwen2's decoder: LLaMA's with biases of its own in the attention.
    fn is_qwen2(&self) -> bool {
        self.model_type.starts_with("qwen2")
    }

    /// Biases in the projections to queries, keys and values. Qwen2 has them whatever `attention_bias` says.
    pub fn qkv_bias(&self) -> bool {
        self.attention_bias || self.is_qwen2()
    }

    /// A bias in attention's output projection; Qwen2 has none.
    pub fn output_bias(&self) -> bool {
        self.attention_bias && !self.is_qwen2()
    }

    /// Pairs of channels that turn by time, by height and by width, where a model has such positions.
    pub fn mrope_section(&self) -> Option<[usize; 3]> {
        let given = |rope: &Option<RopeParameters>| rope.as_ref().and_then(|rope| rope.mrope_section);
        given(&self.rope_parameters).or_else(|| given(&self.rope_scaling))
    }

    /// Ids that end a text.
    pub fn eos(&self) -> Vec<u32> {
        self.eos_token_id.as_ref().map(OneOrMany::to_vec).unwrap_or_default()
    }

    /// Rotary base and factor of linear scaling, from either spelling; 10,000 and 1, LLaMA's, where none is given.
    pub fn rope(&self) -> (f64, f64) {
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = scaling.and_then(|s| s.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        (theta, scaling.map_or(1.0, |s| s.factor))
    }

    fn check_rope(&self, at: &str) -> Result<()> {
        let field = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
        let (theta, factor) = self.rope();
        for (name, value) in [("rope_theta", theta), ("rope_scaling.factor", factor)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::config(field(name), format!("{value}; it must be positive")));
            }
        }
        let newer = self.rope_parameters.as_ref();
        let thetas = [newer.and_then(|n| n.rope_theta), self.rope_theta];
        let factors = [newer, self.rope_scaling.as_ref()].map(|s| s.map(|s| s.factor));
        for [new, old] in [thetas, factors] {
            if let (Some(new), Some(old)) = (new, old)
                && new != old
            {
                let reason =
                    format!("says {new}, but rope_theta or rope_scaling {old}: leave one of them out");
                return Err(Error::config(field("rope_parameters"), reason));
            }
        }
        Ok(())
    }

    /// The check of a config that is nested at `at`, where these model types may stand.
    pub(crate) fn check_at(&self, at: &str, known: &[&'static str]) -> Result<()> {
        config::expect_type(&self.model_type, known, known.first().copied().unwrap_or_default())?;
        config::check_sizes(
            at,
            &[
                ("vocab_size", self.vocab_size),
                ("hidden_size", self.hidden_size),
                ("intermediate_size", self.intermediate_size),
                ("num_attention_heads", self.num_attention_heads),
                ("num_key_value_heads", self.key_value_heads()),
                ("head_dim", self.head_width()),
            ],
        )?;
        config::check_layers(at, self.num_hidden_layers)?;
        if self.head_dim.is_none() {
            config::check_heads(at, self.hidden_size, self.num_attention_heads)?;
        }
        if !self.num_attention_heads.is_multiple_of(self.key_value_heads()) {
            return Err(Error::config("num_key_value_heads", "does not divide num_attention_heads"));
        }
        if !self.head_width().is_multiple_of(2) {
            return Err(Error::config("head_dim", "rotary positions need an even width"));
        }
        self.check_rope(at)?;
        if let Some(sections) = self.mrope_section()
            && sections.iter().sum::<usize>() * 2 != self.head_width()
        {
            let reason = format!("{sections:?} are not half of a head's {} channels", self.head_width());
            return Err(Error::config("mrope_section", reason));
        }
        // Hugging Face's code would act on these, ours does not.
        let full = |value: &Value| {
            value.as_array().is_some_and(|types| types.iter().all(|kind| kind == "full_attention"))
        };
        config::refuse_others(
            at,
            &self.extra,
            &[
                ("partial_rotary_factor", &|value| value.as_f64() == Some(1.0)),
                ("attention_dropout", &|value| value.as_f64() == Some(0.0)),
                // Qwen2 names a window even where it is switched off.
                ("sliding_window", &|_| self.is_qwen2()),
                ("use_sliding_window", &|value| !self.is_qwen2() || value.as_bool() == Some(false)),
                ("layer_types", &full),
            ],
        )
    }
}

/// Starting values as Hugging Face's `_init_weights`: normal weights, no bias, norms at one.
pub(crate) fn llama_init(path: &str, spread: f64) -> Init {
    if path.ends_with("bias") {
        Init::Constant(0.0)
    } else if path.contains("norm") {
        Init::Constant(1.0)
    } else {
        Init::Normal(spread)
    }
}
