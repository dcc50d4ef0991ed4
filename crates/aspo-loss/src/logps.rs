//! Log-probabilities of a batch: one for each response token of a [`PairLayout`], on the device. Prompt, image and padding
//! positions have no place among them, so nothing has to be masked later.

use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

use crate::chunk::ChunkOptions;
use crate::error::{Error, Result};
use crate::fused::chunked_log_probs;
use crate::head::LmHead;
use crate::layout::{PairLayout, ResponseLayout};
use crate::math;

/// Log-probabilities of the response tokens of both sides, `[N_chosen]` and `[N_rejected]`, in f32, with the layout that
/// they belong to: of the policy, with its gradients, or of the reference model.
#[derive(Debug, Clone)]
pub struct Logps<B: Backend> {
    layout: PairLayout,
    chosen: Tensor<B, 1>,
    rejected: Tensor<B, 1>,
}

impl<B: Backend> Logps<B> {
    /// From flat vectors `[N_chosen]` and `[N_rejected]`, as [`chunked_log_probs`] makes them.
    ///
    /// # Errors
    /// A length other than the layout's number of response tokens.
    pub fn new(layout: &PairLayout, chosen: Tensor<B, 1>, rejected: Tensor<B, 1>) -> Result<Self> {
        for (side, logps, layout) in
            [("chosen", &chosen, &layout.chosen), ("rejected", &rejected, &layout.rejected)]
        {
            let ([found], expected) = (logps.dims(), layout.num_tokens());
            if found != expected {
                let what = format!("{side} log-probabilities");
                return Err(Error::shape(what, found, expected, "one value per response token"));
            }
        }
        let (chosen, rejected) = (math::to_f32(chosen), math::to_f32(rejected));
        Ok(Self { layout: layout.clone(), chosen, rejected })
    }

    /// From one flat vector `[N_chosen + N_rejected]`, all chosen responses first: one pass of a model over both sides.
    ///
    /// # Errors
    /// A length other than the layout's number of response tokens.
    pub fn joined(layout: &PairLayout, both: Tensor<B, 1>) -> Result<Self> {
        let ([found], expected) = (both.dims(), layout.num_tokens());
        if found != expected {
            let what = "log-probabilities, chosen then rejected";
            return Err(Error::shape(what, found, expected, "one value per response token"));
        }
        let split = layout.chosen.num_tokens();
        let chosen = both.clone().narrow(0, 0, split);
        Self::new(layout, chosen, both.narrow(0, split, found - split))
    }

    /// From padded tensors `[B, T]` of both sides, in which value t is that of the token that hidden state t scores;
    /// positions outside the responses are not read.
    ///
    /// # Errors
    /// Another number of rows than the layout's, or rows shorter than its longest.
    pub fn padded(layout: &PairLayout, chosen: Tensor<B, 2>, rejected: Tensor<B, 2>) -> Result<Self> {
        let chosen = layout.chosen.select_log_probs("chosen log-probabilities [B, T]", chosen)?;
        let rejected = layout.rejected.select_log_probs("rejected log-probabilities [B, T]", rejected)?;
        Self::new(layout, chosen, rejected)
    }

    /// From host rows, one value per response token: a cache.
    ///
    /// # Errors
    /// Another number of rows or tokens than the layout's; a value that is not finite or above 0.
    pub fn from_rows<R: AsRef<[f32]>>(
        layout: &PairLayout,
        chosen: &[R],
        rejected: &[R],
        device: &B::Device,
    ) -> Result<Self> {
        let side = |what: &str, rows: &[R], layout: &ResponseLayout| -> Result<Tensor<B, 1>> {
            let flat = flatten(what, rows, layout)?;
            check_log_probs(what, &flat, layout)?;
            Ok(math::constant(flat, [layout.num_tokens()], device))
        };
        let chosen = side("chosen log-probabilities", chosen, &layout.chosen)?;
        let rejected = side("rejected log-probabilities", rejected, &layout.rejected)?;
        Self::new(layout, chosen, rejected)
    }

    /// The same values as constants, for a reference model.
    pub fn detach(self) -> Self {
        let (chosen, rejected) = (math::detached(self.chosen), math::detached(self.rejected));
        Self { chosen, rejected, ..self }
    }

    /// The layout that they belong to.
    pub fn layout(&self) -> &PairLayout {
        &self.layout
    }

    /// The chosen side, `[N_chosen]`, f32.
    pub fn chosen(&self) -> &Tensor<B, 1> {
        &self.chosen
    }

    /// The rejected side, `[N_rejected]`, f32.
    pub fn rejected(&self) -> &Tensor<B, 1> {
        &self.rejected
    }
}

impl<B: AutodiffBackend> Logps<B> {
    /// From what a model gives: hidden states `[B, T, D]` and ids `[B, T]` of both sides, chosen first, and its head. Ids are
    /// aligned as the layout's are ([`ResponseLayout::select_targets`]); only response positions are projected, by
    /// [`chunked_log_probs`]. Where nothing is tracked (a model after `no_grad()`), no graph is made.
    ///
    /// # Errors
    /// Shapes that do not fit, a response token outside the vocabulary, a chunk of 0.
    pub fn chunked(
        layout: &PairLayout,
        hidden: [Tensor<B, 3>; 2],
        ids: [Tensor<B, 2, Int>; 2],
        head: &LmHead<B>,
        options: &ChunkOptions,
    ) -> Result<Self> {
        let side = |layout: &ResponseLayout, hidden, ids| {
            chunked_log_probs(layout.select_hidden(hidden)?, head, layout.select_targets(ids)?, options)
        };
        let ([chosen_hidden, rejected_hidden], [chosen_ids, rejected_ids]) = (hidden, ids);
        let chosen = side(&layout.chosen, chosen_hidden, chosen_ids)?;
        Self::new(layout, chosen, side(&layout.rejected, rejected_hidden, rejected_ids)?)
    }
}

/// Host rows, one value per response token, as one flat vector.
fn flatten<R: AsRef<[f32]>>(what: &str, rows: &[R], layout: &ResponseLayout) -> Result<Vec<f32>> {
    if rows.len() != layout.batch_size() {
        return Err(Error::shape(what, rows.len(), layout.batch_size(), "the rows of the layout"));
    }
    let mut flat = Vec::with_capacity(layout.num_tokens());
    for (row, values) in rows.iter().enumerate() {
        let values = values.as_ref();
        if values.len() != layout.row_tokens(row) {
            let what = format!("{what}, row {row}");
            return Err(Error::shape(
                what,
                values.len(),
                layout.row_tokens(row),
                "one value per response token",
            ));
        }
        flat.extend_from_slice(values);
    }
    Ok(flat)
}

/// Above 0 by more than this is no rounding of a log-probability of 0.
const ROUNDING: f32 = 1e-3;

/// Refuses what is not finite or above 0, by row. NaN is looked for on the host: a device may compare as it likes.
pub(crate) fn check_log_probs(what: &str, flat: &[f32], layout: &ResponseLayout) -> Result<()> {
    let Some(at) = flat.iter().position(|v| !v.is_finite() || *v > ROUNDING) else { return Ok(()) };
    let row = (0..layout.batch_size()).find(|&row| layout.range(row).contains(&at)).unwrap_or(0);
    let (what, element, found) = (what.into(), at - layout.range(row).start, f64::from(flat[at]));
    Err(match found.is_finite() {
        true => Error::Positive { what, row, element, found },
        false => Error::NotFinite { what, row, element, found },
    })
}
