//! Three ways to a log-probability, one mathematics.

use aspo_loss::stats::{TokenStats, TokenValues, chunked_log_probs_with_stats, dense_log_probs_with_stats};
use aspo_loss::{ChunkOptions, LmHead, chunked_log_probs, chunked_log_probs_forward, dense_log_probs};
use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::{BalancedCheckpointing, CheckpointStrategy};
use burn::prelude::*;
use burn::tensor::TensorPrimitive;
use burn::tensor::backend::AutodiffBackend;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::common::{assert_close, cases, check, grad, ints, on_every_backend, tensor, values};

on_every_backend!(
    log_probabilities_are_as_by_hand,
    chunked_equals_dense_whatever_the_tile,
    gradients_are_difference_quotients,
    chunked_works_under_balanced_checkpointing,
    gradients_go_where_something_trains,
    nothing_tracked_makes_no_graph,
    token_statistics_are_as_by_hand,
    token_statistics_do_not_depend_on_the_tile,
    a_linear_layer_is_the_head_that_its_forward_is,
);

/// Logits 0, ln 2, ln 5: probabilities 1/8, 2/8, 5/8.
fn log_probabilities_are_as_by_hand<B: Backend>() {
    let z = [0.0, 2_f32.ln(), 5_f32.ln()];
    let logits = tensor::<B, 2>(&[z, z, z].concat(), [3, 3]);
    let expected = [1.0 / 8.0, 2.0 / 8.0, 5.0 / 8.0].map(f64::ln);
    let targets = || ints::<B, 1>(&[0, 1, 2], [3]);
    assert_close(
        "dense",
        &values(&dense_log_probs(logits.clone(), targets()).unwrap()),
        &expected,
        1e-6,
        0.0,
    );
    for (byte_budget, rows) in [(4, None), (8, Some(1)), (8, Some(2)), (1 << 20, None)] {
        let options = ChunkOptions { byte_budget, rows };
        let head = LmHead::hugging_face(Tensor::eye(3, &Default::default()));
        let found = chunked_log_probs_forward(logits.clone(), &head, targets(), &options).unwrap();
        assert_close(&format!("{options:?}"), &values(&found), &expected, 1e-6, 0.0);
    }
}

/// Hidden states, head, labels, incoming gradient and a tile.
#[derive(Debug, Clone)]
struct Problem {
    features: usize,
    hidden: Vec<f32>,
    head: Vec<f32>,
    labels: Vec<i64>,
    weights: Vec<f32>,
    options: ChunkOptions,
}

fn problems() -> impl Strategy<Value = Problem> {
    (1..=9_usize, 1..=4_usize, 2..=13_usize).prop_flat_map(|(n, features, vocab)| {
        let label = 0..vocab as i64;
        let scalars = |n: usize, range: f32| vec(-range..range, n);
        let tile = (1..=80_usize, proptest::option::of(1..=10_usize));
        let parts = (
            scalars(n * features, 3.0),
            scalars(vocab * features, 3.0),
            vec(label, n),
            scalars(n, 2.0),
            tile,
        );
        parts.prop_map(move |(hidden, head, labels, weights, (cells, rows))| Problem {
            features,
            hidden,
            head,
            labels,
            weights,
            options: ChunkOptions { byte_budget: cells * 4, rows },
        })
    })
}

impl Problem {
    fn hidden<B: Backend>(&self) -> Tensor<B, 2> {
        tensor(&self.hidden, [self.labels.len(), self.features])
    }

    fn head<B: Backend>(&self) -> Tensor<B, 2> {
        tensor(&self.head, [self.head.len() / self.features, self.features])
    }

    fn labels<B: Backend>(&self) -> Tensor<B, 1, Int> {
        ints(&self.labels, [self.labels.len()])
    }

    fn weighed<B: Backend>(&self, log_probs: Tensor<B, 1>) -> Tensor<B, 1> {
        (log_probs * tensor(&self.weights, [self.weights.len()])).sum()
    }

    /// Log-probabilities and the gradients of their weighed sum in hidden states and, if it trains, head.
    fn dense<B: Backend>(&self) -> [Vec<f64>; 3] {
        let (hidden, head) =
            (self.hidden::<Autodiff<B>>().require_grad(), self.head::<Autodiff<B>>().require_grad());
        let logits = hidden.clone().matmul(head.clone().transpose());
        let log_probs = dense_log_probs(logits, self.labels()).unwrap();
        let grads = self.weighed(log_probs.clone()).backward();
        [values(&log_probs), grad(&hidden, &grads), grad(&head, &grads)]
    }

