//! burn-train's dashboard in the terminal (feature `tui`).

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::data::dataloader::Progress;
use burn_train::Interrupter;
use burn_train::metric::{
    MetricAttributes, MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry,
    SerializedEntry,
};
use burn_train::renderer::tui::TuiMetricsRendererWrapper;
use burn_train::renderer::{
    MetricState, MetricsRenderer, MetricsRendererTraining, ProgressType, TrainingProgress,
};

use crate::callback::{Callback, Control, StepReport};

/// Curves of every metric, progress and time left, over the whole terminal until it is dropped.
///
/// The arrows change metric and kind of curve, `q` asks whether to stop. It is burn-train's own renderer: its thread looks
/// for events without resting, which takes a core.
pub struct Dashboard {
    screen: TuiMetricsRendererWrapper,
    stop: Interrupter,
    known: BTreeMap<String, MetricId>,
}

impl Dashboard {
    /// Takes over the terminal, which standard output must be.
    #[expect(clippy::new_without_default, reason = "it does more than make a value")]
    pub fn new() -> Self {
        let stop = Interrupter::new();
        Self { screen: TuiMetricsRendererWrapper::new(stop.clone(), None), stop, known: BTreeMap::new() }
    }

    /// Adds a step to the curves; values that are not finite are left out.
    fn show(&mut self, report: &StepReport) {
        let values = &report.values.values;
        // Metrics are listed in the order in which they come first: the loss is what one looks at.
        let rest = values.iter().filter(|(name, _)| *name != "loss");
        let shown = values.get_key_value("loss").into_iter().chain(rest);
        for (name, &value) in shown.filter(|(_, value)| value.is_finite()) {
            let id = self.id(name);
            let entry = SerializedEntry::new(format!("{value:.5}"), value.to_string());
            self.screen
                .update_train(MetricState::Numeric(MetricEntry::new(id, entry), NumericEntry::Value(value)));
        }
        let progress = Progress { items_processed: report.step, items_total: report.total };
        let indicators = vec![
            ProgressType::Detailed { tag: "Step".into(), progress: progress.clone() },
            ProgressType::Value { tag: "Pairs of this step".into(), value: report.pairs },
        ];
        let progress =
            TrainingProgress { progress: None, global_progress: progress, iteration: Some(report.step) };
        self.screen.render_train(progress, indicators);
    }

    fn id(&mut self, name: &str) -> MetricId {
        if let Some(id) = self.known.get(name) {
            return id.clone();
        }
        let id = MetricId::new(Arc::new(name.to_owned()));
        let higher_is_better = !["loss", "grad_norm"].contains(&name);
        self.screen.register_metric(MetricDefinition {
            metric_id: id.clone(),
            name: name.to_owned(),
            description: None,
            attributes: MetricAttributes::Numeric(NumericAttributes { unit: None, higher_is_better }),
        });
        self.known.insert(name.to_owned(), id.clone());
        id
    }
}

impl Callback for Dashboard {
    /// Stops the run where somebody asked for it.
    fn on_step_end(&mut self, step: &StepReport, control: &mut Control) {
        self.show(step);
        control.should_training_stop |= self.stop.should_stop();
    }
}
