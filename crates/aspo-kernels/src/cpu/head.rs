//! Log-probabilities of given tokens from hidden rows and the head's weight, on slices.
//!
//! A tile of logits (some rows, some columns of the vocabulary) is made at a time and forgotten, or kept for the head's
//! gradient as far as a budget goes; sums are merged from tile to tile with a running maximum. Products use all threads, what
//! stands between them is dealt by rows; so results do not depend on the number of threads.

use std::borrow::Cow;

use rayon::prelude::*;

use super::linear::{Weight, widened};
use super::matrix::{Mat, MatMut, Threads, product};
use super::vector::{exp, exp_sum, max, vectorize};
use crate::pass::{HeadWant, Tile};

/// Rows that one thread does at a time between products.
const ROWS: usize = 16;

/// `log p`, `log Σ exp` `[rows]`, and if wanted `∂ log p / ∂h = W[target] - Σ p W` `[rows, width]`.
pub struct Pass {
    pub log_probs: Vec<f32>,
    pub log_sum_exp: Vec<f32>,
    pub dlogp_dh: Vec<f32>,
    /// The first tiles, row by row of tiles.
    pub kept: Vec<Tile>,
}

/// The sizes of `h` `[rows, width]`, `w` `[vocabulary, width]` and a tile of their product.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub width: usize,
    pub vocabulary: usize,
    pub tile: [usize; 2],
}

impl Shape {
    fn steps(self, rows: usize) -> [Vec<(usize, usize)>; 2] {
        let cut = |n: usize, step: usize| -> Vec<(usize, usize)> {
            let step = step.max(1);
            (0..n).step_by(step).map(|from| (from, step.min(n - from))).collect()
        };
        [cut(rows, self.tile[0]), cut(self.vocabulary, self.tile[1])]
    }

    /// Rows of the weight, widened.
    fn part<'a>(self, w: Weight<'a>, (first, columns): (usize, usize)) -> Cow<'a, [f32]> {
        let part = first * self.width..(first + columns) * self.width;
        match w {
            Weight::F32(w) => Cow::Borrowed(&w[part]),
            Weight::Bf16(w) => Cow::Owned(widened(&w[part])),
        }
    }
}

/// A row's sums over the columns seen so far.
#[derive(Clone, Copy)]
struct Running {
    top: f32,
    sum: f32,
    /// The target's logit.
    hit: f32,
}

/// One pass over `h` `[rows, width]` and `w` `[vocabulary, width]`.
pub fn pass(h: &[f32], w: Weight, shape: Shape, targets: &[usize], want: HeadWant) -> Pass {
    let (rows, width) = (targets.len(), shape.width);
    let [row_steps, column_steps] = shape.steps(rows);
    let mut out = Pass {
        log_probs: Vec::with_capacity(rows),
        log_sum_exp: Vec::with_capacity(rows),
        dlogp_dh: if want.dlogp_dh { vec![0.0; rows * width] } else { vec![] },
        kept: vec![],
    };
    let (mut room, mut keeps) = (want.keep, true);
    let mut spare = vec![];
    for (from, count) in row_steps {
        let h = Mat::new(&h[from * width..], count, width);
        let targets = &targets[from..from + count];
        // Σ exp(z - top) W: the softmax times the head, up to the sum.
        let softmax_head =
            if want.dlogp_dh { &mut out.dlogp_dh[from * width..][..count * width] } else { &mut [] };
        let mut running = vec![Running { top: f32::NEG_INFINITY, sum: 0.0, hit: f32::NAN }; count];
        for &(first, columns) in &column_steps {
            let w = shape.part(w, (first, columns));
            let w = Mat::new(&w, columns, width);
            let mut z = core::mem::take(&mut spare);
            logits(&mut z, h, w);
            let merge = |chunk: usize, z: &mut [f32], running: &mut [Running], softmax_head: &mut [f32]| {
                let targets = &targets[chunk * ROWS..];
                vectorize!(|m| {
                    for (r, (z, row)) in z.chunks_exact_mut(columns).zip(running).enumerate() {
                        if let Some(place) = targets[r].checked_sub(first)
                            && place < columns
                        {
                            row.hit = z[place];
                        }
                        let best = max(z);
                        if best > row.top {
                            let factor = (row.top - best).exp();
                            row.sum *= factor;
                            if want.dlogp_dh {
                                for x in &mut softmax_head[r * width..][..width] {
                                    *x *= factor;
                                }
                            }
                            row.top = best;
                        }
                        row.sum += exp_sum(m, z, 1.0, row.top);
                    }
                });
            };
            let chunks = z.par_chunks_mut(ROWS * columns).zip(running.par_chunks_mut(ROWS)).enumerate();
            if want.dlogp_dh {
                let heads = softmax_head.par_chunks_mut((ROWS * width).max(1));
                chunks.zip(heads).for_each(|((i, (z, running)), head)| merge(i, z, running, head));
                let to = MatMut::new(softmax_head, count, width);
                product(to, true, 1.0, Mat::new(&z, count, columns), w, Threads::All);
            } else {
                chunks.for_each(|(i, (z, running))| merge(i, z, running, &mut []));
            }
            keeps &= z.len() <= room;
            if keeps {
                room -= z.len();
                out.kept.push(Tile { exp: z, top: running.iter().map(|row| row.top).collect() });
            } else {
                spare = z;
            }
        }
        out.log_sum_exp.extend(running.iter().map(|row| row.top + row.sum.ln()));
        out.log_probs.extend(running.iter().map(|row| row.hit - row.top - row.sum.ln()));
        if want.dlogp_dh {
            softmax_head.par_chunks_mut(width.max(1)).zip(&running).zip(targets).for_each(
                |((softmax_head, row), &target)| {
                    let own = shape.part(w, (target, 1));
                    let share = 1.0 / row.sum;
                    for (x, own) in softmax_head.iter_mut().zip(&*own) {
                        *x = own - *x * share;
                    }
                },
            );
        }
    }
    out
}

