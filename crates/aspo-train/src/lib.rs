//! One preference-training run: plan, reference, steps, checkpoints, metrics and report.
//!
//! A [`TrainConfig`] says everything, by TRL's and PEFT's names, and is refused before anything is read if it cannot be
//! honoured; so is the folder it is to be written to ([`Output`]). [`read`] brings the pairs, encoded,
//! [`Data::decode_pictures`] looks at each picture once, [`score`] brings the similarity of each sentence with its picture.
//! [`Plan`] tells what the run will take before a weight is read. [`train`] then does the run:
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
//! [`train_on`] shares each step among several devices of one process (feature `collective`); the feature `tui` adds
//! burn-train's dashboard, `Dashboard`, to be fed from `watch`.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use aspo_models::{Llava, LlavaConfig, ModelConfig, Pretrained};
//! use aspo_train::{Output, Plan, TrainConfig, check_paths, read, score, train};
//! use burn::backend::Autodiff;
//! use burn_flex::Flex;
//!
//! # fn main() -> aspo_train::Result<()> {
//! let mut config = TrainConfig::from_toml("llava_1_5_7b_aspo.toml".as_ref())?;
//! config.output_dir = "out".into();
//! config.validate()?;
//! check_paths(&config)?;
//! let device = Default::default();
//!
//! let output = Output::open(&config, false)?;
//! let shape = LlavaConfig::load(&config.model)?;
//! let mut data = read(&config, shape.tokens_per_image())?;
//! data.decode_pictures(&config, |_, _| ())?;
//! data.account.lines(config.max_length).iter().for_each(|line| println!("{line}"));
//! let plan = Plan::new::<Autodiff<Flex>, Llava<Autodiff<Flex>>>(
//!     &config, &shape, &data.pairs, &device,
//! )?;
//! println!("{plan}");
//! if config.objective()?.needs_similarity() {
//!     score::<Flex>(&config, &mut data, false, &device)?;
//! }
//!
//! let options = config.load_options();
//! let (model, _) = Llava::<Autodiff<Flex>>::from_pretrained(&config.model, &options, &device)?;
//! let watch = |step: &aspo_train::StepReport| {
//!     println!("{}: {}", step.step, step.values.values["loss"]);
//!     ControlFlow::Continue(())
//! };
//! let done = train::<Flex, _>(&config, model, &data, &output, &device, watch)?;
//! println!("{} steps, adapter in {}", done.steps, done.adapter.display());
//! # Ok(())
//! # }
//! ```
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

mod checkpoint;
mod clip;
mod config;
mod content;
mod corrupt;
#[cfg(feature = "tui")]
mod dashboard;
#[cfg(feature = "collective")]
mod devices;
mod error;
mod features;
mod lora;
mod metric;
mod optimize;
mod output;
mod plan;
mod policy;
mod prepare;
mod read;
mod reference;
mod reference_model;
mod replica;
mod report;
mod run;
mod sample;
mod schedule;
mod start;
mod step;
mod team;
mod tensorboard;
mod tidy;
mod weigh;

pub use checkpoint::TrainerState;
pub use clip::clip_grad_norm;
pub use config::{OnNonFinite, TrainConfig};
pub use content::{Inputs, folder_hash};
#[cfg(feature = "tui")]
pub use dashboard::Dashboard;
pub use error::{Error, Result};
pub use features::VisionFeatures;
pub use metric::{MetricFile, MetricLine, Window};
pub use optimize::{StepGradients, accumulate, adamw};
pub use output::{Output, stored_config};
pub use plan::{Plan, human, peak_memory};
pub use policy::Policy;
pub use prepare::{SIMILARITY_FILE, check_paths, processor, score};
pub use read::{Account, Data, qformer_tokenizer, read};
pub use reference::{REFERENCE_FILE, ReferenceCache, ReferenceKey};
pub use report::{MarkedSentence, Picture, Report};
pub use run::{Finished, StepReport, check_devices, train, train_on};
pub use sample::Sample;
pub use schedule::{Schedule, warmup_steps};
pub use step::{MicroBatch, ReferenceRow, StepOutput, totals};
pub use tensorboard::EventFile;
pub use weigh::{WeighedSentence, weigh};
