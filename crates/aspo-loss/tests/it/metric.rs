//! Metrics by TRL's names, exact over micro-batches.

use aspo_loss::property::{HostBatch, HostPair, HostResponse};
use aspo_loss::stats::TokenValues;
use aspo_loss::{Aspo, LossType, Metrics, Objective, Totals};
use burn::prelude::*;

use crate::common::{assert_close, on_every_backend, values};

on_every_backend!(
    names_and_values_are_as_documented,
    losses_without_a_reference_log_means,
    micro_batches_merge_to_the_whole_batch,
    shares_of_micro_batches_add_up_to_the_loss,
);

/// `rank` tells the statistics of one response from those of another.
fn response(policy: &[f32], reference: &[f32], rank: usize) -> HostResponse {
    let n = policy.len();
    HostResponse {
        sentences: vec![1; n],
        padding: (0, 1),
        policy: policy.to_vec(),
        reference: reference.to_vec(),
        corrupted: vec![(-1.0, -1.0); n],
        changed: vec![true; n],
        stats: TokenValues {
            log_sum_sq_probs: vec![-1.0; n],
            entropy: (0..n).map(|i| (rank + i) as f32).collect(),
            mean_logit: (0..n).map(|i| 0.5 - (rank * i) as f32).collect(),
            is_argmax: (0..n).map(|i| (rank + i).is_multiple_of(2)).collect(),
        },
        similarity: (0..n).map(|i| i as f32 * 0.1).collect(),
    }
}

fn host() -> HostBatch {
    let pair = |chosen, rejected| HostPair { chosen, rejected };
    HostBatch {
        pairs: vec![
            pair(response(&[-1.0, -2.0], &[-2.5, -1.5], 1), response(&[-3.0], &[-2.5], 2)),
            pair(
                response(&[-1.0, -2.0, -3.0], &[-1.0, -2.0, -3.0], 3),
                response(&[-1.0, -2.0], &[-1.5, -2.0], 4),
            ),
            pair(response(&[-1.0], &[-1.0], 5), response(&[-1.0], &[-1.0], 6)),
        ],
    }
}

fn metrics<B: Backend>(objective: &Objective, host: &HostBatch) -> Metrics {
    objective.loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap().metrics()
}

fn assert_metrics(found: &Metrics, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let found = found.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_close(name, &[found], &[*value], 1e-5, 1e-7);
    }
}

/// Entropy over all tokens: chosen 1 2, 3 4 5, 5; rejected 2, 4 5, 6. Top 1 of the chosen: no yes, no yes no, no.
/// Mean logits: chosen .5 -.5, .5 -2.5 -5.5, .5; rejected .5, .5 -3.5, .5.
const TOKEN_METRICS: [(&str, f64); 4] = [
    ("entropy", 37.0 / 10.0),
    ("mean_token_accuracy", 2.0 / 6.0),
    ("logits/chosen", -7.0 / 6.0),
    ("logits/rejected", -2.0 / 4.0),
];

fn names_and_values_are_as_documented<B: Backend>() {
    // α = 1: w = (0, 1), (0, ½, 1), (0); ρ = 2/3, 3/4.5, 1.
    let aspo = Objective::new(Aspo { alpha: 1.0, ..Aspo::default() });
    let rho = 2.0 / 3.0;
    // TRL's, whatever the loss: β log-ratios 1 and -0.5, 0 and 0.5, 0 and 0.
    let trl = [
        ("rewards/chosen", 0.1 / 3.0),
        ("rewards/rejected", 0.0),
        ("rewards/margins", 0.1 / 3.0),
        // The first pair only: the second is wrong, the third is tied.
        ("rewards/accuracies", 1.0 / 3.0),
        ("logps/chosen", (-3.0 - 6.0 - 1.0) / 3.0),
        ("logps/rejected", (-3.0 - 3.0 - 1.0) / 3.0),
    ];
    let ours = [
        // β ρ (1.5 - 2·0.5), 0, 0
        ("aspo/rewards/chosen", 0.1 * rho * 0.5 / 3.0),
        ("aspo/rewards/rejected", 0.0),
        ("aspo/rewards/margins", 0.1 * rho * 0.5 / 3.0),
        ("aspo/rewards/accuracies", 1.0 / 3.0),
        ("aspo/weight_mean", 2.5 / 6.0),
        // (0, 1) and (0) have none; (0, ½, 1) is (⅓, ⅔)
        ("aspo/weight_entropy", (3_f64.ln() - 2.0 / 3.0 * 2_f64.ln()) / 3.0),
        ("aspo/scale", (2.0 * rho + 1.0) / 3.0),
        ("aspo/sentences", 2.0),
    ];
    let found = metrics::<B>(&aspo, &host());
    let expected = [&trl[..], &ours, &TOKEN_METRICS].concat();
    assert_metrics(&found, &expected);
    assert_eq!(found.iter().count(), expected.len() + 1, "and the loss");

    // The order of terms changes nothing but the loss.
    for text in ["sigmoid", "0.5 sft + sigmoid", "sigmoid + 0.5 sft", "simpo + sigmoid"] {
        let found = metrics::<B>(&text.parse().unwrap(), &host());
        assert_metrics(&found, &[&trl[..], &TOKEN_METRICS].concat());
        assert!(found.get("aspo/scale").is_none() && found.get("aspo/rewards/chosen").is_none());
        // Over six chosen tokens, not over three pairs.
        assert_eq!(found.get("nll_loss").is_some(), text.contains("sft"), "{text}");
        assert_close(text, &[found.get("nll_loss").unwrap_or(10.0 / 6.0)], &[10.0 / 6.0], 1e-6, 0.0);
    }
}

