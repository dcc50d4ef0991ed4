//! Text from a model: batches of unequal prompts, key-value cache, on a plain backend.

mod state;

use burn::tensor::{Tensor, backend::Backend};

use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::model::LanguageModel;
use state::State;

/// How to generate; names are those of Hugging Face's `GenerationConfig`.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateConfig {
    /// At most this many tokens a row; 512 by default.
    pub max_new_tokens: usize,
    /// A row ends after any of these, which it keeps. `None` takes the model's own.
    pub eos_token_id: Option<Vec<u32>>,
}

impl Default for GenerateConfig {
    fn default() -> Self {
        Self { max_new_tokens: 512, eos_token_id: None }
    }
}

/// Continue every row of `input`; returns the new tokens of each, its end token included, without padding.
///
/// Prompts may be of unequal length, padded on either side. `on_token(row, token)` is called for each new token in
/// the order of their making. Use a plain backend (`model.valid()`): nothing here keeps a graph.
///
/// # Errors
/// What [`embed`](LanguageModel::embed) refuses, a row without a token, or packed segments.
pub fn generate<B: Backend, M: LanguageModel<B>>(
    model: &M,
    input: &ModelInput<B>,
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32),
) -> Result<Vec<Vec<u32>>> {
    let eos = config.eos_token_id.clone().unwrap_or_else(|| model.decoder().config().eos());
    let rows = input.input_ids.dims()[0];
    let mut out = vec![Vec::new(); rows];
    if config.max_new_tokens == 0 || rows == 0 {
        return Ok(out);
    }
    let (mut state, mut logits) = State::prefill(model, input)?;
    // Which row of the input each row of the state is.
    let mut active: Vec<usize> = (0..rows).collect();
    loop {
        let next = greedy(logits);
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

/// The likeliest token of each row; the lowest id where several are.
fn greedy<B: Backend>(logits: Tensor<B, 2>) -> Vec<u32> {
    logits.argmax(1).to_data().iter::<i64>().map(|id| id as u32).collect()
}

fn refuse(reason: impl Into<String>) -> Error {
    Error::input("input", reason)
}
