//! Metrics by TRL's names, exact over micro-batches.

use aspo_loss::property::{HostBatch, HostPair, HostResponse};
use aspo_loss::{LossType, Metrics, Objective};
use burn::prelude::*;

use crate::common::{assert_close, on_every_backend};

on_every_backend!(names_and_values_are_as_documented, micro_batches_merge_to_the_whole_batch);

fn response(policy: &[f32], reference: &[f32]) -> HostResponse {
    let n = policy.len();
    HostResponse {
        sentences: vec![1; n],
        padding: (0, 1),
        policy: policy.to_vec(),
        reference: reference.to_vec(),
        corrupted: vec![(-1.0, -1.0); n],
        changed: vec![true; n],
        log_collision: vec![-1.0; n],
        similarity: (0..n).map(|i| i as f32 * 0.1).collect(),
    }
}

fn host() -> HostBatch {
    let pair = |chosen, rejected| HostPair { chosen, rejected };
    HostBatch {
        pairs: vec![
            pair(response(&[-1.0, -2.0], &[-2.5, -1.5]), response(&[-3.0], &[-2.5])),
            pair(response(&[-1.0, -2.0, -3.0], &[-1.0, -2.0, -3.0]), response(&[-1.0, -2.0], &[-1.5, -2.0])),
            pair(response(&[-1.0], &[-1.0]), response(&[-1.0], &[-1.0])),
        ],
    }
}

fn names_and_values_are_as_documented<B: Backend>() {
    // α = 1: w = (0, 1), (0, ½, 1), (0); ρ = 2/3, 3/4.5, 1.
    let objective = Objective { alpha: 1.0, ..Objective::default() };
    let output = objective.loss(&host().batch::<B>(&Default::default()).unwrap()).unwrap();
    let metrics = output.metrics();
    let rho = 2.0 / 3.0;
    let expected = [
        // β ρ (1.5 - 2·0.5), 0, 0
        ("rewards/chosen", 0.1 * rho * 0.5 / 3.0),
        ("rewards/rejected", 0.1 * (-0.5 + 0.5 + 0.0) / 3.0),
        ("rewards/margins", 0.1 * rho * 0.5 / 3.0),
        // The first pair only: the second is wrong, the third is tied.
        ("rewards/accuracies", 1.0 / 3.0),
        ("logps/chosen", (-3.0 - 6.0 - 1.0) / 3.0),
        ("logps/rejected", (-3.0 - 3.0 - 1.0) / 3.0),
        ("aspo/weight_mean", 2.5 / 6.0),
        // (0, 1) and (0) have none; (0, ½, 1) is (⅓, ⅔)
        ("aspo/weight_entropy", (3_f64.ln() - 2.0 / 3.0 * 2_f64.ln()) / 3.0),
        ("aspo/scale", (2.0 * rho + 1.0) / 3.0),
        ("aspo/sentences", 2.0),
        ("entropy", 1.0),
        ("mean_token_accuracy", 0.0),
        ("logits/chosen", 0.0),
        ("logits/rejected", 0.0),
    ];
    for (name, value) in expected {
        let found = metrics.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_close(name, &[found], &[value], 1e-5, 1e-7);
    }
    assert_eq!(metrics.iter().count(), expected.len() + 1, "and the loss");
    let ratios = output.sentence_log_ratios().unwrap();
    assert_eq!(ratios, [vec![1.5, -0.5], vec![0.0; 3], vec![0.0]]);

    let dpo =
        Objective::new(LossType::Sigmoid).loss(&host().batch::<B>(&Default::default()).unwrap()).unwrap();
    assert!(dpo.weighting.is_none() && dpo.metrics().get("aspo/scale").is_none());
    assert_eq!(dpo.sentence_log_ratios().unwrap(), ratios);
}

fn micro_batches_merge_to_the_whole_batch<B: Backend>() {
    let evaluate = |host: &HostBatch| {
        Objective::default().loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap().metrics()
    };
    let whole = evaluate(&host());
    let mut merged = Metrics::default();
    host().singles().for_each(|single| merged.merge(&evaluate(&single)));
    for ((name, a), (other, b)) in whole.iter().zip(merged.iter()) {
        assert_eq!(name, other);
        assert_close(name, &[a], &[b], 1e-6, 1e-7);
    }
}
