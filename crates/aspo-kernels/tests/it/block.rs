//! A whole block, flex beside ndarray, and any number of threads.

use aspo_kernels::{
    Activation, Before, BlockMask, Context, Factors, Heads, Layer, Rotary, attention, has_kernels, linear,
    rms_norm,
};
use burn::backend::Autodiff;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::support::{close, leaf, noise, values};

const TOKENS: usize = 131;
const WIDTH: usize = 96;
const INNER: usize = 200;
const HEADS: Heads = Heads { heads: 4, groups: 2, dim: 24 };

/// The result of a block and every gradient, all parameters trained.
fn run<B: Backend>(seed: u64) -> Vec<(String, Vec<f64>)> {
    let mut names = Vec::new();
    let mut seeds = seed * 1000;
    let mut next = |n: usize, scale: f64| -> Vec<f64> {
        seeds += 1;
        noise(n, seeds).iter().map(|x| scale * x).collect()
    };
    let x = leaf::<B, 3>(&next(2 * TOKENS * WIDTH, 1.0), [2, TOKENS, WIDTH]);
    let norms = [0, 1].map(|_| leaf::<B, 1>(&next(WIDTH, 1.0), [WIDTH]));
    let mut layer = |name: &str, inputs: usize, out: usize, lora: bool| -> Layer<Autodiff<B>> {
        names.push(name.to_owned());
        let spread = (inputs as f64).powf(-0.5);
        Layer {
            weight: leaf::<B, 2>(&next(out * inputs, spread), [out, inputs]),
            bias: None,
            lora: lora.then(|| Factors {
                a: leaf::<B, 2>(&next(8 * inputs, spread), [8, inputs]),
                b: leaf::<B, 2>(&next(out * 8, 0.3), [out, 8]),
                scale: 0.5,
                dropout: 0.0,
            }),
        }
    };
    let (all, groups) = (HEADS.heads * HEADS.dim, HEADS.groups * HEADS.dim);
    let qkv =
        [layer("q", WIDTH, all, true), layer("k", WIDTH, groups, false), layer("v", WIDTH, groups, true)];
    let o = [layer("o", all, WIDTH, true)];
    let gate_up = [layer("gate", WIDTH, INNER, true), layer("up", WIDTH, INNER, true)];
    let down = [layer("down", INNER, WIDTH, true)];

    let row = |prompt: usize, a: usize, b: usize| {
        let mut row = vec![0i64; prompt];
        row.extend(vec![1; a]);
        row.extend(vec![2; b]);
        row.resize(TOKENS, -1);
        row
    };
    let mask = BlockMask::causal(2, TOKENS, &[row(60, 40, 31), row(75, 0, 20)].concat());
    let positions: Vec<i64> = (0..2 * TOKENS as i64).map(|i| i % 100).collect();
    let rotary = Rotary::new(&positions, HEADS.dim, 10_000.0, 1.0);
    let context = Context::<Autodiff<B>>::new(mask, Some(rotary), &Default::default());

    let norm = |i: usize| Before::RmsNorm { weight: norms[i].clone(), eps: 1e-5 };
    let mixed = attention(linear(x.clone(), norm(0), &qkv, None), HEADS, &context);
    let h = linear(mixed, Before::Nothing, &o, Some(x.clone()));
    let wide = linear(h.clone(), norm(1), &gate_up, None);
    let y = linear(wide, Before::Gated(Activation::Silu), &down, Some(h));
    let y = rms_norm(y, norms[0].clone(), 1e-5);
    // Padding is read by no one.
    let real = Tensor::<Autodiff<B>, 3>::ones([2, TOKENS, 1], &Default::default())
        .slice_fill([1..2, 95..TOKENS, 0..1], 0.0);
    let y = y * real;
    let grads = (y.clone() * y.clone().detach().cos()).sum().backward();

    let mut out = vec![("y".to_owned(), values(y)), ("x".to_owned(), values(x.grad(&grads).unwrap()))];
    out.extend(norms.iter().map(|n| ("norm".to_owned(), values(n.grad(&grads).unwrap()))));
    for (name, layer) in names.iter().zip(qkv.iter().chain(&o).chain(&gate_up).chain(&down)) {
        out.push((format!("{name}.W"), values(layer.weight.grad(&grads).unwrap())));
        if let Some(lora) = &layer.lora {
            out.push((format!("{name}.A"), values(lora.a.grad(&grads).unwrap())));
            out.push((format!("{name}.B"), values(lora.b.grad(&grads).unwrap())));
        }
    }
    out
}

#[test]
fn kernels_and_burns_own_operations_agree_on_a_whole_block() {
    assert!(has_kernels::<burn_flex::Flex>() && has_kernels::<Autodiff<burn_flex::Flex>>());
    assert!(!has_kernels::<burn_ndarray::NdArray>() && !has_kernels::<Autodiff<burn_ndarray::NdArray>>());
    let (fast, generic) = (run::<burn_flex::Flex>(1), run::<burn_ndarray::NdArray>(1));
    for ((name, fast), (_, generic)) in fast.iter().zip(&generic) {
        // Single precision through a block and back.
        close(name, fast, generic, 1e-5);
    }
}

#[test]
fn results_are_the_same_to_the_bit_with_one_two_and_three_threads() {
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run::<burn_flex::Flex>(2))
    };
    let one = with(1);
    for threads in [2, 3] {
        for ((name, one), (_, many)) in one.iter().zip(&with(threads)) {
            assert!(one == many, "{name} with {threads} threads");
        }
    }
}
