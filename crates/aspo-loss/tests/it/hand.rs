//! Every objective against a value worked by hand, on one small pair, β = ¼:
//!
//! | | policy | reference | log-ratio |
//! |---|---|---|---|
//! | chosen, two sentences of one token | -1, -2 | -2.5, -1.5 | 1.5, -0.5: r_c = 1 |
//! | rejected, one token | -3 | -2.5 | r_r = -0.5 |
//!
//! so Δ = 1.5 and βΔ = 0.375. Values are to 9 digits; f32 carries 1e-6.

use aspo_loss::property::{HostBatch, HostPair, HostResponse};
use aspo_loss::{Aspo, LossType, Objective, RewardScaling, RunningMean, Weigh};
use burn::prelude::*;

use crate::common::{assert_close, on_every_backend, values};

on_every_backend!(
    every_objective_has_its_value_by_hand,
    options_change_the_value_as_by_hand,
    aspo_has_its_value_by_hand_in_all_four_readings,
    both_sides_weighed_has_its_value_by_hand,
    a_sum_of_objectives_is_the_sum_of_its_terms,
);

fn response(policy: &[f32], reference: &[f32], similarity: &[f32]) -> HostResponse {
    let n = policy.len();
    HostResponse {
        sentences: vec![n / similarity.len(); similarity.len()],
        padding: (1, 2),
        policy: policy.to_vec(),
        reference: reference.to_vec(),
        // Given the corrupted image the log-ratios are 0.2 each: r_c' = 0.4.
        corrupted: vec![(-2.0, -2.2); n],
        // The first token of each response is changed.
        changed: (0..n).map(|i| i == 0).collect(),
        // Chosen: mean of log p - log Σp² is (0.5 - 0.5)/2 = 0. Rejected: -3 + 2 = -1.
        log_collision: vec![if n == 1 { -2.0 } else { -1.5 }; n],
        similarity: similarity.to_vec(),
    }
}

fn pair() -> HostBatch {
    let chosen = response(&[-1.0, -2.0], &[-2.5, -1.5], &[0.2, 0.3]);
    HostBatch { pairs: vec![HostPair { chosen, rejected: response(&[-3.0], &[-2.5], &[0.1]) }] }
}

fn loss<B: Backend>(objective: &Objective) -> Vec<f64> {
    values(&objective.loss(&pair().batch::<B>(&Default::default()).unwrap()).unwrap().losses)
}

fn quarter(loss: LossType) -> Objective {
    Objective { beta: 0.25, ..Objective::new(loss) }
}

fn every_objective_has_its_value_by_hand<B: Backend>() {
    let expected = [
        // ln(1 + e^-0.375)
        (LossType::Sigmoid, 0.523123264),
        // ε = 0: as sigmoid
        (LossType::Robust, 0.523123264),
        // 1 - 0.375
        (LossType::Hinge, 0.625),
        // (1/2 + 0.5/1 - 1/(2·¼))² = (1 - 2)²
        (LossType::Ipo, 1.0),
        // means -1.5 and -3: ln(1 + e^-(¼·1.5 - 0.5)) = ln(1 + e^0.125)
        (LossType::Simpo, 0.757599035),
        // 1.5 + ¼ ln(1 + e^-x), x = [-1.5 - ln(1-e^-1.5)] - [-3 - ln(1-e^-3)] = 1.7012…
        (LossType::Orpo, 1.541891964),
        // 1 - σ(0.25) + σ(-0.125)
        (LossType::ApoZero, 0.906614126),
        // σ(0.25) + 1 - σ(0.375)
        (LossType::ApoDown, 0.969509901),
        // (1 - 2)² + (-0.5 + 2)²
        (LossType::SppoHard, 3.25),
        // ln(1 + e^-0.25) + ln(1 + e^-0.125)
        (LossType::BcoPair, 1.208538455),
        // σ(x)[ln σ(x) - ln 0.999] + σ(-x)[ln σ(-x) - ln 0.001], x = 0.375
        (LossType::ExoPair, 2.138479118),
        // ln(1+e^-0.25) + ½ ln(1+e^0.25) + ½ ln(1+e^-0.125)
        (LossType::NcaPair, 1.305208647),
        // m = σ(7.5): (1-m)·0.523123 + m e^-0.375
        (LossType::Discopop, 0.687198531),
        // -(-1 - 2)/2
        (LossType::Sft, 1.5),
        // γ = 5: chosen (5·1.5 - 0.5)/6 = 7/6, rejected -0.5: ln(1 + e^-¼(7/6 + ½))
        (LossType::Ddpo, 0.506360046),
        // ln(1 + e^-¼(1 - 0.4))
        (LossType::MdpoConditional, 0.620957048),
        // ln(1 + e^-0.25)
        (LossType::MdpoAnchor, 0.57593942),
        // α = ½ makes both weights ½, so TotalWeight gives DPO.
        (LossType::Aspo, 0.523123264),
    ];
    assert_eq!(expected.len(), LossType::ALL.len());
    for (name, value) in expected {
        assert_close(name.name(), &loss::<B>(&quarter(name)), &[value], 1e-6, 1e-6);
    }
}

