//! What holds of the objectives for any batch: reductions, symmetries, invariances and gradients.

use aspo_loss::property::{Applies, HostBatch, HostResponse, batches, check_objective};
use aspo_loss::{
    Aspo, LossOutput, LossType, Objective, PreferenceBatch, RewardScaling, Weigh, min_max, misfit_weights,
    response_sums, sentence_sums, sentence_weights,
};
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
    aspo_gradient_is_that_of_its_constants,
    aspo_gradient_is_the_difference_quotient_at_frozen_weights,
    wpo_gradient_is_dpo_s_times_a_constant,
    one_batch_of_eight_is_eight_batches_of_one,
    equal_weights_reduce_to_dpo,
    one_sentence_reduces_to_dpo,
    swapping_answers_negates_the_dpo_margin,
    sentences_add_up_to_the_response,
    undetached_reward_ratio_would_be_dpo,
    scaling_stays_in_its_interval,
);

type A<B> = Autodiff<B>;

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
fn evaluate<B: Backend>(
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

fn losses<B: Backend>(objective: impl Into<Objective>) -> impl Fn(&PreferenceBatch<A<B>>) -> Tensor<A<B>, 1> {
    let objective = objective.into();
    move |batch| objective.loss(batch).unwrap().losses
}

#[track_caller]
fn same(found: &[Vec<f64>; 3], expected: &[Vec<f64>; 3], tolerance: f64) -> Result<(), TestCaseError> {
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

fn dpo() -> Objective {
    Objective::new(LossType::Sigmoid)
}

fn readings() -> impl Strategy<Value = (RewardScaling, Weigh, f64)> {
    let scaling = proptest::sample::select(RewardScaling::ALL.to_vec());
    (scaling, proptest::sample::select(vec![Weigh::Chosen, Weigh::Both]), 0.0..=1.0_f64)
}

/// ASPO's weights and scales, taken from its output as numbers and put into the equation by hand, give its value and
/// the whole of its gradient: nothing flows through them.
fn aspo_gradient_is_that_of_its_constants<B: Backend>() {
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let aspo = Aspo { scaling, weigh, alpha, ..Aspo::default() };
        let by_constants = |batch: &PreferenceBatch<A<B>>| {
            let output: LossOutput<A<B>> = aspo.loss(batch).unwrap();
            let weighting = output.weighting.unwrap();
            let reference = batch.reference().unwrap();
            let reward = |side: Option<aspo_loss::SideWeighting>, rejected: bool| {
                let (policy, reference, map) = if rejected {
                    (batch.policy().rejected(), reference.rejected(), &batch.map().rejected)
                } else {
                    (batch.policy().chosen(), reference.chosen(), &batch.map().chosen)
                };
                let ratios = policy.clone() - reference.clone();
                let Some(side) = side else { return response_sums(ratios, map) * 0.1 };
                // One factor per token.
                let factor = |row: usize| {
                    let (side, map) = (&side, map);
                    map.sentences(row)
                        .iter()
                        .map(move |&s| (0.1 * side.scale[row] * (1.0 + side.weights[row][s])) as f32)
                };
                let factors: Vec<f32> = (0..map.batch_size()).flat_map(factor).collect();
                response_sums(ratios * crate::common::tensor(&factors, [factors.len()]), map)
            };
            let margin = reward(Some(weighting.chosen), false) - reward(weighting.rejected, true);
            burn::tensor::activation::log_sigmoid(margin).neg()
        };
        same(&evaluate::<B>(&host, losses::<B>(aspo)), &evaluate::<B>(&host, by_constants), 1e-5)
    });
}

