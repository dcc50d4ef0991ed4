//! Attention: who sees whom, rotation, groups, padding.

use aspo_kernels::{BlockMask, Context, Heads, Rotary, attention};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::support::Gpu;
use crate::support::{close, leaf, noise, on_backends, slope, tensor, values};

on_backends!(
    any_shape_and_mask_gives_the_values_and_gradients_of_plain_loops,
    padding_and_other_segments_change_nothing_to_the_bit,
    only_wanted_queries_are_those_of_the_whole,
    full_attention_sees_every_real_token,
);

/// One attention to test.
#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    tokens: usize,
    heads: Heads,
    segments: Vec<i64>,
    positions: Vec<i64>,
    rotary: bool,
    seed: u64,
}

fn cases(tokens: usize) -> impl Strategy<Value = Case> {
    (1usize..3, 1..=tokens, 1usize..3, 1usize..3, 1usize..4, any::<bool>(), any::<u64>()).prop_flat_map(
        |(batch, tokens, groups, per_group, dim, rotary, seed)| {
            // With a rotation an even width, without one odd widths too.
            let dim = if rotary { 2 * dim } else { dim };
            let heads = Heads { heads: groups * per_group, groups, dim };
            let all = batch * tokens;
            (prop::collection::vec(-1i64..3, all), prop::collection::vec(0i64..40, all)).prop_map(
                move |(segments, positions)| Case { batch, tokens, heads, segments, positions, rotary, seed },
            )
        },
    )
}

impl Case {
    fn context<B: Backend>(&self) -> Context<B> {
        let rotary = self.rotary.then(|| Rotary::new(&self.positions, self.heads.dim, 100.0, 2.0));
        let mask = BlockMask::causal(self.batch, self.tokens, &self.segments);
        Context::new(mask, rotary, &Default::default())
    }

    fn sees(&self, row: usize, query: usize, key: usize) -> bool {
        let of = |at: usize| self.segments[row * self.tokens + at];
        key <= query && of(key) >= 0 && (of(key) == 0 || of(key) == of(query))
    }

    /// Queries whose results mean something.
    fn real(&self, row: usize, query: usize) -> bool {
        self.segments[row * self.tokens + query] >= 0
    }

    /// The operation by loops; 0 at padding.
    fn expected(&self, qkv: &[f64]) -> Vec<f64> {
        let Heads { heads, groups, dim } = self.heads;
        let width = self.heads.width();
        // Channel `i` of a head of a token, rotated.
        let at = |row: usize, token: usize, head: usize, i: usize| {
            let x = |i: usize| qkv[(row * self.tokens + token) * width + head * dim + i];
            if !self.rotary || head >= heads + groups {
                return x(i);
            }
            let half = dim / 2;
            let pair = i % half;
            let angle = self.positions[row * self.tokens + token] as f64 / 2.0
                * 100f64.powf(-2.0 * pair as f64 / dim as f64);
            let (sin, cos) = angle.sin_cos();
            if i < half { x(i) * cos - x(i + half) * sin } else { x(i) * cos + x(i - half) * sin }
        };
        let mut out = vec![0.0; self.batch * self.tokens * heads * dim];
        for row in 0..self.batch {
            for head in 0..heads {
                let group = head * groups / heads;
                for query in (0..self.tokens).filter(|&q| self.real(row, q)) {
                    let score = |key: usize| -> f64 {
                        let dot: f64 =
                            (0..dim).map(|i| at(row, query, head, i) * at(row, key, heads + group, i)).sum();
                        dot / (dim as f64).sqrt()
                    };
                    let seen: Vec<usize> = (0..self.tokens).filter(|&k| self.sees(row, query, k)).collect();
                    let weights: Vec<f64> = seen.iter().map(|&k| score(k).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..dim {
                        let mixed: f64 = seen
                            .iter()
                            .zip(&weights)
                            .map(|(&k, w)| w * at(row, k, heads + groups + group, i))
                            .sum();
                        out[((row * self.tokens + query) * heads + head) * dim + i] = mixed / total;
                    }
                }
            }
        }
        out
    }

    /// A gradient of the result, 0 at padding, whose results nobody reads.
    fn flow(&self) -> Vec<f64> {
        let width = self.heads.heads * self.heads.dim;
        let mut g = noise(self.batch * self.tokens * width, self.seed ^ 5);
        for (place, g) in g.chunks_mut(width).enumerate() {
            if self.segments[place] < 0 {
                g.fill(0.0);
            }
        }
        g
    }

    fn qkv(&self) -> Vec<f64> {
        noise(self.batch * self.tokens * self.heads.width(), self.seed).iter().map(|x| 2.0 * x).collect()
    }
}

fn any_shape_and_mask_gives_the_values_and_gradients_of_plain_loops<B: Backend>() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 40, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let run = runner.run(&cases(9), |case| {
        let (qkv, g) = (case.qkv(), case.flow());
        let shape = [case.batch, case.tokens, case.heads.width()];
        let x = leaf::<B, 3>(&qkv, shape);
        let y = attention(x.clone(), case.heads, &case.context());
        let out_shape = y.dims();
        let want = case.expected(&qkv);
        let found: Vec<f64> = values(y.clone()).iter().zip(&g).map(|(y, g)| y * g).collect();
        let weighed: Vec<f64> = want.iter().zip(&g).map(|(y, g)| y * g).collect();
        // Single precision; the angles are rounded before their cosine is taken.
        close("values", &found, &weighed, 3e-6);
        let grads = (y * tensor(&g, out_shape)).sum().backward();
        let found = x.grad(&grads).map(values).unwrap_or_else(|| vec![0.0; qkv.len()]);
        close("gradients", &found, &slope(&qkv, &g, |x| case.expected(x)), 1e-5);
        Ok(())
    });
    run.unwrap();
}

