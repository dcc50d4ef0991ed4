//! Groups of linear layers with adapters, bias, dropout, residual, and what comes before them.

use aspo_kernels::{Activation, Before, Factors, Layer, linear};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::norm::{KINDS, act, layer, rms};
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::support::{Gpu, halves};
use crate::support::{close, leaf, noise, on_backends, slope, tensor, values};

on_backends!(
    any_group_gives_the_values_and_gradients_of_plain_loops,
    dropout_scales_what_it_keeps_and_its_gradient_is_that_of_its_own_mask,
    an_adapter_of_zeros_changes_nothing_to_the_bit,
    rows_of_none_and_results_of_one_are_right,
);

/// One layer by its sizes.
#[derive(Debug, Clone, Copy)]
struct Shape {
    out: usize,
    bias: bool,
    /// Of the adapter; none without one.
    rank: Option<usize>,
}

#[derive(Debug, Clone)]
struct Case {
    rows: usize,
    inputs: usize,
    layers: Vec<Shape>,
    residual: bool,
    /// 0 nothing, 1 RMS norm, 2 layer norm, then activations, then gates.
    before: usize,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = (1usize..6, any::<bool>(), prop::option::of(0usize..4)).prop_map(|(out, bias, rank)| Shape {
        out,
        bias,
        rank,
    });
    // Few rows go another way than many.
    let rows = prop_oneof![1usize..5, 9usize..12];
    (rows, 2usize..7, prop::collection::vec(shape, 1..4), any::<bool>(), 0usize..13, any::<u64>()).prop_map(
        |(rows, inputs, layers, residual, before, seed)| Case {
            rows,
            inputs,
            layers,
            residual,
            before,
            seed,
        },
    )
}

const EPS: f64 = 1e-2;
const SCALE: f64 = 1.5;

/// All numbers of a case: input, residual, norm, then W, b, A, B of each layer.
struct Numbers(Vec<Vec<f64>>);

impl Case {
    fn width(&self) -> usize {
        self.layers.iter().map(|l| l.out).sum()
    }

    /// Values of a row of the input.
    fn given(&self) -> usize {
        if self.before >= 8 { 2 * self.inputs } else { self.inputs }
    }

    fn numbers(&self) -> Numbers {
        let mut sizes = vec![self.rows * self.given(), self.rows * self.width(), self.inputs, self.inputs];
        for l in &self.layers {
            let rank = l.rank.unwrap_or(0);
            sizes.extend([l.out * self.inputs, l.out, rank * self.inputs, l.out * rank]);
        }
        Numbers(sizes.iter().zip(self.seed..).map(|(n, seed)| noise(*n, seed.wrapping_mul(77) | 1)).collect())
    }

    fn expected(&self, numbers: &[Vec<f64>]) -> Vec<f64> {
        let (x, n) = (&numbers[0], self.inputs);
        let read = match self.before {
            0 => x.clone(),
            1 => rms(x, &numbers[2], EPS),
            2 => layer(x, &numbers[2], &numbers[3], EPS),
            3..=7 => x.iter().map(|x| act(KINDS[self.before - 3], *x)).collect(),
            _ => {
                let kind = KINDS[self.before - 8];
                x.chunks(2 * n).flat_map(|x| (0..n).map(move |i| act(kind, x[i]) * x[n + i])).collect()
            }
        };
        let mut y = Vec::new();
        for row in 0..self.rows {
            let x = &read[row * n..][..n];
            for (l, p) in self.layers.iter().zip(numbers[4..].chunks(4)) {
                let rank = l.rank.unwrap_or(0);
                let dot = |w: &[f64]| -> f64 { w.iter().zip(x).map(|(w, x)| w * x).sum() };
                let middle: Vec<f64> = (0..rank).map(|r| SCALE * dot(&p[2][r * n..][..n])).collect();
                for o in 0..l.out {
                    let adapter: f64 = (0..rank).map(|r| p[3][o * rank + r] * middle[r]).sum();
                    let bias = if l.bias { p[1][o] } else { 0.0 };
                    let residual = if self.residual { numbers[1][y.len()] } else { 0.0 };
                    y.push(dot(&p[0][o * n..][..n]) + adapter + bias + residual);
                }
            }
        }
        y
    }
}

