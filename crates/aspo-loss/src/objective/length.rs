//! LD-DPO: tokens beyond the length that both responses reach count only by `ld_alpha` (arXiv 2409.06411), for
//! policy and reference alike.

use burn::prelude::*;

use crate::map::{PairMap, SentenceMap};
use crate::math;

/// One factor per token, chosen and rejected side: 1 up to the shorter length of the pair, `alpha` beyond.
pub(super) fn factors<B: Backend>(map: &PairMap, alpha: f64, device: &B::Device) -> [Tensor<B, 1>; 2] {
    let shared = |row: usize| map.chosen.row_tokens(row).min(map.rejected.row_tokens(row));
    let side = |map: &SentenceMap| {
        let factor = |row: usize| {
            (0..map.row_tokens(row)).map(move |i| if i < shared(row) { 1.0 } else { alpha as f32 })
        };
        let factors: Vec<f32> = (0..map.batch_size()).flat_map(factor).collect();
        math::constant(factors, [map.num_tokens()], device)
    };
    [side(&map.chosen), side(&map.rejected)]
}
