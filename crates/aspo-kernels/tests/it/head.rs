//! The output head's pass against plain loops.

use aspo_kernels::{HeadWant, head_pass};
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn_flex::Flex;

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::support::{Gpu, halves};
use crate::support::{close, noise, slope, tensor, values};

const ALONE: HeadWant = HeadWant { dlogp_dh: false, keep: 0 };
const FROZEN: HeadWant = HeadWant { dlogp_dh: true, keep: 0 };

/// `log p` and `log Σ exp` of each row.
fn expected(h: &[f64], w: &[f64], width: usize, targets: &[usize]) -> [Vec<f64>; 2] {
    let row = |(h, target): (&[f64], &usize)| {
        let z: Vec<f64> = w.chunks(width).map(|w| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>()).collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        (z[*target] - lse, lse)
    };
    let both: (Vec<f64>, Vec<f64>) = h.chunks(width).zip(targets).map(row).unzip();
    [both.0, both.1]
}

/// `W[target] - softmax(W h) W` of each row.
fn dlogp_dh(h: &[f64], w: &[f64], width: usize, targets: &[usize]) -> Vec<f64> {
    let [_, lse] = expected(h, w, width, targets);
    let row = |((h, target), lse): ((&[f64], &usize), &f64)| {
        let mut out = w[target * width..][..width].to_vec();
        for w in w.chunks(width) {
            let p = (w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() - lse).exp();
            out.iter_mut().zip(w).for_each(|(out, w)| *out -= p * w);
        }
        out
    };
    h.chunks(width).zip(targets).zip(&lse).flat_map(row).collect()
}

#[test]
fn every_tile_gives_the_values_and_slopes_of_plain_loops() {
    for (rows, width, vocabulary) in [(1, 1, 1), (5, 7, 11), (37, 16, 300), (3, 40, 65)] {
        // Logits up to 10 or so, that running maxima change.
        let h: Vec<f64> = noise(rows * width, 1).iter().map(|x| 4.0 * x).collect();
        let w = noise(vocabulary * width, 2);
        let targets: Vec<usize> = (0..rows).map(|i| (i * 7 + 3) % vocabulary).collect();
        let [log_probs, log_sum_exp] = expected(&h, &w, width, &targets);
        let (h_t, w_t) = (tensor::<Flex, 2>(&h, [rows, width]), tensor(&w, [vocabulary, width]));
        for tile in [[1, 1], [4, 3], [16, 64], [1000, 1000]] {
            let pass = head_pass(&h_t, &w_t, &targets, tile, FROZEN).expect("flex has kernels");
            close("log p", &values(pass.log_probs), &log_probs, 3e-6);
            close("log sum", &values(pass.log_sum_exp), &log_sum_exp, 2e-6);
            close("dlogp/dh", &values(pass.dlogp_dh.unwrap()), &dlogp_dh(&h, &w, width, &targets), 5e-6);
            let pass = head_pass(&h_t, &w_t, &targets, tile, ALONE).expect("flex has kernels");
            close("log p alone", &values(pass.log_probs), &log_probs, 3e-6);
            assert!(pass.dlogp_dh.is_none());
        }
        let narrow = w_t.clone().cast(DType::BF16);
        let wide = narrow.clone().cast(DType::F32);
        let [a, b] = [narrow, wide].map(|w| head_pass(&h_t, &w, &targets, [16, 64], FROZEN).unwrap());
        close("half precision", &values(a.dlogp_dh.unwrap()), &values(b.dlogp_dh.unwrap()), 0.0);
    }
}

/// Gradients of `Σ g log p` in `h` and `w`, by plain loops.
fn gradients(h: &[f64], w: &[f64], width: usize, targets: &[usize], g: &[f64]) -> [Vec<f64>; 2] {
    let [_, lse] = expected(h, w, width, targets);
    let (mut dh, mut dw) = (vec![0.0; h.len()], vec![0.0; w.len()]);
    for (t, h) in h.chunks(width).enumerate() {
        for (v, w) in w.chunks(width).enumerate() {
            let p = (w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() - lse[t]).exp();
            let dz = g[t] * (f64::from(u8::from(targets[t] == v)) - p);
            for k in 0..width {
                dh[t * width + k] += dz * w[k];
                dw[v * width + k] += dz * h[k];
            }
        }
    }
    [dh, dw]
}

