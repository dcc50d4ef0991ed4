//! Linear layers that read the same input, with low-rank adapters.

use burn::tensor::{DType, Distribution, Tensor, backend::Backend, module};

use crate::layer::{Before, Factors, GROUP, Layer, read_shape};
use crate::norm::{layer_norm, rms_norm};
use crate::{cast, wider};

/// The results of 1 to [`GROUP`] layers of `before(x)`, side by side, plus a residual: `[.., in]` to `[.., Σ out]`.
///
/// The result has the type of `x`; products are done in the wider of the types of `x` and the weight, the adapter's in
/// the type of its factors, and added up in f32. On the CPU a frozen bf16 weight is widened 128 rows at a time, so that f32 values over a bf16 base take half the
/// memory of f32 weights.
///
/// Kept for the backward, of a token: `x` as it came and `Σ rank` values between the factors (and a bit for each input of
/// an adapter with dropout); `before(x)` is made again. Gradients of `x`, the residual, the norm, and of every layer's W, b,
/// A and B that asks for one:
///
/// ```text
/// dx = Σ dy W + (scale dy B) A        dW = dyᵀ x     db = Σ dy
/// dA = scale (dy B)ᵀ drop(x)          dB = dyᵀ (scale drop(x) Aᵀ)
/// ```
///
/// Operations of N tokens: `2 N (in · out + rank (in + out))` a layer forward; backward as many for `dx`, as many again for
/// the adapter's gradients without the first term, and `2 N in · out` for a trained W. Bytes: W once a pass, `in + out`
/// values a token.
///
/// # Panics
/// If shapes do not fit, or there are no layers or more than [`GROUP`].
pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    before: Before<B>,
    layers: &[Layer<B>],
    residual: Option<Tensor<B, D>>,
) -> Tensor<B, D> {
    let read = read_shape(&x, &before);
    let out: usize = layers.iter().map(|layer| layer.weight.dims()[0]).sum();
    assert!((1..=GROUP).contains(&layers.len()), "{} layers in a group of 1 to {GROUP}", layers.len());
    for layer in layers {
        let [outputs, inputs] = layer.weight.dims();
        assert_eq!(inputs, read[1], "inputs of a weight [{outputs}, {inputs}]");
        if let Some(bias) = &layer.bias {
            assert_eq!(bias.dims(), [outputs], "bias of a weight [{outputs}, {inputs}]");
        }
        if let Some(lora) = &layer.lora {
            let ([rank, a], [b, other]) = (lora.a.dims(), lora.b.dims());
            assert!(
                a == inputs && b == outputs && rank == other,
                "factors of a weight [{outputs}, {inputs}]"
            );
        }
    }
    if let Some(residual) = &residual {
        let mut shape = x.dims();
        shape[D - 1] = out;
        assert_eq!(residual.dims(), shape, "the residual has the shape of the result");
    }
    let kept: Vec<Option<Tensor<B, 2>>> = layers.iter().map(|layer| draw(layer, read, &x.device())).collect();
    #[cfg(feature = "flex")]
    {
        // On the CPU adapters are computed in f32.
        let fits = layers.iter().flat_map(|layer| &layer.lora).all(|lora| lora.a.dtype() == DType::F32);
        if fits && crate::cpu::ops::takes(&x) && residual.as_ref().is_none_or(crate::cpu::ops::takes) {
            return crate::cpu::ops::linear(x, before, layers, kept, residual);
        }
    }
    #[cfg(feature = "cube")]
    if let Some(y) = crate::cube::linear(&x, &before, layers, &kept, residual.as_ref()) {
        return y;
    }
    generic(x, before, layers, kept, residual)
}

/// 1 where an input of the adapter is kept; none without dropout.
fn draw<B: Backend>(layer: &Layer<B>, shape: [usize; 2], device: &B::Device) -> Option<Tensor<B, 2>> {
    let lora = layer.lora.as_ref().filter(|lora| lora.dropout > 0.0 && B::ad_enabled(device))?;
    Some(Tensor::random(shape, Distribution::Bernoulli(1.0 - lora.dropout), (device, DType::F32)))
}

/// [`linear`] by Burn's operations.
fn generic<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    before: Before<B>,
    layers: &[Layer<B>],
    kept: Vec<Option<Tensor<B, 2>>>,
    residual: Option<Tensor<B, D>>,
) -> Tensor<B, D> {
    let dtype = x.dtype();
    let mut shape = x.dims();
    let [rows, inputs] = read_shape(&x, &before);
    let x = match before {
        Before::Nothing => x,
        Before::RmsNorm { weight, eps } => rms_norm(x, weight, eps),
        Before::LayerNorm { weight, bias, eps } => layer_norm(x, weight, bias, eps),
        Before::Activation(kind) => kind.generic(x),
        Before::Gated(kind) => {
            let gate = x.clone().narrow(D - 1, 0, inputs);
            kind.generic(gate) * x.narrow(D - 1, inputs, inputs)
        }
    };
    // Two axes make the weight's gradient one product instead of a batch of them and a sum.
    let x = x.reshape([rows, inputs]);
    // Each type once, for all layers that read it.
    let mut casts = vec![(dtype, x)];
    let mut read = |dtype: DType| {
        let known = casts.iter().find(|(known, _)| *known == dtype).map(|(_, x)| x.clone());
        known.unwrap_or_else(|| {
            let x = cast(casts[0].1.clone(), dtype);
            casts.push((dtype, x.clone()));
            x
        })
    };
    let results = layers.iter().zip(kept).map(|(layer, kept)| {
        let wide = wider(dtype, layer.weight.dtype());
        let bias = layer.bias.clone().map(|bias| cast(bias, wide));
        let y = module::linear(read(wide), cast(layer.weight.clone(), wide).transpose(), bias);
        let y = match &layer.lora {
            Some(lora) => y + cast(delta(lora, read(lora.a.dtype()), kept), wide),
            None => y,
        };
        cast(y, dtype)
    });
    let mut results: Vec<_> = results.collect();
    let y = if results.len() == 1 { results.remove(0) } else { crate::cat(results, 1) };
    shape[D - 1] = y.dims()[1];
    let y = y.reshape(shape);
    match residual {
        Some(residual) => residual + y,
        None => y,
    }
}

/// `scale · (drop(x) Aᵀ) Bᵀ` in the type of A and `x`; the scale goes onto the narrow middle.
fn delta<B: Backend>(lora: &Factors<B>, x: Tensor<B, 2>, kept: Option<Tensor<B, 2>>) -> Tensor<B, 2> {
    let x = match kept {
        Some(kept) => x * cast(kept.div_scalar(1.0 - lora.dropout), lora.a.dtype()),
        None => x,
    };
    let middle = module::linear(x, lora.a.clone().transpose(), None).mul_scalar(lora.scale);
    module::linear(middle, cast(lora.b.clone(), lora.a.dtype()).transpose(), None)
}
