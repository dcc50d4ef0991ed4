//! What holds of ASPO alone: its gradient, where it is DPO, its weights and scales.

use aspo_loss::property::{HostResponse, batches};
use aspo_loss::sentence::{response_sums, sentence_sums};
use aspo_loss::stats::TokenValues;
use aspo_loss::weight::{min_max, rejected_weights, sentence_weights};
use aspo_loss::{Aspo, LossOutput, Objective, PreferenceBatch, RewardScaling, Weigh};
use burn::prelude::*;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{cases, check, on_every_backend, values};
use crate::objective::{A, dpo, evaluate, losses, same};

on_every_backend!(
    aspo_gradient_is_that_of_its_constants,
    aspo_gradient_is_the_difference_quotient_at_frozen_weights,
    equal_weights_reduce_to_dpo,
    one_sentence_reduces_to_dpo,
    undetached_reward_ratio_would_be_dpo,
    scaling_stays_in_its_interval,
);

fn readings() -> impl Strategy<Value = (RewardScaling, Weigh, f64)> {
    let scaling = proptest::sample::select(RewardScaling::ALL.to_vec());
    (scaling, proptest::sample::select(vec![Weigh::Chosen, Weigh::Both]), 0.0..=1.0_f64)
}

/// ASPO's weights and scales, taken from its output as numbers and put into the equation by hand, give its value and
/// the whole of its gradient: nothing flows through them.
fn aspo_gradient_is_that_of_its_constants<B: Backend>() {
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let aspo = Aspo { scaling, weigh, alpha };
        let by_constants = |batch: &PreferenceBatch<A<B>>| {
            let output: LossOutput<A<B>> = Objective::new(aspo).loss(batch).unwrap();
            let weighting = output.weighting.unwrap();
            let reference = batch.reference().unwrap();
            let reward = |side: Option<aspo_loss::objective::SideWeighting>, rejected: bool| {
                let (policy, reference, map) = if rejected {
                    (batch.policy().rejected(), reference.rejected(), &batch.layout().rejected)
                } else {
                    (batch.policy().chosen(), reference.chosen(), &batch.layout().chosen)
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
        same(
            &evaluate::<B>(&host, losses::<B>(Objective::new(aspo))),
            &evaluate::<B>(&host, by_constants),
            1e-5,
        )
    });
}

/// The gradient of every token against the central difference in f64 of `-log σ(M*)`, weights and ρ held where they are.
fn aspo_gradient_is_the_difference_quotient_at_frozen_weights<B: Backend>() {
    const STEP: f64 = 1e-3;
    check(cases::<B>(), (batches(), readings()), |(host, (scaling, weigh, alpha))| {
        let aspo = Aspo { scaling, weigh, alpha };
        let output = Objective::new(aspo).loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap();
        let weighting = output.weighting.unwrap();
        let [_, chosen, rejected] = evaluate::<B>(&host, losses::<B>(Objective::new(aspo)));
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
            let similar = Aspo { scaling, weigh, alpha: 1.0 };
            let host = host.map(tied);
            let expected = evaluate::<B>(&host, losses::<B>(dpo()));
            same(&evaluate::<B>(&host, losses::<B>(Objective::new(similar))), &expected, 1e-5)?;
            let level = host.map(|r| r.policy.iter_mut().for_each(|p| *p = log_prob));
            let expected = evaluate::<B>(&level, losses::<B>(dpo()));
            same(
                &evaluate::<B>(&level, losses::<B>(Objective::new(Aspo { scaling, weigh, alpha }))),
                &expected,
                1e-5,
            )?;
            // Equal weights other than 0: two sentences whose two scores mirror each other, at α = ½, all give ½.
            if scaling == RewardScaling::Off || weigh == Weigh::Both {
                return Ok(());
            }
            let mirrored = host.map(|r| {
                r.sentences = vec![1, 1];
                r.similarity = vec![0.1, 0.2];
                r.policy = vec![log_prob, 2.0 * log_prob];
                r.reference = vec![-1.0, -1.5];
                r.corrupted = vec![(-1.0, -1.0); 2];
                r.changed = vec![true; 2];
                r.stats = TokenValues {
                    log_sum_sq_probs: vec![-1.0; 2],
                    entropy: vec![1.0; 2],
                    mean_logit: vec![0.0; 2],
                    is_argmax: vec![true; 2],
                };
            });
            let expected = evaluate::<B>(&mirrored, losses::<B>(dpo()));
            let half = Aspo { scaling, ..Aspo::default() };
            let weights = Objective::new(half)
                .loss(&mirrored.batch::<B>(&Default::default()).unwrap())
                .unwrap()
                .weighting
                .unwrap();
            prop_assert!(weights.chosen.weights.iter().flatten().all(|w| (w - 0.5).abs() < 1e-9));
            // RewardRatio is undefined where the reward vanishes; TotalWeight's value is the same ½-weights' one.
            same(&evaluate::<B>(&mirrored, losses::<B>(Objective::new(half))), &expected, 1e-5)
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
            &evaluate::<B>(&whole, losses::<B>(Objective::new(Aspo { scaling, weigh, alpha }))),
            &expected,
            1e-5,
        )
    });
}

/// The reason for detaching ρ: kept in the graph, `Σd/Σ(1+w)d` cancels the weights, and the loss and its gradient are
/// DPO's. Detached, the value is DPO's while ρ is not clamped, and the gradient is not.
fn undetached_reward_ratio_would_be_dpo<B: Backend>() {
    let count = std::cell::Cell::new(0);
    check(cases::<B>(), batches(), |host| {
        let aspo = Aspo { scaling: RewardScaling::RewardRatio, ..Aspo::default() };
        let weights_of = |batch: &PreferenceBatch<A<B>>| {
            Objective::new(aspo).loss(batch).unwrap().weighting.unwrap().chosen.weights
        };
        let weighed = |batch: &PreferenceBatch<A<B>>| {
            let weights = weights_of(batch);
            let map = &batch.layout().chosen;
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
                response_sums(batch.policy().rejected().clone() - reference, &batch.layout().rejected) * 0.1;
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
            let detached = evaluate::<B>(&host, losses::<B>(Objective::new(aspo)));
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
        let aspo = Aspo { scaling, weigh, alpha };
        let weighting = Objective::new(aspo)
            .loss(&host.batch::<B>(&Default::default()).unwrap())
            .unwrap()
            .weighting
            .unwrap();
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
fn rejected_weights_are_one_minus_the_fit() {
    let values = vec((-1.0..1.0_f64, 1.0..50.0_f64), 2..=8);
    check(1000, (values, 0.0..=1.0_f64), |(values, alpha)| {
        let (similarity, perplexity): (Vec<f64>, Vec<f64>) = values.into_iter().unzip();
        let fit = sentence_weights(Some(&similarity), &perplexity, alpha);
        for (fit, misfit) in fit.iter().zip(rejected_weights(Some(&similarity), &perplexity, alpha)) {
            prop_assert!((fit + misfit - 1.0).abs() <= 1e-9, "{fit} and {misfit}");
        }
        Ok(())
    });
    assert_eq!(rejected_weights(Some(&[0.3]), &[2.0], 0.5), [0.0], "one sentence weighs nothing");
    assert_eq!(rejected_weights(Some(&[0.3, 0.3]), &[2.0, 2.0], 0.5), [0.0, 0.0], "ties weigh nothing");
}
