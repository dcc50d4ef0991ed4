//! Norms and activations, forward and backward, each in one kernel.
//!
//! A backward takes the gradient as parts that are summed as they are read: those of a group's layers and of their adapters.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{a_cube_a_row, a_unit_a_value, array, arrays, empty, rows, sum_at, total, written};
use crate::layer::Activation;

/// A gradient as parts of one shape, to be summed.
#[derive(Debug, Clone)]
pub struct Parts<R: CubeRuntime> {
    /// Of another type than f32, all of one.
    wide: Vec<CubeTensor<R>>,
    /// In f32.
    single: Vec<CubeTensor<R>>,
}

impl<R: CubeRuntime> Default for Parts<R> {
    fn default() -> Self {
        Self { wide: vec![], single: vec![] }
    }
}

impl<R: CubeRuntime> Parts<R> {
    pub fn one(part: CubeTensor<R>) -> Self {
        let mut parts = Self::default();
        parts.push(part);
        parts
    }

    /// One more.
    pub fn push(&mut self, part: CubeTensor<R>) {
        match part.dtype {
            DType::F32 => self.single.push(part),
            _ => self.wide.push(part),
        }
    }

    fn dtype(&self) -> DType {
        self.wide.first().map_or(DType::F32, |part| part.dtype)
    }

    fn first(&self) -> &CubeTensor<R> {
        self.wide.first().or(self.single.first()).expect("a gradient has parts")
    }

    /// Their sum, in this type.
    pub fn sum(mut self, dtype: DType) -> CubeTensor<R> {
        if self.single.len() + self.wide.len() == 1 && self.first().dtype == dtype {
            return self.single.pop().or(self.wide.pop()).expect("one");
        }
        let like = self.first().clone();
        let out = empty(&like, like.shape(), dtype);
        let values = like.shape().num_elements();
        if values > 0 {
            let (count, dim) = a_unit_a_value(&like.client, values);
            let types: [StorageType; 2] = [self.dtype().into(), dtype.into()];
            let (wide, single) = (arrays(self.wide), arrays(self.single));
            unsafe {
                sum::launch_unchecked(&like.client, count, dim, wide, single, written(&out), types);
            }
        }
        out
    }
}

#[cube(launch_unchecked)]
fn sum<W: Float, T: Float>(
    wide: &Sequence<Array<W>>,
    single: &Sequence<Array<f32>>,
    out: &mut Array<T>,
    #[define(W, T)] _types: [StorageType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < out.len() {
        out[at] = T::cast_from(sum_at(wide, single, at));
    }
}

/// `x / sqrt(mean(x²) + eps)`, rounded to the type of `x`, times the weight.
pub fn rms_norm<R: CubeRuntime>(x: CubeTensor<R>, weight: CubeTensor<R>, eps: f32) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let out = empty(&x, x.shape(), dtype);
    if n * width > 0 {
        let client = x.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, width);
        let (y, units) = (written(&out), dim.num_elems() as usize);
        unsafe {
            rms_forward::launch_unchecked(
                &client,
                count,
                dim,
                array(x),
                array(weight),
                y,
                n,
                width,
                eps,
                units,
                dtype.into(),
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn rms_forward<T: Float>(
    x: &Array<T>,
    weight: &Array<T>,
    y: &mut Array<T>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(T)] _type: StorageType,
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let from = row * width;
        let mut squares = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < width {
            let v = f32::cast_from(x[from + i]);
            squares += v * v;
            i += units;
        }
        let squares = total(squares, &mut memory);
        let inverse = 1.0 / f32::sqrt(squares / width as f32 + eps);
        let mut i = UNIT_POS as usize;
        while i < width {
            let normed = T::cast_from(f32::cast_from(x[from + i]) * inverse);
            y[from + i] = normed * weight[i];
            i += units;
        }
    }
}

