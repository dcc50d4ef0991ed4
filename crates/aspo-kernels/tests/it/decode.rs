//! A generation's steps give what attention over whole rows gives.

use aspo_kernels::{BlockMask, Context, Heads, KvCache, Rotary, Step, attention};
use burn::tensor::{Tensor, backend::Backend, s};
use proptest::prelude::*;

use crate::support::{close, noise, on_backends, tensor, values};

on_backends!(
    steps_behind_a_cache_are_the_last_tokens_of_whole_rows,
    rows_that_are_kept_go_on_as_they_were,
    a_buffer_that_grows_keeps_what_it_holds,
);

/// Rows aligned at their ends, the first so many columns of each padding.
struct Rows {
    heads: Heads,
    padding: Vec<usize>,
    columns: usize,
    qkv: Vec<f64>,
}

impl Rows {
    fn new(heads: Heads, padding: &[usize], columns: usize) -> Self {
        let qkv = noise(padding.len() * columns * heads.width(), 7);
        Self { heads, padding: padding.to_vec(), columns, qkv }
    }

    fn segments(&self, columns: usize) -> Vec<i64> {
        let row = |padding: &usize| (0..columns).map(|c| if c < *padding { -1 } else { 0 }).collect();
        self.padding.iter().map(row).collect::<Vec<Vec<i64>>>().concat()
    }

    fn rotary(&self, columns: std::ops::Range<usize>) -> Rotary {
        let row = |padding: &usize| columns.clone().map(|c| c.saturating_sub(*padding) as i64).collect();
        let positions = self.padding.iter().map(row).collect::<Vec<Vec<i64>>>().concat();
        Rotary::new(&positions, self.heads.dim, 10_000.0, 1.0)
    }

    fn qkv<B: Backend>(&self, columns: std::ops::Range<usize>) -> Tensor<B, 3> {
        let shape = [self.padding.len(), self.columns, self.heads.width()];
        tensor::<B, 3>(&self.qkv, shape).slice(s![.., columns, ..])
    }

    /// Attention of the first columns at once.
    fn whole<B: Backend>(&self, columns: usize) -> (Tensor<B, 3>, KvCache<B>) {
        let mask = BlockMask::causal(self.padding.len(), columns, &self.segments(columns));
        let context = Context::new(mask, Some(self.rotary(0..columns)), &Default::default());
        let mut cache = KvCache::default();
        cache.begin(&self.qkv(0..columns), self.heads, &context);
        (attention(self.qkv(0..columns), self.heads, &context), cache)
    }

    /// These columns behind those of a cache.
    fn step<B: Backend>(&self, cache: &mut KvCache<B>, columns: std::ops::Range<usize>) -> Tensor<B, 3> {
        let shape = [self.padding.len(), columns.len(), columns.start];
        let rotary = Some(self.rotary(columns.clone()));
        let step = Step::new(shape, self.segments(columns.end), rotary, &Default::default());
        cache.attention(self.qkv(columns), self.heads, &step)
    }

    fn check<B: Backend>(&self, first: usize, chunk: usize) {
        let (all, _) = self.whole::<B>(self.columns);
        let (_, mut cache) = self.whole::<B>(first);
        for from in (first..self.columns).step_by(chunk) {
            let columns = from..(from + chunk).min(self.columns);
            let found = self.step(&mut cache, columns.clone());
            // Padding sees nothing, and its values mean nothing.
            for (row, &padding) in self.padding.iter().enumerate() {
                let from = padding.max(columns.start);
                if from >= columns.end {
                    continue;
                }
                let found = found.clone().slice(s![row..row + 1, from - columns.start..columns.len(), ..]);
                let want = all.clone().slice(s![row..row + 1, from..columns.end, ..]);
                // The same sums in another order.
                close("a step", &values(found), &values(want), 2e-6);
            }
        }
        assert_eq!(cache.len(), self.columns);
    }
}

fn steps_behind_a_cache_are_the_last_tokens_of_whole_rows<B: Backend>() {
    for (heads, groups, dim) in [(1, 1, 2), (4, 4, 8), (6, 2, 16), (9, 3, 64)] {
        let heads = Heads { heads, groups, dim };
        Rows::new(heads, &[0], 9).check::<B>(5, 1);
        Rows::new(heads, &[0, 3, 1], 12).check::<B>(5, 1);
        // Several new tokens at a time, some of them padding.
        Rows::new(heads, &[6, 0], 12).check::<B>(4, 3);
    }
}

fn a_buffer_that_grows_keeps_what_it_holds<B: Backend>() {
    Rows::new(Heads { heads: 2, groups: 1, dim: 4 }, &[2, 0], 200).check::<B>(60, 35);
}

fn rows_that_are_kept_go_on_as_they_were<B: Backend>() {
    let heads = Heads { heads: 4, groups: 2, dim: 8 };
    for kept in [vec![0, 2], vec![3, 1, 1, 0], vec![2]] {
        let rows = Rows::new(heads, &[0, 2, 1, 4], 8);
        let (all, _) = rows.whole::<B>(8);
        let (_, mut cache) = rows.whole::<B>(7);
        cache.select_rows(&kept);
        let width = 8 * heads.width();
        let qkv = kept.iter().flat_map(|&row| rows.qkv[row * width..(row + 1) * width].to_vec()).collect();
        let padding = kept.iter().map(|&row| rows.padding[row]).collect();
        let found = Rows { heads, padding, columns: 8, qkv }.step(&mut cache, 7..8);
        for (slot, &row) in kept.iter().enumerate() {
            let found = found.clone().slice(s![slot..slot + 1, .., ..]);
            close("a kept row", &values(found), &values(all.clone().slice(s![row..row + 1, 7..8, ..])), 2e-6);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn steps_of_any_shape_are_those_of_whole_rows(
        (groups, per_group, half) in (1usize..4, 1usize..4, 1usize..20),
        padding in prop::collection::vec(0usize..6, 1..4),
        (first, more, chunk) in (6usize..20, 1usize..20, 1usize..5),
    ) {
        let heads = Heads { heads: groups * per_group, groups, dim: 2 * half };
        Rows::new(heads, &padding, first + more).check::<burn_flex::Flex>(first, chunk);
    }
}

#[test]
fn a_step_is_the_same_to_the_bit_with_any_number_of_threads() {
    let rows = Rows::new(Heads { heads: 9, groups: 3, dim: 64 }, &[0, 5, 2, 9, 1], 130);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let (_, mut cache) = rows.whole::<burn_flex::Flex>(129);
            values(rows.step(&mut cache, 129..130))
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(3));
}
