//! Linear layers with low-rank adapters, on slices.
//!
//! Layers that read the same input put their results side by side, `[rows, Σ out]`: W's product and the adapter's go into
//! the same place, which already holds residual and bias, so nothing is summed afterwards. The A's without dropout are
//! stacked into one product.

use std::borrow::Cow;

use half::bf16;
use rayon::prelude::*;

use super::matrix::{Mat, MatMut, Threads, product, written};
use super::vector::{dot, vectorize};

/// One layer, borrowed.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    /// `[out, in]`.
    pub weight: Weight<'a>,
    pub out: usize,
    /// `[out]`.
    pub bias: Option<&'a [f32]>,
    pub lora: Option<Factors<'a>>,
}

/// A weight as it is kept.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    F32(&'a [f32]),
    /// Widened a tile at a time.
    Bf16(&'a [bf16]),
}

/// An adapter's factors.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    /// `[rank, in]`.
    pub a: &'a [f32],
    /// `[out, rank]`.
    pub b: &'a [f32],
    pub rank: usize,
    pub scale: f32,
    pub dropout: Option<&'a Dropout>,
}

/// Which inputs of an adapter are kept, `[rows, in]`.
#[derive(Debug, Clone)]
pub struct Dropout {
    kept: Vec<u64>,
    scale: f32,
}

impl Dropout {
    /// From values that are not 0 where an input is kept; what is kept is multiplied by `scale`.
    pub fn new(kept: &[f32], scale: f32) -> Self {
        let word =
            |bits: &[f32]| bits.iter().enumerate().fold(0, |word, (i, x)| word | u64::from(*x != 0.0) << i);
        Self { kept: kept.chunks(64).map(word).collect(), scale }
    }

    fn factor(&self, at: usize) -> f32 {
        if self.kept[at / 64] >> (at % 64) & 1 == 1 { self.scale } else { 0.0 }
    }

    fn apply(&self, x: &[f32]) -> Vec<f32> {
        written(x.len(), |out| {
            out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (out, x))| {
                for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    *out = x * self.factor(chunk * CHUNK + i);
                }
            });
        })
    }

    fn add(&self, x: &[f32], to: &mut [f32]) {
        to.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (to, x))| {
            for (i, (to, x)) in to.iter_mut().zip(x).enumerate() {
                *to += x * self.factor(chunk * CHUNK + i);
            }
        });
    }
}

/// Values of a pass over memory that one thread does at a time.
const CHUNK: usize = 1 << 14;

/// Rows of a bf16 weight that are widened at a time.
const WIDENED: usize = 128;

/// Columns of a sum over rows that one thread does at a time.
const COLUMNS: usize = 256;

/// Adapters of a group that one product serves: all without dropout, or one with.
struct Stack<'a> {
    /// `[rank, in]`, each A times its scale.
    a: Vec<f32>,
    rank: usize,
    dropout: Option<&'a Dropout>,
    /// The layers, in order.
    layers: Vec<usize>,
}

fn stacks<'a>(layers: &[Layer<'a>]) -> Vec<Stack<'a>> {
    let mut out: Vec<Stack> = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let Some(lora) = layer.lora.filter(|lora| lora.rank > 0) else { continue };
        let scaled = lora.a.iter().map(|x| x * lora.scale);
        match out.iter_mut().find(|stack| stack.dropout.is_none() && lora.dropout.is_none()) {
            Some(stack) => {
                stack.a.extend(scaled);
                stack.rank += lora.rank;
                stack.layers.push(i);
            }
            None => out.push(Stack {
                a: scaled.collect(),
                rank: lora.rank,
                dropout: lora.dropout,
                layers: vec![i],
            }),
        }
    }
    out
}

impl Stack<'_> {
    /// What the A's of the stack read.
    fn input<'x>(&self, x: &'x [f32]) -> Cow<'x, [f32]> {
        self.dropout.map_or(Cow::Borrowed(x), |dropout| Cow::Owned(dropout.apply(x)))
    }
}

/// Widths of the results of a group.
fn width(layers: &[Layer]) -> usize {
    layers.iter().map(|layer| layer.out).sum()
}

