//! Layers in half precision, and on backends whose floats are of half precision by default.

use aspo_kernels::{BlockMask, Context, Rotary, Tables};
use aspo_models::LanguageModel;
use aspo_models::nn::attend;
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor};
use burn_flex::Flex;

use crate::support::{on_backends, scale, values, worst};

on_backends!(half_attention_is_that_of_single_precision, rotary_tables_are_single_whatever_floats_are);

/// `[1, 2, tokens, 8]` of many values in `(-size, size)`.
fn wave<B: Backend>(tokens: usize, phase: f64, size: f64) -> Tensor<B, 4> {
    let ramp = Tensor::<B, 1, Int>::arange(0..(2 * tokens * 8) as i64, &Default::default()).float();
    (ramp.mul_scalar(0.7) + phase).sin().mul_scalar(size).reshape([1, 2, tokens, 8])
}

fn causal<B: Backend>(tokens: usize) -> Tensor<B, 4, Bool> {
    let mask = BlockMask::causal(1, tokens, &vec![0; tokens]);
    Context::new(mask, None, &Default::default()).hidden(1).expect("later tokens are hidden")
}

fn half_attention_is_that_of_single_precision<B: Backend>() {
    let device = Default::default();
    let half = |x: &Tensor<B, 4>, dtype| x.clone().cast(dtype);
    for (dtype, rounding) in [(DType::F16, 2f64.powi(-11)), (DType::BF16, 2f64.powi(-8))] {
        if !B::supports_dtype(&device, dtype) {
            continue;
        }
        // Scores up to 20: a softmax in half precision would be off by hundredths.
        let (q, k, v) = (wave::<B>(9, 0.1, 2.7), wave::<B>(9, 0.5, 2.7), wave::<B>(9, 1.3, 1.0));
        let [q, k, v] = [q, k, v].map(|x| half(&x, dtype));
        for mask in [None, Some(causal::<B>(9))] {
            let single = |x: &Tensor<B, 4>| x.clone().cast(DType::F32);
            let want = values(attend(single(&q), single(&k), single(&v), mask.clone()));
            let found = attend(q.clone(), k.clone(), v.clone(), mask.clone());
            assert_eq!(found.dtype(), dtype);
            // Scores of size 20 are rounded once to half precision on their way to the softmax, which makes the error
            // of a weight; then weights and result are rounded once each.
            let bound = 20.0 * rounding + 4.0 * rounding;
            let error = worst(&values(found), &want) / scale(&want);
            assert!(error < bound, "{dtype:?}: {error:.1e} of {bound:.1e}");
        }
    }
    if B::supports_dtype(&device, DType::F16) {
        // Equal weights over 4,096 values of 30: their sum is beyond f16, their mean is not.
        let keys = Tensor::<B, 4>::zeros([1, 1, 4096, 8], (&device, DType::F16));
        let queries = keys.clone().slice([0..1, 0..1, 0..2]);
        let seen = Tensor::<B, 4, Int>::zeros([1, 1, 2, 4096], &device).bool();
        for mask in [None, Some(seen)] {
            let mean = values(attend(queries.clone(), keys.clone(), keys.clone().add_scalar(30.0), mask));
            // Weights of 2^-12 and the value are f16 numbers; sums of them round at most once a term's size.
            assert!(mean.iter().all(|mean| (mean - 30.0).abs() < 0.05), "{:?}", &mean[..4]);
        }
    }
}

fn rotary_tables_are_single_whatever_floats_are<B: Backend>() {
    // A position and frequencies that half precision would round: 2,049 is no f16, 257 no bf16.
    let positions = [0i64, 257, 2049, 4095];
    let rotated = |dtype| {
        let tables = Tables::<B>::new(&Rotary::new(&positions, 8, 10_000.0, 1.0), &Default::default());
        values(tables.apply(Tensor::<B, 4>::ones([1, 4, 1, 8], (&Default::default(), dtype))))
    };
    let mut want = Vec::new();
    for position in positions {
        // x cos - x' sin in the first half of a head, x cos + x' sin in the second.
        for sign in [-1.0, 1.0] {
            for i in 0..4 {
                let angle = position as f64 * 10_000f64.powf(-f64::from(i) / 4.0);
                want.push(angle.cos() + sign * angle.sin());
            }
        }
    }
    // Angles of thousands in f32: 4,095 has a spacing of 5e-4.
    assert!(worst(&rotated(DType::F32), &want) < 1e-3);
}

/// In a process of its own: the default type of floats is one for all threads.
#[test]
fn a_default_of_half_precision_reaches_no_table_and_no_seeded_weight() {
    const MARK: &str = "ASPO_TEST_HALF_BY_DEFAULT";
    if std::env::var_os(MARK).is_none() {
        let this = std::env::current_exe().unwrap();
        let name = "layers::a_default_of_half_precision_reaches_no_table_and_no_seeded_weight";
        let done = std::process::Command::new(this).args(["--exact", name]).env(MARK, "1").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
        assert!(String::from_utf8_lossy(&done.stdout).contains("1 passed"), "the test ran");
        return;
    }
    let device = Default::default();
    burn::tensor::set_default_dtypes::<Flex>(&device, DType::BF16, DType::I64).unwrap();
    assert_eq!(Tensor::<Flex, 1>::zeros([1], &device).dtype(), DType::BF16, "the default is half");
    rotary_tables_are_single_whatever_floats_are::<Flex>();
    let config: aspo_models::LlamaConfig = aspo_models::ModelConfig::from_json(serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }))
    .unwrap();
    assert_eq!(config.init_seeded::<Flex>(0, &device).head().dtype(), DType::F32);
}