    fn chunked<B: Backend, C: CheckpointStrategy>(&self, head_trains: bool) -> [Vec<f64>; 3] {
        let leaf = self.hidden::<Autodiff<B, C>>().require_grad();
        let mut head = self.head::<Autodiff<B, C>>();
        if head_trains {
            head = head.require_grad();
        }
        // Not a leaf, as in a model.
        let hidden = leaf.clone() * 1.0;
        let log_probs =
            chunked_log_probs(hidden, &LmHead::hugging_face(head.clone()), self.labels(), &self.options)
                .unwrap();
        let grads = self.weighed(log_probs.clone()).backward();
        let head_grad = head.grad(&grads);
        assert_eq!(head_grad.is_some(), head_trains, "the head has a gradient only if it trains");
        let head_grad = head_grad.map_or_else(Vec::new, |g| values(&g));
        [values(&log_probs), values(&leaf.grad(&grads).unwrap()), head_grad]
    }
}

/// f32 rounding of logits up to 36 and of sums over 13 columns: 2e-5.
fn agree(found: &[Vec<f64>; 3], dense: &[Vec<f64>; 3]) -> Result<(), TestCaseError> {
    for (what, found, dense) in [
        ("log-probabilities", &found[0], &dense[0]),
        ("hidden gradient", &found[1], &dense[1]),
        ("head gradient", &found[2], &dense[2]),
    ] {
        // A frozen head has no gradient to compare.
        if what == "head gradient" && found.is_empty() {
            continue;
        }
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 2e-5 * (1.0 + b.abs());
        let close = found.len() == dense.len() && found.iter().zip(dense).all(near);
        prop_assert!(close, "{what}: {found:?}, dense {dense:?}");
    }
    Ok(())
}

fn chunked_equals_dense_whatever_the_tile<B: Backend>() {
    check(cases::<B>(), problems(), |problem| {
        let dense = problem.dense::<B>();
        agree(
            &problem.chunked::<B, burn::backend::autodiff::checkpoint::strategy::NoCheckpointing>(false),
            &dense,
        )?;
        agree(
            &problem.chunked::<B, burn::backend::autodiff::checkpoint::strategy::NoCheckpointing>(true),
            &dense,
        )
    });
}

/// Log-probabilities and central differences of their weighed sum, in f64.
fn in_f64(problem: &Problem) -> [Vec<f64>; 3] {
    const STEP: f64 = 1e-4;
    let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let log_probs = |hidden: &[f64], head: &[f64]| -> Vec<f64> {
        let d = problem.features;
        let row = |(h, &y): (&[f64], &i64)| {
            let dot = |w: &[f64]| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>();
            let logits: Vec<f64> = head.chunks(d).map(dot).collect();
            let max = logits.iter().copied().fold(f64::MIN, f64::max);
            logits[y as usize] - max - logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln()
        };
        hidden.chunks(d).zip(&problem.labels).map(row).collect()
    };
    let (hidden, head) = (wide(&problem.hidden), wide(&problem.head));
    let weighed = |hidden: &[f64], head: &[f64]| -> f64 {
        log_probs(hidden, head).iter().zip(&problem.weights).map(|(l, &w)| l * f64::from(w)).sum()
    };
    let quotients = |values: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        let at = |i: usize, step: f64| {
            let mut moved = values.to_vec();
            moved[i] += step;
            f(&moved)
        };
        (0..values.len()).map(|i| (at(i, STEP) - at(i, -STEP)) / (2.0 * STEP)).collect()
    };
    [
        log_probs(&hidden, &head),
        quotients(&hidden, &|hidden| weighed(hidden, &head)),
        quotients(&head, &|head| weighed(&hidden, head)),
    ]
}

fn gradients_are_difference_quotients<B: Backend>() {
    use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
    check(cases::<B>(), problems(), |problem| {
        let exact = in_f64(&problem);
        agree(&problem.dense::<B>(), &exact)?;
        agree(&problem.chunked::<B, NoCheckpointing>(false), &exact)?;
        agree(&problem.chunked::<B, NoCheckpointing>(true), &exact)
    });
}

fn chunked_works_under_balanced_checkpointing<B: Backend>() {
    check(cases::<B>(), problems(), |problem| {
        let dense = problem.dense::<B>();
        agree(&problem.chunked::<B, BalancedCheckpointing>(false), &dense)?;
        agree(&problem.chunked::<B, BalancedCheckpointing>(true), &dense)
    });
}