/// Results `[rows, Σ out]`, and what stands between the factors of each stack, `[rows, Σ rank]`, for [`backward`].
pub fn forward(
    x: &[f32],
    [rows, inputs]: [usize; 2],
    layers: &[Layer],
    residual: Option<&[f32]>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let stacks = stacks(layers);
    let middles: Vec<Vec<f32>> = stacks
        .iter()
        .map(|stack| {
            let x = stack.input(x);
            let (x, a) = (Mat::new(&x, rows, inputs), Mat::new(&stack.a, stack.rank, inputs));
            written(rows * stack.rank, |h| {
                product(MatMut::new(h, rows, stack.rank), false, 1.0, x, a.transposed(), Threads::All);
            })
        })
        .collect();
    let width = width(layers);
    let y = written(rows * width, |y| {
        let started = residual.is_some() || layers.iter().any(|layer| layer.bias.is_some());
        if started {
            start(y, width, layers, residual);
        }
        let mut parts = MatMut::new(y, rows, width).deal(layers.iter().map(|layer| layer.out));
        for (layer, y) in layers.iter().zip(&mut parts) {
            apply(layer, Mat::new(x, rows, inputs), y, started);
        }
        for (stack, h) in stacks.iter().zip(&middles) {
            let (h, mut at) = (Mat::new(h, rows, stack.rank), 0);
            for &i in &stack.layers {
                let (y, out, lora) = (&mut parts[i], layers[i].out, layers[i].lora.expect("stacked"));
                let b = Mat::new(lora.b, out, lora.rank).transposed();
                product(y.reborrow(), true, 1.0, h.columns(at, lora.rank), b, Threads::All);
                at += lora.rank;
            }
        }
    });
    (y, middles)
}

/// Residual plus biases.
fn start(y: &mut [f32], width: usize, layers: &[Layer], residual: Option<&[f32]>) {
    let biased = layers.iter().any(|layer| layer.bias.is_some());
    let bias: Vec<f32> = layers
        .iter()
        .flat_map(|layer| (0..layer.out).map(move |i| layer.bias.map_or(0.0, |bias| bias[i])))
        .collect();
    let rows = (CHUNK / width.max(1)).max(1) * width;
    y.par_chunks_mut(rows.max(1)).enumerate().for_each(|(chunk, y)| {
        let residual = residual.map(|r| &r[chunk * rows..][..y.len()]);
        match residual {
            Some(residual) => y.copy_from_slice(residual),
            None => y.chunks_exact_mut(width).for_each(|y| y.copy_from_slice(&bias)),
        }
        if residual.is_some() && biased {
            for y in y.chunks_exact_mut(width) {
                y.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias);
            }
        }
    });
}

/// Rows up to which a weight is read once for all of them: gemm would pack it first, which costs as much as the product.
const FEW: usize = 8;

/// Outputs of a layer for few rows that one thread does at a time.
const OUTPUTS: usize = 64;

/// Multiplications that one thread does at least: below, waking another costs more than it does.
const LEAST: usize = 1 << 16;

/// `y (+)= x Wᵀ` for few rows: a dot product for each value.
fn apply_to_few(layer: &Layer, x: &[f32], inputs: usize, y: MatMut, keep: bool) {
    let rows = x.len() / inputs;
    let widths = (0..layer.out).step_by(OUTPUTS).map(|from| OUTPUTS.min(layer.out - from));
    let tasks: Vec<_> = y.deal(widths).into_iter().enumerate().collect();
    let least = LEAST / (rows * inputs * OUTPUTS);
    tasks.into_par_iter().with_min_len(least).for_each(|(task, mut y)| {
        let from = task * OUTPUTS;
        let mut wide = vec![0f32; if matches!(layer.weight, Weight::Bf16(_)) { inputs } else { 0 }];
        vectorize!(|m| {
            for out in 0..y.width() {
                let place = (from + out) * inputs;
                let w = match layer.weight {
                    Weight::F32(w) => &w[place..][..inputs],
                    Weight::Bf16(w) => {
                        let w = &w[place..][..inputs];
                        for i in 0..inputs {
                            wide[i] = f32::from_bits(u32::from(w[i].to_bits()) << 16);
                        }
                        &wide
                    }
                };
                for row in 0..rows {
                    let value = dot(m, &x[row * inputs..][..inputs], w);
                    let to = &mut y.row(row)[out];
                    *to = if keep { *to + value } else { value };
                }
            }
        });
    });
}

