//! Tensors side by side, each times a number of its own.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{a_unit_a_value, arrays, empty, rows, written};

/// `[rows, Σ width]` in f32 of parts `[rows, width]` in f32, each times its scale.
pub fn side_by_side<R: CubeRuntime>(parts: Vec<(CubeTensor<R>, f32)>) -> CubeTensor<R> {
    let (like, scale) = parts.first().expect("a stack has parts").clone();
    if parts.len() == 1 && scale == 1.0 {
        return like;
    }
    let widths: Vec<usize> = parts.iter().map(|(part, _)| rows(part)[1]).collect();
    let (n, whole) = (rows(&like)[0], widths.iter().sum());
    let out = empty(&like, [n, whole], DType::F32);
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
            );
        }
    }
    out
}

#[cube(launch_unchecked)]
fn stack(
    parts: &Sequence<Array<f32>>,
    widths: &Sequence<usize>,
    scales: &Sequence<f32>,
    out: &mut Array<f32>,
    values: usize,
    whole: usize,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let (row, column) = (at / whole, at % whole);
        let mut from = 0usize.runtime();
        #[unroll]
        for i in 0..parts.len() {
            let width = *widths.index(i);
            if column >= from && column < from + width {
                out[at] = *scales.index(i) * parts.index(i)[row * width + column - from];
            }
            from += width;
        }
    }
}
