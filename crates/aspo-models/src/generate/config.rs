//! The options of a generation.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How to generate; names and meanings are those of Hugging Face's `GenerationConfig`. A model's `generation_config.json`
/// is not read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateConfig {
    /// At most this many tokens a row; 512 by default.
    pub max_new_tokens: usize,
    /// A row does not end before this many tokens; 0 by default.
    pub min_new_tokens: usize,
    /// Draw tokens instead of taking the likeliest; off by default.
    pub do_sample: bool,
    /// Divides scores before drawing; 1 by default.
    pub temperature: f64,
    /// Draw from this many likeliest tokens; 0, the default, is all.
    pub top_k: usize,
    /// Draw from the fewest tokens whose probabilities reach this; 1, the default, is all.
    pub top_p: f64,
    /// Sequences kept side by side; 1, the default, is none beside.
    pub num_beams: usize,
    /// Ended beams are ranked by `score / length^length_penalty`; 1 by default.
    pub length_penalty: f64,
    /// A row ends after any of these, which it keeps. `None` takes those of the model's `config.json`.
    pub eos_token_id: Option<Vec<u32>>,
    /// Seed of drawing; each row has a stream of its own by its place in the batch, so a row's text does not depend on
    /// what its neighbours are.
    pub seed: u64,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 512,
            min_new_tokens: 0,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            num_beams: 1,
            length_penalty: 1.0,
            eos_token_id: None,
            seed: 0,
        }
    }
}

impl GenerateConfig {
    /// Refuse values that mean nothing.
    ///
    /// # Errors
    /// The first such option, by name.
    pub fn check(&self) -> Result<()> {
        let refuse = |name: &str, reason: String| Err(Error::config(name, reason));
        if self.do_sample && !(self.temperature.is_finite() && self.temperature > 0.0) {
            let reason = format!(
                "{} must be positive; for the likeliest token switch do_sample off",
                self.temperature
            );
            return refuse("temperature", reason);
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", format!("{} is not within 0 and 1", self.top_p));
        }
        if self.num_beams == 0 {
            return refuse("num_beams", "0; 1 is the search without beams".into());
        }
        if self.num_beams > 1 && self.do_sample {
            return refuse(
                "num_beams",
                "beams are not drawn here; switch do_sample off or take one beam".into(),
            );
        }
        if !self.length_penalty.is_finite() {
            return refuse("length_penalty", format!("{} is not finite", self.length_penalty));
        }
        Ok(())
    }
}