/// Leaves of a case, in the order of its numbers.
struct Leaves<B: Backend> {
    x: Tensor<Autodiff<B>, 3>,
    residual: Tensor<Autodiff<B>, 3>,
    norm: [Tensor<Autodiff<B>, 1>; 2],
    layers: Vec<Layer<Autodiff<B>>>,
}

impl<B: Backend> Leaves<B> {
    fn new(case: &Case, numbers: &[Vec<f64>], dropout: f64) -> Self {
        let n = case.inputs;
        let layers = case.layers.iter().zip(numbers[4..].chunks(4)).map(|(l, p)| Layer {
            weight: leaf::<B, 2>(&p[0], [l.out, n]),
            bias: l.bias.then(|| leaf::<B, 1>(&p[1], [l.out])),
            lora: l.rank.filter(|rank| *rank > 0).map(|rank| Factors {
                a: leaf::<B, 2>(&p[2], [rank, n]),
                b: leaf::<B, 2>(&p[3], [l.out, rank]),
                scale: SCALE,
                dropout,
            }),
        });
        Self {
            // Three axes, as a model's.
            x: leaf::<B, 3>(&numbers[0], [1, case.rows, case.given()]),
            residual: leaf::<B, 3>(&numbers[1], [1, case.rows, case.width()]),
            norm: [leaf::<B, 1>(&numbers[2], [n]), leaf::<B, 1>(&numbers[3], [n])],
            layers: layers.collect(),
        }
    }

    fn before(&self, case: &Case) -> Before<Autodiff<B>> {
        let [weight, bias] = self.norm.clone();
        match case.before {
            0 => Before::Nothing,
            1 => Before::RmsNorm { weight, eps: EPS },
            2 => Before::LayerNorm { weight, bias, eps: EPS },
            3..=7 => Before::Activation(KINDS[case.before - 3]),
            _ => Before::Gated(KINDS[case.before - 8]),
        }
    }

    fn run(&self, case: &Case) -> Tensor<Autodiff<B>, 3> {
        let residual = case.residual.then(|| self.residual.clone());
        linear(self.x.clone(), self.before(case), &self.layers, residual)
    }
}