/// The gradient of the input: with `n = x / rms` and `g = weight dy`, `(g - n mean(g n)) / rms`.
pub fn rms_norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f32,
    grad: Parts<R>,
) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let out = empty(&x, x.shape(), dtype);
    if n * width > 0 {
        let client = x.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, width);
        let (dx, units) = (written(&out), dim.num_elems() as usize);
        let types: [StorageType; 2] = [dtype.into(), grad.dtype().into()];
        let (wide, single) = (arrays(grad.wide), arrays(grad.single));
        unsafe {
            rms_backward::launch_unchecked(
                &client,
                count,
                dim,
                array(x),
                array(weight),
                wide,
                single,
                dx,
                n,
                width,
                eps,
                units,
                types,
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn rms_backward<T: Float, W: Float>(
    x: &Array<T>,
    weight: &Array<T>,
    wide: &Sequence<Array<W>>,
    single: &Sequence<Array<f32>>,
    dx: &mut Array<T>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(T, W)] _types: [StorageType; 2],
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let from = row * width;
        let mut squares = f32::new(0.0);
        let mut along = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < width {
            let v = f32::cast_from(x[from + i]);
            squares += v * v;
            along += v * f32::cast_from(weight[i]) * sum_at(wide, single, from + i);
            i += units;
        }
        let squares = total(squares, &mut memory);
        let along = total(along, &mut memory);
        let inverse = 1.0 / f32::sqrt(squares / width as f32 + eps);
        let mean = along * inverse / width as f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let g = f32::cast_from(weight[i]) * sum_at(wide, single, from + i);
            let n = f32::cast_from(x[from + i]) * inverse;
            dx[from + i] = T::cast_from((g - n * mean) * inverse);
            i += units;
        }
    }
}

/// `(x - mean) / sqrt(var + eps) · weight + bias`, biased variance.
pub fn layer_norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    bias: CubeTensor<R>,
    eps: f32,
) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let out = empty(&x, x.shape(), dtype);
    if n * width > 0 {
        let client = x.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, width);
        let (y, units) = (written(&out), dim.num_elems() as usize);
        let (x, weight, bias) = (array(x), array(weight), array(bias));
        unsafe {
            layer_forward::launch_unchecked(
                &client,
                count,
                dim,
                x,
                weight,
                bias,
                y,
                n,
                width,
                eps,
                units,
                dtype.into(),
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn layer_forward<T: Float>(
    x: &Array<T>,
    weight: &Array<T>,
    bias: &Array<T>,
    y: &mut Array<T>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(T)] _type: StorageType,
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let from = row * width;
        let moments = moments(x, from, width, eps, units, &mut memory);
        let mut i = UNIT_POS as usize;
        while i < width {
            let n = (f32::cast_from(x[from + i]) - moments.0) * moments.1;
            y[from + i] = T::cast_from(n * f32::cast_from(weight[i]) + f32::cast_from(bias[i]));
            i += units;
        }
    }
}

/// Mean of a row, and one over its deviation.
#[cube]
fn moments<T: Float>(
    x: &Array<T>,
    from: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    memory: &mut SharedMemory<f32>,
) -> (f32, f32) {
    let mut sum = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        sum += f32::cast_from(x[from + i]);
        i += units;
    }
    let mean = total(sum, memory) / width as f32;
    let mut squares = f32::new(0.0);
    let mut i = UNIT_POS as usize;
    while i < width {
        let v = f32::cast_from(x[from + i]) - mean;
        squares += v * v;
        i += units;
    }
    let variance = total(squares, memory) / width as f32;
    (mean, 1.0 / f32::sqrt(variance + eps))
}

/// The gradient of the input: with `n` the normed row and `g = weight dy`, `(g - mean(g) - n mean(g n)) / sd`.
pub fn layer_norm_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    weight: CubeTensor<R>,
    eps: f32,
    grad: Parts<R>,
) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let out = empty(&x, x.shape(), dtype);
    if n * width > 0 {
        let client = x.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, width);
        let (dx, units) = (written(&out), dim.num_elems() as usize);
        let types: [StorageType; 2] = [dtype.into(), grad.dtype().into()];
        let (wide, single) = (arrays(grad.wide), arrays(grad.single));
        unsafe {
            layer_backward::launch_unchecked(
                &client,
                count,
                dim,
                array(x),
                array(weight),
                wide,
                single,
                dx,
                n,
                width,
                eps,
                units,
                types,
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn layer_backward<T: Float, W: Float>(
    x: &Array<T>,
    weight: &Array<T>,
    wide: &Sequence<Array<W>>,
    single: &Sequence<Array<f32>>,
    dx: &mut Array<T>,
    rows: usize,
    width: usize,
    eps: f32,
    #[comptime] units: usize,
    #[define(T, W)] _types: [StorageType; 2],
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let from = row * width;
        let moments = moments(x, from, width, eps, units, &mut memory);
        let mut sum = f32::new(0.0);
        let mut along = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < width {
            let g = f32::cast_from(weight[i]) * sum_at(wide, single, from + i);
            sum += g;
            along += g * (f32::cast_from(x[from + i]) - moments.0) * moments.1;
            i += units;
        }
        let mean = total(sum, &mut memory) / width as f32;
        let along = total(along, &mut memory) / width as f32;
        let mut i = UNIT_POS as usize;
        while i < width {
            let g = f32::cast_from(weight[i]) * sum_at(wide, single, from + i);
            let n = (f32::cast_from(x[from + i]) - moments.0) * moments.1;
            dx[from + i] = T::cast_from((g - mean - n * along) * moments.1);
            i += units;
        }
    }
}

/// An activation function of every value; of gate and up side by side, `act(gate) · up`, half as wide.
pub fn activation<R: CubeRuntime>(x: CubeTensor<R>, kind: Activation, gated: bool) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let inner = if gated { width / 2 } else { width };
    let mut shape = x.shape();
    let last = shape.num_dims() - 1;
    shape[last] = inner;
    let out = empty(&x, shape, dtype);
    if n * inner > 0 {
        let client = x.client.clone();
        let (count, dim) = a_unit_a_value(&client, n * inner);
        let y = written(&out);
        unsafe {
            act_forward::launch_unchecked(&client, count, dim, array(x), y, inner, kind, gated, dtype.into());
        }
    }
    out
}

