//! `check_objective` on losses that are not this crate's: a right one passes, and each wrong one is caught by the property
//! that it breaks. On flex alone: it is the checker that is tested.

use aspo_loss::property::{Applies, check_objective};
use aspo_loss::sentence::{response_sums, sentence_sums};
use aspo_loss::{LossType, Objective, PreferenceBatch, Result};
use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::activation::{log_sigmoid, relu, sigmoid};
use burn_flex::Flex;

type B = Autodiff<Flex>;
type Loss = fn(&PreferenceBatch<B>) -> Result<Tensor<B, 1>>;

/// `log[π(y_c)/π_ref(y_c)] - log[π(y_r)/π_ref(y_r)]`, written against the public records only.
fn margin(batch: &PreferenceBatch<B>) -> Tensor<B, 1> {
    let (policy, map) = (batch.policy(), batch.layout());
    let reference = batch.reference().expect("the strategies give every record");
    response_sums(policy.chosen().clone() - reference.chosen().clone(), &map.chosen)
        - response_sums(policy.rejected().clone() - reference.rejected().clone(), &map.rejected)
}

fn right(batch: &PreferenceBatch<B>) -> Result<Tensor<B, 1>> {
    Ok(relu(margin(batch).mul_scalar(-0.1).add_scalar(1.0)))
}

fn hinge() -> Applies {
    Applies { at_reference: Some(1.0), ..Applies::default() }
}

#[test]
fn a_right_loss_of_ones_own_passes() {
    check_objective(right, &hinge(), 1000).unwrap();
}

#[test]
fn a_wrong_loss_is_caught_by_the_property_it_breaks() {
    let wrong: [(&str, Loss); 12] = [
        // No reference: likelihoods instead of ratios.
        ("only ratios matter", |batch| {
            let (policy, map) = (batch.policy(), batch.layout());
            let chosen = response_sums(policy.chosen().clone(), &map.chosen);
            let rejected = response_sums(policy.rejected().clone(), &map.rejected);
            Ok(relu((chosen - rejected).mul_scalar(-0.1).add_scalar(1.0)))
        }),
        // The equation with a wrong sign passes all but the value at the reference.
        ("policy = reference", |batch| Ok(relu(margin(batch).mul_scalar(-0.1).sub_scalar(1.0)))),
        // Centred by the batch's own mean.
        ("a batch is its pairs", |batch| {
            let losses = right(batch)?;
            let mean = losses.clone().mean();
            Ok(losses - mean + 1.0)
        }),
        // The first pair counts twice.
        ("order only orders", |batch| {
            let losses = right(batch)?;
            let rows = losses.dims()[0];
            let weights: Vec<f32> = (0..rows).map(|row| if row == 0 { 2.0 } else { 1.0 }).collect();
            Ok(losses * Tensor::from_data(TensorData::new(weights, [rows]), &Default::default()))
        }),
        // Averaged over the padded length.
        ("padding changes nothing", |batch| Ok(right(batch)? / batch.layout().chosen.width() as f32)),
        // Overflows far from 0.
        ("finite at extremes", |batch| Ok(sigmoid(margin(batch)).log().neg())),
        // Is never finite.
        ("finite", |batch| Ok(right(batch)?.sub_scalar(f32::INFINITY))),
        // Half of it is a constant to the gradient.
        ("gradient", |batch| {
            let margin = margin(batch);
            Ok(log_sigmoid((margin.clone() + margin.set_require_grad(false)) * 0.05).neg())
        }),
        // Prefers the rejected answer.
        ("direction", |batch| Ok(relu(margin(batch).mul_scalar(0.1).add_scalar(1.0)))),
        // Adds the two ratios.
        ("direction", |batch| {
            let rejected = batch.policy().rejected().clone() - batch.reference().unwrap().rejected().clone();
            let both = margin(batch) + response_sums(rejected, &batch.layout().rejected).mul_scalar(2.0);
            Ok(relu(both.mul_scalar(-0.1).add_scalar(1.0)))
        }),
        // Sees the first sentence only.
        ("every token counts", |batch| {
            let [policy, reference] = [batch.policy().chosen(), batch.reference().unwrap().chosen()];
            let first =
                sentence_sums(policy.clone() - reference.clone(), &batch.layout().chosen).narrow(1, 0, 1);
            Ok(relu(first.flatten::<1>(0, 1).mul_scalar(-0.1).add_scalar(1.0)))
        }),
        // One loss for the batch.
        ("one loss per pair", |batch| Ok(right(batch)?.mean())),
    ];
    for (property, loss) in wrong {
        // The naive logistic losses are log 2 at the reference, so that only what is named can catch them.
        let logistic = matches!(property, "finite at extremes" | "gradient");
        let applies = Applies { at_reference: Some(if logistic { 2_f64.ln() } else { 1.0 }), ..hinge() };
        let error = check_objective(loss, &applies, 200).expect_err(property);
        let error = error.to_string();
        let named = error.contains(&format!(": {property}: ")) || error.contains("one loss per pair");
        assert!(error.len() < 2000, "{} bytes: {error}", error.len());
        assert!(named && error.contains(property), "{property}: {error}");
    }
}

