//! AdamW, the sum of squares and a factor for many tensors at once: a launch for as many as fit.

use burn::tensor::{DType, Tensor, TensorMetadata, backend::Backend};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{a_unit_a_value, array, empty, total, written};
use super::{Home, at_home};
use crate::bridge::Fast;
use crate::slot::{AdamW, Slot};

/// Arrays of a launch at most: Metal binds 31 buffers, and one is the kernel's own.
const ARRAYS: usize = 30;

/// Arrays of a parameter: values, gradient, moments, new values.
const OF_SLOT: usize = 5;

/// Units of a cube that sums.
const UNITS: usize = 256;

/// Values of a unit that sums, at least.
const SHARE: usize = 16;

fn flat<H: Home, B: Backend>(tensor: &Tensor<B, 1>) -> CubeTensor<H::Runtime> {
    Fast::<H>::of(tensor.clone()).inner()
}

fn back<H: Home, B: Backend>(tensor: CubeTensor<H::Runtime>) -> Tensor<B, 1> {
    Fast::<H>::Plain(tensor).back()
}

/// A step for all parameters, where there are kernels.
pub fn adamw<B: Backend>(slots: &mut [Slot<B>], constants: &AdamW) -> bool {
    at_home!(B, H => {
        for slots in slots.chunks_mut(ARRAYS / OF_SLOT) {
            step::<H, B>(slots, constants);
        }
        true
    });
    false
}

fn step<H: Home, B: Backend>(slots: &mut [Slot<B>], constants: &AdamW) {
    let values: Vec<CubeTensor<H::Runtime>> = slots.iter().map(|slot| flat::<H, B>(&slot.value)).collect();
    let counts: Vec<usize> = values.iter().map(|value| value.shape().num_elements()).collect();
    let all = counts.iter().sum();
    if all == 0 {
        return;
    }
    let client = values[0].client.clone();
    let (count, dim) = a_unit_a_value(&client, all);
    let out: Vec<_> = values.iter().zip(&counts).map(|(like, n)| empty(like, [*n], DType::F32)).collect();
    // In their own memory, which nothing else reads.
    let moments = |which: usize| slots.iter().map(move |slot| written(&flat::<H, B>(&slot.moments[which])));
    let corrections = |beta: f32| slots.iter().map(move |slot| 1.0 - beta.powi(slot.time as i32));
    let AdamW { rate, beta_1, beta_2, epsilon, weight_decay } = *constants;
    unsafe {
        adamw_step::launch_unchecked(
            &client,
            count,
            dim,
            values.into_iter().map(array).collect(),
            slots.iter().map(|slot| array(flat::<H, B>(&slot.gradient))).collect(),
            moments(0).collect(),
            moments(1).collect(),
            out.iter().map(written).collect(),
            counts.into_iter().collect(),
            corrections(beta_1).collect(),
            corrections(beta_2).collect(),
            all,
            rate as f32,
            beta_1,
            1.0 - beta_1,
            beta_2,
            1.0 - beta_2,
            epsilon,
            (1.0 - rate * f64::from(weight_decay)) as f32,
        );
    }
    for (slot, out) in slots.iter_mut().zip(out) {
        slot.value = back::<H, B>(out);
    }
}

#[cube(launch_unchecked)]
fn adamw_step(
    values: &Sequence<Array<f32>>,
    gradients: &Sequence<Array<f32>>,
    first: &mut Sequence<Array<f32>>,
    second: &mut Sequence<Array<f32>>,
    out: &mut Sequence<Array<f32>>,
    counts: &Sequence<usize>,
    corrections_1: &Sequence<f32>,
    corrections_2: &Sequence<f32>,
    all: usize,
    rate: f32,
    beta_1: f32,
    factor_1: f32,
    beta_2: f32,
    factor_2: f32,
    epsilon: f32,
    keep: f32,
) {
    let place = ABSOLUTE_POS;
    if place < all {
        let mut from = 0usize.runtime();
        #[unroll]
        for i in 0..values.len() {
            let count = *counts.index(i);
            if place >= from && place < from + count {
                let at = place - from;
                let g = gradients.index(i)[at];
                let m = beta_1 * first.index(i)[at] + factor_1 * g;
                let v = beta_2 * second.index(i)[at] + factor_2 * g * g;
                first.index_mut(i)[at] = m;
                second.index_mut(i)[at] = v;
                let by = m / *corrections_1.index(i) / (f32::sqrt(v / *corrections_2.index(i)) + epsilon);
                out.index_mut(i)[at] = keep * values.index(i)[at] - rate * by;
            }
            from += count;
        }
    }
}

