//! Norms and activations on slices: one pass over memory each, a few rows at a time.

use rayon::prelude::*;

use super::linear::column_sums;
use super::matrix::written;
use super::vector::{Fma, dot, erf, exp, sigmoid, sum, vectorize};
use crate::layer::Activation;

/// Values that one thread does at a time.
const CHUNK: usize = 1 << 14;

/// Values of whole rows of `width`, about [`CHUNK`] of them.
fn rows_of(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1) * width.max(1)
}

/// `x / sqrt(mean(x²) + eps) · weight` of each row of `[rows, width]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let rows = rows_of(width);
    written(x.len(), |y| {
        y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| {
            vectorize!(|m| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let inverse = inverse_rms(m, x, eps);
                    for i in 0..width {
                        y[i] = x[i] * inverse * weight[i];
                    }
                }
            });
        });
    })
}

#[inline(always)]
fn inverse_rms<M: Fma>(m: M, x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(m, x, x) / x.len() as f32 + eps).sqrt()
}

/// Gradients of `x` and, if wanted, of the weight: with `n = x / rms` and `g = weight dy`,
/// `dx = (g - n mean(g n)) / rms` and `dweight = Σ n dy`.
pub fn rms_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    want_weight: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let width = weight.len();
    let rows = rows_of(width);
    let dx = written(x.len(), |dx| {
        dx.par_chunks_mut(rows).zip(x.par_chunks(rows)).zip(dy.par_chunks(rows)).for_each(|((dx, x), dy)| {
            vectorize!(|m| {
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
                for ((dx, x), dy) in rows {
                    let inverse = inverse_rms(m, x, eps);
                    for i in 0..width {
                        dx[i] = dy[i] * weight[i];
                    }
                    let pull = dot(m, dx, x) * inverse * inverse * inverse / width as f32;
                    for i in 0..width {
                        dx[i] = dx[i] * inverse - x[i] * pull;
                    }
                }
            });
        });
    });
    let d_weight = want_weight.then(|| {
        let mut normed = rms_norm(x, &vec![1.0; width], eps);
        times(&mut normed, dy);
        column_sums(&normed, width)
    });
    (dx, d_weight)
}

/// `(x - mean) / sqrt(var + eps) · weight + bias` of each row, the variance without Bessel's correction.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let width = weight.len();
    let rows = rows_of(width);
    written(x.len(), |y| {
        y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| {
            vectorize!(|m| {
                for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                    let inverse = centre(m, x, eps, y);
                    for i in 0..width {
                        y[i] = y[i] * inverse * weight[i] + bias[i];
                    }
                }
            });
        });
    })
}

/// `x - mean` into `to`; the inverse of the standard deviation.
#[inline(always)]
fn centre<M: Fma>(m: M, x: &[f32], eps: f32, to: &mut [f32]) -> f32 {
    let mean = sum(x) / x.len() as f32;
    let to = &mut to[..x.len()];
    for i in 0..x.len() {
        to[i] = x[i] - mean;
    }
    1.0 / (dot(m, to, to) / x.len() as f32 + eps).sqrt()
}

/// Gradients of `x` and, if wanted, of weight and bias: with `n` the normed row and `g = weight dy`,
/// `dx = (g - mean(g) - n mean(g n)) / sd`, `dweight = Σ n dy`, `dbias = Σ dy`.
pub fn layer_norm_backward(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    dy: &[f32],
    want_weight: bool,
) -> (Vec<f32>, Option<Vec<f32>>) {
    let width = weight.len();
    let rows = rows_of(width);
    let dx = written(x.len(), |dx| {
        dx.par_chunks_mut(rows).zip(x.par_chunks(rows)).zip(dy.par_chunks(rows)).for_each(|((dx, x), dy)| {
            let mut centred = vec![0f32; width];
            vectorize!(|m| {
                let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
                for ((dx, x), dy) in rows {
                    let inverse = centre(m, x, eps, &mut centred);
                    for i in 0..width {
                        dx[i] = dy[i] * weight[i];
                    }
                    let mean = sum(dx) / width as f32;
                    let pull = dot(m, dx, &centred) * inverse * inverse / width as f32;
                    for i in 0..width {
                        dx[i] = (dx[i] - mean - centred[i] * pull) * inverse;
                    }
                }
            });
        });
    });
    let d_weight = want_weight.then(|| {
        let mut normed = layer_norm(x, &vec![1.0; width], &vec![0.0; width], eps);
        times(&mut normed, dy);
        column_sums(&normed, width)
    });
    (dx, d_weight)
}

fn times(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
        for (x, y) in x.iter_mut().zip(y) {
            *x *= y;
        }
    });
}

/// `sqrt(2 / π)`.
const ROOT: f32 = 0.797_884_6;

/// An activation, as a type of its own so that a loop over it is compiled without a choice inside.
trait Curve: Copy {
    /// The function and its slope.
    fn both<M: Fma>(self, m: M, x: f32) -> (f32, f32);
}

