//! What holds of the objectives for any batch: symmetries, invariances and gradients.

use aspo_loss::property::{Applies, HostBatch, HostResponse, batches, check_objective};
use aspo_loss::sentence::{response_sums, sentence_sums};
use aspo_loss::{Aspo, FDivergence, LossType, Objective, PreferenceBatch, RewardScaling, Totals, Weigh};
use burn::backend::Autodiff;
use burn::prelude::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{cases, check, on_every_backend, values};

on_every_backend!(
    pairwise_objectives_hold_their_properties,
    f_divergences_hold_their_properties,
    reference_free_objectives_hold_their_properties,
    weighted_objectives_hold_their_properties,
    aspo_holds_its_properties,
    wpo_gradient_is_dpo_s_times_a_constant,
    one_batch_of_eight_is_eight_batches_of_one,
    optimal_transport_does_not_depend_on_the_order,
    swapping_answers_negates_the_dpo_margin,
    sentences_add_up_to_the_response,
);

pub type A<B> = Autodiff<B>;

/// Holds an objective against every property of `check_objective`. ASPO and DPO get all cases; the others, which repeat the
/// same arithmetic, a quarter of them, and a tenth on backends with fewer than 1,000.
fn hold<B: Backend>(objective: Objective, applies: Applies) {
    let head = objective == Objective::default() || objective == dpo();
    let (all, text) = (cases::<B>(), objective.to_string());
    let cases = if head { all } else { all.div_ceil(if all >= 1000 { 4 } else { 10 }) };
    let loss = |batch: &PreferenceBatch<A<B>>| objective.loss(batch).map(|output| output.losses);
    if let Err(e) = check_objective::<A<B>>(loss, &Applies { name: "a loss of this crate", ..applies }, cases)
    {
        panic!("{text}: {e}");
    }
}

fn named(name: &str) -> LossType {
    name.parse().unwrap()
}

/// A loss that is this much where policy equals reference.
fn at(value: f64) -> Applies {
    Applies { at_reference: Some(value), ..Applies::default() }
}

fn pairwise_objectives_hold_their_properties<B: Backend>() {
    let log2 = 2_f64.ln();
    let exo = 0.5 * (0.5_f64.ln() - (1.0 - 1e-3_f64).ln()) + 0.5 * (0.5_f64.ln() - 1e-3_f64.ln());
    // β = ½ gives 1/(2β) = 1. The last column: whether a likelier chosen answer always helps.
    for (loss, value, direction) in [
        ("sigmoid", log2, true),
        ("sigmoid_norm", log2, true),
        ("cdpo", log2, false),
        ("robust", log2, true),
        ("robust(label_smoothing=0.1)", log2, true),
        ("hinge", 1.0, true),
        ("ipo", 1.0, false),
        ("apo_zero", 1.0, true),
        ("apo_down", 1.0, false),
        ("sppo_hard", 2.0, false),
        ("bco_pair", 2.0 * log2, true),
        ("exo_pair", exo, false),
        ("nca_pair", 2.0 * log2, false),
        ("discopop", 0.5 * log2 + 0.5, false),
        ("ddpo", log2, true),
        ("mdpo_conditional", log2, true),
        ("mdpo_anchor", log2, true),
    ] {
        hold::<B>(Objective { beta: 0.5, ..Objective::new(named(loss)) }, Applies { direction, ..at(value) });
    }
}

fn f_divergences_hold_their_properties<B: Backend>() {
    let alpha = |coef| FDivergence::AlphaDivergence { coef };
    for f_divergence in [FDivergence::ForwardKl, FDivergence::JsDivergence, alpha(0.5), alpha(2.0)] {
        for loss in [LossType::Sigmoid, LossType::SigmoidNorm] {
            // Powers of a ratio are not that ratio's multiple: what is added to both log-probabilities still cancels.
            let objective = Objective { f_divergence, ..Objective::new(loss) };
            // Log-ratios to ±30 make powers to e^30, whose differences have no digits left in f32.
            hold::<B>(
                objective,
                Applies { whole_gradient: false, ratios_only: false, every_token: true, ..at(2_f64.ln()) },
            );
        }
    }
}

fn reference_free_objectives_hold_their_properties<B: Backend>() {
    let applies = Applies { ratios_only: false, ..Applies::default() };
    for loss in ["simpo", "orpo", "sft"] {
        hold::<B>(Objective::new(named(loss)), applies);
    }
}

fn weighted_objectives_hold_their_properties<B: Backend>() {
    let mpo: Objective = "0.8 sigmoid + 0.2 bco_pair + sft".parse().unwrap();
    hold::<B>(mpo, Applies { ratios_only: false, ..Applies::default() });
    hold::<B>(Objective { ld_alpha: Some(0.3), ..dpo() }, at(2_f64.ln()));
    // WPO's weights read the policy and are detached.
    let applies = Applies { ratios_only: false, whole_gradient: false, ..Applies::default() };
    hold::<B>(Objective { use_weighting: true, ..dpo() }, applies);
}

