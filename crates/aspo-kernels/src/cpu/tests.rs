//! What only this crate can see: which way an operation takes, and for which instruction set.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use burn_flex::Flex;
use burn_ndarray::NdArray;

use super::bridge::taken;
use super::vector::chosen;
use crate::{
    Activation, Before, BlockMask, Context, Factors, HeadWant, Heads, Layer, Rotary, attention,
    cross_attention, head_pass, layer_norm, linear, rms_norm,
};

/// Operations of six that take the fast way.
fn fast<B: Backend>(dtype: DType) -> usize {
    let device = B::Device::default();
    let ones = |shape: [usize; 3]| Tensor::<B, 3>::ones(shape, &device).cast(dtype);
    let flat = || Tensor::<B, 1>::ones([4], &device).cast(dtype);
    let layer = Layer { weight: Tensor::<B, 2>::ones([4, 4], &device).cast(dtype), bias: None, lora: None };
    let context = Context::new(BlockMask::causal(1, 2, &[0; 2]), None, &device);
    let across = Context::new(BlockMask::across(1, 2, 3, &[true; 3]), None, &device);
    let heads = Heads { heads: 1, groups: 1, dim: 4 };
    let all: [&dyn Fn() -> Tensor<B, 3>; 6] = [
        &|| attention(ones([1, 2, 12]), heads, &context),
        &|| cross_attention(ones([1, 2, 4]), ones([1, 3, 8]), heads, &across),
        &|| linear(ones([1, 2, 4]), Before::Nothing, core::slice::from_ref(&layer), None),
        &|| rms_norm(ones([1, 2, 4]), flat(), 1e-5),
        &|| layer_norm(ones([1, 2, 4]), flat(), flat(), 1e-5),
        &|| Activation::Silu.forward(ones([1, 2, 4])),
    ];
    all.iter()
        .filter(|operation| {
            let before = taken::count();
            assert!(operation().dtype() == dtype);
            taken::count() > before
        })
        .count()
}

#[test]
fn flex_takes_the_fast_way_with_and_without_a_graph_and_others_do_not() {
    assert_eq!(fast::<Flex>(DType::F32), 6);
    assert_eq!(fast::<Autodiff<Flex>>(DType::F32), 6);
    assert_eq!(fast::<NdArray>(DType::F32), 0);
    assert_eq!(fast::<Autodiff<NdArray>>(DType::F32), 0);
    // Values in half precision and a graph of a graph are nobody's but Burn's.
    assert_eq!(fast::<Flex>(DType::BF16), 0);
    assert_eq!(fast::<Autodiff<Autodiff<Flex>>>(DType::F32), 0);
}

#[test]
fn nothing_is_kept_where_no_gradient_is_asked() {
    // The state of an operation holds the memory of its input: alone again, it was not made.
    let x = Tensor::<Autodiff<Flex>, 3>::ones([1, 2, 4], &Default::default());
    let weight = Tensor::ones([4, 4], &Default::default());
    let layer = Layer { weight, bias: None, lora: None };
    let y = linear(x.clone(), Before::Nothing, &[layer], None);
    let held = |x: Tensor<Autodiff<Flex>, 3>| match super::bridge::Fast::of(x) {
        super::bridge::Fast::Tracked(t) => std::sync::Arc::strong_count(&t.primitive.data_arc()),
        super::bridge::Fast::Plain(_) => unreachable!("autodiff's tensors have a node"),
    };
    // Itself and the count's own.
    assert_eq!(held(x), 2);
    drop(y);
}

type Graph = Autodiff<Flex>;

/// Values between -1 and 1.
fn noise<const D: usize>(shape: [usize; D], seed: u32) -> Tensor<Graph, D> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(next).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