/// The sum of all squares, where there are kernels.
pub fn squares<B: Backend>(tensors: &[Tensor<B, 1>]) -> Option<Tensor<B, 1>> {
    at_home!(B, H => {
        let tensors: Vec<_> = tensors.iter().map(flat::<H, B>).filter(|t| t.shape().num_elements() > 0).collect();
        Some(back::<H, B>(sum_of_squares::<H>(&tensors)?))
    });
    None
}

fn sum_of_squares<H: Home>(tensors: &[CubeTensor<H::Runtime>]) -> Option<CubeTensor<H::Runtime>> {
    let like = tensors.first()?;
    let client = like.client.clone();
    let groups: Vec<_> = tensors.chunks(ARRAYS - 1).collect();
    // By shapes alone, so that the sum does not depend on the device.
    let cubes: Vec<usize> = groups
        .iter()
        .map(|group| {
            let all: usize = group.iter().map(|t| t.shape().num_elements()).sum();
            all.div_ceil(UNITS * SHARE).min(UNITS)
        })
        .collect();
    let parts = empty(like, [cubes.iter().sum::<usize>()], DType::F32);
    let mut from = 0;
    for (group, cubes) in groups.into_iter().zip(&cubes) {
        let counts = group.iter().map(|t| t.shape().num_elements()).collect();
        unsafe {
            squares_of::launch_unchecked(
                &client,
                CubeCount::Static(*cubes as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                group.iter().cloned().map(array).collect(),
                counts,
                written(&parts),
                from,
                cubes * UNITS,
                UNITS,
            );
        }
        from += cubes;
    }
    let sum = empty(like, [1], DType::F32);
    unsafe {
        sum_of::launch_unchecked(
            &client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            array(parts),
            written(&sum),
            from,
            UNITS,
        );
    }
    Some(sum)
}

#[cube(launch_unchecked)]
fn squares_of(
    tensors: &Sequence<Array<f32>>,
    counts: &Sequence<usize>,
    parts: &mut Array<f32>,
    from: usize,
    units: usize,
    #[comptime] of_cube: usize,
) {
    let mut memory = SharedMemory::<f32>::new(of_cube);
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..tensors.len() {
        let mut at = ABSOLUTE_POS;
        while at < *counts.index(i) {
            let value = tensors.index(i)[at];
            sum += value * value;
            at += units;
        }
    }
    let sum = total(sum, &mut memory);
    if UNIT_POS == 0 {
        parts[from + CUBE_POS] = sum;
    }
}

#[cube(launch_unchecked)]
fn sum_of(parts: &Array<f32>, sum: &mut Array<f32>, count: usize, #[comptime] units: usize) {
    let mut memory = SharedMemory::<f32>::new(units);
    let mut own = f32::new(0.0);
    let mut at = UNIT_POS as usize;
    while at < count {
        own += parts[at];
        at += units;
    }
    let all = total(own, &mut memory);
    if UNIT_POS == 0 {
        sum[0] = all;
    }
}

/// All times a factor, where there are kernels.
pub fn scaled<B: Backend>(tensors: &[Tensor<B, 1>], factor: f64) -> Option<Vec<Tensor<B, 1>>> {
    at_home!(B, H => {
        let tensors: Vec<_> = tensors.iter().map(flat::<H, B>).collect();
        let groups = tensors.chunks(ARRAYS / 2);
        Some(groups.flat_map(|group| times(group, factor as f32)).map(back::<H, B>).collect())
    });
    None
}

fn times<R: CubeRuntime>(tensors: &[CubeTensor<R>], factor: f32) -> Vec<CubeTensor<R>> {
    let counts: Vec<usize> = tensors.iter().map(|t| t.shape().num_elements()).collect();
    let out: Vec<_> = tensors.iter().zip(&counts).map(|(like, n)| empty(like, [*n], DType::F32)).collect();
    let all = counts.iter().sum();
    if all > 0 {
        let client = tensors[0].client.clone();
        let (count, dim) = a_unit_a_value(&client, all);
        unsafe {
            times_factor::launch_unchecked(
                &client,
                count,
                dim,
                tensors.iter().cloned().map(array).collect(),
                out.iter().map(written).collect(),
                counts.into_iter().collect(),
                all,
                factor,
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn times_factor(
    tensors: &Sequence<Array<f32>>,
    out: &mut Sequence<Array<f32>>,
    counts: &Sequence<usize>,
    all: usize,
    factor: f32,
) {
    let place = ABSOLUTE_POS;
    if place < all {
        let mut from = 0usize.runtime();
        #[unroll]
        for i in 0..tensors.len() {
            let count = *counts.index(i);
            if place >= from && place < from + count {
                out.index_mut(i)[place - from] = factor * tensors.index(i)[place - from];
            }
            from += count;
        }
    }
}
