//! Finite everywhere: values and gradients at the edges of f32 and of half precision.

use aspo_loss::property::{HostBatch, HostPair, HostResponse};
use aspo_loss::stats::{TokenValues, chunked_log_probs_with_stats, dense_log_probs_with_stats};
use aspo_loss::{
    Aspo, ChunkOptions, FDivergence, LmHead, Logps, LossType, Objective, PairLayout, PreferenceBatch,
    RewardScaling, Similarity, Weigh, chunked_log_probs, dense_log_probs,
};
use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::DType;

use crate::common::{assert_close, grad, ints, on_every_backend, tensor, values};

on_every_backend!(
    margins_of_ten_thousand_are_finite_in_every_objective,
    a_margin_of_zero_has_the_gradient_of_log_2,
    log_sigmoid_keeps_its_small_values,
    log_probabilities_of_minus_ten_thousand_are_finite,
    tiles_far_apart_and_masked_vocabulary_keep_statistics_finite,
);

/// Where half precision is: flex and CUDA, not ndarray; wgpu's driver here has none.
mod flex_halves {
    #[test]
    fn half_precision_logits_give_f32_losses_and_half_gradients() {
        super::half_precision_logits_give_f32_losses_and_half_gradients::<burn_flex::Flex>();
    }

    #[test]
    fn half_precision_scores_of_minus_ten_thousand_are_finite() {
        super::half_precision_scores_of_minus_ten_thousand_are_finite::<burn_flex::Flex>();
    }
}

#[cfg(feature = "cuda")]
mod cuda_halves {
    #[test]
    fn half_precision_logits_give_f32_losses_and_half_gradients() {
        type Cuda = burn::backend::Cuda<f32, i32>;
        super::half_precision_logits_give_f32_losses_and_half_gradients::<Cuda>();
        super::half_precision_scores_of_minus_ten_thousand_are_finite::<Cuda>();
    }
}

/// One token per sentence and per response: the smallest batch there is.
fn one_token(policy: [f32; 2], reference: [f32; 2]) -> HostBatch {
    let response = |i: usize| HostResponse {
        sentences: vec![1],
        padding: (0, 0),
        policy: vec![policy[i]],
        reference: vec![reference[i]],
        corrupted: vec![(reference[i], policy[i])],
        changed: vec![true],
        stats: TokenValues {
            log_sum_sq_probs: vec![-1.0],
            entropy: vec![1.0],
            mean_logit: vec![0.5],
            is_argmax: vec![true],
        },
        similarity: vec![0.3],
    };
    HostBatch { pairs: vec![HostPair { chosen: response(0), rejected: response(1) }] }
}

/// Every objective, every way of ASPO, every f-divergence.
fn objectives() -> Vec<Objective> {
    let mut all: Vec<Objective> = LossType::ALL.iter().map(|&loss| Objective::new(loss)).collect();
    for scaling in RewardScaling::ALL {
        for weigh in [Weigh::Chosen, Weigh::Both] {
            all.push(Objective::new(Aspo { scaling, weigh, ..Aspo::default() }));
        }
    }
    let divergences = [
        FDivergence::ForwardKl,
        FDivergence::JsDivergence,
        FDivergence::AlphaDivergence { coef: 0.5 },
        FDivergence::AlphaDivergence { coef: 2.0 },
    ];
    for &loss in LossType::ALL {
        for f_divergence in divergences {
            // IPO squares the scores: e^80 squared is beyond f32.
            let objective = Objective { f_divergence, ..Objective::new(loss) };
            if objective.validate().is_ok()
                && (loss != LossType::Ipo || f_divergence == FDivergence::JsDivergence)
            {
                all.push(objective);
            }
        }
    }
    assert!(all.len() > LossType::ALL.len() + 8 + 20, "f-divergences are among them: {}", all.len());
    all.push(Objective::new(LossType::Robust { label_smoothing: 0.2 }));
    all.push(Objective { ld_alpha: Some(0.3), use_weighting: true, ..Objective::new(LossType::Sigmoid) });
    all
}