/// As TRL's trainers of SimPO and ORPO: β times the mean, and means for `logps/*`.
fn losses_without_a_reference_log_means<B: Backend>() {
    let (chosen, rejected) = ((-1.5 - 2.0 - 1.0) / 3.0, (-3.0 - 1.5 - 1.0) / 3.0);
    let means = [
        ("rewards/chosen", 0.1 * chosen),
        ("rewards/rejected", 0.1 * rejected),
        ("rewards/accuracies", 1.0 / 3.0),
        ("logps/chosen", chosen),
        ("logps/rejected", rejected),
    ];
    for text in ["simpo", "orpo", "sft + simpo"] {
        assert_metrics(&metrics::<B>(&text.parse().unwrap(), &host()), &means);
    }
    // A likelihood alone has rewards where a reference is at hand, as in TRL, and none where it is not.
    let batch = host().batch::<B>(&Default::default()).unwrap();
    let bare = aspo_loss::PreferenceBatch::new(batch.policy().clone());
    let sft = Objective::new(LossType::Sft);
    assert_metrics(
        &metrics::<B>(&sft, &host()),
        &[("rewards/chosen", 0.1 / 3.0), ("logps/chosen", -10.0 / 3.0)],
    );
    let found = sft.loss(&bare).unwrap().metrics();
    assert!(found.get("rewards/chosen").is_none() && found.get("logps/chosen").is_some());
}

fn mixtures() -> impl Iterator<Item = Objective> {
    let texts =
        ["aspo", "sigmoid", "sft", "orpo", "0.8 sigmoid + 0.2 bco_pair + sft", "0.5 sft + 0.25 orpo + aspo"];
    texts.into_iter().map(|text| text.parse().unwrap())
}

fn micro_batches_merge_to_the_whole_batch<B: Backend>() {
    for objective in mixtures() {
        let whole = metrics::<B>(&objective, &host());
        let mut merged = Metrics::default();
        host().singles().for_each(|single| merged.merge(&metrics::<B>(&objective, &single)));
        assert_eq!(whole.iter().count(), merged.iter().count());
        for ((name, a), (other, b)) in whole.iter().zip(merged.iter()) {
            assert_eq!(name, other);
            assert_close(name, &[a], &[b], 1e-6, 1e-7);
        }
    }
}

/// Pairs of unlike lengths, one at a time: likelihoods too are over the tokens of the whole step.
fn shares_of_micro_batches_add_up_to_the_loss<B: Backend>() {
    let totals = Totals { pairs: 3, chosen_tokens: 6 };
    for objective in mixtures() {
        let output =
            |host: &HostBatch| objective.loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap();
        let whole = output(&host());
        let sum: f64 = host().singles().map(|single| values(&output(&single).share(totals))[0]).sum();
        assert_close("shares", &[sum], &values(&whole.loss), 1e-6, 0.0);
        assert_close("one share", &values(&whole.share(totals)), &values(&whole.loss), 1e-6, 0.0);
        let logged = whole.metrics().get("loss").unwrap();
        assert_close("logged", &[logged], &values(&whole.loss), 1e-6, 0.0);
    }
}
