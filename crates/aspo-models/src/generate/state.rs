//! What a generation carries from token to token.

use burn::tensor::{Tensor, TensorData, backend::Backend, s};

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::model::LanguageModel;
use crate::nn::{KvCache, project, to_f32, wide};
use crate::positions::Positions;

/// Caches and lengths of the rows that still run. Rows are aligned at their ends, so all write to the same column.
pub(super) struct State<B: Backend> {
    caches: Vec<KvCache<B>>,
    /// The output head's weight, its adapter included.
    head: Tensor<B, 2>,
    /// Columns before a row's first token.
    before: Vec<usize>,
    /// Position of a row's next token, on every axis.
    next: Vec<i64>,
    /// Axes of positions.
    axes: usize,
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
        if input.segment_ids.is_some() {
            return Err(Error::input("input", "packed segments cannot be continued; give rows of their own"));
        }
        let embeds = model.embed(input)?;
        let positions = model.positions(input)?;
        let [rows, tokens, width] = embeds.dims();
        let device = embeds.device();
        // Places of the real tokens of each row.
        let real = |row: usize| {
            let places = row * tokens..(row + 1) * tokens;
            places.filter(|&place| positions.segments[place] >= 0).collect()
        };
        let real: Vec<Vec<usize>> = (0..rows).map(real).collect();
        let lengths: Vec<usize> = real.iter().map(Vec::len).collect();
        let columns = lengths.iter().copied().max().unwrap_or(0);
        if lengths.contains(&0) {
            return Err(Error::input("input", "every row needs at least one token to continue"));
        }
        // Shift the real tokens of each row to its end; what stands before them is padding.
        let source: Vec<usize> = (0..rows)
            .flat_map(|row| {
                let padding = std::iter::repeat_n(row * tokens, columns - lengths[row]);
                padding.chain(real[row].iter().copied())
            })
            .collect();
        let shifted = |axis: &Vec<i64>| source.iter().map(|&place| axis[place]).collect();
        let axes: Vec<Vec<i64>> = positions.axes.iter().map(shifted).collect();
        let index: Vec<i64> = source.iter().map(|&place| place as i64).collect();
        let index = Tensor::from_data(TensorData::new(index, [rows * columns]), &device);
        let embeds = embeds.reshape([rows * tokens, width]).select(0, index).reshape([rows, columns, width]);
        let mut state = Self {
            caches: vec![KvCache::default(); model.decoder().shape().num_hidden_layers],
            head: model.head(),
            before: lengths.iter().map(|length| columns - length).collect(),
            next: (0..rows).map(|row| positions.next(row)).collect(),
            axes: axes.len(),
            columns: 0,
            device,
        };
        let logits = state.run(model, embeds, axes)?;
        Ok((state, logits))
    }

    /// Add one token to each row; gives the scores of the next.
    pub(super) fn step<M: LanguageModel<B>>(&mut self, model: &M, tokens: &[u32]) -> Result<Tensor<B, 2>> {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        let ids = Tensor::from_data(TensorData::new(ids, [tokens.len(), 1]), &self.device);
        let axes = vec![self.next.clone(); self.axes];
        self.next.iter_mut().for_each(|next| *next += 1);
        self.run(model, model.decoder().embed_tokens(ids), axes)
    }

    /// Keep these rows only, in this order; a row may be taken more than once (beams).
    pub(super) fn keep(&mut self, rows: &[usize]) {
        self.before = rows.iter().map(|&row| self.before[row]).collect();
        self.next = rows.iter().map(|&row| self.next[row]).collect();
        for cache in &mut self.caches {
            cache.select_rows(rows);
        }
    }

    /// New tokens at these positions, behind what is written.
    fn run<M: LanguageModel<B>>(
        &mut self,
        model: &M,
        embeds: Tensor<B, 3>,
        axes: Vec<Vec<i64>>,
    ) -> Result<Tensor<B, 2>> {
        let [batch, tokens, width] = embeds.dims();
        let past = self.columns;
        self.columns += tokens;
        let columns = self.columns;
        let segments = self.before.iter().flat_map(|&before| {
            std::iter::repeat_n(-1, before).chain(std::iter::repeat_n(0, columns - before))
        });
        let positions = Positions { batch, tokens, past, axes, segments: segments.collect() };
        let decoder = model.decoder();
        let context = decoder.context(&positions, &self.device)?;
        let x = decoder.start(wide(embeds), &context);
        let caches = self.caches.iter_mut().enumerate();
        let x = caches.fold(x, |x, (index, cache)| decoder.block(index, x, &context, Some(cache)));
        // Norm and head are applied to the last column alone.
        let last = decoder.finish(x.slice(s![.., tokens - 1.., ..])).reshape([batch, width]);
        Ok(to_f32(project(last, self.head.clone())))
    }
}