fn margins_of_ten_thousand_are_finite_in_every_objective<B: Backend>() {
    // β = 1 makes the margin the difference of log-ratios: 0, ±1e4, ±2e4, and with log-probabilities of exactly 0.
    let edges = [
        [[0.0, -1e4], [-1e4, 0.0]],
        [[-1e4, 0.0], [0.0, -1e4]],
        [[-1e4, -1e4], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[-1e4, -1e4], [-1e4, -1e4]],
        [[-1e-7, -1.0], [-1.0, -1e-7]],
    ];
    for objective in objectives() {
        for beta in [0.1, 1.0] {
            let objective = Objective { beta, ..objective.clone() };
            for [policy, reference] in edges {
                let host = one_token(policy, reference);
                let leaves = host.policy::<Autodiff<B>>(&Default::default()).map(Tensor::require_grad);
                let batch = host.batch_of(leaves[0].clone(), leaves[1].clone()).unwrap();
                let output = objective.loss(&batch).unwrap();
                let what = format!("{objective} at {policy:?} against {reference:?}");
                assert!(
                    values(&output.loss).iter().all(|x| x.is_finite()),
                    "{what}: {:?}",
                    values(&output.loss)
                );
                let metrics = output.metrics();
                assert!(metrics.iter().all(|(_, x)| x.is_finite()), "{what}: {metrics:?}");
                let grads = output.loss.backward();
                for leaf in &leaves {
                    let Some(grad) = leaf.grad(&grads) else { continue };
                    assert!(
                        values(&grad).iter().all(|x| x.is_finite()),
                        "{what}: gradient {:?}",
                        values(&grad)
                    );
                }
            }
        }
    }
}

fn a_margin_of_zero_has_the_gradient_of_log_2<B: Backend>() {
    for loss in [LossType::Sigmoid, Aspo::default().into()] {
        let host = one_token([-1.5, -2.0], [-1.5, -2.0]);
        let leaves = host.policy::<Autodiff<B>>(&Default::default()).map(Tensor::require_grad);
        let output =
            Objective::new(loss).loss(&host.batch_of(leaves[0].clone(), leaves[1].clone()).unwrap()).unwrap();
        assert_close("loss", &values(&output.loss), &[2_f64.ln()], 1e-6, 0.0);
        let grads = output.loss.backward();
        // dL/dx = -σ(-0) β = -0.05
        assert_close("chosen", &grad(&leaves[0], &grads), &[-0.05], 1e-6, 0.0);
        assert_close("rejected", &grad(&leaves[1], &grads), &[0.05], 1e-6, 0.0);
    }
}

fn log_sigmoid_keeps_its_small_values<B: Backend>() {
    // -log σ(20) = log(1 + e^-20) = 2.06e-9; computed as log(1 + …) in f32 it would be 0.
    let batch = one_token([-1.0, -31.0], [-11.0, -21.0]).batch::<B>(&Default::default()).unwrap();
    let output = Objective { beta: 1.0, ..Objective::new(LossType::Sigmoid) }.loss(&batch).unwrap();
    // WGSL has no log1p: there it is log(1 + x), which loses what is below half an ulp of 1.
    let absolute = if B::name(&Default::default()).contains("wgpu") { 6e-8 } else { 0.0 };
    assert_close("loss", &values(&output.loss), &[(-20_f64).exp().ln_1p()], 1e-5, absolute);
}

fn log_probabilities_of_minus_ten_thousand_are_finite<B: Backend>() {
    // Logits 1e4 apart: one label is the likely one, one is not.
    let logits = tensor::<Autodiff<B>, 2>(&[1e4, 0.0, -1e4, 1e4, 0.0, -1e4], [2, 3]).require_grad();
    let targets = ints::<Autodiff<B>, 1>(&[0, 2], [2]);
    let dense = dense_log_probs(logits.clone(), targets.clone()).unwrap();
    let head = LmHead::hugging_face(Tensor::eye(3, &Default::default()));
    let chunked = chunked_log_probs(logits.clone(), &head, targets, &ChunkOptions::default()).unwrap();
    for (what, log_probs) in [("dense", dense), ("chunked", chunked)] {
        assert_close(what, &values(&log_probs), &[0.0, -2e4], 1e-6, 0.0);
        let grads = log_probs.sum().backward();
        assert_close(what, &grad(&logits, &grads), &[0.0, 0.0, 0.0, -1.0, 0.0, 1.0], 0.0, 1e-6);
    }
}

/// Two tiles whose maxima are 200 apart (their ratio underflows f32), and a vocabulary of which a whole tile is masked: the
/// statistics of a token are those of the dense way, and finite.
fn tiles_far_apart_and_masked_vocabulary_keep_statistics_finite<B: Backend>() {
    let masked = f32::NEG_INFINITY;
    for (row, has_mean) in [([100.0, 99.0, -100.0, -101.0], true), ([1.0, 0.5, masked, masked], false)] {
        let options = ChunkOptions { byte_budget: 8, rows: Some(1) };
        let logits = tensor::<Autodiff<B>, 2>(&row, [1, 4]);
        let targets = ints::<Autodiff<B>, 1>(&[1], [1]);
        let (log_probs, dense) = dense_log_probs_with_stats(logits.clone(), targets.clone()).unwrap();
        // A head that gives these logits: one feature, always 1.
        let head = LmHead::hugging_face(logits.transpose());
        let one = tensor::<Autodiff<B>, 2>(&[1.0], [1, 1]);
        let (chunked, tiled) = chunked_log_probs_with_stats(one, &head, targets, &options).unwrap();
        let (tiled, dense) = (tiled.read(), dense.read());
        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        assert_close("log-probabilities", &values(&chunked), &values(&log_probs), 1e-6, 1e-6);
        for (what, found, expected) in [
            ("entropy", &tiled.entropy, &dense.entropy),
            ("log Σp²", &tiled.log_sum_sq_probs, &dense.log_sum_sq_probs),
        ] {
            assert!(expected[0].is_finite(), "{what} of the dense way");
            assert_close(what, &wide(found), &wide(expected), 1e-5, 1e-5);
        }
        assert_eq!(tiled.is_argmax, [false]);
        assert_eq!(tiled.mean_logit[0].is_finite(), has_mean);
    }
}

