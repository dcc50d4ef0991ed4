//! Sentence-level preference losses (ASPO, DPO and kin) on any Burn backend.
//!
//! From hidden states, logits or log-probabilities to a preference loss: right (golden values, finite differences,
//! properties), stable (finite for margins of ±1e4 and in half precision) and lean (logits are never held whole).
//!
//! # A first loss
//!
//! A batch is made of named records. [`PairMap`] says which positions of each response are response tokens and which
//! sentence each belongs to; [`PolicyScores`] and [`ReferenceScores`] hold one log-probability per response token;
//! [`Similarity`] says how well each sentence of the chosen response fits the image.
//!
//! ```
//! use aspo_loss::{Aspo, Objective, PairMap, PolicyScores, PreferenceBatch, ReferenceScores, Similarity};
//! type B = burn_flex::Flex; // any Burn backend
//!
//! let device = Default::default();
//! // One pair. Chosen: a prompt position, two sentences of one token each, padding. Rejected: one token.
//! let map = PairMap::new(&[[-1, 0, 1, -1]], &[[-1, 0]])?;
//! let policy = PolicyScores::<B>::rows(&map, &[vec![-1.0, -2.0]], &[vec![-3.0]], &device)?;
//! let reference = ReferenceScores::<B>::rows(&map, &[vec![-2.5, -1.5]], &[vec![-2.5]], &device)?;
//! let batch = PreferenceBatch::new(map, policy)?
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
//! let error = aspo_loss::PairMap::new(&[[0, 0], [-1, -1]], &[[0], [0]]).unwrap_err();
//! assert!(error.to_string().starts_with("chosen sentence ids: row 1 has no response token"));
//! ```
//!
//! # From a model
//!
//! [`chunked_log_probs`] goes from hidden states and the head to log-probabilities without ever holding logits for all
//! tokens. Give it response positions only. An [`LmHead`] says in which layout the head's weight is held, and may have a bias;
//! whether it trains is read from the tensor: frozen, its gradient costs nothing and the backward is one multiplication. Code
//! generic over `AutodiffBackend` asks for [`ChunkedBackend`] instead.
//!
//! Sentence ids are aligned with *labels*: position t of the hidden states scores the token at t + 1, so shift ids as the
//! labels are shifted, one to the left.
//!
//! ```
//! use aspo_loss::{ChunkOptions, LmHead, LossType, Objective, PairMap, PolicyScores, PreferenceBatch, ReferenceScores};
//! use aspo_loss::{chunked_log_probs, chunked_log_probs_forward};
//! use burn::prelude::*;
//! use burn::tensor::Distribution;
//! type B = burn::backend::Autodiff<burn_flex::Flex>;
//!
//! let device = Default::default();
//! let map = PairMap::new(&[[-1, 0, 0, 1], [0, 0, 1, 1]], &[[-1, 0, 0, -1], [-1, -1, 0, 0]])?;
//! // What a model gives: hidden states [B, T, D] of both sides, a head [V, D], and labels [B, T], already shifted.
//! let random = |shape| Tensor::<B, 3>::random(shape, Distribution::Default, &device);
//! let hidden = [random([2, 4, 8]).require_grad(), random([2, 4, 8]).require_grad()];
//! let head = LmHead::hugging_face(random([1, 16, 8]).reshape([16, 8]));
//! let labels = Tensor::<B, 2, Int>::full([2, 4], 3, &device);
//!
//! let options = ChunkOptions { byte_budget: 32 << 20, ..ChunkOptions::default() };
//! let score = |hidden: &Tensor<B, 3>, map: &aspo_loss::SentenceMap| {
//!     let (rows, labels) = (map.select_rows(hidden.clone())?, map.select_labels(labels.clone())?);
//!     chunked_log_probs(rows, &head, labels, &options)
//! };
//! let policy = PolicyScores::flat(&map, score(&hidden[0], &map.chosen)?, score(&hidden[1], &map.rejected)?)?;
//! // The reference needs no gradient; what `model.valid()` gives is put back by `Tensor::from_inner`.
//! let frozen = |hidden: &Tensor<B, 3>, map: &aspo_loss::SentenceMap| {
//!     let (rows, labels) = (map.select_rows(hidden.clone())?, map.select_labels(labels.clone())?);
//!     chunked_log_probs_forward(rows, &head, labels, &options)
//! };
//! let reference = ReferenceScores::flat(&map, frozen(&hidden[0], &map.chosen)?, frozen(&hidden[1], &map.rejected)?)?;
//! let batch = PreferenceBatch::new(map.clone(), policy)?.with_reference(reference)?;
//!
//! let output = Objective::new(LossType::Sigmoid).loss(&batch)?;
//! let metrics = output.metrics();
//! assert!((metrics.get("loss").unwrap() - 2_f64.ln()).abs() < 1e-6, "the policy is the reference");
//! assert_eq!(metrics.get("rewards/accuracies"), Some(0.0), "a tie is not a win");
//! let gradients = output.loss.backward();
//! assert_eq!(hidden[0].grad(&gradients).unwrap().dims(), [2, 4, 8]);
//! # Ok::<(), aspo_loss::Error>(())
//! ```
//!
//! Logits at hand already? [`dense_log_probs`]. Log-probabilities from a cache? [`ReferenceScores::rows`].
//!
//! # The kin
//!
//! An [`Objective`] is a sum of [`LossType`]s by TRL's names, each with its own options, and the options they share; which
//! records it needs, it says itself. It is written and read as one line.
//!
//! ```
//! use aspo_loss::{LossType, Objective};
//! let objective = Objective::new(LossType::Robust { label_smoothing: 0.1 });
//! assert!(objective.needs_reference() && !objective.needs_similarity());
//! let mpo: Objective = "0.8 dpo + 0.2 bco_pair + sft; beta=0.2".parse()?;
//! assert_eq!(mpo.terms[1], (LossType::BcoPair { shift: 0.0 }, 0.2));
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
//! | sentences tile the response: `Σ_i log π(s_i) = log π(y_c)` (F, C) | [`SentenceMap`], [`sentence_sums`] |
//! | `PPL_i` of the current policy (F), exponent capped at 80 (C), detached (C) | [`perplexity`] |
//! | min-max over the sentences of a response (F), ties to 0 (C) | [`min_max`] |
//! | `w_i = α S'_i + (1-α) P'_i` (F), α = ½ (C) | [`sentence_weights`] |
//! | `ρ = R_c/R_c*` in four readings (C), detached (C) | [`RewardScaling`] |
//! | `M* = ρ Σ_i β(1+w_i) d_i - β log[π(y_r)/π_ref(y_r)]` (F) | [`LossType::Aspo`] |
//! | rejected sentences weighed by misfit: **our extension, not the paper's** | [`Weigh::Both`] |
//!
//! # Testing a loss of your own
//!
//! With the feature `proptest`, `property::check_objective` holds any loss against the properties that this crate's own
//! are held against.

mod error;
mod fused;
mod head;
mod log_prob;
mod map;
mod math;
mod metric;
mod objective;
#[cfg(feature = "proptest")]
pub mod property;
mod record;
mod sentence;
mod weight;

pub use error::{Error, Result};
pub use fused::{
    ChunkOptions, ChunkedBackend, chunked_log_probs, chunked_log_probs_forward, chunked_log_probs_with_stats,
};
pub use head::LmHead;
pub use log_prob::{TokenStats, dense_log_probs, dense_log_probs_with_stats};
pub use map::{PairMap, SentenceMap};
pub use metric::Metrics;
pub use objective::{
    Aspo, FDivergence, LossOutput, LossType, Objective, SideWeighting, Sides, Totals, Weighting,
    changed_tokens,
};
pub use record::{PolicyScores, PreferenceBatch, ReferenceScores, Similarity};
pub use sentence::{MAX_PERPLEXITY_EXPONENT, host_sentence_sums, perplexity, response_sums, sentence_sums};
pub use weight::{
    RewardScaling, SMALL_REWARD, TIE, Weigh, min_max, misfit_weights, sentence_weights, weight_entropy,
};

/// The examples of the README compile and run too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