/// The gradient of every token against the central difference in f64 of `-log σ(M*)`, weights and ρ held where they are.
fn aspo_gradient_is_the_difference_quotient_at_frozen_weights<B: Backend>() {
    const STEP: f64 = 1e-3;
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let aspo = Aspo { scaling, weigh, alpha, ..Aspo::default() };
        let output = aspo.loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap();
        let weighting = output.weighting.unwrap();
        let [_, chosen, rejected] = evaluate::<B>(&host, losses::<B>(aspo));
        let mut found = [chosen.into_iter(), rejected.into_iter()];
        for (row, pair) in host.pairs.iter().enumerate() {
            let sides =
                [(&pair.chosen, Some(&weighting.chosen)), (&pair.rejected, weighting.rejected.as_ref())];
            // β ρ (1 + w) of each token; β alone where the response is whole.
            let factors = sides.map(|(response, side)| {
                let sentence = response.sentences.iter().enumerate().flat_map(|(s, &n)| vec![s; n]);
                let factor =
                    |s: usize| side.map_or(1.0, |side| side.scale[row] * (1.0 + side.weights[row][s]));
                sentence.map(|s| 0.1 * factor(s)).collect::<Vec<f64>>()
            });
            let reward = |side: usize| {
                let (response, tokens) = (sides[side].0, response_ratios(sides[side].0));
                assert_eq!(response.policy.len(), factors[side].len());
                tokens.zip(&factors[side]).map(|(d, f)| d * f).sum::<f64>()
            };
            let margin = reward(0) - reward(1);
            let loss = |margin: f64| (-margin).exp().ln_1p();
            for side in [0, 1] {
                for &factor in &factors[side] {
                    let slope = if side == 0 { factor } else { -factor };
                    let quotient = (loss(margin + STEP * slope) - loss(margin - STEP * slope)) / (2.0 * STEP);
                    let grad = found[side].next().unwrap();
                    // f32 rounds the margin by 1e-6 and the gradient by 1e-7 of itself; the step is squared.
                    prop_assert!((grad - quotient).abs() <= 1e-6, "row {row}: {grad}, quotient {quotient}");
                }
            }
        }
        Ok(())
    });
}

fn response_ratios(response: &HostResponse) -> impl Iterator<Item = f64> + '_ {
    response.policy.iter().zip(&response.reference).map(|(p, r)| f64::from(*p) - f64::from(*r))
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

/// Equal weights: similarities tied, α = 1; or all tokens equally likely, so that perplexities are tied too.
fn equal_weights_reduce_to_dpo<B: Backend>() {
    check(
        cases::<B>(),
        (batches(), readings(), -3.0..-0.1_f32),
        |(host, (scaling, weigh, alpha), log_prob)| {
            let tied = |r: &mut HostResponse| {
                let first = r.similarity[0];
                r.similarity.iter_mut().for_each(|s| *s = first);
            };
            let similar = Aspo { scaling, weigh, alpha: 1.0, ..Aspo::default() };
            let host = host.map(tied);
            let expected = evaluate::<B>(&host, losses::<B>(dpo()));
            same(&evaluate::<B>(&host, losses::<B>(similar)), &expected, 1e-5)?;
            let level = host.map(|r| r.policy.iter_mut().for_each(|p| *p = log_prob));
            let expected = evaluate::<B>(&level, losses::<B>(dpo()));
            same(
                &evaluate::<B>(&level, losses::<B>(Aspo { scaling, weigh, alpha, ..Aspo::default() })),
                &expected,
                1e-5,
            )?;
            // Equal weights other than 0: two sentences whose two scores mirror each other, at α = ½, all give ½.
            if scaling == RewardScaling::None || weigh == Weigh::Both {
                return Ok(());
            }
            let mirrored = host.map(|r| {
                r.sentences = vec![1, 1];
                r.similarity = vec![0.1, 0.2];
                r.policy = vec![log_prob, 2.0 * log_prob];
                r.reference = vec![-1.0, -1.5];
                r.corrupted = vec![(-1.0, -1.0); 2];
                r.changed = vec![true; 2];
                r.log_collision = vec![-1.0; 2];
            });
            let expected = evaluate::<B>(&mirrored, losses::<B>(dpo()));
            let half = Aspo { scaling, ..Aspo::default() };
            let weights =
                half.loss(&mirrored.batch::<B>(&Default::default()).unwrap()).unwrap().weighting.unwrap();
            prop_assert!(weights.chosen.weights.iter().flatten().all(|w| (w - 0.5).abs() < 1e-9));
            // RewardRatio is undefined where the reward vanishes; TotalWeight's value is the same ½-weights' one.
            same(&evaluate::<B>(&mirrored, losses::<B>(half)), &expected, 1e-5)
        },
    );
}

