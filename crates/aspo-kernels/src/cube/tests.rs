//! What only this crate can see: kernels on padded rows, as CUDA lays out Burn's results.

use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_cubecl::tensor::CubeTensor;

use super::launch::empty;
use super::logits::{Rows, gradient};
use super::softmax::{Chunk, softmax, softmax_backward};
use super::{Home, unwrap, wrap};

#[cfg(feature = "cuda")]
type Gpu = burn::backend::Cuda;
#[cfg(not(feature = "cuda"))]
type Gpu = burn::backend::Wgpu;
type Cube = CubeTensor<<Gpu as Home>::Runtime>;

const ROWS: usize = 5;

/// What a device's alignment does not force into a copy.
const WIDTH: usize = 64;

/// Numbers as they lie one row after the other, or with as much again behind each row.
fn numbers(seed: usize, padded: bool) -> Cube {
    let value = |row: usize, column: usize| ((row * 31 + column * 17 + seed) % 23) as f32 / 7.0 - 1.5;
    let values: Vec<f32> = (0..ROWS).flat_map(|row| (0..2 * WIDTH).map(move |i| value(row, i))).collect();
    let both = Tensor::<Gpu, 2>::from_data(TensorData::new(values, [ROWS, 2 * WIDTH]), &Default::default());
    let half = unwrap(both.narrow(1, 0, WIDTH));
    assert!(!half.is_contiguous(), "a view");
    if padded { half } else { super::launch::solid(half) }
}

fn read(tensor: Cube) -> Vec<f32> {
    let values = wrap::<Gpu, 2>(tensor).into_data();
    values.into_vec().unwrap()
}

#[test]
fn padded_scores_have_the_softmax_of_the_same_scores_side_by_side() {
    let chunk = Chunk { from: 0, len: ROWS, queries: ROWS, groups: 1 };
    let run = |padded: bool| {
        let [p, sums] = softmax(numbers(1, padded), None, chunk);
        let again = softmax_backward(numbers(1, padded), numbers(2, padded), None, sums, chunk);
        let [again, grads] = again.map(read);
        [read(p), again, grads]
    };
    let [p, again, grads] = run(true);
    for row in p.chunks(WIDTH) {
        // 64 rounded terms.
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
    }
    assert_eq!([p, again, grads], run(false));
}

#[test]
fn padded_logits_have_the_sums_and_gradients_of_the_same_logits_side_by_side() {
    let targets = Tensor::<Gpu, 1, Int>::from_data([3, 0, 63, 40, 7], &Default::default()).cast(DType::I32);
    let targets = || targets.clone().into_primitive();
    let run = |padded: bool| {
        let of_rows = |width: usize| empty(&numbers(0, padded), [ROWS, width], DType::F32);
        let rows =
            Rows { targets: targets(), running: of_rows(3), log_sum_exp: of_rows(1), log_probs: of_rows(1) };
        let [exp, factor] = rows.take(numbers(1, padded), [0, 0]);
        let of_rows = [targets(), rows.log_sum_exp.clone(), rows.log_sum_exp.clone()];
        let dz = gradient(numbers(1, padded), of_rows, [0, 0]);
        [exp, factor, rows.log_sum_exp, rows.log_probs, dz].map(read)
    };
    let padded = run(true);
    for row in padded[0].chunks(WIDTH) {
        assert_eq!(row.iter().fold(0.0, |a: f32, b| a.max(*b)), 1.0, "the largest is subtracted");
    }
    assert_eq!(padded, run(false));
}
