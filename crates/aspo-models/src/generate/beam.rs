//! Beam search with length-normalised scores, as Hugging Face's `BeamSearchScorer`.

use burn::tensor::backend::Backend;

use super::config::GenerateConfig;
use super::sample::log_softmax;
use super::scores::{Scores, check_finite};
use super::state::State;
use crate::error::Result;
use crate::input::ModelInput;
use crate::model::LanguageModel;

#[derive(Debug, Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f64,
}

/// The beams of one row.
struct Search {
    running: Vec<Beam>,
    /// Ended beams with `score / length^penalty`, at most as many as beams.
    ended: Vec<Beam>,
    /// Nothing more to feed.
    done: bool,
}

impl Search {
    fn end(&mut self, tokens: Vec<u32>, score: f64, config: &GenerateConfig) {
        let score = score / (tokens.len() as f64).powf(config.length_penalty);
        self.ended.push(Beam { tokens, score });
        // Stable: of equal scores the earlier stays.
        self.ended.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.ended.truncate(config.num_beams);
    }

    /// No running beam can still beat the ended ones (the heuristic of `early_stopping = false`).
    fn settled(&self, length: usize, config: &GenerateConfig) -> bool {
        let best = self.running.iter().map(|b| b.score).fold(f64::NEG_INFINITY, f64::max);
        let worst = self.ended.last().map_or(f64::NEG_INFINITY, |b| b.score);
        self.ended.len() == config.num_beams && worst >= best / (length as f64).powf(config.length_penalty)
    }
}

/// The best ended sequence of each row.
pub(super) fn search<B: Backend, M: LanguageModel<B>>(
    model: &M,
    input: &ModelInput<B>,
    config: &GenerateConfig,
    eos: &[u32],
) -> Result<Vec<Vec<u32>>> {
    let (mut state, logits) = State::prefill(model, input)?;
    let mut scores = Scores::of(logits);
    let rows = scores.rows().len();
    let start =
        || Search { running: vec![Beam { tokens: Vec::new(), score: 0.0 }], ended: Vec::new(), done: false };
    let mut searches: Vec<Search> = (0..rows).map(|_| start()).collect();
    for length in 1..=config.max_new_tokens {
        // Rows of the state and the tokens to feed to them next.
        let (mut keep, mut feed) = (Vec::new(), Vec::new());
        let mut slot = 0;
        let all: Vec<&[f32]> = scores.rows().collect();
        for (row, search) in searches.iter_mut().enumerate().filter(|(_, s)| !s.done) {
            let first = slot;
            slot += search.running.len();
            let mut candidates: Vec<(f64, usize, u32)> = Vec::new();
            for (i, beam) in search.running.iter().enumerate() {
                check_finite(all[first + i], row, length - 1)?;
                let mut logps = log_softmax(all[first + i]);
                if length <= config.min_new_tokens {
                    for &id in eos {
                        if let Some(logp) = logps.get_mut(id as usize) {
                            *logp = f64::NEG_INFINITY;
                        }
                    }
                }
                candidates
                    .extend(logps.iter().enumerate().map(|(id, logp)| (beam.score + logp, i, id as u32)));
            }
            let wanted = (1 + eos.len()).max(2).saturating_mul(config.num_beams).min(candidates.len());
            let order = |a: &(f64, usize, u32), b: &(f64, usize, u32)| {
                b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
            };
            if wanted < candidates.len() {
                candidates.select_nth_unstable_by(wanted, order);
                candidates.truncate(wanted);
            }
            candidates.sort_by(order);
            let mut next = Vec::new();
            for (rank, (score, from, id)) in candidates.into_iter().enumerate() {
                let tokens = || [search.running[from].tokens.as_slice(), &[id]].concat();
                if eos.contains(&id) {
                    if rank < config.num_beams && score > f64::NEG_INFINITY {
                        let tokens = tokens();
                        search.end(tokens, score, config);
                    }
                } else if next.len() < config.num_beams {
                    next.push((first + from, Beam { tokens: tokens(), score }));
                }
            }
            let slots: Vec<usize> = next.iter().map(|(slot, _)| *slot).collect();
            search.running = next.into_iter().map(|(_, beam)| beam).collect();
            search.done = search.running.is_empty() || search.settled(length, config);
            if !search.done {
                keep.extend(slots);
                feed.extend(search.running.iter().filter_map(|b| b.tokens.last().copied()));
            }
        }
        if keep.is_empty() || length == config.max_new_tokens {
            break;
        }
        state.keep(&keep);
        scores = Scores::of(state.step(model, &feed)?);
    }
    Ok(searches
        .into_iter()
        .map(|mut search| {
            if !search.done {
                for beam in std::mem::take(&mut search.running) {
                    search.end(beam.tokens, beam.score, config);
                }
            }
            search.ended.into_iter().next().map_or_else(Vec::new, |beam| beam.tokens)
        })
        .collect())
}