#[cube(launch_unchecked)]
fn act_forward<T: Float>(
    x: &Array<T>,
    y: &mut Array<T>,
    inner: usize,
    #[comptime] kind: Activation,
    #[comptime] gated: bool,
    #[define(T)] _type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < y.len() {
        if comptime!(gated) {
            let gate = at / inner * 2 * inner + at % inner;
            let value = value_and_slope(f32::cast_from(x[gate]), kind).0;
            y[at] = T::cast_from(value * f32::cast_from(x[gate + inner]));
        } else {
            y[at] = T::cast_from(value_and_slope(f32::cast_from(x[at]), kind).0);
        }
    }
}

/// The gradient of the input of [`activation`].
pub fn activation_backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    kind: Activation,
    gated: bool,
    grad: Parts<R>,
) -> CubeTensor<R> {
    let ([n, width], dtype) = (rows(&x), x.dtype);
    let inner = if gated { width / 2 } else { width };
    let out = empty(&x, x.shape(), dtype);
    if n * inner > 0 {
        let client = x.client.clone();
        let (count, dim) = a_unit_a_value(&client, n * inner);
        let dx = written(&out);
        let types: [StorageType; 2] = [dtype.into(), grad.dtype().into()];
        let (wide, single) = (arrays(grad.wide), arrays(grad.single));
        unsafe {
            act_backward::launch_unchecked(
                &client,
                count,
                dim,
                array(x),
                wide,
                single,
                dx,
                n * inner,
                inner,
                kind,
                gated,
                types,
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn act_backward<T: Float, W: Float>(
    x: &Array<T>,
    wide: &Sequence<Array<W>>,
    single: &Sequence<Array<f32>>,
    dx: &mut Array<T>,
    values: usize,
    inner: usize,
    #[comptime] kind: Activation,
    #[comptime] gated: bool,
    #[define(T, W)] _types: [StorageType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let grad = sum_at(wide, single, at);
        if comptime!(gated) {
            let gate = at / inner * 2 * inner + at % inner;
            let act = value_and_slope(f32::cast_from(x[gate]), kind);
            dx[gate] = T::cast_from(grad * f32::cast_from(x[gate + inner]) * act.1);
            dx[gate + inner] = T::cast_from(grad * act.0);
        } else {
            dx[at] = T::cast_from(grad * value_and_slope(f32::cast_from(x[at]), kind).1);
        }
    }
}

/// `f(x)` and `f'(x)`.
#[cube]
fn value_and_slope(x: f32, #[comptime] kind: Activation) -> (f32, f32) {
    match comptime!(kind) {
        Activation::Silu => sigmoid_times(x, 1.0),
        Activation::QuickGelu => sigmoid_times(x, 1.702),
        Activation::Gelu => {
            let cumulative =
                0.5 * (1.0 + cubecl::frontend::Erf::erf(x * comptime!(core::f32::consts::FRAC_1_SQRT_2)));
            // One over the root of 2π.
            let density = f32::exp(-0.5 * x * x) * 0.398_942_3;
            (x * cumulative, cumulative + x * density)
        }
        Activation::GeluTanh => {
            // The root of 2/π.
            let root = 0.797_884_6;
            let t = f32::tanh(root * (x + 0.044_715 * x * x * x));
            let slope = root * (1.0 + 3.0 * 0.044_715 * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope)
        }
        Activation::Relu => {
            let on = select(x > 0.0, 1.0, 0.0);
            (max(x, 0.0), on)
        }
    }
}

/// `x σ(factor x)`.
#[cube]
fn sigmoid_times(x: f32, #[comptime] factor: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + f32::exp(-x * factor));
    (x * s, s + x * factor * s * (1.0 - s))
}
