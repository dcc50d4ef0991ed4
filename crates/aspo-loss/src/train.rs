//! Metrics for burn-train's learner (feature `train`): a step whose output is a [`LossOutput`] can be watched by any of
//! [`Metrics`].

use std::sync::Arc;

use burn::prelude::*;
use burn_train::metric::{
    Adaptor, ItemLazy, Metric, MetricAttributes, MetricMetadata, MetricName, Numeric, NumericAttributes,
    NumericEntry, SerializedEntry, format_float,
};

use crate::metric::Metrics;
use crate::objective::LossOutput;

/// One of [`Metrics`], by its name (`loss`, `rewards/accuracies`, …), as a metric of burn-train. Its mean over an epoch is
/// exact whatever the sizes of the batches.
///
/// ```no_run
/// # use aspo_loss::PreferenceMetric;
/// # type B = burn::backend::Autodiff<burn_flex::Flex>;
/// # fn of<M: burn_train::metric::Metric>(metric: M) {}
/// // learner.metric_train_numeric(…), where `TrainStep::Output` is a `LossOutput`.
/// of(PreferenceMetric::new("rewards/accuracies"));
/// ```
#[derive(Debug, Clone)]
pub struct PreferenceMetric {
    name: MetricName,
    last: Metrics,
    epoch: Metrics,
}

impl PreferenceMetric {
    /// By the name that [`Metrics`] gives it. What a batch does not have is shown as NaN.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: Arc::new(name.into()), last: Metrics::default(), epoch: Metrics::default() }
    }

    fn entry(&self, metrics: &Metrics) -> NumericEntry {
        NumericEntry::Aggregated {
            aggregated_value: metrics.get(&self.name).unwrap_or(f64::NAN),
            count: metrics.count(&self.name) as usize,
        }
    }
}

impl Metric for PreferenceMetric {
    type Input = Metrics;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let higher_is_better = !self.name.ends_with("loss");
        NumericAttributes { unit: None, higher_is_better }.into()
    }

    fn update(&mut self, item: &Metrics, _: &MetricMetadata) -> SerializedEntry {
        self.epoch.merge(item);
        self.last = item.clone();
        let [epoch, batch] =
            [&self.epoch, &self.last].map(|metrics| format_float(self.entry(metrics).current(), 3));
        SerializedEntry::new(format!("epoch {epoch} - batch {batch}"), self.value().serialize())
    }

    fn clear(&mut self) {
        self.last = Metrics::default();
        self.epoch = Metrics::default();
    }
}

impl Numeric for PreferenceMetric {
    fn value(&self) -> NumericEntry {
        self.entry(&self.last)
    }

    fn running_value(&self) -> NumericEntry {
        self.entry(&self.epoch)
    }
}

impl Adaptor<Metrics> for Metrics {
    fn adapt(&self) -> Metrics {
        self.clone()
    }
}

/// What a step gives goes to the thread of the metrics, which reads it back.
impl<B: Backend> ItemLazy for LossOutput<B> {
    type ItemSync = Metrics;

    fn sync(self) -> Metrics {
        self.metrics()
    }
}

#[cfg(test)]
mod tests {
    use burn_train::metric::{Metric, MetricMetadata, Numeric};

    use super::*;

    #[test]
    fn an_epoch_is_the_mean_over_pairs_whatever_the_batches() {
        let mut metric = PreferenceMetric::new("rewards/accuracies");
        let progress = || burn::data::dataloader::Progress { items_processed: 1, items_total: 2 };
        let metadata =
            MetricMetadata { progress: progress(), global_progress: progress(), iteration: None, lr: None };
        let batch = |values: &[f64]| {
            let mut metrics = Metrics::default();
            metrics.add("rewards/accuracies", values.iter().copied());
            metrics
        };
        metric.update(&batch(&[1.0, 1.0, 0.0]), &metadata);
        let entry = metric.update(&batch(&[0.0]), &metadata);
        assert_eq!((metric.value().current(), metric.running_value().current()), (0.0, 0.5));
        assert_eq!(entry.serialized, "0,1");
        metric.clear();
        assert!(metric.running_value().current().is_nan());
    }
}
