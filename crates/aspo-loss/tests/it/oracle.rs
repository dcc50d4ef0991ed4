//! Every golden case of ASPO and DPO, in value and gradient: dense, chunked with a frozen head and chunked with a trained
//! one. Shapes, options and readings come from the files.

use aspo_loss::sentence::sentence_sums;
use aspo_loss::{
    Aspo, ChunkOptions, LmHead, Logps, LossOutput, LossType, Objective, PairLayout, PreferenceBatch,
    ResponseLayout, Similarity, chunked_log_probs, chunked_log_probs_forward, dense_log_probs,
};
use burn::backend::Autodiff;
use burn::prelude::*;

use crate::common::{assert_close, grad, ints, on_every_backend, tensor, values};
use crate::golden::{Case, cases};

on_every_backend!(
    every_oracle_case_dense,
    every_oracle_case_chunked_with_a_frozen_head,
    every_oracle_case_chunked_with_a_trained_head,
);

/// How a test gets from logits to log-probabilities.
#[derive(Clone, Copy)]
enum Way {
    Dense,
    Frozen,
    Trained,
}

fn every_oracle_case_dense<B: Backend>() {
    run::<B>(Way::Dense);
}

fn every_oracle_case_chunked_with_a_frozen_head<B: Backend>() {
    run::<B>(Way::Frozen);
}

fn every_oracle_case_chunked_with_a_trained_head<B: Backend>() {
    run::<B>(Way::Trained);
}

type A<B> = Autodiff<B>;

/// A batch made from a case's logits, and the two leaves that gradients are asked of.
struct Loaded<B: Backend> {
    batch: PreferenceBatch<A<B>>,
    logits: [Tensor<A<B>, 3>; 2],
}

fn load<B: Backend>(case: &Case, way: Way) -> Loaded<B> {
    let sides = ["chosen", "rejected"];
    let ids = sides.map(|side| case.rows(&format!("{side}_sentence_ids")));
    let map = PairLayout::from_labels(&ids[0], &ids[1]).unwrap();
    let maps = [&map.chosen, &map.rejected];
    let labels = |side: usize, map: &ResponseLayout| {
        let (shape, labels) = case.entry(&format!("{}_labels", sides[side]));
        let labels: Vec<i64> = labels.iter().map(|&l| l as i64).collect();
        map.select_targets(ints::<A<B>, 2>(&labels, [shape[0], shape[1]])).unwrap()
    };
    let logits = |who: &str, side: usize| {
        let (shape, logits) = case.entry(&format!("{who}_{}_logits", sides[side]));
        let logits: Vec<f32> = logits.iter().map(|&l| l as f32).collect();
        tensor::<A<B>, 3>(&logits, [shape[0], shape[1], shape[2]])
    };
    let options = ChunkOptions { rows: Some(7), ..ChunkOptions::default() };
    let score = |logits: Tensor<A<B>, 3>, side: usize| {
        let rows = maps[side].select_hidden(logits).unwrap();
        let targets = labels(side, maps[side]);
        // Logits as hidden states and the identity as the head: the same logits, exactly.
        let identity = || Tensor::<A<B>, 2>::eye(rows.dims()[1], &rows.device());
        let head = |weight| LmHead::hugging_face(weight);
        match way {
            Way::Dense => dense_log_probs(rows, targets),
            Way::Frozen => chunked_log_probs(rows.clone(), &head(identity()), targets, &options),
            Way::Trained => {
                chunked_log_probs(rows.clone(), &head(identity().require_grad()), targets, &options)
            }
        }
        .unwrap()
    };
    let reference = [0, 1].map(|side| {
        let rows = maps[side].select_hidden(logits("reference", side)).unwrap();
        let identity = LmHead::hugging_face(Tensor::eye(rows.dims()[1], &rows.device()));
        match way {
            Way::Dense => dense_log_probs(rows, labels(side, maps[side])),
            _ => chunked_log_probs_forward(rows, &identity, labels(side, maps[side]), &options),
        }
        .unwrap()
    });
    let leaves = [0, 1].map(|side| logits("policy", side).require_grad());
    let [chosen, rejected] = [0, 1].map(|side| score(leaves[side].clone(), side));
    let policy = Logps::new(&map, chosen, rejected).unwrap();
    let [chosen, rejected] = reference;
    let reference = Logps::new(&map, chosen, rejected).unwrap();
    let (shape, similarity) = case.entry("similarity");
    let similarity: Vec<Vec<f32>> =
        similarity.chunks(shape[1]).map(|row| row.iter().map(|&s| s as f32).collect()).collect();
    let counts: Vec<usize> = case.get("sentence_counts").iter().map(|&n| n as usize).collect();
    let similarity = Similarity::padded(&similarity, &counts).unwrap();
    let batch = PreferenceBatch::new(policy);
    let batch = batch.with_reference(reference).unwrap().with_similarity(similarity).unwrap();
    Loaded { batch, logits: leaves }
}

