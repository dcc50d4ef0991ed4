//! What is between the two products of an attention, forward and backward, in the memory of the products.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{a_cube_a_row, array, empty, largest, rows, solid, total, written};

/// Below any score.
const LOWEST: f32 = -1e30;

/// Which scores a chunk holds: `len` rows from `from` on, of each matrix of a batch of `groups`. Row `r` of a matrix is that of
/// query `r mod queries`.
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    pub from: usize,
    pub len: usize,
    pub queries: usize,
    pub groups: usize,
}

/// `softmax(scores)` over what is not `hidden` (`[batch, 1, queries, keys]`); `log Σ exp` of each row.
pub fn softmax<R: CubeRuntime>(
    scores: CubeTensor<R>,
    hidden: Option<CubeTensor<R>>,
    chunk: Chunk,
) -> [CubeTensor<R>; 2] {
    let scores = solid(scores);
    let [n, keys] = rows(&scores);
    let sums = empty(&scores, [n], DType::F32);
    if n * keys > 0 {
        let client = scores.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, keys);
        let units = dim.num_elems() as usize;
        let types = types(&scores, hidden.as_ref());
        let Chunk { from, len, queries, groups } = chunk;
        unsafe {
            softmax_forward::launch_unchecked(
                &client,
                count,
                dim,
                written(&scores),
                hidden.into_iter().map(array).collect(),
                written(&sums),
                n,
                keys,
                from,
                len,
                queries,
                groups,
                units,
                types,
            );
        }
    }
    [scores, sums]
}

/// From scores and the gradient of their softmax `p`: `p`, and the gradient of the scores,
/// `p (dp - Σ p dp)`.
pub fn softmax_backward<R: CubeRuntime>(
    scores: CubeTensor<R>,
    grads: CubeTensor<R>,
    hidden: Option<CubeTensor<R>>,
    sums: CubeTensor<R>,
    chunk: Chunk,
) -> [CubeTensor<R>; 2] {
    let (scores, grads) = (solid(scores), solid(grads));
    let [n, keys] = rows(&scores);
    if n * keys == 0 {
        return [scores, grads];
    }
    let client = scores.client.clone();
    let (count, dim) = a_cube_a_row(&client, n, keys);
    let units = dim.num_elems() as usize;
    let types = types(&scores, hidden.as_ref());
    let Chunk { from, len, queries, groups } = chunk;
    unsafe {
        softmax_gradient::launch_unchecked(
            &client,
            count,
            dim,
            written(&scores),
            written(&grads),
            hidden.into_iter().map(array).collect(),
            array(sums),
            n,
            keys,
            from,
            len,
            queries,
            groups,
            units,
            types,
        );
    }
    [scores, grads]
}

/// Of scores and mask.
fn types<R: CubeRuntime>(scores: &CubeTensor<R>, hidden: Option<&CubeTensor<R>>) -> [StorageType; 2] {
    [scores.dtype.into(), hidden.map_or(DType::U32, TensorMetadata::dtype).into()]
}

#[cube(launch_unchecked)]
fn softmax_forward<T: Float, M: Int>(
    scores: &mut Array<T>,
    hidden: &Sequence<Array<M>>,
    sums: &mut Array<f32>,
    rows: usize,
    keys: usize,
    from: usize,
    len: usize,
    queries: usize,
    groups: usize,
    #[comptime] units: usize,
    #[define(T, M)] _types: [StorageType; 2],
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let begin = row * keys;
        let mask = line(row, from, len, queries, groups) * keys;
        let mut top = f32::new(LOWEST);
        let mut i = UNIT_POS as usize;
        while i < keys {
            if sees(hidden, mask + i) {
                top = max(top, f32::cast_from(scores[begin + i]));
            }
            i += units;
        }
        let top = largest(top, &mut memory);
        let mut sum = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < keys {
            if sees(hidden, mask + i) {
                sum += f32::exp(f32::cast_from(scores[begin + i]) - top);
            }
            i += units;
        }
        let sum = total(sum, &mut memory);
        // A query that sees nothing mixes nothing.
        let inverse = select(sum == 0.0, 0.0, 1.0 / sum);
        let mut i = UNIT_POS as usize;
        while i < keys {
            let mut p = f32::new(0.0);
            if sees(hidden, mask + i) {
                p = f32::exp(f32::cast_from(scores[begin + i]) - top) * inverse;
            }
            scores[begin + i] = T::cast_from(p);
            i += units;
        }
        if UNIT_POS == 0 {
            sums[row] = top + f32::ln(max(sum, 1e-37));
        }
    }
}

#[cube(launch_unchecked)]
fn softmax_gradient<T: Float, M: Int>(
    scores: &mut Array<T>,
    grads: &mut Array<T>,
    hidden: &Sequence<Array<M>>,
    sums: &Array<f32>,
    rows: usize,
    keys: usize,
    from: usize,
    len: usize,
    queries: usize,
    groups: usize,
    #[comptime] units: usize,
    #[define(T, M)] _types: [StorageType; 2],
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let begin = row * keys;
        let mask = line(row, from, len, queries, groups) * keys;
        let mut along = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < keys {
            let mut p = f32::new(0.0);
            if sees(hidden, mask + i) {
                p = f32::exp(f32::cast_from(scores[begin + i]) - sums[row]);
            }
            along += p * f32::cast_from(grads[begin + i]);
            scores[begin + i] = T::cast_from(p);
            i += units;
        }
        let along = total(along, &mut memory);
        let mut i = UNIT_POS as usize;
        while i < keys {
            let p = f32::cast_from(scores[begin + i]);
            let grad = f32::cast_from(grads[begin + i]);
            grads[begin + i] = T::cast_from(p * (grad - along));
            i += units;
        }
    }
}

/// Row of the mask.
#[cube]
fn line(row: usize, from: usize, len: usize, queries: usize, groups: usize) -> usize {
    row / len / groups * queries + (from + row % len) % queries
}

#[cube]
fn sees<M: Int>(hidden: &Sequence<Array<M>>, at: usize) -> bool {
    let mut hides = u32::new(0);
    #[unroll]
    for i in 0..hidden.len() {
        hides += u32::cast_from(hidden.index(i)[at]);
    }
    hides == 0
}
