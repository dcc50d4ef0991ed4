//! What a generation carries from token to token.

use aspo_kernels::{BlockMask, Context, Tables, has_kernels};
use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

use super::refuse;
use crate::error::Result;
use crate::input::{self, ModelInput};
use crate::llama::CachedContext;
use crate::model::LanguageModel;
use crate::nn::{KvCache, f32, project};

/// Caches and lengths of the rows that still run. Rows are aligned at their ends, so all write to the same column.
pub(super) struct State<B: Backend> {
    caches: Vec<KvCache<B>>,
    /// The output head's weight, its adapter included.
    head: Tensor<B, 2>,
    /// Columns before a row's first token.
    before: Vec<usize>,
    /// Columns written.
    columns: usize,
    device: B::Device,
}

impl<B: Backend> State<B> {
    /// Read the prompts; also gives the scores of each row's next token, `[rows, vocabulary]`.
    pub(super) fn prefill<M: LanguageModel<B>>(
        model: &M,
        input: &ModelInput<B>,
    ) -> Result<(Self, Tensor<B, 2>)> {
        if input.segment_ids.is_some() || input.position_ids.is_some() {
            return Err(refuse(
                "packed segments and given positions cannot be continued; give rows of their own",
            ));
        }
        let embeds = model.embed(input)?;
        let [rows, tokens, width] = embeds.dims();
        let device = embeds.device();
        let mask = input::host(&input.attention_mask);
        let lengths: Vec<usize> =
            mask.chunks(tokens.max(1)).map(|row| row.iter().filter(|&&m| m != 0).count()).collect();
        let columns = lengths.iter().copied().max().unwrap_or(0);
        if lengths.len() != rows || lengths.contains(&0) {
            return Err(refuse("every row needs at least one token to continue"));
        }
        // Shift the real tokens of each row to its end; what stands before them is hidden by the mask.
        let mut source = Vec::with_capacity(rows * columns);
        let mut positions = Vec::with_capacity(rows * columns);
        for (row, (row_mask, &length)) in mask.chunks(tokens).zip(&lengths).enumerate() {
            source.extend(std::iter::repeat_n((row * tokens) as i64, columns - length));
            source.extend((0..tokens).filter(|&t| row_mask[t] != 0).map(|t| (row * tokens + t) as i64));
            positions.extend(std::iter::repeat_n(0i64, columns - length));
            positions.extend(0..length as i64);
        }
        let int = |v: Vec<i64>, shape: [usize; 2]| {
            Tensor::<B, 2, Int>::from_data(TensorData::new(v, shape), &device)
        };
        let source = int(source, [1, rows * columns]).reshape([rows * columns]);
        let embeds = embeds.reshape([rows * tokens, width]).select(0, source).reshape([rows, columns, width]);
        let decoder = model.decoder();
        let mut state = Self {
            caches: (0..decoder.layers.len()).map(|_| KvCache::default()).collect(),
            head: model.head(),
            before: lengths.iter().map(|length| columns - length).collect(),
            columns: 0,
            device: device.clone(),
        };
        let logits = state.run(model, embeds, &positions);
        Ok((state, logits))
    }

    /// Add one token to each row; gives the scores of the next.
    pub(super) fn step<M: LanguageModel<B>>(&mut self, model: &M, tokens: &[u32]) -> Tensor<B, 2> {
        let rows = tokens.len();
        let column =
            |v: Vec<i64>| Tensor::<B, 2, Int>::from_data(TensorData::new(v, [rows, 1]), &self.device);
        let ids = column(tokens.iter().map(|&t| i64::from(t)).collect());
        let positions: Vec<i64> = self.before.iter().map(|before| (self.columns - before) as i64).collect();
        let embeds = model.decoder().embed_tokens.forward(ids);
        self.run(model, embeds, &positions)
    }

    /// Keep these rows only, in this order; a row may be taken more than once (beams).
    pub(super) fn keep(&mut self, rows: &[usize]) {
        self.before = rows.iter().map(|&row| self.before[row]).collect();
        let index: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let index = Tensor::from_data(TensorData::new(index, [rows.len()]), &self.device);
        for cache in &mut self.caches {
            cache.select_rows(&index);
        }
    }

    fn run<M: LanguageModel<B>>(
        &mut self,
        model: &M,
        embeds: Tensor<B, 3>,
        positions: &[i64],
    ) -> Tensor<B, 2> {
        let [rows, new, width] = embeds.dims();
        let decoder = model.decoder();
        let rotary = decoder.rotary(positions);
        let tables = Tables::new(&rotary, &self.device);
        let first = (has_kernels::<B>() && self.columns == 0).then(|| {
            let row = |before: &usize| (0..new).map(|token| if token < *before { -1 } else { 0 }).collect();
            let segments: Vec<Vec<i64>> = self.before.iter().map(row).collect();
            Context::new(BlockMask::causal(rows, new, &segments.concat()), Some(rotary), &self.device)
        });
        let context = CachedContext { tables, mask: self.mask(rows, new), first };
        let hidden = decoder.forward_cached(embeds, &context, &mut self.caches);
        self.columns += new;
        // The head is applied to the last column alone.
        let last = hidden.slice([0..rows, new - 1..new, 0..width]).reshape([rows, width]);
        f32(project(last, self.head.clone()))
    }

    /// `[rows, 1, new, capacity]`: hidden are the columns before a row, after the query, and not yet written.
    fn mask(&self, rows: usize, new: usize) -> Tensor<B, 4, Bool> {
        let capacity = self.caches.first().map_or(new, |cache| cache.capacity_with(new));
        let mut mask = Vec::with_capacity(rows * new * capacity);
        for &before in &self.before {
            for query in self.columns..self.columns + new {
                mask.extend((0..capacity).map(|key| key < before || key > query));
            }
        }
        Tensor::from_data(TensorData::new(mask, [rows, 1, new, capacity]), &self.device)
    }
}
