//! Text from a model: batches of unequal prompts, key-value cache, on a plain backend.

mod beam;
mod config;
mod sample;
mod scores;
mod state;

use burn::tensor::backend::Backend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::input::ModelInput;
use crate::model::LanguageModel;
use scores::{Scores, check_finite};
use state::State;

pub use config::GenerateConfig;

/// Continue every row of `input`; returns the new tokens of each, its end token included, without padding.
///
/// Prompts may be of unequal length, padded on either side. `on_token(row, token)` is called for each new token in
/// the order of their making; with beams, once the best sequence of a row is known. Use a plain backend
/// (`model.valid()`): nothing here keeps a graph.
///
/// # Errors
/// What [`embed`](LanguageModel::embed) and [`context`](crate::Decoder::context) refuse, a row without a token, packed
/// segments, a config that means nothing, or scores that are not finite.
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