/// `h wᵀ` into a buffer, which is made larger or smaller.
fn logits(z: &mut Vec<f32>, h: Mat, w: Mat) {
    let (rows, columns) = (h.transposed().width(), w.transposed().width());
    let n = rows * columns;
    if z.len() < n {
        *z = vec![0.0; n];
    }
    z.truncate(n);
    product(MatMut::new(z, rows, columns), false, 1.0, h, w.transposed(), Threads::All);
}

/// Gradients of `h`, if wanted, and of `w`, from `grad` `[rows]` of the log-probabilities: with `p` the softmax,
/// `dz = grad (onehot(target) - p)`, `dh = dz W`, `dW = dzᵀ h`. `log_sum_exp` and `kept` are those of the [`Pass`]; tiles that
/// were not kept are made again. The vocabulary is the outer loop: each part of `dW` is done before the next.
pub fn gradients(
    h: &[f32],
    w: Weight,
    shape: Shape,
    targets: &[usize],
    [log_sum_exp, grad]: [&[f32]; 2],
    kept: &[Tile],
    want_hidden: bool,
) -> (Option<Vec<f32>>, Vec<f32>) {
    let (rows, width) = (targets.len(), shape.width);
    let [row_steps, column_steps] = shape.steps(rows);
    let mut dh = want_hidden.then(|| vec![0.0; rows * width]);
    let mut dw = vec![0.0; shape.vocabulary * width];
    let mut dz = vec![];
    for (j, &(first, columns)) in column_steps.iter().enumerate() {
        let w = shape.part(w, (first, columns));
        let w = Mat::new(&w, columns, width);
        let dw = &mut dw[first * width..][..columns * width];
        for (i, &(from, count)) in row_steps.iter().enumerate() {
            let h = Mat::new(&h[from * width..], count, width);
            let kept = kept.get(i * column_steps.len() + j);
            match kept {
                Some(tile) => dz.resize(tile.exp.len(), 0.0),
                None => logits(&mut dz, h, w),
            }
            dz.par_chunks_mut(ROWS * columns).enumerate().for_each(|(chunk, dz)| {
                vectorize!(|m| {
                    for (r, dz) in dz.chunks_exact_mut(columns).enumerate() {
                        let row = chunk * ROWS + r;
                        let (g, lse) = (grad[from + row], log_sum_exp[from + row]);
                        if let Some(tile) = kept {
                            let factor = -g * (tile.top[row] - lse).exp();
                            let exp = &tile.exp[row * columns..][..columns];
                            for k in 0..columns {
                                dz[k] = factor * exp[k];
                            }
                        } else {
                            for z in dz.iter_mut() {
                                *z = -g * exp(m, *z - lse);
                            }
                        }
                        if let Some(place) = targets[from + row].checked_sub(first)
                            && place < columns
                        {
                            dz[place] += g;
                        }
                    }
                });
            });
            let dz = Mat::new(&dz, count, columns);
            if let Some(dh) = &mut dh {
                let to = MatMut::new(&mut dh[from * width..], count, width);
                product(to, j > 0, 1.0, dz, w, Threads::All);
            }
            let to = MatMut::new(dw, columns, width);
            product(to, i > 0, 1.0, dz.transposed(), h, Threads::All);
        }
    }
    (dh, dw)
}
