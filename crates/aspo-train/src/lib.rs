//! One preference-training run: plan, reference, steps, checkpoints, metrics and report.
//!
//! A [`TrainConfig`] says everything, by TRL's and PEFT's names, and is refused before anything is read if it cannot be
//! honoured; so is the folder it is to be written to ([`Output`]). [`read`] brings the pairs, encoded,
//! [`Data::decode_pictures`] looks at each picture once, [`score`] brings the similarity of each sentence with its picture.
//! [`Plan`] tells what the run will take before a weight is read. A [`Trainer`] then does the run:
//!
//! - The adapter is attached to a frozen model; with its adapter off, that model is the reference, unless `ref_model` names
//!   another checkpoint.
//! - Each optimiser step [`accumulate`]s the gradients of its [`MicroBatch`]es, clips them by their global norm
//!   ([`clip_grad_norm`]) and hands them to [`adamw`] at the rate of the [`Schedule`].
//! - Every `save_steps`, and where whoever watches breaks off, a checkpoint appears whole or not at all. A run that goes on
//!   from one is, to the bit, the run that was never stopped; what it was made from is compared by content, and it may be
//!   given another length.
//! - Metrics go to `metrics.jsonl` ([`MetricFile`]) and TensorBoard ([`EventFile`]), those of pairs held out under
//!   `eval_`; answers of the learning model to `samples.jsonl` ([`Sample`]).
//!
//! What is left is a PEFT adapter and, if it is written, a [`Report`].
//!
//! Who watches is told by [`Callback`]s, which may stop the run and save it. [`Trainer::with_ranks`] shares each step among
//! several processes, one a device ([`Ranks`], feature `mpi`); the feature `tui` adds burn-train's dashboard, `Dashboard`, which
//! is one more callback.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use aspo_models::Llava;
//! use aspo_train::{StepReport, TrainConfig, Trainer};
//! use burn::backend::Autodiff;
//! use burn_flex::Flex;
//!
//! # fn main() -> aspo_train::Result<()> {
//! let mut config = TrainConfig::from_toml("llava_1_5_7b_aspo.toml".as_ref())?;
//! config.output_dir = "out".into();
//! let watch = |step: &StepReport| {
//!     println!("{}: {}", step.step, step.values.values["loss"]);
//!     ControlFlow::Continue(())
//! };
//! let trainer = Trainer::<Flex, Llava<Autodiff<Flex>>>::from_paths(config, false, Default::default())?;
//! let done = trainer.with_callback(watch).train()?;
//! println!("{} steps, adapter in {}", done.steps, done.adapter.display());
//! # Ok(())
//! # }
//! ```
//!
//! The same piece by piece, to say more on the way: [`check_paths`], [`Output::open`], [`read`], [`Data::decode_pictures`],
//! [`Plan::new`], [`score`], then [`Trainer::new`].
//!
//! # Choices
//! - A micro-batch holds one row a pair, `prompt ‖ chosen ‖ rejected`, unless `pair_packing` is off: picture and prompt
//!   are computed once, and loss and gradients are those of two rows (C).
//! - The loss of an optimiser step is the mean over its pairs, and of likelihoods over its chosen tokens, however they are cut
//!   into micro-batches (C); losses that sort pairs (`aot`) sort those of a forward pass, as TRL does.
//! - Rates are those of transformers' schedulers, counted from 1: theirs give the first step a rate of 0, which
//!   wastes it (C).
//! - A loss that is not finite never reaches the weights: the run stops, or leaves the step out and counts it (C).
//! - A checkpoint holds adapter, moments and counters. Order of pairs, rate and the random state of dropout follow
//!   from seed and counters and are not stored (C).

mod account;
mod adamw;
mod batcher;
mod callback;
mod checkpoint;
mod config;
mod content;
mod corrupt;
#[cfg(feature = "tui")]
mod dashboard;
mod error;
mod feature_file;
mod features;
mod grad_norm;
mod lead;
mod lora;
mod metric;
mod mix;
mod optimize;
mod output;
mod page;
mod paths;
mod pictures;
mod place;
mod plan;
mod policy;
mod prefetch;
mod ranks;
mod read;
mod recorder;
mod reference;
mod reference_model;
mod replica;
mod report;
mod run;
mod sample;
mod schedule;
mod score;
mod sight;
mod start;
mod step;
mod team;
mod tensorboard;
mod tidy;
mod trainer;
mod weigh;

pub use account::Account;
pub use adamw::adamw;
pub use callback::{Callback, Control, StepReport};
pub use checkpoint::TrainerState;
pub use config::{LoraDtype, OnNonFinite, TrainConfig, user_cache};
pub use content::{Inputs, folder_hash};
#[cfg(feature = "tui")]
pub use dashboard::Dashboard;
pub use error::{Error, Result};
pub use features::{VisionFeatures, picture};
pub use grad_norm::clip_grad_norm;
pub use lead::HandOut;
pub use metric::{MetricLine, Window};
pub use mix::MixStrategy;
pub use optimize::{StepGradients, accumulate};
pub use output::{Output, stored_config};
pub use page::{chart, embedded, escape, page, table};
pub use paths::check_paths;
pub use plan::{Plan, human, peak_memory};
pub use policy::Policy;
pub use ranks::Ranks;
pub use read::{Data, encoder, qformer_tokenizer, read};
pub use recorder::{MetricFile, SampleFile};
pub use report::{CURVES, Counts, MarkedSentence, Picture, Report, gallery};
pub use run::Finished;
pub use sample::Sample;
pub use schedule::{Schedule, warmup_steps};
pub use score::{score, score_on};
pub use sight::{Sight, picture_shape, processor};
pub use step::{MicroBatch, Reference, ReferenceRow, StepOutput, totals};
pub use tensorboard::EventFile;
pub use trainer::{Trainer, check_ranks};
pub use weigh::{WeighedSentence, weigh};
