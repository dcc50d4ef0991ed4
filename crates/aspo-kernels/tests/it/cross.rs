//! Attention of one sequence over another.

use aspo_kernels::{BlockMask, Context, Heads, cross_attention};
use burn::tensor::DType;
use burn::tensor::backend::Backend;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::{close, leaf, noise, on_backends, slope, tensor, values};

on_backends!(
    any_lengths_and_heads_give_the_values_and_gradients_of_plain_loops,
    sequences_of_several_blocks_give_the_values_of_plain_loops,
    hidden_keys_change_nothing_to_the_bit,
);

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    tokens: usize,
    keys: usize,
    heads: Heads,
    /// `[batch, keys]`, one at least in each row.
    real: Vec<bool>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    (1usize..3, 1usize..7, 1usize..9, 1usize..3, 1usize..3, 1usize..6, any::<u64>()).prop_flat_map(
        |(batch, tokens, keys, groups, per_group, dim, seed)| {
            let heads = Heads { heads: groups * per_group, groups, dim };
            prop::collection::vec(any::<bool>(), batch * keys).prop_map(move |mut real| {
                real.chunks_mut(keys).for_each(|row| row[seed as usize % keys] = true);
                Case { batch, tokens, keys, heads, real, seed }
            })
        },
    )
}

impl Case {
    fn context<B: Backend>(&self) -> Context<B> {
        let mask = BlockMask::across(self.batch, self.tokens, self.keys, &self.real);
        Context::new(mask, None, &Default::default())
    }

    fn q_shape(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.heads.heads * self.heads.dim]
    }

    fn kv_shape(&self) -> [usize; 3] {
        [self.batch, self.keys, 2 * self.heads.groups * self.heads.dim]
    }

    /// Queries, keys and values, a gradient of the result.
    fn numbers(&self) -> [Vec<f64>; 3] {
        let count = |shape: [usize; 3]| shape.iter().product();
        let [q, kv] = [(self.q_shape(), 0), (self.kv_shape(), 1)]
            .map(|(shape, i)| noise(count(shape), self.seed ^ i).iter().map(|x| 2.0 * x).collect());
        [q, kv, noise(count(self.q_shape()), self.seed ^ 2)]
    }

    fn expected(&self, q: &[f64], kv: &[f64]) -> Vec<f64> {
        let Heads { heads, groups, dim } = self.heads;
        let mut out = Vec::with_capacity(q.len());
        for (place, q) in q.chunks(dim).enumerate() {
            let (token, head) = (place / heads, place % heads);
            let (row, group) = (token / self.tokens, head * groups / heads);
            let of = |key: usize, column: usize| {
                &kv[((row * self.keys + key) * 2 * groups + column) * dim..][..dim]
            };
            let seen: Vec<usize> = (0..self.keys).filter(|key| self.real[row * self.keys + key]).collect();
            let score = |key: usize| q.iter().zip(of(key, group)).map(|(q, k)| q * k).sum::<f64>();
            let weights: Vec<f64> = seen.iter().map(|&k| (score(k) / (dim as f64).sqrt()).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..dim).map(|i| {
                seen.iter().zip(&weights).map(|(&k, w)| w * of(k, groups + group)[i]).sum::<f64>() / total
            }));
        }
        out
    }
}

fn any_lengths_and_heads_give_the_values_and_gradients_of_plain_loops<B: Backend>() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 40, failure_persistence: None, ..Config::default() },
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let run = runner.run(&cases(), |case| {
        let [q, kv, g] = case.numbers();
        let (q_leaf, kv_leaf) = (leaf::<B, 3>(&q, case.q_shape()), leaf::<B, 3>(&kv, case.kv_shape()));
        let y = cross_attention(q_leaf.clone(), kv_leaf.clone(), case.heads, &case.context());
        close("values", &values(y.clone()), &case.expected(&q, &kv), 3e-6);
        let grads = (y * tensor(&g, case.q_shape())).sum().backward();
        // Single precision. A sole key's weight is 1 whatever the query: its gradient is nothing or zeros.
        let found = q_leaf.grad(&grads).map(values).unwrap_or_else(|| vec![0.0; q.len()]);
        close("dq", &found, &slope(&q, &g, |q| case.expected(q, &kv)), 1e-5);
        let found = values(kv_leaf.grad(&grads).unwrap());
        close("dkv", &found, &slope(&kv, &g, |kv| case.expected(&q, kv)), 1e-5);
        Ok(())
    });
    run.unwrap();
}

