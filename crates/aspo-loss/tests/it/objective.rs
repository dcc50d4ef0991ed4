//! What holds of the objectives for any batch: symmetries, invariances and gradients.

use aspo_loss::property::{Applies, HostBatch, HostResponse, batches, check_objective};
use aspo_loss::{LossType, Objective, PreferenceBatch, RewardScaling, Weigh, response_sums, sentence_sums};
use burn::backend::Autodiff;
use burn::prelude::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{cases, check, on_every_backend, values};

on_every_backend!(
    pairwise_objectives_hold_their_properties,
    reference_free_objectives_hold_their_properties,
    weighted_objectives_hold_their_properties,
    aspo_holds_its_properties,
    wpo_gradient_is_dpo_s_times_a_constant,
    one_batch_of_eight_is_eight_batches_of_one,
    swapping_answers_negates_the_dpo_margin,
    sentences_add_up_to_the_response,
);

pub type A<B> = Autodiff<B>;

/// Holds an objective against every property of `check_objective`. Backends with fewer than 1,000 cases, which repeat the
/// same arithmetic, spend them on ASPO and DPO and a tenth of them on each of the others.
fn hold<B: Backend>(objective: Objective, applies: Applies) {
    let head = objective == Objective::default() || objective == dpo();
    let all = cases::<B>();
    let cases = if head || all >= 1000 { all } else { all.div_ceil(10) };
    let loss = |batch: &PreferenceBatch<A<B>>| objective.loss(batch).map(|output| output.losses);
    if let Err(e) = check_objective::<A<B>>(loss, &applies, cases) {
        panic!("{objective}: {e}");
    }
}

/// A loss that is this much where policy equals reference.
fn at(value: f64) -> Applies {
    Applies { at_reference: Some(value), ..Applies::default() }
}

fn pairwise_objectives_hold_their_properties<B: Backend>() {
    let log2 = 2_f64.ln();
    let exo = 0.5 * (0.5_f64.ln() - (1.0 - 1e-3_f64).ln()) + 0.5 * (0.5_f64.ln() - 1e-3_f64.ln());
    // β = ½ gives 1/(2β) = 1.
    for (loss, value) in [
        (LossType::Sigmoid, log2),
        (LossType::Robust, log2),
        (LossType::Hinge, 1.0),
        (LossType::Ipo, 1.0),
        (LossType::ApoZero, 1.0),
        (LossType::ApoDown, 1.0),
        (LossType::SppoHard, 2.0),
        (LossType::BcoPair, 2.0 * log2),
        (LossType::ExoPair, exo),
        (LossType::NcaPair, 2.0 * log2),
        (LossType::Discopop, 0.5 * log2 + 0.5),
        (LossType::Ddpo, log2),
        (LossType::MdpoConditional, log2),
        (LossType::MdpoAnchor, log2),
    ] {
        hold::<B>(Objective { beta: 0.5, ..Objective::new(loss) }, at(value));
    }
    hold::<B>(Objective { label_smoothing: 0.1, ..Objective::new(LossType::Sigmoid) }, at(log2));
    hold::<B>(Objective { label_smoothing: 0.1, ..Objective::new(LossType::Robust) }, at(log2));
}

fn reference_free_objectives_hold_their_properties<B: Backend>() {
    let applies = Applies { ratios_only: false, ..Applies::default() };
    for loss in [LossType::Simpo, LossType::Orpo, LossType::Sft] {
        hold::<B>(Objective::new(loss), applies);
    }
}

fn weighted_objectives_hold_their_properties<B: Backend>() {
    let terms = vec![(LossType::Sigmoid, 0.8), (LossType::BcoPair, 0.2), (LossType::Sft, 1.0)];
    hold::<B>(
        Objective { terms, ..Objective::default() },
        Applies { ratios_only: false, ..Applies::default() },
    );
    hold::<B>(Objective { ld_alpha: Some(0.3), ..Objective::new(LossType::Sigmoid) }, at(2_f64.ln()));
    // WPO's weights read the policy and are detached.
    let applies = Applies { ratios_only: false, at_reference: None, whole_gradient: false };
    hold::<B>(Objective { use_weighting: true, ..Objective::new(LossType::Sigmoid) }, applies);
}

fn aspo_holds_its_properties<B: Backend>() {
    for weigh in [Weigh::Chosen, Weigh::Both] {
        for scaling in RewardScaling::ALL {
            // Perplexities and RewardRatio's ρ depend on the policy and are detached.
            let applies = Applies { whole_gradient: false, ..at(2_f64.ln()) };
            hold::<B>(Objective { scaling, weigh, ..Objective::default() }, applies);
        }
        // With α = 1 and a ρ of weights alone nothing does: the gradient is whole.
        for scaling in [RewardScaling::TotalWeight, RewardScaling::TokenWeight, RewardScaling::None] {
            hold::<B>(Objective { alpha: 1.0, scaling, weigh, ..Objective::default() }, at(2_f64.ln()));
        }
    }
}