/// Hidden states, head and targets.
type Small<B> = (Tensor<B, 2>, Tensor<B, 2>, Tensor<B, 1, Int>);

fn small<B: Backend>() -> Small<Autodiff<B>> {
    let hidden = tensor(&[0.5, -1.0, 2.0, 0.25], [2, 2]);
    (hidden, tensor(&[1.0, 0.5, -0.5, 0.25, 2.0, -1.0], [3, 2]), ints(&[2, 0], [2]))
}

fn gradients_go_where_something_trains<B: Backend>() {
    // A trained head under hidden states that are not tracked: a linear probe.
    let (hidden, head, targets) = small::<B>();
    let head = head.require_grad();
    let run = |log_probs: Tensor<Autodiff<B>, 1>| grad(&head, &log_probs.sum().backward());
    let chunked = run(chunked_log_probs(
        hidden.clone(),
        &LmHead::hugging_face(head.clone()),
        targets.clone(),
        &ChunkOptions::default(),
    )
    .unwrap());
    let dense = run(dense_log_probs(hidden.matmul(head.clone().transpose()), targets).unwrap());
    assert_close("head gradient", &chunked, &dense, 1e-5, 1e-6);
}

fn nothing_tracked_makes_no_graph<B: Backend>() {
    let tracked = |t: Tensor<Autodiff<B>, 1>| match t.into_primitive() {
        TensorPrimitive::Float(primitive) => primitive.is_tracked(),
        TensorPrimitive::QFloat(_) => unreachable!("log-probabilities are floats"),
    };
    let (hidden, head, targets) = small::<B>();
    let (options, head) = (ChunkOptions::default(), LmHead::hugging_face(head));
    let plain = chunked_log_probs(hidden.clone(), &head, targets.clone(), &options).unwrap();
    assert!(!tracked(plain));
    let hidden = hidden.require_grad();
    assert!(tracked(chunked_log_probs(hidden.clone(), &head, targets.clone(), &options).unwrap()));
    assert!(!tracked(chunked_log_probs_forward(hidden, &head, targets, &options).unwrap()));
}

/// Probabilities 1/8, 2/8, 5/8: Σp² = 30/64; entropy = ln 8 - (2 ln 2 + 5 ln 5)/8; mean logit ln(10)/3.
fn token_statistics_are_as_by_hand<B: Backend>() {
    let z = [0.0, 2_f32.ln(), 5_f32.ln()];
    let logits = tensor::<B, 2>(&[z, z].concat(), [2, 3]);
    let (_, stats) = dense_log_probs_with_stats(logits, ints(&[2, 1], [2])).unwrap();
    let twice = |x: f64| [x, x];
    let [first, rest] = [0..1, 1..2].map(|range| stats.part(range).unwrap());
    assert!(stats.part(2..2).is_err() && stats.part(1..3).is_err());
    let stats = stats.read();
    let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    assert_close("collision", &wide(&stats.log_sum_sq_probs), &twice((30.0_f64 / 64.0).ln()), 1e-5, 0.0);
    let entropy = 8_f64.ln() - (2.0 * 2_f64.ln() + 5.0 * 5_f64.ln()) / 8.0;
    assert_close("entropy", &wide(&stats.entropy), &twice(entropy), 1e-5, 0.0);
    assert_close("mean logit", &wide(&stats.mean_logit), &twice(10_f64.ln() / 3.0), 1e-5, 0.0);
    assert_eq!(stats.is_argmax, [true, false]);
    // Of tokens as likely as each other the first is the likeliest, as in TRL.
    let tied = tensor::<B, 2>(&[1.0, 2.0, 2.0, 2.0].repeat(3), [3, 4]);
    let (_, ties) = dense_log_probs_with_stats(tied, ints(&[1, 2, 3], [3])).unwrap();
    assert_eq!(ties.read().is_argmax, [true, false, false]);
    assert_eq!((first.len(), rest.len(), rest.read().is_argmax), (1, 1, vec![false]));
    let again = TokenStats::<B>::new(&stats, &Default::default()).unwrap();
    assert_eq!(again.read(), stats);
    let uneven = TokenValues { entropy: vec![0.0], ..stats };
    assert!(
        TokenStats::<B>::new(&uneven, &Default::default())
            .unwrap_err()
            .to_string()
            .contains("token statistics")
    );
}