#[test]
fn a_claim_that_does_not_hold_is_caught() {
    // SFT reads no reference; WPO detaches what depends on the policy.
    let check = |objective: Objective, applies: Applies| {
        let loss = |batch: &PreferenceBatch<B>| objective.loss(batch).map(|output| output.losses);
        check_objective(loss, &Applies { name: "mine", ..applies }, 200).unwrap_err().to_string()
    };
    let error = check(Objective::new(LossType::Sft), Applies::default());
    assert!(error.starts_with("mine: only ratios matter: "), "{error}");
    let wpo = Objective { use_weighting: true, ..Objective::new(LossType::Sigmoid) };
    let error = check(wpo, Applies { ratios_only: false, ..Applies::default() });
    assert!(error.starts_with("mine: gradient: "), "{error}");
    // Above its target of 1/(2β) = 1 a likelier chosen answer costs.
    let error = check(Objective { beta: 0.5, ..Objective::new(LossType::SppoHard) }, Applies::default());
    assert!(error.starts_with("mine: direction: "), "{error}");
}

/// A wrong DPO whose losses still fall with the margin is told from the right one.
#[test]
fn a_loss_is_held_against_a_known_one() {
    let dpo = |batch: &PreferenceBatch<B>| Ok(log_sigmoid(margin(batch).mul_scalar(0.3)).neg());
    let averaged = |batch: &PreferenceBatch<B>| {
        let tokens =
            (0..batch.batch_size()).map(|row| batch.layout().chosen.row_tokens(row) as f32).collect();
        let tokens = TensorData::new::<f32, _>(tokens, [batch.batch_size()]);
        let tokens = Tensor::<B, 1>::from_data(tokens, &Default::default());
        Ok(log_sigmoid(margin(batch).mul_scalar(0.3) / tokens).neg())
    };
    let same = Applies { equals: Some(LossType::Sigmoid), beta: 0.3, ..Applies::default() };
    check_objective(dpo, &same, 200).unwrap();
    let error = check_objective(averaged, &same, 200).unwrap_err();
    assert!(error.to_string().contains("equals sigmoid; beta=0.3: "), "{error}");
    // `unwrap` prints what `Display` does, line by line; the name is that of the function.
    let text = format!("{error:?}");
    assert!(text == error.to_string() && text.contains("a_loss_is_held_against_a_known_one"), "{text}");
    assert!(text.lines().count() >= 3 && text.len() < 1500, "{text}");
    assert!(check_objective(dpo, &same, 0).unwrap_err().to_string().contains("0 judge nothing"));
}

/// A gradient that no quotient can be held against is no proof.
#[test]
fn a_loss_that_bends_everywhere_is_not_judged() {
    let jagged = |batch: &PreferenceBatch<B>| {
        // A sawtooth in the margin, finer than the step of the quotient.
        let x = margin(batch).mul_scalar(1000.0);
        Ok((x.clone() - x.floor().set_require_grad(false)).abs())
    };
    let applies = Applies { direction: false, ratios_only: false, every_token: false, ..Applies::default() };
    let error = check_objective(jagged, &applies, 50).unwrap_err().to_string();
    assert!(error.contains("gradient: "), "{error}");
}