/// Losses and gradients in the policy's chosen and rejected tokens.
pub fn evaluate<B: Backend>(
    host: &HostBatch,
    loss: impl Fn(&PreferenceBatch<A<B>>) -> Tensor<A<B>, 1>,
) -> [Vec<f64>; 3] {
    let leaves = host.policy::<A<B>>(&Default::default()).map(Tensor::require_grad);
    let batch = host.batch_of(leaves[0].clone(), leaves[1].clone()).unwrap();
    let losses = loss(&batch);
    let grads = losses.clone().sum().backward();
    // SFT has none in the rejected response.
    let [chosen, rejected] =
        leaves.map(|leaf| leaf.grad(&grads).map_or_else(|| vec![0.0; leaf.dims()[0]], |grad| values(&grad)));
    [values(&losses), chosen, rejected]
}

pub fn losses<B: Backend>(
    objective: impl Into<Objective>,
) -> impl Fn(&PreferenceBatch<A<B>>) -> Tensor<A<B>, 1> {
    let objective = objective.into();
    move |batch| objective.loss(batch).unwrap().losses
}

#[track_caller]
pub fn same(found: &[Vec<f64>; 3], expected: &[Vec<f64>; 3], tolerance: f64) -> Result<(), TestCaseError> {
    for (what, f, e) in [
        ("losses", &found[0], &expected[0]),
        ("chosen gradient", &found[1], &expected[1]),
        ("rejected gradient", &found[2], &expected[2]),
    ] {
        let close =
            f.len() == e.len() && f.iter().zip(e).all(|(f, e)| (f - e).abs() <= tolerance * (1.0 + e.abs()));
        prop_assert!(close, "{what}: {f:?}, expected {e:?}");
    }
    Ok(())
}

pub fn dpo() -> Objective {
    Objective::new(LossType::Sigmoid)
}

/// No gradient reaches WPO's weights: value and gradient are DPO's, pair by pair, times a number.
fn wpo_gradient_is_dpo_s_times_a_constant<B: Backend>() {
    check(cases::<B>(), batches(), |host| {
        let wpo = evaluate::<B>(&host, losses::<B>(Objective { use_weighting: true, ..dpo() }));
        let mut expected = evaluate::<B>(&host, losses::<B>(dpo()));
        let weights: Vec<f64> = host
            .pairs
            .iter()
            .map(|pair| {
                let mean = |r: &HostResponse| {
                    let terms =
                        r.policy.iter().zip(&r.log_collision).map(|(p, c)| f64::from(*p) - f64::from(*c));
                    terms.sum::<f64>() / r.policy.len() as f64
                };
                (mean(&pair.chosen) + mean(&pair.rejected)).exp()
            })
            .collect();
        let tokens = |side: fn(&aspo_loss::property::HostPair) -> &HostResponse| {
            let rows = host.pairs.iter().zip(&weights);
            rows.flat_map(move |(pair, &weight)| vec![weight; side(pair).policy.len()]).collect::<Vec<_>>()
        };
        for (values, weights) in expected.iter_mut().zip([
            weights.clone(),
            tokens(|pair| &pair.chosen),
            tokens(|pair| &pair.rejected),
        ]) {
            values.iter_mut().zip(weights).for_each(|(value, weight)| *value *= weight);
        }
        same(&wpo, &expected, 1e-5)
    });
}

/// The mean loss and its gradient, whatever the objective.
fn one_batch_of_eight_is_eight_batches_of_one<B: Backend>() {
    let first = |batch: HostBatch| batch.pairs.into_iter().next().unwrap();
    let eight = vec(batches().prop_map(first), 8).prop_map(|pairs| HostBatch { pairs });
    let objective = proptest::sample::select(LossType::ALL.to_vec()).prop_map(Objective::new);
    check(cases::<B>(), (eight, objective), |(host, objective)| {
        let mean = |batch: &PreferenceBatch<A<B>>| objective.loss(batch).unwrap().loss;
        let mut sum = [vec![0.0], vec![], vec![]];
        for single in host.singles() {
            let [loss, chosen, rejected] = evaluate::<B>(&single, mean);
            sum[0][0] += loss[0] / 8.0;
            sum[1].extend(chosen.iter().map(|g| g / 8.0));
            sum[2].extend(rejected.iter().map(|g| g / 8.0));
        }
        same(&evaluate::<B>(&host, mean), &sum, 1e-5)
    });
}

fn swapping_answers_negates_the_dpo_margin<B: Backend>() {
    check(cases::<B>(), batches(), |host| {
        let swapped = HostBatch { pairs: host.pairs.iter().map(|pair| pair.swapped()).collect() };
        let margins = |host: &HostBatch| {
            values(&dpo().loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap().margins())
        };
        for (margin, swapped) in margins(&host).into_iter().zip(margins(&swapped)) {
            prop_assert!((margin + swapped).abs() <= 1e-6, "{margin} and {swapped}");
        }
        Ok(())
    });
}

fn sentences_add_up_to_the_response<B: Backend>() {
    check(cases::<B>(), batches(), |host| {
        let batch = host.batch::<B>(&Default::default()).unwrap();
        let (tokens, map) = (batch.policy().chosen().clone(), &batch.map().chosen);
        let sentences = values(&sentence_sums(tokens.clone(), map).sum_dim(1));
        for (s, r) in sentences.iter().zip(values(&response_sums(tokens, map))) {
            prop_assert!((s - r).abs() <= 1e-5 * r.abs(), "{s} and {r}");
        }
        Ok(())
    });
}
