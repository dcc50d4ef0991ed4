//! Log-probabilities of given tokens from hidden rows and the head's weight, on slices.
//!
//! A tile of logits (some rows, some columns of the vocabulary) is made at a time and forgotten; sums are merged from tile
//! to tile with a running maximum. Products use all threads, what stands between them is dealt by rows; so results do not
//! depend on the number of threads.

use rayon::prelude::*;

use super::linear::{Weight, widened};
use super::matrix::{Mat, MatMut, Threads, product, written};
use super::vector::{exp_sum, max, vectorize};

/// Rows that one thread does at a time between products.
const ROWS: usize = 16;

/// `log p`, `log Σ exp` `[rows]`, and with `want_slope` `∂ log p / ∂h = W[target] - Σ p W` `[rows, width]`.
pub struct Pass {
    pub log_probs: Vec<f32>,
    pub log_sum_exp: Vec<f32>,
    pub slope: Vec<f32>,
}

/// A row's sums over the columns seen so far.
#[derive(Clone, Copy)]
struct Running {
    top: f32,
    sum: f32,
    /// The target's logit.
    hit: f32,
}

/// One pass over `h` `[rows, width]` and `w` `[vocabulary, width]`, by tiles of `tile` rows and columns.
pub fn pass(
    h: &[f32],
    w: Weight,
    width: usize,
    vocabulary: usize,
    targets: &[usize],
    tile: [usize; 2],
    want_slope: bool,
) -> Pass {
    let rows = targets.len();
    let [tall, broad] = tile.map(|n| n.max(1));
    let mut out =
        Pass { log_probs: Vec::with_capacity(rows), log_sum_exp: Vec::with_capacity(rows), slope: vec![] };
    if want_slope {
        out.slope = vec![0.0; rows * width];
    }
    for from in (0..rows).step_by(tall) {
        let count = tall.min(rows - from);
        let h = Mat::new(&h[from * width..], count, width);
        let targets = &targets[from..from + count];
        let pull = if want_slope { &mut out.slope[from * width..][..count * width] } else { &mut [] };
        let mut running = vec![Running { top: f32::NEG_INFINITY, sum: 0.0, hit: f32::NAN }; count];
        for first in (0..vocabulary).step_by(broad) {
            let columns = broad.min(vocabulary - first);
            let part = first * width..(first + columns) * width;
            let wide;
            let w = match w {
                Weight::F32(w) => &w[part],
                Weight::Bf16(w) => {
                    wide = widened(&w[part]);
                    &wide
                }
            };
            let w = Mat::new(w, columns, width);
            let mut z = written(count * columns, |z| {
                product(MatMut::new(z, count, columns), false, 1.0, h, w.transposed(), Threads::All);
            });
            let merge = |chunk: usize, z: &mut [f32], running: &mut [Running], pull: &mut [f32]| {
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
                            if want_slope {
                                for x in &mut pull[r * width..][..width] {
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
            if want_slope {
                let pull_chunks = pull.par_chunks_mut((ROWS * width).max(1));
                chunks.zip(pull_chunks).for_each(|((i, (z, running)), pull)| merge(i, z, running, pull));
                product(
                    MatMut::new(pull, count, width),
                    true,
                    1.0,
                    Mat::new(&z, count, columns),
                    w,
                    Threads::All,
                );
            } else {
                chunks.for_each(|(i, (z, running))| merge(i, z, running, &mut []));
            }
        }
        out.log_sum_exp.extend(running.iter().map(|row| row.top + row.sum.ln()));
        out.log_probs.extend(running.iter().map(|row| row.hit - row.top - row.sum.ln()));
        if want_slope {
            pull.par_chunks_mut(width.max(1)).zip(&running).zip(targets).for_each(
                |((pull, row), &target)| {
                    let line = target * width..(target + 1) * width;
                    let own = match w {
                        Weight::F32(w) => w[line].to_vec(),
                        Weight::Bf16(w) => widened(&w[line]),
                    };
                    let share = 1.0 / row.sum;
                    for (pull, own) in pull.iter_mut().zip(own) {
                        *pull = own - *pull * share;
                    }
                },
            );
        }
    }
    out
}
