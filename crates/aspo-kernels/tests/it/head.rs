//! The output head's pass against plain loops.

use aspo_kernels::head_pass;
use burn::backend::Autodiff;
use burn::tensor::DType;
use burn_flex::Flex;

use crate::support::{close, noise, tensor, values};

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
fn slope(h: &[f64], w: &[f64], width: usize, targets: &[usize]) -> Vec<f64> {
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
            let pass = head_pass(&h_t, &w_t, &targets, tile, true).expect("flex has kernels");
            close("log p", &values(pass.log_probs), &log_probs, 3e-6);
            close("log sum", &values(pass.log_sum_exp), &log_sum_exp, 2e-6);
            close("slope", &values(pass.slope.unwrap()), &slope(&h, &w, width, &targets), 5e-6);
            let pass = head_pass(&h_t, &w_t, &targets, tile, false).expect("flex has kernels");
            close("log p alone", &values(pass.log_probs), &log_probs, 3e-6);
            assert!(pass.slope.is_none());
        }
        let narrow = w_t.clone().cast(DType::BF16);
        let wide = narrow.clone().cast(DType::F32);
        let [a, b] = [narrow, wide].map(|w| head_pass(&h_t, &w, &targets, [16, 64], true).unwrap());
        close("half precision", &values(a.slope.unwrap()), &values(b.slope.unwrap()), 0.0);
    }
}

#[test]
fn a_logit_that_is_no_number_shows() {
    let mut h = noise(4 * 8, 1);
    h[9] = f64::NAN;
    let (h, w) = (tensor::<Flex, 2>(&h, [4, 8]), tensor(&noise(40 * 8, 2), [40, 8]));
    let found = values(head_pass(&h, &w, &[0, 1, 2, 39], [2, 16], true).unwrap().log_probs);
    assert!(found[1].is_nan() && [0, 2, 3].iter().all(|i| found[*i].is_finite()), "{found:?}");
}

#[test]
fn other_backends_and_graphs_have_no_pass() {
    let of = |x: &[f64]| tensor::<burn_ndarray::NdArray, 2>(x, [1, 2]);
    assert!(head_pass(&of(&[1.0, 2.0]), &of(&[1.0, 2.0]), &[0], [1, 1], false).is_none());
    let of = |x: &[f64]| tensor::<Autodiff<Flex>, 2>(x, [1, 2]);
    let (h, w) = (of(&[1.0, 2.0]), of(&[1.0, 2.0]));
    for (h, w) in [(h.clone().require_grad(), w.clone()), (h.clone(), w.clone().require_grad())] {
        assert!(head_pass(&h, &w, &[0], [1, 1], false).is_none(), "it has no backward of its own");
    }
    let found = head_pass(&h, &w, &[0], [1, 1], true).expect("no gradient is asked of these");
    assert_eq!(values(found.log_probs), [0.0], "of one token, that one is certain");
}
