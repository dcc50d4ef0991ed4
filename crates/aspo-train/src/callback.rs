//! Who watches a run, and may stop it.

use std::ops::ControlFlow;
use std::path::Path;

use crate::error::Result;
use crate::metric::MetricLine;
use crate::sample::Sample;

/// What a step did, for whoever watches.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub total: usize,
    /// Of this step, by TRL's names.
    pub values: MetricLine,
    /// Pairs of this step.
    pub pairs: usize,
    /// Answer tokens of this step.
    pub tokens: usize,
    /// Since this process began its first step.
    pub seconds: f64,
    /// Steps done by this process.
    pub done_here: usize,
}

/// What a callback asks of the run, after TRL's `TrainerControl`. One that asks is heard, whatever the others say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Write a checkpoint of this step.
    pub should_save: bool,
    /// Write a checkpoint of this step and end the run there; it can be gone on with.
    pub should_training_stop: bool,
}

/// Hears what a run has to tell, after TRL's `TrainerCallback`. Every method does nothing unless it is written.
///
/// A closure `|step: &StepReport| ControlFlow::Continue(())` is a callback as well: where it breaks off, the run is saved
/// and ends. The run's own files ([`MetricFile`](crate::MetricFile), [`EventFile`](crate::EventFile),
/// [`SampleFile`](crate::SampleFile)) are callbacks too; another sink for metrics is one with `on_log`.
pub trait Callback {
    /// After every optimiser step, and after the checkpoint of that step if it was due.
    fn on_step_end(&mut self, step: &StepReport, control: &mut Control) {
        let _ = (step, control);
    }

    /// With a line of metrics: means since the last one every `logging_steps`, those of pairs held out (`eval_…`) every
    /// `eval_steps`.
    ///
    /// # Errors
    /// Whatever ends the run here. Checkpoints written before stay.
    fn on_log(&mut self, line: &MetricLine) -> Result<()> {
        let _ = line;
        Ok(())
    }

    /// With answers of the learning model, every `eval_steps`.
    ///
    /// # Errors
    /// As [`on_log`](Self::on_log).
    fn on_samples(&mut self, samples: &[Sample]) -> Result<()> {
        let _ = samples;
        Ok(())
    }

    /// After a checkpoint has been written to this folder.
    fn on_save(&mut self, checkpoint: &Path) {
        let _ = checkpoint;
    }
}

impl<F: FnMut(&StepReport) -> ControlFlow<()>> Callback for F {
    fn on_step_end(&mut self, step: &StepReport, control: &mut Control) {
        control.should_training_stop |= self(step).is_break();
    }
}

/// Everybody who is told.
pub(crate) type Callbacks<'a> = Vec<Box<dyn Callback + 'a>>;
