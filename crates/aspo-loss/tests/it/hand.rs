//! Every objective against a value worked by hand, on one small pair, β = ¼:
//!
//! | | policy | reference | log-ratio |
//! |---|---|---|---|
//! | chosen, two sentences of one token | -1, -2 | -2.5, -1.5 | 1.5, -0.5: r_c = 1 |
//! | rejected, one token | -3 | -2.5 | r_r = -0.5 |
//!
//! so Δ = 1.5 and βΔ = 0.375. Values are to 9 digits; f32 carries 1e-6.

use aspo_loss::property::{HostBatch, HostPair, HostResponse};
use aspo_loss::stats::TokenValues;
use aspo_loss::{Aspo, FDivergence, LossType, Objective, RewardScaling, Weigh};
use burn::prelude::*;

use crate::common::{assert_close, on_every_backend, values};

on_every_backend!(
    every_objective_has_its_value_by_hand,
    options_change_the_value_as_by_hand,
    aspo_has_its_value_by_hand_in_all_four_readings,
    both_sides_weighed_has_its_value_by_hand,
    a_sum_of_objectives_is_the_sum_of_its_terms,
    optimal_transport_goes_by_rank,
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
        stats: TokenValues {
            log_sum_sq_probs: vec![if n == 1 { -2.0 } else { -1.5 }; n],
            entropy: vec![1.0; n],
            mean_logit: vec![0.0; n],
            is_argmax: vec![false; n],
        },
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

fn quarter(loss: impl Into<LossType>) -> Objective {
    Objective { beta: 0.25, ..Objective::new(loss) }
}

/// One loss by name, with its default options.
fn named(name: &str) -> Objective {
    quarter(name.parse::<LossType>().unwrap())
}

fn every_objective_has_its_value_by_hand<B: Backend>() {
    let expected = [
        // ln(1 + e^-0.375)
        ("sigmoid", 0.523123264),
        // r_c/2 - r_r/1 = 1: ln(1 + e^-0.25)
        ("sigmoid_norm", 0.57593942),
        // 0.9·0.523123 + 0.1·(0.523123 + 0.375)
        ("cdpo", 0.560623264),
        // One pair has nothing to be sorted: as sigmoid
        ("aot", 0.523123264),
        ("aot_unpaired", 0.523123264),
        // ε = 0: as sigmoid
        ("robust", 0.523123264),
        // 1 - 0.375
        ("hinge", 0.625),
        // (1/2 + 0.5/1 - 1/(2·¼))² = (1 - 2)²
        ("ipo", 1.0),
        // means -1.5 and -3: ln(1 + e^-(¼·1.5 - 0.5)) = ln(1 + e^0.125)
        ("simpo", 0.757599035),
        // 1.5 + ¼ ln(1 + e^-x), x = [-1.5 - ln(1-e^-1.5)] - [-3 - ln(1-e^-3)] = 1.7012…
        ("orpo", 1.541891964),
        // 1 - σ(0.25) + σ(-0.125)
        ("apo_zero", 0.906614126),
        // σ(0.25) + 1 - σ(0.375)
        ("apo_down", 0.969509901),
        // (1 - 2)² + (-0.5 + 2)²
        ("sppo_hard", 3.25),
        // ln(1 + e^-0.25) + ln(1 + e^-0.125)
        ("bco_pair", 1.208538455),
        // σ(x)[ln σ(x) - ln 0.999] + σ(-x)[ln σ(-x) - ln 0.001], x = 0.375
        ("exo_pair", 2.138479118),
        // ln(1+e^-0.25) + ½ ln(1+e^0.25) + ½ ln(1+e^-0.125)
        ("nca_pair", 1.305208647),
        // m = σ(7.5): (1-m)·0.523123 + m e^-0.375
        ("discopop", 0.687198531),
        // -(-1 - 2)/2
        ("sft", 1.5),
        // γ = 3: chosen (3·1.5 - 0.5)/4 = 1, rejected -0.5: ln(1 + e^-¼(1 + ½))
        ("ddpo", 0.523123264),
        // ln(1 + e^-¼(1 - 0.4))
        ("mdpo_conditional", 0.620957048),
        // ln(1 + e^-0.25)
        ("mdpo_anchor", 0.57593942),
        // α = ½ makes both weights ½, so TotalWeight gives DPO.
        ("aspo", 0.523123264),
    ];
    assert_eq!(expected.len(), LossType::ALL.len());
    for (name, value) in expected {
        assert_close(name, &loss::<B>(&named(name)), &[value], 1e-6, 1e-6);
    }
}

fn options_change_the_value_as_by_hand<B: Backend>() {
    let f_divergence = |f_divergence| Objective { f_divergence, ..named("sigmoid") };
    let expected = [
        ("robust", quarter(LossType::Robust { label_smoothing: 0.1 }), 0.476248264),
        // means as above, x = -0.125: 0.9·0.757599 + 0.1·(0.757599 - 0.125)
        ("simpo", quarter(LossType::Simpo { gamma: 0.5, label_smoothing: 0.1 }), 0.745099035),
        // x = ¼·1.5 - 1.4 = -1.025: ln(1 + e^1.025)
        ("gamma", quarter(LossType::Simpo { gamma: 1.4, label_smoothing: 0.0 }), 1.331599356),
        // ln(1 + e^-0.15) + ln(1 + e^-0.225), δ = 0.1
        ("bco", quarter(LossType::BcoPair { shift: 0.1 }), 1.20791905),
        // m = σ(0.375)
        ("discopop", quarter(LossType::Discopop { tau: 1.0 }), 0.620418978),
        // γ = 5: chosen (5·1.5 - 0.5)/6 = 7/6, rejected -0.5: ln(1 + e^-¼(7/6 + ½))
        ("ddpo", quarter(LossType::Ddpo { gamma: 5.0 }), 0.506360046),
        // ln(1 + e^-0.05)
        ("anchor", quarter(LossType::MdpoAnchor { anchor: 0.2 }), 0.668459648),
        // One token is shared: r_c = 1.5 - ½·0.5 = 1.25: ln(1 + e^-¼·1.75)
        ("ld_alpha", Objective { ld_alpha: Some(0.5), ..named("sigmoid") }, 0.498134548),
        // The likelihood stays -(-1 - 2)/2.
        ("ld_alpha", Objective { ld_alpha: Some(0.5), ..named("sft") }, 1.5),
        // 0.523123·e^0·e^-1
        ("wpo", Objective { use_weighting: true, ..named("sigmoid") }, 0.192446294),
        // 1 - e^-1 and 1 - e^½: ln(1 + e^-¼(e^½ - e^-1))
        ("forward KL", f_divergence(FDivergence::ForwardKl), 0.545804408),
        // log(2σ(1)) and log(2σ(-½)): ln(1 + e^-¼(ln σ(1) - ln σ(-½)))
        ("JS", f_divergence(FDivergence::JsDivergence), 0.613952934),
        // (e^-½ - 1)/(-½) and (e^¼ - 1)/(-½): ln(1 + e^-½(e^¼ - e^-½))
        ("alpha", f_divergence(FDivergence::AlphaDivergence { coef: 0.5 }), 0.538049154),
        ("alpha at 1", f_divergence(FDivergence::AlphaDivergence { coef: 1.0 }), 0.523123264),
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
        (RewardScaling::Off, 1.0, 0.428700678),
    ];
    for (scaling, scale, value) in expected {
        let aspo = quarter(Aspo { alpha: 0.25, scaling, ..Aspo::default() });
        let output = aspo.loss(&pair().batch::<B>(&Default::default()).unwrap()).unwrap();
        let weighting = output.weighting.as_ref().unwrap();
        assert!(weighting.rejected.is_none(), "the rejected response stays whole");
        let chosen = &weighting.chosen;
        assert_close("weights", &chosen.weights[0], &[0.75, 0.25], 1e-6, 0.0);
        assert_close("perplexity", &chosen.perplexity[0], &[1_f64.exp(), 2_f64.exp()], 1e-6, 0.0);
        assert_close("log_ratios", &chosen.log_ratios[0], &[1.5, -0.5], 1e-6, 0.0);
        assert_close("scale", &chosen.scale, &[scale], 1e-6, 0.0);
        assert_close("loss", &values(&output.loss), &[value], 1e-6, 0.0);
        let rewards = output.weighed_rewards.as_ref().unwrap();
        assert_close("chosen", &rewards.chosen, &[scale * 0.5], 1e-6, 0.0);
        assert_close("rejected", &rewards.rejected, &[-0.125], 1e-6, 0.0);
        // TRL's: β times the plain log-ratios.
        assert_close("plain", &output.rewards.unwrap().margins(), &[0.375], 1e-6, 0.0);
    }
}

/// Rejected: policy -1, -3, reference -1.5, -2: d = 0.5, -1. S = 0.1, 0.4 gives 1-S' = 1, 0; PPL = e, e³ gives
/// 1-P' = 0, 1; α = ¼: w = ¼, ¾; Σ(1+w)d = 0.625 - 1.75 = -1.125; ρ = ⅔; reward ¼·⅔·(-1.125) = -0.1875.
/// M = ⅓ + 0.1875.
fn both_sides_weighed_has_its_value_by_hand<B: Backend>() {
    let mut batch = pair();
    batch.pairs[0].rejected = response(&[-1.0, -3.0], &[-1.5, -2.0], &[0.1, 0.4]);
    let aspo = quarter(Aspo { alpha: 0.25, weigh: Weigh::Both, ..Aspo::default() });
    let output = aspo.loss(&batch.batch::<B>(&Default::default()).unwrap()).unwrap();
    let rejected = output.weighting.as_ref().unwrap().rejected.as_ref().unwrap();
    assert_close("weights", &rejected.weights[0], &[0.25, 0.75], 1e-6, 0.0);
    assert_close("rejected", &output.weighed_rewards.as_ref().unwrap().rejected, &[-0.1875], 1e-6, 0.0);
    let margin: f64 = 1.0 / 3.0 + 0.1875;
    assert_close("loss", &values(&output.loss), &[(-margin).exp().ln_1p()], 1e-6, 0.0);
}

/// MPO of InternVL: 0.8 sigmoid + 0.2 bco_pair + 1.0 sft.
fn a_sum_of_objectives_is_the_sum_of_its_terms<B: Backend>() {
    let terms = vec![(LossType::Sigmoid, 0.8), (LossType::BcoPair { shift: 0.0 }, 0.2), (LossType::Sft, 1.0)];
    let mpo = Objective { terms, ..quarter(LossType::Sigmoid) };
    assert_eq!(mpo.to_string(), "0.8 sigmoid + 0.2 bco_pair + sft; beta=0.25");
    assert_close("MPO", &loss::<B>(&mpo), &[2.160206302], 1e-6, 0.0);
}

/// Three pairs of one token. Policy -1, -2, -3 against -2, -1, -4: differences 1, -1, 1, sorted -1, 1, 1; reference -1, -3, -2
/// against -1, -1, -1: 0, -2, -1, sorted -2, -1, 0. Δ by rank: 1, 2, 1. Log-ratios: chosen 0, 1, -1, sorted -1, 0, 1; rejected
/// -1, 0, -3, sorted -3, -1, 0: Δ 2, 1, 1.
fn optimal_transport_goes_by_rank<B: Backend>() {
    let pairs = [(-1.0, -2.0, -1.0, -1.0), (-2.0, -1.0, -3.0, -1.0), (-3.0, -4.0, -2.0, -1.0)];
    let pair = |&(c, r, ref_c, ref_r): &(f32, f32, f32, f32)| HostPair {
        chosen: response(&[c], &[ref_c], &[0.1]),
        rejected: response(&[r], &[ref_r], &[0.1]),
    };
    let host = HostBatch { pairs: pairs.iter().map(pair).collect() };
    let softplus = |x: f64| (-x).exp().ln_1p();
    for (name, deltas) in [("aot", [1.0, 2.0, 1.0]), ("aot_unpaired", [2.0, 1.0, 1.0])] {
        for smoothing in [0.0, 0.2] {
            let mut loss: LossType = name.parse().unwrap();
            assert!(loss.set("label_smoothing", &smoothing.to_string()).unwrap());
            let output = quarter(loss).loss(&host.batch::<B>(&Default::default()).unwrap()).unwrap();
            let rank = |d: f64| (1.0 - smoothing) * softplus(0.25 * d) + smoothing * softplus(-0.25 * d);
            let expected = deltas.map(rank);
            assert_close(name, &values(&output.losses), &expected, 1e-6, 1e-6);
            assert_close(name, &values(&output.loss), &[expected.iter().sum::<f64>() / 3.0], 1e-6, 0.0);
        }
    }
}

/// Marks made by Python's difflib from RLHF-V's rule, in sequences of 12 to 260 tokens; 200 and more have popular tokens, which
/// begin no match.
#[test]
fn changed_tokens_are_those_that_difflib_finds() {
    let text = include_str!("../fixtures/difflib.json");
    let cases: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    assert!(cases.iter().any(|case| case["chosen"].as_array().unwrap().len() >= 200));
    for case in &cases {
        let numbers = |name: &str| -> Vec<u64> {
            case[name].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).collect()
        };
        let (chosen, rejected) =
            aspo_loss::objective::changed_tokens(&numbers("chosen"), &numbers("rejected"));
        for (what, found) in [("chosen_changed", chosen), ("rejected_changed", rejected)] {
            let found: Vec<u64> =
                found.iter().enumerate().filter(|(_, mark)| **mark).map(|(at, _)| at as u64).collect();
            assert_eq!(found, numbers(what), "{what} of {} tokens", numbers("chosen").len());
            assert!(!found.is_empty(), "every case has changes");
        }
    }
}