fn halves<B: Backend>() -> Vec<DType> {
    let device = Default::default();
    let halves: Vec<DType> =
        [DType::F16, DType::BF16].into_iter().filter(|&dtype| B::supports_dtype(&device, dtype)).collect();
    assert!(!halves.is_empty(), "{} has no half precision to test", B::name(&device));
    halves
}

fn half_precision_logits_give_f32_losses_and_half_gradients<B: Backend>() {
    for dtype in halves::<B>() {
        // Exactly representable in both halves, so the f32 values are the truth.
        let hidden = [0.5, -1.0, 2.0, 0.25, 1.5, -0.75];
        let head = [1.0, 0.5, -0.5, 0.25, 2.0, -1.0, 0.75, -2.0, 1.0, 0.5, 0.5, -1.0];
        let targets = ints::<Autodiff<B>, 1>(&[3, 0], [2]);
        let run = |dtype: DType, rows: Option<usize>| {
            let leaf = |t: Tensor<Autodiff<B>, 2>| t.cast(dtype).detach().require_grad();
            let hidden = leaf(tensor(&hidden, [2, 3]));
            let head = leaf(tensor(&head, [4, 3]));
            let options = ChunkOptions { byte_budget: 12, rows };
            let log_probs = chunked_log_probs(
                hidden.clone(),
                &LmHead::hugging_face(head.clone()),
                targets.clone(),
                &options,
            )
            .unwrap();
            assert_eq!(log_probs.dtype(), DType::F32);
            let grads = log_probs.clone().sum().backward();
            let (h, w) = (hidden.grad(&grads).unwrap(), head.grad(&grads).unwrap());
            assert_eq!((h.dtype(), w.dtype()), (dtype, dtype), "each gradient has its tensor's type");
            (values(&log_probs), values(&h), values(&w))
        };
        let (half, exact) = (run(dtype, Some(1)), run(DType::F32, None));
        assert_close("log-probabilities are computed in f32", &half.0, &exact.0, 1e-6, 1e-6);
        // Gradients are rounded once, to 8 bits of bf16.
        assert_close("hidden gradient", &half.1, &exact.1, 1e-2, 1e-3);
        assert_close("head gradient", &half.2, &exact.2, 1e-2, 1e-3);

        let logits = tensor::<Autodiff<B>, 2>(&head, [3, 4]).cast(dtype).detach().require_grad();
        let log_probs = dense_log_probs(logits.clone(), ints(&[0, 1, 2], [3])).unwrap();
        assert_eq!(log_probs.dtype(), DType::F32);
        assert_eq!(logits.grad(&log_probs.sum().backward()).unwrap().dtype(), dtype);
    }
}

fn half_precision_scores_of_minus_ten_thousand_are_finite<B: Backend>() {
    for dtype in halves::<B>() {
        let leaf = |v: f32| tensor::<Autodiff<B>, 1>(&[v, v], [2]).cast(dtype).detach().require_grad();
        let losses = ["aspo", "sigmoid", "discopop", "orpo"].map(|name| name.parse::<LossType>().unwrap());
        for loss in losses {
            let map = PairLayout::from_labels(&[[0, 1]], &[[0, 0]]).unwrap();
            let (chosen, rejected) = (leaf(-1e4), leaf(-0.5));
            let policy = Logps::new(&map, chosen.clone(), rejected.clone()).unwrap();
            let reference = Logps::new(&map, leaf(-0.5), leaf(-1e4)).unwrap();
            let batch = PreferenceBatch::new(policy).with_reference(reference).unwrap();
            let batch = batch.with_similarity(Similarity::new(&[[0.1, 0.2]]).unwrap()).unwrap();
            let output = Objective { beta: 1.0, ..Objective::new(loss) }.loss(&batch).unwrap();
            assert_eq!(output.loss.dtype(), DType::F32);
            assert!(values(&output.loss)[0].is_finite(), "{loss} in {dtype:?}");
            let grads = output.loss.backward();
            assert!(grad(&chosen, &grads).iter().chain(&grad(&rejected, &grads)).all(|g| g.is_finite()));
        }
    }
}