#[test]
fn a_trained_heads_gradients_are_those_of_plain_loops_whatever_the_tile_and_whatever_is_kept() {
    for (rows, width, vocabulary) in [(1, 1, 1), (5, 7, 11), (37, 16, 300), (3, 40, 65)] {
        let h: Vec<f64> = noise(rows * width, 1).iter().map(|x| 4.0 * x).collect();
        let (w, g) = (noise(vocabulary * width, 2), noise(rows, 3));
        let targets: Vec<usize> = (0..rows).map(|i| (i * 7 + 3) % vocabulary).collect();
        let [dh, dw] = gradients(&h, &w, width, &targets, &g);
        let (h_t, w_t) = (tensor::<Flex, 2>(&h, [rows, width]), tensor(&w, [vocabulary, width]));
        let g_t = tensor(&g, [rows]);
        for tile in [[1, 1], [4, 3], [16, 64], [1000, 1000]] {
            // Nothing, some tiles, everything.
            for keep in [0, rows * vocabulary / 2, rows * vocabulary] {
                let pass = head_pass(&h_t, &w_t, &targets, tile, HeadWant { keep, ..ALONE }).unwrap();
                let found = pass.gradients(&h_t, &w_t, &targets, &g_t, tile, true).unwrap();
                // Sums of up to 300 rounded terms, of sizes up to 4.
                close("dh", &values(found.hidden.unwrap()), &dh, 5e-6);
                close("dW", &values(found.head), &dw, 5e-6);
            }
        }
        let narrow = w_t.clone().cast(DType::BF16);
        let wide = narrow.clone().cast(DType::F32);
        let [a, b] = [narrow, wide].map(|w| {
            let pass = head_pass(&h_t, &w, &targets, [16, 64], ALONE).unwrap();
            let found = pass.gradients(&h_t, &w, &targets, &g_t, [16, 64], false).unwrap();
            assert!(found.hidden.is_none());
            values(found.head)
        });
        close("half precision", &a, &b, 0.0);
    }
}

#[test]
fn a_trained_heads_gradients_are_difference_quotients() {
    let (width, targets) = (5, [2, 0, 7]);
    let (h, w, g) = (noise(3 * width, 1), noise(9 * width, 2), noise(3, 3));
    let [dh, dw] = [
        slope(&h, &g, |h| expected(h, &w, width, &targets)[0].clone()),
        slope(&w, &g, |w| expected(&h, w, width, &targets)[0].clone()),
    ];
    let (h, w) = (tensor::<Flex, 2>(&h, [3, width]), tensor(&w, [9, width]));
    let pass = head_pass(&h, &w, &targets, [2, 4], ALONE).unwrap();
    let found = pass.gradients(&h, &w, &targets, &tensor(&g, [3]), [2, 4], true).unwrap();
    // f32's rounding; the quotients are good to 1e-9.
    close("dh", &values(found.hidden.unwrap()), &dh, 2e-6);
    close("dW", &values(found.head), &dw, 2e-6);
}

