//! From tokens to sentences: sums of log-probabilities and perplexities.
//!
//! Each sum exists twice on purpose: on the device, where gradients flow through it, and on the host in f64, where
//! weights are made of detached values (so no gradient can reach them, and ties are seen as ties).

use burn::prelude::*;

use crate::layout::ResponseLayout;
use crate::math;

/// The exponent of a perplexity is capped here so that it stays finite (C).
pub const MAX_PERPLEXITY_EXPONENT: f64 = 80.0;

/// Sums of a flat vector `[N]` over sentences: `[B, K]`, zero where a row has fewer than K sentences.
/// `Σ_i log π(s_i) = log π(y)` holds row by row, since every response token is in exactly one sentence.
pub fn sentence_sums<B: Backend>(tokens: Tensor<B, 1>, map: &ResponseLayout) -> Tensor<B, 2> {
    let (rows, width) = (map.batch_size(), map.max_sentences());
    let place = |row: usize| map.sentences(row).iter().map(move |s| (row * width + s) as i32);
    let places: Vec<i32> = (0..rows).flat_map(place).collect();
    add_up(tokens, places, rows * width).reshape([rows, width])
}

/// Sums of a flat vector `[N]` over responses: `[B]`.
pub fn response_sums<B: Backend>(tokens: Tensor<B, 1>, map: &ResponseLayout) -> Tensor<B, 1> {
    let place = |row: usize| core::iter::repeat_n(row as i32, map.row_tokens(row));
    let places: Vec<i32> = (0..map.batch_size()).flat_map(place).collect();
    add_up(tokens, places, map.batch_size())
}

/// By a mask and one sum, forward and backward: a scatter is serial on devices.
fn add_up<B: Backend>(tokens: Tensor<B, 1>, places: Vec<i32>, bins: usize) -> Tensor<B, 1> {
    let (device, shape) = (tokens.device(), [tokens.dims()[0], bins]);
    let places = math::indices(places, &device).unsqueeze_dim::<2>(1).expand(shape);
    let bins = Tensor::<B, 1, Int>::arange(0..bins as i64, &device).unsqueeze_dim::<2>(0).expand(shape);
    let outside = places.not_equal(bins);
    let spread = tokens.unsqueeze_dim::<2>(1).expand(shape);
    spread.mask_fill(outside, 0.0).sum_dim(0).flatten(0, 1)
}

/// [`sentence_sums`] on the host, ragged, in f64.
pub fn host_sentence_sums(tokens: &[f64], map: &ResponseLayout) -> Vec<Vec<f64>> {
    let sums = |row: usize| {
        let mut sums = vec![0.0; map.counts(row).len()];
        for (&sentence, &value) in map.sentences(row).iter().zip(&tokens[map.range(row)]) {
            sums[sentence] += value;
        }
        sums
    };
    (0..map.batch_size()).map(sums).collect()
}

/// `PPL = exp(-(1/N) Σ log π)` of a sentence of `tokens` tokens whose log-probabilities sum to `sum`, its exponent
/// capped at [`MAX_PERPLEXITY_EXPONENT`].
pub fn perplexity(sum: f64, tokens: usize) -> f64 {
    (-sum / tokens as f64).min(MAX_PERPLEXITY_EXPONENT).exp()
}
