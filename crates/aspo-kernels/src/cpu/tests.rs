//! What only this crate can see: which way an operation takes.

use burn::backend::Autodiff;
use burn::tensor::{DType, Tensor, backend::Backend};
use burn_flex::Flex;
use burn_ndarray::NdArray;

use super::bridge::taken;
use crate::{Activation, Before, BlockMask, Context, Heads, Layer, attention, layer_norm, linear, rms_norm};

/// Operations of five that take the fast way.
fn fast<B: Backend>(dtype: DType) -> usize {
    let device = B::Device::default();
    let ones = |shape: [usize; 3]| Tensor::<B, 3>::ones(shape, &device).cast(dtype);
    let flat = || Tensor::<B, 1>::ones([4], &device).cast(dtype);
    let layer = Layer { weight: Tensor::<B, 2>::ones([4, 4], &device).cast(dtype), bias: None, lora: None };
    let context = Context::new(BlockMask::causal(1, 2, &[0; 2]), None, &device);
    let heads = Heads { heads: 1, groups: 1, dim: 4 };
    let all: [&dyn Fn() -> Tensor<B, 3>; 5] = [
        &|| attention(ones([1, 2, 12]), heads, &context),
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
    assert_eq!(fast::<Flex>(DType::F32), 5);
    assert_eq!(fast::<Autodiff<Flex>>(DType::F32), 5);
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