#[test]
fn results_are_the_same_to_the_bit_with_any_number_of_threads() {
    let (rows, width, vocabulary, tile) = (70, 48, 1100, [64, 512]);
    let targets: Vec<usize> = (0..rows).map(|i| (i * 7 + 3) % vocabulary).collect();
    let h = tensor::<Flex, 2>(&noise(rows * width, 1), [rows, width]);
    let (w, g) =
        (tensor(&noise(vocabulary * width, 2), [vocabulary, width]), tensor(&noise(rows, 3), [rows]));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let pass = head_pass(&h, &w, &targets, tile, HeadWant { dlogp_dh: true, keep: 40_000 }).unwrap();
            let found = pass.gradients(&h, &w, &targets, &g, tile, true).unwrap();
            [pass.log_probs, pass.log_sum_exp]
                .map(values)
                .into_iter()
                .chain([pass.dlogp_dh.unwrap(), found.hidden.unwrap(), found.head].map(values))
                .collect::<Vec<_>>()
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn a_logit_that_is_no_number_shows() {
    let mut h = noise(4 * 8, 1);
    h[9] = f64::NAN;
    let (h, w) = (tensor::<Flex, 2>(&h, [4, 8]), tensor(&noise(40 * 8, 2), [40, 8]));
    let found = values(head_pass(&h, &w, &[0, 1, 2, 39], [2, 16], FROZEN).unwrap().log_probs);
    assert!(found[1].is_nan() && [0, 2, 3].iter().all(|i| found[*i].is_finite()), "{found:?}");
}

#[test]
fn other_backends_and_graphs_have_no_pass() {
    let of = |x: &[f64]| tensor::<burn_ndarray::NdArray, 2>(x, [1, 2]);
    assert!(head_pass(&of(&[1.0, 2.0]), &of(&[1.0, 2.0]), &[0], [1, 1], ALONE).is_none());
    let of = |x: &[f64]| tensor::<Autodiff<Flex>, 2>(x, [1, 2]);
    let (h, w) = (of(&[1.0, 2.0]), of(&[1.0, 2.0]));
    for (h, w) in [(h.clone().require_grad(), w.clone()), (h.clone(), w.clone().require_grad())] {
        assert!(head_pass(&h, &w, &[0], [1, 1], ALONE).is_none(), "it has no backward of its own");
    }
    let found = head_pass(&h, &w, &[0], [1, 1], FROZEN).expect("no gradient is asked of these");
    assert_eq!(values(found.log_probs), [0.0], "of one token, that one is certain");
}

/// On GPUs in f32, where no exponentials are kept.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn every_tile_on_a_gpu_gives_the_values_and_gradients_of_plain_loops() {
    type B = Gpu;
    for (rows, width, vocabulary) in [(1, 1, 1), (5, 7, 11), (37, 16, 300), (3, 40, 65)] {
        let h: Vec<f64> = noise(rows * width, 1).iter().map(|x| 4.0 * x).collect();
        let (w, g) = (noise(vocabulary * width, 2), noise(rows, 3));
        let targets: Vec<usize> = (0..rows).map(|i| (i * 7 + 3) % vocabulary).collect();
        let [log_probs, log_sum_exp] = expected(&h, &w, width, &targets);
        let [dh, dw] = gradients(&h, &w, width, &targets, &g);
        let (h_t, w_t) = (tensor::<B, 2>(&h, [rows, width]), tensor(&w, [vocabulary, width]));
        let g_t = tensor(&g, [rows]);
        for tile in [[2, 3], [16, 64], [1000, 1000]] {
            let pass = head_pass(&h_t, &w_t, &targets, tile, FROZEN).expect("GPUs have kernels");
            let found = pass.gradients(&h_t, &w_t, &targets, &g_t, tile, true).unwrap();
            close("log p", &values(pass.log_probs), &log_probs, 3e-6);
            close("log sum", &values(pass.log_sum_exp), &log_sum_exp, 2e-6);
            close("dlogp/dh", &values(pass.dlogp_dh.unwrap()), &dlogp_dh(&h, &w, width, &targets), 5e-6);
            close("dh", &values(found.hidden.unwrap()), &dh, 5e-6);
            close("dW", &values(found.head), &dw, 5e-6);
        }
    }
}

/// Products of halves are of halves, and summed and told in f32.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn logits_of_halves_are_summed_and_told_in_f32_on_a_gpu() {
    type B = Gpu;
    let (rows, width, vocabulary) = (37, 160, 300);
    for (dtype, rounding) in halves() {
        let half = |values: &[f64], dims| tensor::<B, 2>(values, dims).cast(dtype);
        let round = |exact: Vec<f64>| values(half(&exact, [1, exact.len()]));
        let (h, w) = (round(noise(rows * width, 1)), round(noise(vocabulary * width, 2)));
        let targets: Vec<usize> = (0..rows).map(|i| (i * 7 + 3) % vocabulary).collect();
        let [log_probs, log_sum_exp] = expected(&h, &w, width, &targets);
        let (h_t, w_t) = (half(&h, [rows, width]), half(&w, [vocabulary, width]));
        for tile in [[16, 64], [1000, 1000]] {
            let pass = head_pass(&h_t, &w_t, &targets, tile, FROZEN).expect("GPUs have kernels");
            // Logits of this size in halves would be a hundred times as far away, or more.
            close("log p", &values(pass.log_probs), &log_probs, 1e-5);
            close("log sum", &values(pass.log_sum_exp), &log_sum_exp, 1e-5);
            // Exponentials in halves, whose errors are of both signs.
            close("dlogp/dh", &values(pass.dlogp_dh.unwrap()), &dlogp_dh(&h, &w, width, &targets), rounding);
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn a_logit_that_is_no_number_shows_on_a_gpu() {
    let mut h = noise(4 * 8, 1);
    h[9] = f64::NAN;
    let (h, w) = (tensor::<Gpu, 2>(&h, [4, 8]), tensor(&noise(40 * 8, 2), [40, 8]));
    let found = values(head_pass(&h, &w, &[0, 1, 2, 39], [2, 16], FROZEN).unwrap().log_probs);
    assert!(found[1].is_nan() && [0, 2, 3].iter().all(|i| found[*i].is_finite()), "{found:?}");
}