/// Run `|curve| body` with the type of a kind.
macro_rules! with_curve {
    ($kind:expr, |$curve:ident| $body:expr) => {
        match $kind {
            Activation::Silu => {
                let $curve = Silu;
                $body
            }
            Activation::QuickGelu => {
                let $curve = QuickGelu;
                $body
            }
            Activation::Gelu => {
                let $curve = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $curve = GeluTanh;
                $body
            }
            Activation::Relu => {
                let $curve = Relu;
                $body
            }
        }
    };
}

#[derive(Clone, Copy)]
struct Silu;
#[derive(Clone, Copy)]
struct QuickGelu;
#[derive(Clone, Copy)]
struct Gelu;
#[derive(Clone, Copy)]
struct GeluTanh;
#[derive(Clone, Copy)]
struct Relu;

impl Curve for Silu {
    #[inline(always)]
    fn both<M: Fma>(self, m: M, x: f32) -> (f32, f32) {
        let s = sigmoid(m, x);
        (x * s, s * (1.0 + x * (1.0 - s)))
    }
}

impl Curve for QuickGelu {
    #[inline(always)]
    fn both<M: Fma>(self, m: M, x: f32) -> (f32, f32) {
        let s = sigmoid(m, 1.702 * x);
        (x * s, s * (1.0 + 1.702 * x * (1.0 - s)))
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn both<M: Fma>(self, m: M, x: f32) -> (f32, f32) {
        let half = 0.5 + 0.5 * erf(m, x * core::f32::consts::FRAC_1_SQRT_2);
        let density = 0.5 * ROOT * exp(m, -0.5 * x * x);
        (x * half, half + x * density)
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn both<M: Fma>(self, m: M, x: f32) -> (f32, f32) {
        // (1 + tanh z) / 2 is the sigmoid of 2 z.
        let s = sigmoid(m, 2.0 * ROOT * (x + 0.044_715 * x * x * x));
        let slope = 2.0 * ROOT * (1.0 + 3.0 * 0.044_715 * x * x);
        (x * s, s * (1.0 + x * (1.0 - s) * slope))
    }
}

impl Curve for Relu {
    #[inline(always)]
    fn both<M: Fma>(self, _: M, x: f32) -> (f32, f32) {
        // NaN stays.
        if x > 0.0 { (x, 1.0) } else { (x * 0.0, 0.0) }
    }
}

/// The function of every value.
pub fn activation(x: &[f32], kind: Activation) -> Vec<f32> {
    written(x.len(), |y| {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
            with_curve!(kind, |curve| vectorize!(|m| {
                for (y, x) in y.iter_mut().zip(x) {
                    *y = curve.both(m, *x).0;
                }
            }));
        });
    })
}

/// `dy` times the slope.
pub fn activation_backward(x: &[f32], kind: Activation, dy: &[f32]) -> Vec<f32> {
    written(x.len(), |dx| {
        dx.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(
            |((dx, x), dy)| {
                with_curve!(kind, |curve| vectorize!(|m| {
                    for i in 0..dx.len().min(x.len()).min(dy.len()) {
                        dx[i] = dy[i] * curve.both(m, x[i]).1;
                    }
                }));
            },
        );
    })
}

/// `act(gate) · up` of `[rows, 2 inner]`, gate and up side by side.
pub fn gated(x: &[f32], inner: usize, kind: Activation) -> Vec<f32> {
    let rows = rows_of(inner);
    written(x.len() / 2, |y| {
        y.par_chunks_mut(rows).zip(x.par_chunks(2 * rows)).for_each(|(y, x)| {
            with_curve!(kind, |curve| vectorize!(|m| {
                for (y, x) in y.chunks_exact_mut(inner).zip(x.chunks_exact(2 * inner)) {
                    let (gate, up) = x.split_at(inner);
                    let (gate, up) = (&gate[..inner], &up[..inner]);
                    for i in 0..inner {
                        y[i] = curve.both(m, gate[i]).0 * up[i];
                    }
                }
            }));
        });
    })
}

/// Gradients of gate and up, side by side.
pub fn gated_backward(x: &[f32], inner: usize, kind: Activation, dy: &[f32]) -> Vec<f32> {
    let rows = rows_of(inner);
    written(x.len(), |dx| {
        dx.par_chunks_mut(2 * rows).zip(x.par_chunks(2 * rows)).zip(dy.par_chunks(rows)).for_each(
            |((dx, x), dy)| {
                with_curve!(kind, |curve| vectorize!(|m| {
                    let rows = dx.chunks_exact_mut(2 * inner).zip(x.chunks_exact(2 * inner));
                    for ((dx, x), dy) in rows.zip(dy.chunks_exact(inner)) {
                        let (gate, up) = x.split_at(inner);
                        let (d_gate, d_up) = dx.split_at_mut(inner);
                        // By index over slices cut to one length: five zipped iterators are not vectorised.
                        let (d_gate, d_up) = (&mut d_gate[..inner], &mut d_up[..inner]);
                        let (gate, up, dy) = (&gate[..inner], &up[..inner], &dy[..inner]);
                        for i in 0..inner {
                            let (value, slope) = curve.both(m, gate[i]);
                            d_up[i] = dy[i] * value;
                            d_gate[i] = dy[i] * up[i] * slope;
                        }
                    }
                }));
            },
        );
    })
}
