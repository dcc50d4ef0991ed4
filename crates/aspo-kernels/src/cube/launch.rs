//! How many units a kernel gets, and its arguments.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Units of a cube at most: what every GPU has.
const UNITS: u32 = 256;

/// A cube for each row, whose units share its values.
pub fn a_cube_a_row<R: CubeRuntime>(
    client: &ComputeClient<R>,
    rows: usize,
    width: usize,
) -> (CubeCount, CubeDim) {
    let units = (width as u32).next_power_of_two().clamp(32, UNITS);
    let count = cubecl::calculate_cube_count_elemwise(client, rows, CubeDim::new_1d(1));
    (count, CubeDim::new_1d(units))
}

/// A unit for each value.
pub fn a_unit_a_value<R: CubeRuntime>(client: &ComputeClient<R>, values: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new_1d(UNITS);
    (cubecl::calculate_cube_count_elemwise(client, values, dim), dim)
}

/// Memory for a result beside `like`.
pub fn empty<R: CubeRuntime>(like: &CubeTensor<R>, shape: impl Into<Shape>, dtype: DType) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), dtype)
}

/// The values of a tensor in their order; a copy only of a view that is not so.
pub fn array<R: CubeRuntime>(tensor: CubeTensor<R>) -> ArrayArg<R> {
    into_contiguous(tensor).into_array_arg()
}

/// Values that a kernel writes, which must lie in their order: a [solid] tensor or an [empty] one.
pub fn written<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    assert!(tensor.is_contiguous(), "a kernel would write into a copy");
    tensor.clone().into_array_arg()
}

/// The tensor, its values in their order. Burn's results need not be so: on CUDA rows are padded.
pub fn solid<R: CubeRuntime>(tensor: CubeTensor<R>) -> CubeTensor<R> {
    into_contiguous(tensor)
}

/// As [`array`], none or several.
pub fn arrays<R: CubeRuntime, E: Float>(
    tensors: impl IntoIterator<Item = CubeTensor<R>>,
) -> SequenceArg<R, Array<E>> {
    tensors.into_iter().map(array).collect()
}

/// Rows and values of a row.
pub fn rows<R: CubeRuntime>(tensor: &CubeTensor<R>) -> [usize; 2] {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    [shape.num_elements() / width.max(1), width]
}

/// The sum of a value of each unit of the cube, in an order that does not change.
#[cube]
pub fn total(value: f32, memory: &mut SharedMemory<f32>) -> f32 {
    let at = UNIT_POS as usize;
    memory[at] = value;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if at < half {
            let other = memory[at + half];
            memory[at] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = memory[0];
    sync_cube();
    sum
}

/// The largest value of the units of the cube.
#[cube]
pub fn largest(value: f32, memory: &mut SharedMemory<f32>) -> f32 {
    let at = UNIT_POS as usize;
    memory[at] = value;
    sync_cube();
    let mut half = CUBE_DIM as usize / 2;
    while half > 0 {
        if at < half {
            let other = memory[at + half];
            memory[at] = max(memory[at], other);
        }
        sync_cube();
        half /= 2;
    }
    let top = memory[0];
    sync_cube();
    top
}

/// The sum of several arrays at one place.
#[cube]
pub fn sum_at<W: Float>(wide: &Sequence<Array<W>>, single: &Sequence<Array<f32>>, at: usize) -> f32 {
    let mut sum = f32::new(0.0);
    #[unroll]
    for i in 0..wide.len() {
        sum += f32::cast_from(wide.index(i)[at]);
    }
    #[unroll]
    for i in 0..single.len() {
        sum += single.index(i)[at];
    }
    sum
}