fn any_group_gives_the_values_and_gradients_of_plain_loops<B: Backend>() {
    let config = Config { cases: 120, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let run = runner.run(&cases(), |case| {
        let Numbers(numbers) = case.numbers();
        let g = noise(case.rows * case.width(), 2);
        let leaves = Leaves::<B>::new(&case, &numbers, 0.0);
        let y = leaves.run(&case);
        close("values", &values(y.clone()), &case.expected(&numbers), 2e-6);
        let grads = (y * tensor(&g, [1, case.rows, case.width()])).sum().backward();
        let check = |what: &str, place: usize, found: Option<Vec<f64>>| {
            let want = slope(&numbers[place], &g, |x| {
                let mut numbers = numbers.clone();
                numbers[place] = x.to_vec();
                case.expected(&numbers)
            });
            // Norms of two nearly equal values are steep; a kink of max(x, 0) does not fall into the step.
            close(what, &found.unwrap_or_else(|| panic!("{what} has no gradient")), &want, 2e-5);
        };
        check("x", 0, leaves.x.grad(&grads).map(values));
        if case.residual {
            check("residual", 1, leaves.residual.grad(&grads).map(values));
        }
        if [1, 2].contains(&case.before) {
            check("norm", 2, leaves.norm[0].grad(&grads).map(values));
        }
        if case.before == 2 {
            check("norm's bias", 3, leaves.norm[1].grad(&grads).map(values));
        }
        for (i, layer) in leaves.layers.iter().enumerate() {
            check("W", 4 + 4 * i, layer.weight.grad(&grads).map(values));
            if let Some(bias) = &layer.bias {
                check("b", 5 + 4 * i, bias.grad(&grads).map(values));
            }
            if let Some(lora) = &layer.lora {
                check("A", 6 + 4 * i, lora.a.grad(&grads).map(values));
                check("B", 7 + 4 * i, lora.b.grad(&grads).map(values));
            }
        }
        Ok(())
    });
    run.unwrap();
}

fn dropout_scales_what_it_keeps_and_its_gradient_is_that_of_its_own_mask<B: Backend>() {
    let (rows, inputs, p) = (40, 50, 0.3);
    let shape = Shape { out: inputs, bias: false, rank: Some(inputs) };
    let case = Case { rows, inputs, layers: vec![shape; 2], residual: false, before: 0, seed: 1 };
    // W is zero, A and B are the unit matrix: the result is what the mask leaves of x.
    let unit: Vec<f64> = (0..inputs * inputs).map(|i| f64::from(u8::from(i % (inputs + 1) == 0))).collect();
    let zero = vec![0.0; inputs * inputs];
    let Numbers(mut numbers) = case.numbers();
    for at in [4, 8] {
        numbers[at] = zero.clone();
        numbers[at + 2] = unit.clone();
        numbers[at + 3] = unit.clone();
    }
    let leaves = Leaves::<B>::new(&case, &numbers, p);
    let y = leaves.run(&case);
    let found = values(y.clone());
    let dx = values(leaves.x.grad(&y.sum().backward()).unwrap());
    let mut kept = [0usize; 2];
    for row in 0..rows {
        for i in 0..inputs {
            let x = numbers[0][row * inputs + i];
            let mut slope = 0.0;
            for (layer, kept) in kept.iter_mut().enumerate() {
                let y = found[row * 2 * inputs + layer * inputs + i];
                let scaled = SCALE * x / (1.0 - p);
                assert!(y == 0.0 || (y - scaled).abs() < 1e-6, "{y} of {x}");
                if y != 0.0 {
                    *kept += 1;
                    slope += SCALE / (1.0 - p);
                }
            }
            assert!((dx[row * inputs + i] - slope).abs() < 1e-5, "the mask of the gradient");
        }
    }
    // Six standard deviations of 2,000 draws.
    for kept in kept {
        assert!((kept as f64 / (rows * inputs) as f64 - (1.0 - p)).abs() < 0.065, "{kept}");
    }
    let same = (0..rows * inputs).filter(|i| {
        let at = i / inputs * 2 * inputs + i % inputs;
        (found[at] == 0.0) == (found[at + inputs] == 0.0)
    });
    assert!(same.count() < rows * inputs * 7 / 10, "layers draw masks of their own");
    // Without a graph nothing is dropped.
    let plain: Vec<Layer<B>> = leaves
        .layers
        .iter()
        .map(|layer| Layer {
            weight: layer.weight.clone().inner(),
            bias: None,
            lora: layer.lora.as_ref().map(|l| Factors {
                a: l.a.clone().inner(),
                b: l.b.clone().inner(),
                scale: l.scale,
                dropout: l.dropout,
            }),
        })
        .collect();
    let y = values(linear(leaves.x.clone().inner(), Before::Nothing, &plain, None));
    assert!(y.iter().all(|y| *y != 0.0));
}

fn an_adapter_of_zeros_changes_nothing_to_the_bit<B: Backend>() {
    let (rows, inputs, out) = (37, 48, 80);
    let x = tensor::<B, 2>(&noise(rows * inputs, 1), [rows, inputs]);
    let layer = |lora| Layer::<B> {
        weight: tensor(&noise(out * inputs, 2), [out, inputs]),
        bias: Some(tensor(&noise(out, 3), [out])),
        lora,
    };
    let lora = Factors {
        a: tensor(&noise(8 * inputs, 4), [8, inputs]),
        b: Tensor::zeros([out, 8], &Default::default()),
        scale: 2.0,
        dropout: 0.0,
    };
    let residual = tensor::<B, 2>(&noise(rows * out, 5), [rows, out]);
    let run = |lora| values(linear(x.clone(), Before::Nothing, &[layer(lora)], Some(residual.clone())));
    assert!(run(None) == run(Some(lora)));
}

fn rows_of_none_and_results_of_one_are_right<B: Backend>() {
    let one =
        Layer::<B> { weight: tensor(&[1.0, 2.0, 3.0], [1, 3]), bias: Some(tensor(&[0.5], [1])), lora: None };
    let y = linear(tensor::<B, 2>(&[1.0, 1.0, -1.0], [1, 3]), Before::Nothing, &[one], None);
    assert_eq!(values(y), [0.5]);
}

#[test]
fn a_frozen_half_precision_weight_gives_what_its_widened_values_give() {
    type B = Autodiff<burn_flex::Flex>;
    // Several tiles of rows and stretches of columns, none of them whole.
    let (rows, inputs, out) = (19, 300, 261);
    let x = noise(rows * inputs, 1);
    let narrow = tensor::<B, 2>(&noise(out * inputs, 2), [out, inputs]).cast(DType::BF16);
    let run = |weight: Tensor<B, 2>, group: bool| {
        let x = leaf::<burn_flex::Flex, 2>(&x, [rows, inputs]);
        let layer = Layer { weight, bias: None, lora: None };
        let layers = if group { vec![layer.clone(), layer] } else { vec![layer] };
        let y = linear(x.clone(), Before::Activation(Activation::Silu), &layers, None);
        assert_eq!(y.dtype(), DType::F32);
        let grads = (y.clone() * y.clone().detach().sin()).sum().backward();
        (values(y), values(x.grad(&grads).unwrap()))
    };
    for group in [false, true] {
        let (narrow, wide) = (run(narrow.clone(), group), run(narrow.clone().cast(DType::F32), group));
        // The same numbers summed in another order.
        close("values", &narrow.0, &wide.0, 1e-6);
        close("gradients", &narrow.1, &wide.1, 2e-6);
    }
}

#[test]
fn an_adapter_of_bf16_factors_gives_what_theirs_and_the_input_rounded_give() {
    // Eight bits of the middle and of the result, each.
    an_adapter_of_halves::<burn_flex::Flex>(DType::BF16, 1.0 / 64.0);
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn an_adapter_of_halves_on_a_gpu_gives_what_theirs_and_the_input_rounded_give() {
    // The middle and the gradient between the factors are rounded; sums and results are f32.
    for (dtype, rounding) in halves() {
        an_adapter_of_halves::<Gpu>(dtype, 4.0 * rounding);
    }
}

fn an_adapter_of_halves<I: Backend>(dtype: DType, tolerance: f64) {
    let (rows, inputs, out) = (19, 64, 48);
    let rounded = |n: usize, seed: u64, dims: [usize; 2]| {
        tensor::<I, 2>(&noise(n, seed), dims).cast(dtype).cast(DType::F32)
    };
    let (x, a, b) = (
        rounded(rows * inputs, 1, [rows, inputs]),
        rounded(8 * inputs, 2, [8, inputs]),
        rounded(out * 8, 3, [out, 8]),
    );
    let run = |dtype: DType| {
        // The masters stay f32, and so do their gradients.
        let [x, a, b] = [&x, &a, &b].map(|t| Tensor::<Autodiff<I>, 2>::from_inner(t.clone()).require_grad());
        let factors =
            Factors { a: a.clone().cast(dtype), b: b.clone().cast(dtype), scale: 0.5, dropout: 0.0 };
        let layer = Layer {
            weight: Tensor::zeros([out, inputs], &Default::default()),
            bias: None,
            lora: Some(factors),
        };
        let y = linear(x.clone(), Before::Nothing, &[layer.clone(), layer], None);
        assert_eq!(y.dtype(), DType::F32);
        let grads = (y.clone() * y.clone().detach().sin()).sum().backward();
        let of = |t: &Tensor<Autodiff<I>, 2>| {
            let grad = t.grad(&grads).unwrap();
            assert_eq!(grad.dtype(), DType::F32);
            values(grad)
        };
        [values(y), of(&x), of(&a), of(&b)]
    };
    let (narrow, wide) = (run(dtype), run(DType::F32));
    for (what, (narrow, wide)) in ["y", "dx", "da", "db"].into_iter().zip(narrow.iter().zip(&wide)) {
        close(what, narrow, wide, tolerance);
        assert!(narrow != wide, "{what}: halves round");
    }
}

#[test]
fn a_trained_half_precision_weight_has_its_gradient() {
    type B = Autodiff<burn_flex::Flex>;
    let weight = tensor::<B, 2>(&[1.0, 2.0, 3.0, 4.0], [2, 2]).cast(DType::BF16).require_grad();
    let layer = Layer { weight: weight.clone(), bias: None, lora: None };
    let y = linear(tensor::<B, 2>(&[1.0, -1.0], [1, 2]), Before::Nothing, &[layer], None);
    let grads = y.sum().backward();
    assert_eq!(values(weight.grad(&grads).unwrap()), [1.0, -1.0, 1.0, -1.0]);
}

#[test]
#[should_panic(expected = "inputs of a weight")]
fn weights_that_do_not_fit_are_refused() {
    type B = burn_flex::Flex;
    let layer = Layer::<B> { weight: tensor(&[0.0; 6], [2, 3]), bias: None, lora: None };
    linear(tensor::<B, 2>(&[0.0; 4], [2, 2]), Before::Nothing, &[layer], None);
}
