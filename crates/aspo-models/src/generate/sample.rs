//! The next token of a row: the likeliest, or drawn from the warped distribution.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::config::GenerateConfig;

/// The index of the largest value; the lowest where several are.
pub(super) fn argmax(scores: &[f32]) -> u32 {
    let mut best = 0;
    for (i, &score) in scores.iter().enumerate() {
        if score > scores[best] {
            best = i;
        }
    }
    best as u32
}

/// Draw from `softmax(scores / temperature)` cut to the `top_k` likeliest (ties kept), then to the fewest whose
/// probabilities reach `top_p`, in Hugging Face's order.
pub(super) fn draw(scores: &[f32], config: &GenerateConfig, rng: &mut ChaCha8Rng) -> u32 {
    let mut kept: Vec<(usize, f64)> = scores.iter().map(|&s| f64::from(s)).enumerate().collect();
    // Stable, so that equal scores stay in the order of their ids.
    kept.sort_by(|a, b| b.1.total_cmp(&a.1));
    if config.top_k > 0 && config.top_k < kept.len() {
        let least = kept[config.top_k - 1].1;
        kept.retain(|&(_, s)| s >= least);
    }
    let top = kept.first().map_or(0.0, |k| k.1);
    let mut total = 0.0;
    for (_, s) in &mut kept {
        *s = ((*s - top) / config.temperature).exp();
        total += *s;
    }
    if config.top_p < 1.0 {
        let mut before = 0.0;
        let reach = config.top_p * total;
        let keep = kept
            .iter()
            .take_while(|(_, p)| {
                let go = before < reach;
                before += p;
                go
            })
            .count()
            .max(1);
        kept.truncate(keep);
        total = kept.iter().map(|(_, p)| p).sum();
    }
    let mut at = rng.random::<f64>() * total;
    for &(i, p) in &kept {
        at -= p;
        if at < 0.0 {
            return i as u32;
        }
    }
    kept.last().map_or(0, |&(i, _)| i as u32)
}

/// `log_softmax` on the host, in double precision.
pub(super) fn log_softmax(scores: &[f32]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores.iter().map(|&s| f64::from(s - top).exp()).sum();
    let shift = f64::from(top) + total.ln();
    scores.iter().map(|&s| f64::from(s) - shift).collect()
}