/// Values to 1e-5 relative and gradients to 1e-6 absolute, `sharp*` to 1e-4: f32 against f64. Rewards and margins are
/// differences of sums of log-probabilities, so their error is relative to those sums: β·1e-6 of the largest is added.
fn run<B: Backend>(way: Way) {
    for case in cases("loss") {
        let (relative, absolute) = if case.name.contains("sharp") { (1e-4, 1e-4) } else { (1e-5, 1e-6) };
        let (alpha, beta) = (case.option("alpha"), case.option("beta"));
        let largest = case.get("sentence_logps").iter().fold(1.0_f64, |m, x| m.max(x.abs()));
        let floor = beta * largest * 1e-6;
        let close = |what: &str, found: &[f64], expected: &[f64]| {
            assert_close(&format!("{} {what}", case.name), found, expected, relative, floor);
        };

        let loaded = load::<B>(&case, way);
        let map = loaded.batch.layout().clone();
        let sums = values(&sentence_sums(loaded.batch.policy().chosen().clone(), &map.chosen));
        close("sentence_logps", &sums, case.get("sentence_logps"));
        let reference = loaded.batch.reference().unwrap().chosen().clone();
        close(
            "ref_sentence_logps",
            &values(&sentence_sums(reference, &map.chosen)),
            case.get("ref_sentence_logps"),
        );

        let readings: Vec<String> = serde_json::from_str(&case.metadata["modes"]).unwrap();
        for reading in readings {
            let loaded = load::<B>(&case, way);
            let aspo = Aspo { alpha, scaling: reading.parse().unwrap(), ..Aspo::default() };
            let output = Objective { beta, ..Objective::new(aspo) }.loss(&loaded.batch).unwrap();
            let width = case.entry("weights").0[1];
            let padded = |rows: &[Vec<f64>]| -> Vec<f64> {
                let pad = |row: &Vec<f64>| {
                    row.iter().copied().chain(core::iter::repeat(0.0)).take(width).collect::<Vec<_>>()
                };
                rows.iter().flat_map(pad).collect()
            };
            let chosen = &output.weighting.as_ref().unwrap().chosen;
            close("perplexity", &padded(&chosen.perplexity), case.get("perplexity"));
            close("weights", &padded(&chosen.weights), case.get("weights"));
            close(&format!("{reading}.scale"), &chosen.scale, case.get(&format!("{reading}.scale")));
            let rewards = output.weighed_rewards.as_ref().unwrap();
            for (name, found) in [
                ("chosen_reward", rewards.chosen.clone()),
                ("rejected_reward", rewards.rejected.clone()),
                ("margin", rewards.margins()),
                ("loss", values(&output.loss)),
            ] {
                close(&format!("{reading}.{name}"), &found, case.get(&format!("{reading}.{name}")));
            }
            check_grads(&case, &reading, &loaded, &output, absolute);
        }

        let loaded = load::<B>(&case, way);
        let dpo = Objective { beta, ..Objective::new(LossType::Sigmoid) };
        let output = dpo.loss(&loaded.batch).unwrap();
        close("dpo.loss", &values(&output.loss), case.get("dpo.loss"));
        close("dpo.margin", &output.rewards.as_ref().unwrap().margins(), case.get("dpo.margin"));
        check_grads(&case, "dpo", &loaded, &output, absolute);
    }
}

fn check_grads<B: Backend>(
    case: &Case,
    reading: &str,
    loaded: &Loaded<B>,
    output: &LossOutput<A<B>>,
    absolute: f64,
) {
    let grads = output.loss.backward();
    for (side, leaf) in ["chosen", "rejected"].into_iter().zip(&loaded.logits) {
        let name = format!("{reading}.grad_policy_{side}_logits");
        // The committed files hold no gradient of DPO in the rejected logits.
        if reading == "dpo" && side == "rejected" && !case.tensors.contains_key(&name) {
            continue;
        }
        let expected = case.get(&name);
        assert_close(&format!("{} {name}", case.name), &grad(leaf, &grads), expected, 0.0, absolute);
    }
}
