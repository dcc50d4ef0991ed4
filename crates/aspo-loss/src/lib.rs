//! Sentence-level preference losses (ASPO, DPO and kin) on any Burn backend.

mod error;
mod fused;
mod log_prob;
mod math;
mod metric;
mod objective;
#[cfg(feature = "proptest")]
pub mod property;
mod record;
mod sentence;
mod weight;

pub use error::{Error, Result};
pub use fused::{ChunkOptions, chunked_log_probs, chunked_log_probs_forward, chunked_log_probs_with_stats};
pub use log_prob::{TokenStats, dense_log_probs, dense_log_probs_with_stats};
pub use metric::Metrics;
pub use objective::{
    Aspo, LossOutput, LossType, Objective, RunningMean, SideWeighting, Weighting, changed_tokens,
};
pub use record::{PairMap, PolicyScores, PreferenceBatch, ReferenceScores, SentenceMap, Similarity};
pub use sentence::{MAX_PERPLEXITY_EXPONENT, host_sentence_sums, perplexity, response_sums, sentence_sums};
pub use weight::{
    RewardScaling, SMALL_REWARD, TIE, Weigh, min_max, misfit_weights, sentence_weights, weight_entropy,
};