/// `y (+)= x Wᵀ`.
fn apply(layer: &Layer, x: Mat, y: &mut MatMut, keep: bool) {
    let inputs = x.width();
    if let Some(rows) = x.few_rows(FEW).filter(|rows| !rows.is_empty()) {
        return apply_to_few(layer, rows, inputs, y.reborrow(), keep);
    }
    match layer.weight {
        Weight::F32(w) => {
            let w = Mat::new(w, layer.out, inputs).transposed();
            product(y.reborrow(), keep, 1.0, x, w, Threads::All);
        }
        Weight::Bf16(w) => {
            // Dealt by rows of W, so that each is widened once.
            let tiles = w.chunks((WIDENED * inputs).max(1));
            let parts = y.reborrow().deal(tiles.clone().map(|tile| tile.len() / inputs));
            let tasks: Vec<_> = tiles.zip(parts).collect();
            tasks.into_par_iter().with_max_len(1).for_each(|(tile, y)| {
                let wide = widened(tile);
                let w = Mat::new(&wide, tile.len() / inputs, inputs).transposed();
                product(y, keep, 1.0, x, w, Threads::This);
            });
        }
    }
}

/// `dx (+)= dy W`.
fn pull(layer: &Layer, dy: Mat, dx: &mut [f32], [rows, inputs]: [usize; 2], keep: bool) {
    match layer.weight {
        Weight::F32(w) => {
            let w = Mat::new(w, layer.out, inputs);
            product(MatMut::new(dx, rows, inputs), keep, 1.0, dy, w, Threads::All);
        }
        Weight::Bf16(w) => {
            // Dealt by columns, in fixed widths; within one, tiles of rows are added in order.
            let widths = (0..inputs).step_by(COLUMNS).map(|at| COLUMNS.min(inputs - at));
            let parts = MatMut::new(dx, rows, inputs).deal(widths);
            let tasks: Vec<_> = (0..inputs).step_by(COLUMNS).zip(parts).collect();
            tasks.into_par_iter().with_max_len(1).for_each(|(column, mut dx)| {
                let count = COLUMNS.min(inputs - column);
                for (tile, w) in w.chunks(WIDENED * inputs).enumerate() {
                    let part: Vec<bf16> = w
                        .chunks_exact(inputs)
                        .flat_map(|row| &row[column..column + count])
                        .copied()
                        .collect();
                    let (wide, tall) = (widened(&part), part.len() / count);
                    let dy = dy.columns(tile * WIDENED, tall);
                    let keep = keep || tile > 0;
                    product(dx.reborrow(), keep, 1.0, dy, Mat::new(&wide, tall, count), Threads::This);
                }
            });
        }
    }
}

pub fn widened(from: &[bf16]) -> Vec<f32> {
    written(from.len(), |to| {
        vectorize!(|_m| {
            for (to, from) in to.iter_mut().zip(from) {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
        });
    })
}

/// What [`backward`] is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    pub weight: bool,
    pub bias: bool,
    pub factors: bool,
}

/// Gradients of one layer, those that were asked for.
#[derive(Debug, Default)]
pub struct Grads {
    pub weight: Option<Vec<f32>>,
    pub bias: Option<Vec<f32>>,
    pub factors: Option<[Vec<f32>; 2]>,
}