/// Rows of a size that has several blocks, ranges and tiles.
fn long(seed: u64) -> Case {
    let row = |before: usize, prompt: usize, a: usize, b: usize| {
        let mut row = vec![-1i64; before];
        row.extend(vec![0; prompt]);
        row.extend(vec![1; a]);
        row.extend(vec![2; b]);
        row.resize(150, -1);
        row
    };
    let segments = [row(3, 70, 30, 40), row(0, 101, 0, 49), row(149, 1, 0, 0)].concat();
    let positions = (0..450).map(|i| i % 97).collect();
    Case {
        batch: 3,
        tokens: 150,
        heads: Heads { heads: 4, groups: 2, dim: 18 },
        segments,
        positions,
        rotary: true,
        seed,
    }
}

fn padding_and_other_segments_change_nothing_to_the_bit<B: Backend>() {
    let case = long(1);
    let qkv = case.qkv();
    let width = case.heads.width();
    let run = |qkv: &[f64]| {
        let x = leaf::<B, 3>(qkv, [3, 150, width]);
        let y = attention(x.clone(), case.heads, &case.context());
        let shape = y.dims();
        let grads = (y.clone() * tensor(&case.flow(), shape)).sum().backward();
        (values(y), values(x.grad(&grads).unwrap()))
    };
    let (y, dx) = run(&qkv);
    close("values", &mask(&case, &y), &case.expected(&qkv), 3e-6);
    // Whatever stands in padding and in the second answer, the first answer does not see it.
    let mut other = qkv.clone();
    for (place, x) in other.chunks_mut(width).enumerate() {
        if case.segments[place] < 0 || case.segments[place] == 2 {
            x.iter_mut().for_each(|x| *x = 3.0 - *x);
        }
    }
    let (y_other, dx_other) = run(&other);
    let out = case.heads.heads * case.heads.dim;
    for (place, segment) in case.segments.iter().enumerate() {
        let (a, b) = (&y[place * out..][..out], &y_other[place * out..][..out]);
        assert!(!(0..2).contains(segment) || a == b, "place {place} of segment {segment}");
        if *segment < 0 {
            assert!(dx[place * width..][..width].iter().all(|d| *d == 0.0), "padding has no gradient");
        }
        let (a, b) = (&dx[place * width..][..width], &dx_other[place * width..][..width]);
        assert!(*segment != 1 || a == b, "the gradient of place {place}");
    }
}