fn token_statistics_do_not_depend_on_the_tile<B: Backend>() {
    check(cases::<B>(), problems(), |problem| {
        let logits = problem.hidden::<Autodiff<B>>().matmul(problem.head().transpose());
        let (dense, expected) = dense_log_probs_with_stats(logits, problem.labels()).unwrap();
        let (hidden, head) = (problem.hidden::<Autodiff<B>>(), LmHead::hugging_face(problem.head()));
        let (chunked, stats) =
            chunked_log_probs_with_stats(hidden, &head, problem.labels(), &problem.options).unwrap();
        agree(&[values(&chunked), vec![], vec![]], &[values(&dense), vec![], vec![]])?;
        let (stats, expected) = (stats.read(), expected.read());
        // Rounding may tell two logits apart in one way that tie in the other; none of these do.
        prop_assert_eq!(&stats.is_argmax, &expected.is_argmax);
        let columns =
            |s: &TokenValues| [s.log_sum_sq_probs.clone(), s.entropy.clone(), s.mean_logit.clone()].concat();
        let (found, expected) = (columns(&stats), columns(&expected));
        // Entropies near 0 are differences of terms near the logits' size: 1e-4 of them.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
        let close = found.len() == expected.len() && found.iter().zip(&expected).all(near);
        prop_assert!(close, "{found:?}, dense {expected:?}");
        Ok(())
    });
}

/// Burn's `Linear`, whose weight is `[D, V]` and which has a bias, of the treacherous shape D = V: log-probabilities and
/// gradients of weight and bias are those of its own forward, in code that is generic over a backend with gradients.
fn a_linear_layer_is_the_head_that_its_forward_is<B: Backend>() {
    use burn::nn::{Linear, LinearConfig};
    fn both<A: AutodiffBackend>(
        layer: &Linear<A>,
        hidden: Tensor<A, 2>,
        targets: Tensor<A, 1, Int>,
    ) -> [Vec<Vec<f64>>; 2] {
        let options = ChunkOptions { byte_budget: 12, rows: Some(2) };
        let head = LmHead::linear(layer);
        let plain = chunked_log_probs_forward(hidden.clone(), &head, targets.clone(), &options).unwrap();
        let chunked = chunked_log_probs(hidden.clone(), &head, targets.clone(), &options).unwrap();
        let dense = dense_log_probs(layer.forward(hidden.clone()), targets).unwrap();
        assert_close("forward", &values(&plain), &values(&dense), 1e-5, 1e-6);
        [chunked, dense].map(|log_probs| {
            let grads = log_probs.clone().sum().backward();
            let weight = values(&layer.weight.val().grad(&grads).unwrap());
            let bias = layer.bias.as_ref().map(|bias| values(&bias.val().grad(&grads).unwrap()));
            vec![values(&log_probs), values(&hidden.grad(&grads).unwrap()), weight, bias.unwrap_or_default()]
        })
    }
    let device = Default::default();
    let hidden: Vec<f32> = (0..12).map(|i| (i as f32 * 1.3).sin()).collect();
    for bias in [true, false] {
        let mut layer = LinearConfig::new(4, 4).with_bias(bias).init::<Autodiff<B>>(&device);
        // Whatever the backend draws, weights that are not symmetric.
        layer.weight = burn::module::Param::from_tensor(tensor(
            &(0..16).map(|i| (i as f32 * 0.7).cos()).collect::<Vec<_>>(),
            [4, 4],
        ));
        layer.bias =
            layer.bias.map(|_| burn::module::Param::from_tensor(tensor(&[0.5, -1.0, 2.0, 0.25], [4])));
        let hidden = tensor::<Autodiff<B>, 2>(&hidden, [3, 4]).require_grad();
        let [chunked, dense] = both(&layer, hidden, ints(&[0, 3, 2], [3]));
        for (what, (found, expected)) in
            ["log-probabilities", "hidden", "weight", "bias"].into_iter().zip(chunked.iter().zip(&dense))
        {
            assert_close(what, found, expected, 1e-5, 1e-5);
        }
        assert_eq!(chunked[3].len(), if bias { 4 } else { 0 });
    }
    let wrong = LmHead::<B>::hugging_face(tensor(&[0.0; 8], [2, 4])).with_bias(tensor(&[0.0; 3], [3]));
    let run = |head: &LmHead<B>, width| {
        let hidden = Tensor::zeros([1, width], &device);
        chunked_log_probs_forward(hidden, head, ints(&[0], [1]), &ChunkOptions::default())
            .unwrap_err()
            .to_string()
    };
    assert!(run(&wrong, 4).starts_with("the head's bias [V]: found [3], expected [2]"), "{}", run(&wrong, 4));
    assert!(run(&wrong, 2).contains("LmHead::linear"), "{}", run(&wrong, 2));
}