fn one_sentence_reduces_to_dpo<B: Backend>() {
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let whole = host.map(|r| {
            r.sentences = vec![r.policy.len()];
            r.similarity.truncate(1);
        });
        let expected = evaluate::<B>(&whole, losses::<B>(dpo()));
        same(
            &evaluate::<B>(&whole, losses::<B>(Aspo { scaling, weigh, alpha, ..Aspo::default() })),
            &expected,
            1e-5,
        )
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

/// The reason for detaching ρ: kept in the graph, `Σd/Σ(1+w)d` cancels the weights, and the loss and its gradient are
/// DPO's. Detached, the value is DPO's while ρ is not clamped, and the gradient is not.
fn undetached_reward_ratio_would_be_dpo<B: Backend>() {
    let count = std::cell::Cell::new(0);
    check(cases::<B>(), batches(), |host| {
        let aspo = Aspo { scaling: RewardScaling::RewardRatio, ..Aspo::default() };
        let weights_of =
            |batch: &PreferenceBatch<A<B>>| aspo.loss(batch).unwrap().weighting.unwrap().chosen.weights;
        let weighed = |batch: &PreferenceBatch<A<B>>| {
            let weights = weights_of(batch);
            let map = &batch.map().chosen;
            let width = map.max_sentences();
            let pad = |w: &Vec<f64>| {
                (0..width).map(|i| w.get(i).map_or(1.0, |w| 1.0 + *w as f32)).collect::<Vec<_>>()
            };
            let factors: Vec<f32> = weights.iter().flat_map(pad).collect();
            let ratios = batch.policy().chosen().clone() - batch.reference().unwrap().chosen().clone();
            let d = sentence_sums(ratios, map);
            let factors = crate::common::tensor(&factors, [map.batch_size(), width]);
            (d.clone().sum_dim(1).flatten::<1>(0, 1), (d * factors).sum_dim(1).flatten::<1>(0, 1))
        };
        let undetached = |batch: &PreferenceBatch<A<B>>| {
            let (plain, weighed) = weighed(batch);
            let chosen = weighed.clone() * (plain / weighed) * 0.1;
            let reference = batch.reference().unwrap().rejected().clone();
            let rejected =
                response_sums(batch.policy().rejected().clone() - reference, &batch.map().rejected) * 0.1;
            burn::tensor::activation::log_sigmoid(chosen - rejected).neg()
        };
        let batch = host.batch::<A<B>>(&Default::default()).unwrap();
        let (plain, total) = weighed(&batch);
        let ratios: Vec<f64> = values(&plain).iter().zip(values(&total)).map(|(p, t)| p / t).collect();
        // Where the weighed sum nearly vanishes the quotient has no digits left.
        prop_assume!(values(&total).iter().all(|t| t.abs() > 0.05));
        let expected = evaluate::<B>(&host, losses::<B>(dpo()));
        same(&evaluate::<B>(&host, undetached), &expected, 1e-3)?;
        if ratios.iter().all(|r| (0.51..0.99).contains(r)) {
            let detached = evaluate::<B>(&host, losses::<B>(aspo));
            for (a, e) in detached[0].iter().zip(&expected[0]) {
                prop_assert!((a - e).abs() <= 1e-5, "the value is DPO's: {a} and {e}");
            }
            let uneven = |w: &Vec<f64>| w.iter().any(|x| (x - w[0]).abs() > 0.2);
            if !weights_of(&batch).iter().any(uneven) {
                return Ok(());
            }
            let differ = detached[1].iter().zip(&expected[1]).any(|(a, e)| (a - e).abs() > 1e-4);
            prop_assert!(differ, "the gradient is redistributed");
            count.set(count.get() + 1);
        }
        Ok(())
    });
    assert!(count.get() > 0, "some batch has an unclamped ratio");
}

fn scaling_stays_in_its_interval<B: Backend>() {
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let aspo = Aspo { scaling, weigh, alpha, ..Aspo::default() };
        let weighting = aspo.loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap().weighting.unwrap();
        for side in [Some(weighting.chosen), weighting.rejected].into_iter().flatten() {
            prop_assert!(
                side.weights.iter().flatten().all(|w| (0.0..=1.0).contains(w)),
                "{:?}",
                side.weights
            );
            prop_assert!(side.scale.iter().all(|s| (0.5 - 1e-12..=1.0).contains(s)), "{:?}", side.scale);
        }
        Ok(())
    });
}