/// Gradients of the input (with `want_x`) and of each layer, from that of the results. The residual's is `dy` itself.
pub fn backward(
    x: &[f32],
    [rows, inputs]: [usize; 2],
    layers: &[Layer],
    middles: &[Vec<f32>],
    dy: &[f32],
    want_x: bool,
    wanted: &[Wanted],
) -> (Option<Vec<f32>>, Vec<Grads>) {
    let width = width(layers);
    let mut ends = 0;
    let of_layer: Vec<Mat> = layers
        .iter()
        .map(|layer| {
            ends += layer.out;
            Mat::new(dy, rows, width).columns(ends - layer.out, layer.out)
        })
        .collect();
    let mut grads: Vec<Grads> = layers.iter().map(|_| Grads::default()).collect();
    for ((layer, wanted), (grad, &dy)) in layers.iter().zip(wanted).zip(grads.iter_mut().zip(&of_layer)) {
        if wanted.weight {
            let x = Mat::new(x, rows, inputs);
            grad.weight = Some(written(layer.out * inputs, |d| {
                product(MatMut::new(d, layer.out, inputs), false, 1.0, dy.transposed(), x, Threads::All);
            }));
        }
    }
    if wanted.iter().any(|wanted| wanted.bias) {
        let sums = column_sums(dy, width);
        let mut from = 0;
        for ((layer, wanted), grad) in layers.iter().zip(wanted).zip(&mut grads) {
            grad.bias = wanted.bias.then(|| sums[from..from + layer.out].to_vec());
            from += layer.out;
        }
    }
    let mut dx = want_x.then(|| {
        written(rows * inputs, |dx| {
            if layers.is_empty() {
                dx.fill(0.0);
            }
            for (i, (layer, &dy)) in layers.iter().zip(&of_layer).enumerate() {
                pull(layer, dy, dx, [rows, inputs], i > 0);
            }
        })
    });
    for (stack, h) in stacks(layers).iter().zip(middles) {
        if dx.is_none() && !stack.layers.iter().any(|&i| wanted[i].factors) {
            continue;
        }
        let (h, mut at) = (Mat::new(h, rows, stack.rank), 0);
        // Of what stands between the factors.
        let dh = written(rows * stack.rank, |dh| {
            let ranks = stack.layers.iter().map(|&i| layers[i].lora.expect("stacked").rank);
            for (&i, dh) in stack.layers.iter().zip(MatMut::new(dh, rows, stack.rank).deal(ranks)) {
                let lora = layers[i].lora.expect("stacked");
                let b = Mat::new(lora.b, layers[i].out, lora.rank);
                product(dh, false, 1.0, of_layer[i], b, Threads::All);
            }
        });
        let dh = Mat::new(&dh, rows, stack.rank);
        let read = stack.input(x);
        for &i in &stack.layers {
            let (lora, out) = (layers[i].lora.expect("stacked"), layers[i].out);
            if wanted[i].factors {
                let (h, dh) = (h.columns(at, lora.rank), dh.columns(at, lora.rank));
                let da = written(lora.rank * inputs, |da| {
                    let (to, x) = (MatMut::new(da, lora.rank, inputs), Mat::new(&read, rows, inputs));
                    product(to, false, lora.scale, dh.transposed(), x, Threads::All);
                });
                let db = written(out * lora.rank, |db| {
                    let to = MatMut::new(db, out, lora.rank);
                    product(to, false, 1.0, of_layer[i].transposed(), h, Threads::All);
                });
                grads[i].factors = Some([da, db]);
            }
            at += lora.rank;
        }
        if let Some(dx) = &mut dx {
            let a = Mat::new(&stack.a, stack.rank, inputs);
            match stack.dropout {
                None => product(MatMut::new(dx, rows, inputs), true, 1.0, dh, a, Threads::All),
                Some(dropout) => {
                    let part = written(rows * inputs, |part| {
                        product(MatMut::new(part, rows, inputs), false, 1.0, dh, a, Threads::All);
                    });
                    dropout.add(&part, dx);
                }
            }
        }
    }
    (dx, grads)
}

/// Sums over rows of `[rows, width]`, in order.
pub fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    written(width, |sums| {
        sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(chunk, sums)| {
            sums.fill(0.0);
            vectorize!(|_m| {
                for row in x.chunks_exact(width) {
                    for (sum, x) in sums.iter_mut().zip(&row[chunk * COLUMNS..]) {
                        *sum += x;
                    }
                }
            });
        });
    })
}
