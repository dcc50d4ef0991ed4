//! Rates and norms by hand.

use aspo_train::{Schedule, TrainConfig, clip_grad_norm, warmup_steps};
use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

use crate::support::{flat, on_backends};

on_backends!(the_global_norm_is_clipped_as_torch_does);

/// `get_*_schedule_with_warmup` of transformers at peak 1, 2 steps of warmup, 10 in all.
#[test]
fn schedules_are_those_of_transformers() {
    // 0.5 · (1 + cos(π · (step - 2) / 8)) from the third on.
    let cosine = [
        0.0,
        0.5,
        1.0,
        0.961_939_766,
        0.853_553_391,
        0.691_341_716,
        0.5,
        0.308_658_284,
        0.146_446_609,
        0.038_060_234,
    ];
    let linear = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
    let constant = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
    let cases =
        [(Schedule::Cosine, cosine), (Schedule::Linear, linear), (Schedule::ConstantWithWarmup, constant)];
    for (schedule, wanted) in cases {
        for (step, wanted) in wanted.into_iter().enumerate() {
            let rate = schedule.rate(1.0, step, 2, 10);
            // Nine digits are written out above.
            assert!((rate - wanted).abs() < 1e-9, "{schedule:?} step {step}: {rate}, not {wanted}");
        }
    }
    assert!(
        (0..10).all(|step| Schedule::Constant.rate(1.0, step, 2, 10) == 1.0),
        "`constant` does not warm up"
    );
    assert_eq!(Schedule::Cosine.rate(1.0, 10, 2, 10), 0.0);
    assert_eq!(Schedule::Linear.rate(3.0, 0, 0, 10), 3.0);
}

#[test]
fn warmup_is_rounded_up() {
    assert_eq!(
        [(10, 0.03), (100, 0.03), (101, 0.03), (5, 0.0)].map(|(n, r)| warmup_steps(n, r)),
        [1, 3, 4, 0]
    );
}

#[test]
fn steps_follow_from_epochs_unless_they_are_given() {
    let config = TrainConfig { gradient_accumulation_steps: 2, ..TrainConfig::default() };
    assert_eq!(config.global_batch(), 16);
    assert_eq!(config.total_steps(33), 3, "the last step of an epoch may be smaller");
    assert_eq!(TrainConfig { num_train_epochs: 1.5, ..config.clone() }.total_steps(33), 5);
    assert_eq!(TrainConfig { max_steps: 7, ..config }.total_steps(33), 7);
}

#[derive(Module, Debug)]
struct Two<B: Backend> {
    a: Param<Tensor<B, 1>>,
    b: Param<Tensor<B, 2>>,
}

/// Gradients (3, 4) and ((0, 12)): norm 13. `torch.nn.utils.clip_grad_norm_(…, 6.5)` halves them.
fn the_global_norm_is_clipped_as_torch_does<B: Backend>() {
    type Ad<B> = Autodiff<B>;
    let device = B::Device::default();
    let module = Two::<Ad<B>> {
        a: Param::from_tensor(Tensor::from_floats([1.0, 1.0], &device)),
        b: Param::from_tensor(Tensor::from_floats([[1.0, 1.0]], &device)),
    };
    let gradients = || gradients(&module);
    let mut clipped = gradients();
    assert!((clip_grad_norm::<Ad<B>, _>(&module, &mut clipped, Some(6.5)) - 13.0).abs() < 1e-5);
    let halves = flat::<Ad<B>, _>(&module, &clipped);
    assert_eq!(halves.len(), 4);
    for (found, wanted) in halves.iter().zip([1.5, 2.0, 0.0, 6.0]) {
        // torch divides by the norm plus 1e-6: within 1e-6 of the half.
        assert!((found - wanted).abs() < 2e-6, "{halves:?}");
    }
    for limit in [Some(13.1), None] {
        let mut kept = gradients();
        assert!((clip_grad_norm::<Ad<B>, _>(&module, &mut kept, limit) - 13.0).abs() < 1e-5);
        assert_eq!(flat::<Ad<B>, _>(&module, &kept), [3.0, 4.0, 0.0, 12.0]);
    }
}

fn gradients<B: AutodiffBackend>(module: &Two<B>) -> GradientsParams {
    let device = Default::default();
    let a = module.a.val() * Tensor::from_floats([3.0, 4.0], &device);
    let b = module.b.val() * Tensor::from_floats([[0.0, 12.0]], &device);
    GradientsParams::from_grads((a.sum() + b.sum()).backward(), module)
}

#[test]
fn the_reference_is_cached_by_itself_where_a_pair_is_seen_twice() {
    let config = |steps: i64| TrainConfig {
        per_device_train_batch_size: 4,
        gradient_accumulation_steps: 2,
        loss_type: vec!["sigmoid".into()],
        max_steps: steps,
        ..TrainConfig::default()
    };
    let caches = |steps| config(steps).caches_reference(20);
    // Three steps of at most eight are an epoch of twenty pairs.
    assert_eq!([1, 3, 4, 9].map(caches), [false, false, true, true]);
    let asked = |way| TrainConfig { precompute_ref_log_probs: Some(way), ..config(4) };
    assert!(!asked(false).caches_reference(20) && asked(true).caches_reference(1000));
    let other = |name: &str| TrainConfig { loss_type: vec![name.into()], ..config(9) };
    assert!(!other("sft").caches_reference(20), "a loss without a reference");
    assert!(!other("mdpo_conditional").caches_reference(20), "the file holds nothing of corrupted pictures");
}
