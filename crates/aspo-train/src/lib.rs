//! One preference-training run: plan, reference, steps, checkpoints, metrics and report.

mod checkpoint;
mod clip;
mod config;
mod error;
mod features;
mod metric;
mod plan;
mod policy;
mod prepare;
mod reference;
mod report;
mod run;
mod schedule;
mod step;
mod weigh;

pub use checkpoint::TrainerState;
pub use clip::clip_grad_norm;
pub use config::{LoraOptions, OnNonFinite, TrainConfig};
pub use error::{Error, Result};
pub use features::VisionFeatures;
pub use metric::{MetricFile, MetricLine, Window};
pub use plan::{Plan, human, peak_memory};
pub use policy::Policy;
pub use prepare::{Data, check_paths, processor, read, score};
pub use reference::{ReferenceCache, ReferenceKey};
pub use report::{MarkedSentence, Picture, Report};
pub use run::{Finished, StepReport, train};
pub use schedule::{Schedule, warmup_steps};
pub use step::{MicroBatch, ReferenceRow, StepOutput};
pub use weigh::{WeighedSentence, weigh};

/// Lower-case hexadecimal.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
