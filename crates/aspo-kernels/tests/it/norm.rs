//! Norms and activation functions by themselves.

use aspo_kernels::{Activation, layer_norm, rms_norm};
use burn::tensor::backend::Backend;

use crate::support::{close, leaf, noise, on_backends, slope, tensor, values};

on_backends!(
    norms_give_the_values_and_gradients_of_plain_loops,
    activations_give_the_values_and_gradients_of_their_definitions,
    what_is_not_a_number_stays_so,
);

pub fn rms(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let rms = (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / rms * w).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

pub fn layer(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) / (var + eps).sqrt() * w + b).collect()
    };
    x.chunks(weight.len()).flat_map(row).collect()
}

fn norms_give_the_values_and_gradients_of_plain_loops<B: Backend>() {
    for (rows, width) in [(1, 1), (3, 2), (4, 7), (2, 33), (5, 64), (3, 71)] {
        let (x, g) = (noise(rows * width, 1), noise(rows * width, 2));
        let (w, b) = (noise(width, 3), noise(width, 4));
        let eps = 1e-3;
        let (x_leaf, w_leaf, b_leaf) =
            (leaf::<B, 2>(&x, [rows, width]), leaf(&w, [width]), leaf(&b, [width]));
        let y = rms_norm(x_leaf.clone(), w_leaf.clone(), eps);
        close("RMS", &values(y.clone()), &rms(&x, &w, eps), 1e-6);
        let grads = (y * tensor(&g, [rows, width])).sum().backward();
        // A row of two nearly equal values has a slope in the thousands, of which single precision keeps seven digits.
        close("RMS dx", &values(x_leaf.grad(&grads).unwrap()), &slope(&x, &g, |x| rms(x, &w, eps)), 5e-6);
        close("RMS dw", &values(w_leaf.grad(&grads).unwrap()), &slope(&w, &g, |w| rms(&x, w, eps)), 2e-6);

        let y = layer_norm(x_leaf.clone(), w_leaf.clone(), b_leaf.clone(), eps);
        close("layer", &values(y.clone()), &layer(&x, &w, &b, eps), 2e-6);
        let grads = (y * tensor(&g, [rows, width])).sum().backward();
        let want = slope(&x, &g, |x| layer(x, &w, &b, eps));
        close("layer dx", &values(x_leaf.grad(&grads).unwrap()), &want, 1e-5);
        let want = slope(&w, &g, |w| layer(&x, w, &b, eps));
        close("layer dw", &values(w_leaf.grad(&grads).unwrap()), &want, 2e-6);
        let want = slope(&b, &g, |b| layer(&x, &w, b, eps));
        close("layer db", &values(b_leaf.grad(&grads).unwrap()), &want, 2e-6);
    }
}

/// `∫ e^(-t²) dt` to `x`, times `2 / √π`, by Simpson's rule.
fn erf(x: f64) -> f64 {
    let n = 2000;
    let h = x / f64::from(n);
    let f = |t: f64| (-t * t).exp();
    let inner: f64 = (1..n).map(|i| f(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    (f(0.0) + f(x) + inner) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

pub fn act(kind: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match kind {
        Activation::Silu => x * sigmoid(x),
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

pub const KINDS: [Activation; 5] =
    [Activation::Silu, Activation::QuickGelu, Activation::Gelu, Activation::GeluTanh, Activation::Relu];

fn activations_give_the_values_and_gradients_of_their_definitions<B: Backend>() {
    // Far out, and an odd number of values.
    let x: Vec<f64> = (-60..=60).map(|i| f64::from(i as f32 * 0.173 + 0.01)).collect();
    for kind in KINDS {
        let x_leaf = leaf::<B, 2>(&x, [1, x.len()]);
        let y = kind.forward(x_leaf.clone());
        let f = |x: &[f64]| x.iter().map(|x| act(kind, *x)).collect::<Vec<f64>>();
        // To a few units in the last place of values up to 10.
        close(&format!("{kind:?}"), &values(y.clone()), &f(&x), 5e-7);
        let g = noise(x.len(), 9);
        let grads = (y * tensor(&g, [1, x.len()])).sum().backward();
        close(&format!("slope of {kind:?}"), &values(x_leaf.grad(&grads).unwrap()), &slope(&x, &g, f), 2e-6);
    }
}

fn what_is_not_a_number_stays_so<B: Backend>() {
    let mut x = noise(64, 1);
    x[5] = f64::NAN;
    let t = || tensor::<B, 2>(&x, [2, 32]);
    let ones = || tensor::<B, 1>(&[1.0; 32], [32]);
    for y in [rms_norm(t(), ones(), 1e-5), layer_norm(t(), ones(), ones(), 1e-5)] {
        let y = values(y);
        assert!(y[..32].iter().all(|y| y.is_nan()) && y[32..].iter().all(|y| y.is_finite()));
    }
    for kind in [Activation::Silu, Activation::QuickGelu, Activation::Gelu, Activation::GeluTanh] {
        let y = values(kind.forward(t()));
        assert!(y[5].is_nan() && y[6].is_finite(), "{kind:?}");
    }
}