/// Values and gradients of every operation, of several blocks, ranges and tiles and no whole ones.
fn everything() -> Vec<(&'static str, Vec<f32>)> {
    const KINDS: [Activation; 5] =
        [Activation::Silu, Activation::QuickGelu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];
    let (device, heads) = (Default::default(), Heads { heads: 4, groups: 2, dim: 18 });
    let values = |t: Tensor<Flex, 1>| t.into_data().to_vec::<f32>().unwrap();
    let layer = |out: usize, inputs: usize, seed: u32| Layer {
        weight: noise([out, inputs], seed).div_scalar((inputs as f64).sqrt()).detach().require_grad(),
        bias: Some(noise([out], seed)),
        lora: Some(Factors {
            a: noise([3, inputs], seed),
            b: noise([out, 3], seed),
            scale: 0.1,
            dropout: 0.0,
        }),
    };
    let x = noise([2, 71, 50], 37).require_grad();
    let picture = noise([2, 37, 30], 73).require_grad();
    let norm = || noise([50], 90).add_scalar(2.0);
    let qkv = [layer(72, 50, 11), layer(36, 50, 13), layer(36, 50, 17)];
    let segments: Vec<i64> = (0..142).map(|i| [0, 0, 0, 1, 1, 2, -1][i % 71 / 11]).collect();
    let rotary = Rotary::new(&(0..142).map(|i| i % 71).collect::<Vec<_>>(), 18, 100.0, 1.0);
    let context = Context::new(BlockMask::causal(2, 71, &segments), Some(rotary), &device);
    let real: Vec<bool> = (0..74).map(|i| i % 9 != 4).collect();
    let across = Context::new(BlockMask::across(2, 71, 37, &real), None, &device);

    let mixed = linear(x.clone(), Before::RmsNorm { weight: norm(), eps: 1e-5 }, &qkv, None);
    let mixed = attention(mixed, heads, &context);
    let ones = Before::LayerNorm { weight: Tensor::ones([30], &device), bias: noise([30], 20), eps: 1e-5 };
    let kv = linear(picture.clone(), ones, &[layer(36, 30, 19), layer(36, 30, 23)], None);
    let seen = cross_attention(mixed, kv, heads, &across);
    let wide = linear(seen, Before::Nothing, &[layer(53, 72, 29), layer(53, 72, 31)], None);
    let narrow = Layer { weight: noise([50, 53], 41).cast(DType::BF16), bias: None, lora: None };
    let y = linear(wide, Before::Gated(Activation::Silu), &[narrow], Some(x.clone()));
    let y = KINDS.iter().fold(y.clone(), |sum, kind| sum + kind.forward(y.clone()));
    let y = layer_norm(rms_norm(y, norm(), 1e-5), norm(), noise([50], 30), 1e-5);
    // What padding sees means nothing.
    let read = y.clone().slice([0..2, 0..66]);
    let grads = (read.clone() * read.clone().detach().cos()).sum().backward();

    let mut out = vec![
        ("y", values(read.inner().flatten(0, 2))),
        ("dx", values(x.grad(&grads).unwrap().flatten(0, 2))),
        ("dpicture", values(picture.grad(&grads).unwrap().flatten(0, 2))),
    ];
    out.extend(qkv.iter().map(|layer| ("dW", values(layer.weight.grad(&grads).unwrap().flatten(0, 1)))));
    let hidden = noise([142, 50], 57).mul_scalar(2.0).inner();
    let (head, targets) = (noise([333, 50], 61).inner(), (0..142).collect::<Vec<_>>());
    let want = HeadWant { dlogp_dh: true, keep: 20_000 };
    let pass = head_pass(&hidden, &head, &targets, [64, 128], want).unwrap();
    let grad = noise([142], 70).inner();
    let found = pass.gradients(&hidden, &head, &targets, &grad, [64, 128], true).unwrap();
    out.push(("log p", values(pass.log_probs)));
    out.push(("dlogp/dh", values(pass.dlogp_dh.unwrap().flatten(0, 1))));
    out.push(("dh", values(found.hidden.unwrap().flatten(0, 1))));
    out.push(("dhead", values(found.head.flatten(0, 1))));
    out
}

#[test]
fn every_instruction_set_gives_the_same_and_the_same_bits_with_any_number_of_threads() {
    let base = chosen::with(super::vector::Set::Base, 2, everything);
    for set in chosen::all() {
        let one = chosen::with(set, 1, everything);
        for threads in [2, 3] {
            assert!(one == chosen::with(set, threads, everything), "{set:?} with {threads} threads");
        }
        for ((name, found), (_, want)) in one.iter().zip(&base) {
            let scale = want.iter().fold(1f32, |most, x| most.max(x.abs()));
            let far = found.iter().zip(want).fold(0f32, |far, (a, b)| far.max((a - b).abs())) / scale;
            // Sums in another order and products rounded before they are added, through ten operations and back.
            assert!(far < 2e-5, "{name} by {set:?}: {far:.1e} of the largest");
        }
    }
}
