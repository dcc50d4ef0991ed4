//! What is between the products of the output head, in the memory of a tile of logits.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{a_cube_a_row, a_unit_a_value, array, empty, largest, rows, solid, total, written};

/// Below any logit.
const LOWEST: f32 = -1e30;

/// Of all rows of a pass.
#[derive(Debug, Clone)]
pub struct Rows<R: CubeRuntime> {
    /// In i32.
    pub targets: CubeTensor<R>,
    /// The largest logit seen so far, `Σ exp` of what is below it, the target's logit: `[N, 3]`.
    pub running: CubeTensor<R>,
    pub log_sum_exp: CubeTensor<R>,
    pub log_probs: CubeTensor<R>,
}

impl<R: CubeRuntime> Rows<R> {
    /// Takes in the tile of logits whose first row and column are these: `exp(z - max)`, `max` that of all columns so far, and
    /// what is to be multiplied with what was summed before, `[rows, 1]`.
    pub fn take(&self, logits: CubeTensor<R>, [from, column]: [usize; 2]) -> [CubeTensor<R>; 2] {
        let logits = solid(logits);
        let [n, width] = rows(&logits);
        let factor = empty(&logits, [n, 1], DType::F32);
        let client = logits.client.clone();
        let (count, dim) = a_cube_a_row(&client, n, width);
        let units = dim.num_elems() as usize;
        unsafe {
            online_softmax::launch_unchecked(
                &client,
                count,
                dim,
                written(&logits),
                array(self.targets.clone()),
                written(&self.running),
                written(&self.log_sum_exp),
                written(&self.log_probs),
                written(&factor),
                n,
                width,
                from,
                column,
                column == 0,
                units,
            );
        }
        [logits, factor]
    }
}

/// `grad (onehot(target) - exp(z - log Σ exp))` of a tile of logits `z`; the other tensors are of all rows.
pub fn gradient<R: CubeRuntime>(
    logits: CubeTensor<R>,
    [targets, log_sum_exp, grad]: [CubeTensor<R>; 3],
    [from, column]: [usize; 2],
) -> CubeTensor<R> {
    let logits = solid(logits);
    let [n, width] = rows(&logits);
    let client = logits.client.clone();
    let (count, dim) = a_unit_a_value(&client, n * width);
    unsafe {
        logits_gradient::launch_unchecked(
            &client,
            count,
            dim,
            written(&logits),
            array(targets),
            array(log_sum_exp),
            array(grad),
            n * width,
            width,
            from,
            column,
        );
    }
    logits
}

#[cube(launch_unchecked)]
fn online_softmax(
    logits: &mut Array<f32>,
    targets: &Array<i32>,
    running: &mut Array<f32>,
    log_sum_exp: &mut Array<f32>,
    log_probs: &mut Array<f32>,
    factor: &mut Array<f32>,
    rows: usize,
    width: usize,
    from: usize,
    column: usize,
    #[comptime] first: bool,
    #[comptime] units: usize,
) {
    let mut memory = SharedMemory::<f32>::new(units);
    let row = CUBE_POS;
    if row < rows {
        let begin = row * width;
        let place = from + row;
        let target = targets[place] as usize;
        let mut before = f32::new(LOWEST);
        if comptime!(!first) {
            before = running[3 * place];
        }
        let mut top = before;
        let mut i = UNIT_POS as usize;
        while i < width {
            top = max(top, logits[begin + i]);
            i += units;
        }
        let top = largest(top, &mut memory);
        let mut sum = f32::new(0.0);
        let mut found = f32::new(0.0);
        let mut i = UNIT_POS as usize;
        while i < width {
            let z = logits[begin + i];
            if column + i == target {
                found = z;
            }
            let exp = f32::exp(z - top);
            logits[begin + i] = exp;
            sum += exp;
            i += units;
        }
        let sum = total(sum, &mut memory);
        let found = total(found, &mut memory);
        if UNIT_POS == 0 {
            let shrink = f32::exp(before - top);
            let mut all = sum;
            let mut logit = found;
            if comptime!(!first) {
                all += running[3 * place + 1] * shrink;
                logit += running[3 * place + 2];
            }
            let log = top + f32::ln(all);
            running[3 * place] = top;
            running[3 * place + 1] = all;
            running[3 * place + 2] = logit;
            log_sum_exp[place] = log;
            log_probs[place] = logit - log;
            factor[row] = shrink;
        }
    }
}

#[cube(launch_unchecked)]
fn logits_gradient(
    logits: &mut Array<f32>,
    targets: &Array<i32>,
    log_sum_exp: &Array<f32>,
    grad: &Array<f32>,
    values: usize,
    width: usize,
    from: usize,
    column: usize,
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let place = from + at / width;
        let hit = select(column + at % width == targets[place] as usize, 1.0, 0.0);
        logits[at] = grad[place] * (hit - f32::exp(logits[at] - log_sum_exp[place]));
    }
}
