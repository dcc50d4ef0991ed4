//! Tensors side by side, each times a number of its own.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{a_unit_a_value, arrays, empty, rows, written};

/// `[rows, Σ width]` of parts `[rows, width]` of one type, each times its scale.
pub fn side_by_side<R: CubeRuntime>(parts: Vec<(CubeTensor<R>, f32)>) -> CubeTensor<R> {
    let (like, scale) = parts.first().expect("a stack has parts").clone();
    if parts.len() == 1 && scale == 1.0 {
        return like;
    }
    let widths: Vec<usize> = parts.iter().map(|(part, _)| rows(part)[1]).collect();
    let (n, whole) = (rows(&like)[0], widths.iter().sum());
    let dtype = like.dtype;
    let out = empty(&like, [n, whole], dtype);
    if n * whole > 0 {
        let (count, dim) = a_unit_a_value(&like.client, n * whole);
        let scales = parts.iter().map(|(_, scale)| *scale).collect();
        let parts = arrays(parts.into_iter().map(|(part, _)| part));
        let widths = widths.into_iter().collect();
        unsafe {
            stack::launch_unchecked(
                &like.client,
                count,
                dim,
                parts,
                widths,
                scales,
                written(&out),
                n * whole,
                whole,
                dtype.into(),
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn stack<T: Float>(
    parts: &Sequence<Array<T>>,
    widths: &Sequence<usize>,
    scales: &Sequence<f32>,
    out: &mut Array<T>,
    values: usize,
    whole: usize,
    #[define(T)] _type: StorageType,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let (row, column) = (at / whole, at % whole);
        let mut from = 0usize.runtime();
        #[unroll]
        for i in 0..parts.len() {
            let width = *widths.index(i);
            if column >= from && column < from + width {
                let value = f32::cast_from(parts.index(i)[row * width + column - from]);
                out[at] = T::cast_from(*scales.index(i) * value);
            }
            from += width;
        }
    }
}