/// Several blocks of queries, several ranges of keys, no whole tiles.
fn long() -> Case {
    let heads = Heads { heads: 4, groups: 2, dim: 18 };
    let real = (0..2 * 131).map(|i| i % 13 != 4 && i < 240).collect();
    Case { batch: 2, tokens: 70, keys: 131, heads, real, seed: 3 }
}

fn sequences_of_several_blocks_give_the_values_of_plain_loops<B: Backend>() {
    let case = long();
    let [q, kv, _] = case.numbers();
    let of = |x: &[f64], shape| tensor::<B, 3>(x, shape);
    let y = cross_attention(of(&q, case.q_shape()), of(&kv, case.kv_shape()), case.heads, &case.context());
    close("values", &values(y), &case.expected(&q, &kv), 3e-6);
}

fn hidden_keys_change_nothing_to_the_bit<B: Backend>() {
    let case = long();
    let [q, kv, g] = case.numbers();
    let run = |kv: &[f64]| {
        let (q, kv) = (leaf::<B, 3>(&q, case.q_shape()), leaf::<B, 3>(kv, case.kv_shape()));
        let y = cross_attention(q.clone(), kv.clone(), case.heads, &case.context());
        let grads = (y.clone() * tensor(&g, case.q_shape())).sum().backward();
        [values(y), values(q.grad(&grads).unwrap()), values(kv.grad(&grads).unwrap())]
    };
    let mut other = kv.clone();
    let width = case.kv_shape()[2];
    for (x, real) in other.chunks_mut(width).zip(&case.real) {
        if !real {
            x.iter_mut().for_each(|x| *x = 3.0 - *x);
        }
    }
    let (one, two) = (run(&kv), run(&other));
    assert!(one == two);
    let hidden = one[2].chunks(width).zip(&case.real).filter(|(_, real)| !**real);
    assert!(hidden.flat_map(|(d, _)| d).all(|d| *d == 0.0), "a hidden key has no gradient");
}

#[test]
fn results_are_the_same_to_the_bit_with_one_two_and_three_threads() {
    type B = burn_flex::Flex;
    let case = long();
    let [q, kv, g] = case.numbers();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (q, kv) = (leaf::<B, 3>(&q, case.q_shape()), leaf::<B, 3>(&kv, case.kv_shape()));
            let y = cross_attention(q.clone(), kv.clone(), case.heads, &case.context());
            let grads = (y.clone() * tensor(&g, case.q_shape())).sum().backward();
            [values(y), values(q.grad(&grads).unwrap()), values(kv.grad(&grads).unwrap())]
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}

#[test]
fn keys_and_values_are_read_in_the_type_of_the_queries() {
    type B = burn_flex::Flex;
    let case = long();
    let [q, kv, _] = case.numbers();
    let q = tensor::<B, 3>(&q, case.q_shape());
    let narrow = tensor::<B, 3>(&kv, case.kv_shape()).cast(DType::BF16);
    let run = |kv| values(cross_attention(q.clone(), kv, case.heads, &case.context()));
    assert!(run(narrow.clone()) == run(narrow.cast(DType::F32)));
}

#[test]
#[should_panic(expected = "keys and values side by side")]
fn another_number_of_keys_than_the_masks_is_refused() {
    type B = burn_flex::Flex;
    let case = long();
    let of = |shape: [usize; 3]| tensor::<B, 3>(&noise(shape.iter().product(), 1), shape);
    let kv = of(case.kv_shape()).narrow(1, 0, 130);
    cross_attention(of(case.q_shape()), kv, case.heads, &case.context());
}
