//! Sentence-level preference losses (ASPO, DPO and the others of TRL) on any Burn backend.
//!
//! From hidden states, logits or log-probabilities to a preference loss: right (golden values, finite differences,
//! properties), stable (finite for margins of ±1e4 and in half precision) and lean (logits are never held whole).
//!
//! # In a training loop
//!
//! [`PairLayout`] says, once per batch, which tokens are response tokens and which sentence each belongs to. [`Logps`] holds
//! the log-probabilities of those tokens: made from a model's hidden states and its head without ever holding logits for all
//! tokens, or from log-probabilities at hand. An [`Objective`] makes a loss of them. Any Burn model will do, on any backend with
//! gradients:
//!
//! ```
//! use aspo_loss::{ChunkOptions, LmHead, LossOutput, Logps, Objective, PairLayout, PreferenceBatch, Result, Similarity};
//! use burn::prelude::*;
//! use burn::tensor::backend::AutodiffBackend;
//! # use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
//! # #[derive(Module, Debug)]
//! # struct Model<B: Backend> { embedding: Embedding<B>, lm_head: Linear<B> }
//! # impl<B: Backend> Model<B> {
//! #     fn hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> { self.embedding.forward(ids).tanh() }
//! # }
//!
//! /// Log-probabilities of both responses, chosen first, from ids `[B, T]` as the model reads them.
//! fn score<B: AutodiffBackend>(model: &Model<B>, ids: &[Tensor<B, 2, Int>; 2], layout: &PairLayout) -> Result<Logps<B>> {
//!     let hidden = ids.clone().map(|ids| model.hidden(ids)); // [B, T, D]
//!     Logps::chunked(layout, hidden, ids.clone(), &LmHead::linear(&model.lm_head), &ChunkOptions::default())
//! }
//!
//! /// ASPO against the same of a reference model.
//! fn loss<B: AutodiffBackend>(policy: Logps<B>, reference: Logps<B>, similarity: Similarity) -> Result<LossOutput<B>> {
//!     let batch = PreferenceBatch::new(policy).with_reference(reference)?.with_similarity(similarity)?;
//!     Objective::default().loss(&batch)
//! }
//! # type B = burn::backend::Autodiff<burn_flex::Flex>;
//! # let device = Default::default();
//! # let model = Model::<B> {
//! #     embedding: EmbeddingConfig::new(16, 8).init(&device),
//! #     lm_head: LinearConfig::new(8, 16).init(&device),
//! # };
//!
//! // One pair: two prompt tokens, then two sentences (chosen) or one (rejected); 0 is padding.
//! let ids = [[1, 2, 5, 6, 7, 0], [1, 2, 8, 9, 0, 0]].map(|row| Tensor::<B, 2, Int>::from_data([row], &device));
//! let layout = PairLayout::from_tokens(&[[-1, -1, 0, 0, 1, -1]], &[[-1, -1, 0, 0, -1, -1]])?;
//! // How well each chosen sentence fits the image, by CLIP or any other judge.
//! let similarity = Similarity::new(&[[0.31, 0.24]])?;
//! // At the start the model is its own reference; later, a copy of it after `no_grad()`, or a cache.
//! let reference = score(&model, &ids, &layout)?.detach();
//! let output = loss(score(&model, &ids, &layout)?, reference, similarity)?;
//! let metrics = output.metrics(); // by TRL's names
//! assert!((metrics.get("loss").unwrap() - 2_f64.ln()).abs() < 1e-6, "the policy is the reference");
//! assert!(model.lm_head.weight.grad(&output.loss.backward()).is_some());
//! # Ok::<(), aspo_loss::Error>(())
//! ```
//!
//! Sentence ids are aligned with tokens, as `input_ids` are; that hidden state t scores token t + 1 is the layout's business.
//! Ids that were shifted as labels are make a layout by [`PairLayout::from_labels`], and then the ids that it selects targets
//! from are shifted too. A head comes from Burn's layer, with its bias, or from a weight `[V, D]`:
//! [`LmHead::hugging_face`]. Whether it trains is read from the tensor: frozen, its gradient costs nothing.
//!
//! # By hand
//!
//! Log-probabilities from a cache or from logits ([`dense_log_probs`]) take the same way. This is ASPO in numbers:
//!
//! ```
//! use aspo_loss::{Aspo, Logps, Objective, PairLayout, PreferenceBatch, Similarity};
//! type B = burn_flex::Flex; // any Burn backend
//!
//! let device = Default::default();
//! // One pair. Chosen: a prompt token, two sentences of one token each, padding. Rejected: one token.
//! let layout = PairLayout::from_tokens(&[[-1, 0, 1, -1]], &[[-1, 0]])?;
//! let policy = Logps::<B>::from_rows(&layout, &[vec![-1.0, -2.0]], &[vec![-3.0]], &device)?;
//! let reference = Logps::from_rows(&layout, &[vec![-2.5, -1.5]], &[vec![-2.5]], &device)?;
//! let batch = PreferenceBatch::new(policy)
//!     .with_reference(reference)?
//!     .with_similarity(Similarity::new(&[[0.2, 0.3]])?)?;
//!
//! let objective = Objective { beta: 0.25, ..Objective::new(Aspo { alpha: 0.25, ..Aspo::default() }) };
//! let output = objective.loss(&batch)?;
//!
//! // The second sentence fits better (S' = 0, 1), the first is likelier (P' = 1, 0): w = ¾, ¼.
//! let weighting = output.weighting.as_ref().unwrap();
//! assert_eq!(weighting.chosen.weights[0], [0.75, 0.25]);
//! // ρ = 2/(1.75 + 1.25); M* = ⅔·¼(1.75·1.5 - 1.25·0.5) - ¼·(-0.5) = 0.4583; L = log(1 + e^-M*).
//! let loss: f32 = output.loss.into_scalar();
//! assert!((loss - 0.490012).abs() < 1e-5);
//! # Ok::<(), aspo_loss::Error>(())
//! ```
//!
//! What does not fit is refused when a record is made, by name:
//!
//! ```
//! let error = aspo_loss::PairLayout::from_tokens(&[[-1, 0], [-1, -1]], &[[-1, 0], [-1, 0]]).unwrap_err();
//! assert!(error.to_string().starts_with("chosen sentence ids: row 1 has no response token"));
//! ```
//!
//! # The other losses
//!
//! An [`Objective`] is a sum of [`LossType`]s by TRL's names, each with its own options, and the options they share; which
//! records it needs, it says itself. It is written and read as one line, and that is what it is in a configuration: it
//! implements serde's traits and Burn's `Config`.
//!
//! ```
//! use aspo_loss::{LossType, Objective};
//! use burn::config::Config;
//!
//! #[derive(Config, Debug)]
//! struct TrainingConfig {
//!     objective: Objective,
//!     #[config(default = 5e-7)]
//!     learning_rate: f64,
//! }
//!
//! let config = TrainingConfig::new("0.8 dpo + 0.2 bco_pair + sft; beta=0.2".parse()?);
//! assert_eq!(config.objective.terms[1], (LossType::BcoPair { shift: 0.0 }, 0.2));
//! assert!(config.objective.needs_reference() && !config.objective.needs_similarity());
//! assert!(config.to_string().contains(r#""objective": "0.8 sigmoid + 0.2 bco_pair + sft; beta=0.2""#));
//! # Ok::<(), aspo_loss::Error>(())
//! ```
//!
//! Values, gradients and metrics are TRL 1.16's. Likelihoods (`sft`, `orpo`) are means over the chosen tokens of the batch;
//! where a step is cut into micro-batches, [`LossOutput::share`] keeps them so. Where it is not TRL's: the likelihood of `orpo`
//! leaves the prompt out, and `cdpo` is here, `sigmoid` with label smoothing, which TRL 1.16 ignores.
//!
//! # From paper to code
//!
//! Marks: **F** stated in a source, **D** follows by arithmetic, **C** our choice where the sources are silent.
//!
//! | the paper (arXiv 2505.19100) | here |
//! |---|---|
//! | sentences tile the response: `Σ_i log π(s_i) = log π(y_c)` (F, C) | [`ResponseLayout`], [`sentence::sentence_sums`] |
//! | `PPL_i` of the current policy (F), exponent capped at 80 (C), detached (C) | [`sentence::perplexity`] |
//! | min-max over the sentences of a response (F), ties to 0 (C) | [`weight::min_max`] |
//! | `w_i = α S'_i + (1-α) P'_i` (F), α = ½ (C) | [`weight::sentence_weights`] |
//! | `ρ = R_c/R_c*` in four readings (C), detached (C) | [`RewardScaling`] |
//! | `M* = ρ Σ_i β(1+w_i) d_i - β log[π(y_r)/π_ref(y_r)]` (F) | [`LossType::Aspo`] |
//! | rejected sentences weighed by misfit: **our extension, not the paper's** | [`Weigh::Both`] |
//!
//! # Testing a loss of your own
//!
//! With the feature `proptest`, `property::check_objective` tests any loss for the properties that this crate's own have.

mod chunk;
mod error;
mod fused;
mod head;
mod labels;
mod layout;
mod log_prob;
mod logps;
mod math;
mod metric;
mod names;
pub mod objective;
#[cfg(feature = "proptest")]
pub mod property;
mod record;
pub mod sentence;
#[cfg(feature = "train")]
mod train;
pub mod weight;

pub use chunk::ChunkOptions;
pub use error::{Error, Result};
pub use fused::{chunked_log_probs, chunked_log_probs_forward};
pub use head::LmHead;
pub use labels::Labels;
pub use layout::{PairLayout, ResponseLayout};
pub use log_prob::dense_log_probs;
pub use logps::Logps;
pub use metric::Metrics;
pub use objective::{Aspo, FDivergence, LossOutput, LossType, Objective, Totals};
pub use record::{PreferenceBatch, Similarity};
#[cfg(feature = "train")]
pub use train::PreferenceMetric;
pub use weight::{RewardScaling, Weigh};

/// What the full distribution says of each response token, for WPO and for TRL's metrics of tokens.
pub mod stats {
    pub use crate::fused::chunked_log_probs_with_stats;
    pub use crate::log_prob::{TokenStats, TokenValues, dense_log_probs_with_stats};
}

/// The examples of the README compile and run too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