fn mask(case: &Case, y: &[f64]) -> Vec<f64> {
    let out = case.heads.heads * case.heads.dim;
    y.iter().enumerate().map(|(i, y)| if case.segments[i / out] < 0 { 0.0 } else { *y }).collect()
}

fn only_wanted_queries_are_those_of_the_whole<B: Backend>() {
    let case = long(2);
    let qkv = case.qkv();
    let wanted = [5usize, 120, 121, 299, 449];
    let out = case.heads.heads * case.heads.dim;
    let mut g = vec![0.0; 450 * out];
    for place in wanted {
        g[place * out..][..out].copy_from_slice(&case.flow()[place * out..][..out]);
    }
    let run = |context: Context<Autodiff<B>>| {
        let x = leaf::<B, 3>(&qkv, [3, 150, case.heads.width()]);
        let y = attention(x.clone(), case.heads, &context);
        let shape = y.dims();
        let y = y * tensor(&g, shape);
        (values(y.clone()), values(x.grad(&y.sum().backward()).unwrap()))
    };
    let whole = run(case.context());
    let only = run(case.context().only(&wanted));
    close("values", &only.0, &whole.0, 0.0);
    // The blocks that are left out would have added zeros.
    close("gradients", &only.1, &whole.1, 1e-6);
}

fn full_attention_sees_every_real_token<B: Backend>() {
    // Without order: the same as a causal row asked from its last place, whichever place asks.
    let (tokens, heads) = (70, Heads { heads: 3, groups: 3, dim: 5 });
    let real: Vec<bool> = (0..2 * tokens).map(|i| i % 11 != 3).collect();
    let qkv = noise(2 * tokens * heads.width(), 3);
    let x = tensor::<B, 3>(&qkv, [2, tokens, heads.width()]);
    let context = Context::new(BlockMask::full(2, tokens, &real), None, &Default::default());
    let found = values(attention(x, heads, &context));
    let out = heads.heads * heads.dim;
    for row in 0..2 {
        for query in [0, 1, 48, 69].into_iter().filter(|q| real[row * tokens + q]) {
            // The query's own values to the end of a row of all real tokens.
            let order: Vec<usize> =
                (0..tokens).filter(|t| real[row * tokens + t] && *t != query).chain([query]).collect();
            let seen = order.len();
            let flat: Vec<f64> = order
                .iter()
                .flat_map(|t| qkv[(row * tokens + t) * heads.width()..][..heads.width()].to_vec())
                .collect();
            let case = Case {
                batch: 1,
                tokens: seen,
                heads,
                segments: vec![0; seen],
                positions: vec![0; seen],
                rotary: false,
                seed: 0,
            };
            let want = case.expected(&flat);
            let found = &found[(row * tokens + query) * out..][..out];
            close("a query", found, &want[(seen - 1) * out..], 3e-6);
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
#[test]
fn more_scores_than_are_held_at_once_give_what_the_cpu_gives() {
    // 23 million scores, of which CHUNK_SCORES are held: two chunks, the second from amid a head's queries on.
    let tokens = 2400;
    let segments: Vec<i64> = (0..tokens).map(|t| [0, 1, 2][3 * t / tokens]).collect();
    let heads = Heads { heads: 4, groups: 2, dim: 2 };
    let positions = (0..tokens as i64).collect();
    let case = Case { batch: 1, tokens, heads, segments, positions, rotary: true, seed: 4 };
    fn run<B: Backend>(case: &Case) -> [Vec<f64>; 2] {
        let x = leaf::<B, 3>(&case.qkv(), [1, case.tokens, case.heads.width()]);
        let y = attention(x.clone(), case.heads, &case.context());
        let shape = y.dims();
        let grads = (y.clone() * tensor(&case.flow(), shape)).sum().backward();
        [values(y), values(x.grad(&grads).unwrap())]
    }
    let [y, dx] = run::<Gpu>(&case);
    let [y_flex, dx_flex] = run::<burn_flex::Flex>(&case);
    close("values", &y, &y_flex, 3e-6);
    // Keys of the prompt gather the gradients of thousands of queries.
    close("gradients", &dx, &dx_flex, 1e-5);
}
