//! Text from a model: batches of unequal prompts, key-value cache, on a plain backend.

mod beam;
mod sample;
mod state;

use burn::tensor::{Tensor, backend::Backend};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::model::LanguageModel;
use state::State;

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

/// Continue every row of `input`; returns the new tokens of each, its end token included, without padding.
///
/// Prompts may be of unequal length, padded on either side. `on_token(row, token)` is called for each new token in
/// the order of their making; with beams, once the best sequence of a row is known. Use a plain backend
/// (`model.valid()`): nothing here keeps a graph.
///
/// # Errors
/// What [`embed`](LanguageModel::embed) and [`context`](crate::Decoder::context) refuse, a row without a token, packed segments, a config that means nothing, or
/// scores that are not finite.
pub fn generate<B: Backend, M: LanguageModel<B>>(
    model: &M,
    input: &ModelInput<B>,
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    config.check()?;
    let eos = config.eos_token_id.clone().unwrap_or_else(|| model.end_tokens());
    let rows = input.input_ids.dims()[0];
    if config.max_new_tokens == 0 || rows == 0 {
        return Ok(vec![Vec::new(); rows]);
    }
    if config.num_beams > 1 {
        let out = beam::search(model, input, config, &eos)?;
        for (row, tokens) in out.iter().enumerate() {
            tokens.iter().for_each(|&token| on_token(row, token));
        }
        return Ok(out);
    }
    let mut out = vec![Vec::new(); rows];
    let mut draws: Vec<ChaCha8Rng> = (0..rows as u64)
        .map(|row| {
            let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
            rng.set_stream(row);
            rng
        })
        .collect();
    let (mut state, mut logits) = State::prefill(model, input)?;
    // Which row of the input each row of the state is.
    let mut active: Vec<usize> = (0..rows).collect();
    loop {
        let next = choose(Scores::of(logits), config, &eos, &active, &out, &mut draws)?;
        let mut running = Vec::with_capacity(active.len());
        let mut tokens = Vec::with_capacity(active.len());
        for (slot, (&row, &token)) in active.iter().zip(&next).enumerate() {
            out[row].push(token);
            on_token(row, token);
            if !eos.contains(&token) && out[row].len() < config.max_new_tokens {
                running.push(slot);
                tokens.push(token);
            }
        }
        if running.is_empty() {
            return Ok(out);
        }
        if running.len() < active.len() {
            state.keep(&running);
            active = running.iter().map(|&slot| active[slot]).collect();
        }
        logits = state.step(model, &tokens)?;
    }
}

/// The next token of each running row.
fn choose(
    mut scores: Scores,
    config: &GenerateConfig,
    eos: &[u32],
    active: &[usize],
    out: &[Vec<u32>],
    draws: &mut [ChaCha8Rng],
) -> Result<Vec<u32>> {
    for (scores, &row) in scores.rows_mut().zip(active) {
        check_finite(scores, row, out[row].len())?;
        if out[row].len() < config.min_new_tokens {
            for &id in eos {
                if let Some(score) = scores.get_mut(id as usize) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
    let pick = |(scores, &row): (&[f32], &usize)| {
        if config.do_sample { sample::draw(scores, config, &mut draws[row]) } else { sample::argmax(scores) }
    };
    Ok(scores.rows().zip(active).map(pick).collect())
}

/// No token is taken from scores that are no numbers. On the host: a device may compute as if there were none such.
fn check_finite(scores: &[f32], row: usize, tokens: usize) -> Result<()> {
    match scores.iter().position(|score| !score.is_finite()) {
        None => Ok(()),
        Some(id) => Err(Error::NotFinite { row, tokens, id, found: scores[id] }),
    }
}

/// Scores of the next token on the host, row by row.
struct Scores {
    values: Vec<f32>,
    width: usize,
}

impl Scores {
    /// Of `[rows, vocabulary]`; no copy where the backend's memory is the host's.
    fn of<B: Backend>(logits: Tensor<B, 2>) -> Self {
        let width = logits.dims()[1].max(1);
        let values = logits.into_data().into_vec().expect("the head's product is cast to f32");
        Self { values, width }
    }

    fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width)
    }
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::input("input", reason)
}