fn aspo_holds_its_properties<B: Backend>() {
    for weigh in [Weigh::Chosen, Weigh::Both] {
        for scaling in RewardScaling::ALL {
            // Perplexities and RewardRatio's ρ depend on the policy and are detached.
            let applies = Applies { whole_gradient: false, ..at(2_f64.ln()) };
            hold::<B>(Objective::new(Aspo { scaling, weigh, ..Aspo::default() }), applies);
        }
        // With α = 1 and a ρ of weights alone nothing does: the gradient is whole.
        for scaling in [RewardScaling::TotalWeight, RewardScaling::TokenWeight, RewardScaling::Off] {
            hold::<B>(Objective::new(Aspo { alpha: 1.0, scaling, weigh }), at(2_f64.ln()));
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
                    let terms = r
                        .policy
                        .iter()
                        .zip(&r.stats.log_sum_sq_probs)
                        .map(|(p, c)| f64::from(*p) - f64::from(*c));
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

/// The loss of a step and its gradient, whatever the objective; losses by rank apart, which change with the batch.
fn one_batch_of_eight_is_eight_batches_of_one<B: Backend>() {
    let first = |batch: HostBatch| batch.pairs.into_iter().next().unwrap();
    let eight = vec(batches().prop_map(first), 8).prop_map(|pairs| HostBatch { pairs });
    let texts: Vec<String> =
        LossType::ALL.iter().filter(|loss| !loss.sorts()).map(ToString::to_string).collect();
    let mixed = ["0.8 sigmoid + 0.2 bco_pair + sft", "0.5 sft + 2 orpo"].map(String::from);
    let objective = proptest::sample::select([texts, mixed.to_vec()].concat());
    check(cases::<B>(), (eight, objective), |(host, objective)| {
        let objective: Objective = objective.parse().unwrap();
        let chosen_tokens = host.pairs.iter().map(|pair| pair.chosen.policy.len()).sum();
        let totals = Totals { pairs: 8, chosen_tokens };
        let share = |batch: &PreferenceBatch<A<B>>| objective.loss(batch).unwrap().share(totals);
        let mut sum = [vec![0.0], vec![], vec![]];
        for single in host.singles() {
            let [loss, chosen, rejected] = evaluate::<B>(&single, share);
            sum[0][0] += loss[0];
            sum[1].extend(chosen);
            sum[2].extend(rejected);
        }
        same(&evaluate::<B>(&host, |batch| objective.loss(batch).unwrap().loss), &sum, 1e-5)
    });
}

/// AOT compares sorted sides: the order of pairs changes neither its mean nor, pair by pair, its gradient; a batch of one is
/// DPO.
fn optimal_transport_does_not_depend_on_the_order<B: Backend>() {
    let loss = proptest::sample::select(vec!["aot", "aot_unpaired", "aot(label_smoothing=0.1)"]);
    check(cases::<B>(), (batches(), loss), |(host, loss)| {
        let objective: Objective = loss.parse().unwrap();
        let mean = |batch: &PreferenceBatch<A<B>>| objective.loss(batch).unwrap().loss;
        let reversed = HostBatch { pairs: host.pairs.iter().rev().cloned().collect() };
        let [loss, mut chosen, mut rejected] = evaluate::<B>(&reversed, mean);
        for (grads, side) in [
            (&mut chosen, (|pair| pair.chosen.policy.len()) as fn(&aspo_loss::property::HostPair) -> usize),
            (&mut rejected, |pair| pair.rejected.policy.len()),
        ] {
            let mut rest = std::mem::take(grads);
            for pair in &host.pairs {
                let tail = rest.split_off(rest.len() - side(pair));
                grads.extend(tail);
            }
        }
        same(&evaluate::<B>(&host, mean), &[loss, chosen, rejected], 1e-5)?;
        if !objective.to_string().contains("smoothing") {
            for single in host.singles() {
                let expected = evaluate::<B>(&single, losses::<B>(dpo()));
                same(&evaluate::<B>(&single, losses::<B>(objective.clone())), &expected, 1e-5)?;
            }
        }
        Ok(())
    });
}

fn swapping_answers_negates_the_dpo_margin<B: Backend>() {
    check(cases::<B>(), batches(), |host| {
        let swapped = HostBatch { pairs: host.pairs.iter().map(|pair| pair.swapped()).collect() };
        let margins = |host: &HostBatch| {
            dpo().loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap().rewards.unwrap().margins()
        };
        let (found, swapped) = (margins(&host), margins(&swapped));
        prop_assert_eq!((found.len(), swapped.len()), (host.pairs.len(), host.pairs.len()));
        for (margin, swapped) in found.into_iter().zip(swapped) {
            prop_assert!((margin + swapped).abs() <= 1e-6, "{margin} and {swapped}");
        }
        Ok(())
    });
}

fn sentences_add_up_to_the_response<B: Backend>() {
    check(cases::<B>(), batches(), |host| {
        let batch = host.batch::<B>(&Default::default()).unwrap();
        let (tokens, map) = (batch.policy().chosen().clone(), &batch.layout().chosen);
        let sentences = values(&sentence_sums(tokens.clone(), map).sum_dim(1));
        let responses = values(&response_sums(tokens, map));
        prop_assert_eq!((sentences.len(), responses.len()), (host.pairs.len(), host.pairs.len()));
        for (s, r) in sentences.iter().zip(responses) {
            prop_assert!((s - r).abs() <= 1e-5 * r.abs(), "{s} and {r}");
        }
        Ok(())
    });
}