fn options_change_the_value_as_by_hand<B: Backend>() {
    let smoothing = |loss| Objective { label_smoothing: 0.1, ..quarter(loss) };
    let mut shift = RunningMean::default();
    shift.update(&[0.25, -0.05]);
    let expected = [
        // 0.9·0.523123 + 0.1·(0.523123 + 0.375)
        ("cDPO", smoothing(LossType::Sigmoid), 0.560623264),
        // [0.9·0.523123 - 0.1·0.898123]/0.8
        ("robust", smoothing(LossType::Robust), 0.476248264),
        // means as above, x = -0.125: 0.9·0.757599 + 0.1·(0.757599 - 0.125)
        ("simpo", smoothing(LossType::Simpo), 0.745099035),
        // ln(1 + e^-0.15) + ln(1 + e^-0.225), δ = 0.1
        ("bco", Objective { bco_shift: shift.mean(), ..quarter(LossType::BcoPair) }, 1.20791905),
        // m = σ(0.375)
        ("discopop", Objective { discopop_tau: 1.0, ..quarter(LossType::Discopop) }, 0.620418978),
        // ln(1 + e^-0.05)
        ("anchor", Objective { anchor: 0.2, ..quarter(LossType::MdpoAnchor) }, 0.668459648),
        // One token is shared: r_c = 1.5 - ½·0.5 = 1.25: ln(1 + e^-¼·1.75)
        ("ld_alpha", Objective { ld_alpha: Some(0.5), ..quarter(LossType::Sigmoid) }, 0.498134548),
        // 0.523123·e^0·e^-1
        ("wpo", Objective { use_weighting: true, ..quarter(LossType::Sigmoid) }, 0.192446294),
    ];
    for (name, objective, value) in expected {
        assert_close(name, &loss::<B>(&objective), &[value], 1e-6, 1e-6);
    }
}

/// α = ¼: S = 0.2, 0.3 gives S' = 0, 1; PPL = e, e² gives P' = 1, 0; so w = ¾, ¼ and
/// Σ(1+w)d = 1.75·1.5 - 1.25·0.5 = 2. All sentences have one token, so `token_weight` is `total_weight`.
fn aspo_has_its_value_by_hand_in_all_four_readings<B: Backend>() {
    let expected = [
        // 2/(1.75 + 1.25); M = ⅔·¼·2 + 0.125
        (RewardScaling::TotalWeight, 2.0 / 3.0, 0.490012523),
        (RewardScaling::TokenWeight, 2.0 / 3.0, 0.490012523),
        // Σd/Σ(1+w)d = 1/2, so M is DPO's 0.375 and the loss as well
        (RewardScaling::RewardRatio, 0.5, 0.523123264),
        // M = ¼·2 + 0.125
        (RewardScaling::None, 1.0, 0.428700678),
    ];
    for (scaling, scale, value) in expected {
        let aspo = Aspo { beta: 0.25, alpha: 0.25, scaling, ..Aspo::default() };
        let output = aspo.loss(&pair().batch::<B>(&Default::default()).unwrap()).unwrap();
        let weighting = output.weighting.as_ref().unwrap();
        assert!(weighting.rejected.is_none(), "the rejected response stays whole");
        let chosen = &weighting.chosen;
        assert_close("weights", &chosen.weights[0], &[0.75, 0.25], 1e-6, 0.0);
        assert_close("perplexity", &chosen.perplexity[0], &[1_f64.exp(), 2_f64.exp()], 1e-6, 0.0);
        assert_close("log_ratios", &chosen.log_ratios[0], &[1.5, -0.5], 1e-6, 0.0);
        assert_close("scale", &chosen.scale, &[scale], 1e-6, 0.0);
        assert_close("loss", &values(&output.loss), &[value], 1e-6, 0.0);
        assert_close("chosen", &values(&output.chosen_rewards), &[scale * 0.5], 1e-6, 0.0);
        assert_close("rejected", &values(&output.rejected_rewards), &[-0.125], 1e-6, 0.0);
    }
}

/// Rejected: policy -1, -3, reference -1.5, -2: d = 0.5, -1. S = 0.1, 0.4 gives 1-S' = 1, 0; PPL = e, e³ gives
/// 1-P' = 0, 1; α = ¼: w = ¼, ¾; Σ(1+w)d = 0.625 - 1.75 = -1.125; ρ = ⅔; reward ¼·⅔·(-1.125) = -0.1875.
/// M = ⅓ + 0.1875.
fn both_sides_weighed_has_its_value_by_hand<B: Backend>() {
    let mut batch = pair();
    batch.pairs[0].rejected = response(&[-1.0, -3.0], &[-1.5, -2.0], &[0.1, 0.4]);
    let aspo = Aspo { beta: 0.25, alpha: 0.25, weigh: Weigh::Both, ..Aspo::default() };
    let output = aspo.loss(&batch.batch::<B>(&Default::default()).unwrap()).unwrap();
    let rejected = output.weighting.as_ref().unwrap().rejected.as_ref().unwrap();
    assert_close("weights", &rejected.weights[0], &[0.25, 0.75], 1e-6, 0.0);
    assert_close("rejected", &values(&output.rejected_rewards), &[-0.1875], 1e-6, 0.0);
    let margin: f64 = 1.0 / 3.0 + 0.1875;
    assert_close("loss", &values(&output.loss), &[(-margin).exp().ln_1p()], 1e-6, 0.0);
}

/// MPO of InternVL: 0.8 sigmoid + 0.2 bco_pair + 1.0 sft.
fn a_sum_of_objectives_is_the_sum_of_its_terms<B: Backend>() {
    let terms = vec![(LossType::Sigmoid, 0.8), (LossType::BcoPair, 0.2), (LossType::Sft, 1.0)];
    let mpo = Objective { terms, ..quarter(LossType::Sigmoid) };
    assert_eq!(mpo.to_string(), "0.8 sigmoid + 0.2 bco_pair + sft");
    assert_close("MPO", &loss::<B>(&mpo), &[2.160206302], 1e-6, 0.0);
}