/// The weights follow a monotone change of similarity: an increasing affine one changes nothing, any increasing one
/// keeps their order, and raising one sentence's similarity never lowers its own weight.
#[test]
fn weights_follow_a_monotone_change_of_similarity() {
    let values = vec((-1.0..1.0_f64, 1.0..50.0_f64), 1..=8);
    check(1000, (values, 0.0..=1.0_f64, 0.1..3.0_f64, -2.0..2.0_f64), |(values, alpha, slope, shift)| {
        let (similarity, perplexity): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
        let weights = sentence_weights(Some(&similarity), &perplexity, alpha);
        prop_assert!(weights.iter().all(|w| (0.0..=1.0).contains(w)), "{weights:?}");
        let affine: Vec<f64> = similarity.iter().map(|s| slope * s + shift).collect();
        for (a, b) in weights.iter().zip(sentence_weights(Some(&affine), &perplexity, alpha)) {
            prop_assert!((a - b).abs() <= 1e-9, "an affine change: {a} and {b}");
        }
        let bent: Vec<f64> = similarity.iter().map(|s| (3.0 * s).exp()).collect();
        let (plain, bent) = (min_max(&similarity), min_max(&bent));
        for i in 0..similarity.len() {
            for j in 0..similarity.len() {
                prop_assert!(plain[i] >= plain[j] || bent[i] <= bent[j], "order of {i} and {j}");
            }
            let mut raised = similarity.clone();
            raised[i] += slope;
            let raised = sentence_weights(Some(&raised), &perplexity, alpha);
            prop_assert!(raised[i] >= weights[i] - 1e-12, "raising {i}: {} to {}", weights[i], raised[i]);
        }
        Ok(())
    });
}

/// `Both` weighs the rejected side by 1 - S' and 1 - P' wherever those are defined.
#[test]
fn misfit_weights_are_one_minus_the_fit() {
    let values = vec((-1.0..1.0_f64, 1.0..50.0_f64), 2..=8);
    check(1000, (values, 0.0..=1.0_f64), |(values, alpha)| {
        let (similarity, perplexity): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
        let fit = sentence_weights(Some(&similarity), &perplexity, alpha);
        for (fit, misfit) in fit.iter().zip(misfit_weights(Some(&similarity), &perplexity, alpha)) {
            prop_assert!((fit + misfit - 1.0).abs() <= 1e-9, "{fit} and {misfit}");
        }
        Ok(())
    });
    assert_eq!(misfit_weights(Some(&[0.3]), &[2.0], 0.5), [0.0], "one sentence weighs nothing");
    assert_eq!(misfit_weights(Some(&[0.3, 0.3]), &[2.0, 2.0], 0.5), [0.0, 0.0], "ties weigh nothing");
}
