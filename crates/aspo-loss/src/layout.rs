//! The layout of a batch: which positions hold response tokens, and which sentence each belongs to.
//!
//! It is made once per batch, on the host, and knows all sizes. Every response token of a batch has one place in a flat
//! vector: row after row, position after position. A layout is shared, not copied, when it is cloned.

use std::sync::Arc;

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::math;

/// The layout of one side (chosen or rejected) of a batch of B rows.
///
/// Rows of sentence ids say it: -1 where the position is not a response token (prompt, image, padding), else the sentence's
/// number from 0. A response taken whole is one sentence, 0. Rows may differ in length.
#[derive(Debug, Clone)]
pub struct ResponseLayout(Arc<Inner>);

#[derive(Debug, PartialEq)]
struct Inner {
    rows: Vec<Row>,
    starts: Vec<usize>,
    width: usize,
    /// How far a token stands behind the hidden state that scores it, in the ids that are given: 1 or, for labels, 0.
    shift: usize,
}

#[derive(Debug, PartialEq)]
struct Row {
    /// Position of the hidden state that scores it, for each response token.
    positions: Vec<usize>,
    /// Sentence, for each response token.
    sentences: Vec<usize>,
    /// Tokens of each sentence.
    counts: Vec<usize>,
}

impl PartialEq for ResponseLayout {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl ResponseLayout {
    /// From sentence ids aligned with tokens, as `input_ids` are: id t is that of token t. The shift of a causal model is
    /// made here: hidden state t - 1 scores token t.
    ///
    /// # Errors
    /// A batch without rows, a row without response tokens, a first token that is one (no hidden state scores it), an id
    /// below -1, a sentence without tokens below the highest id of its row.
    pub fn from_tokens<R: AsRef<[i64]>>(rows: &[R]) -> Result<Self> {
        Self::named("sentence ids", rows, 1)
    }

    /// From sentence ids aligned with labels that were shifted before: id t is that of the token that hidden state t scores.
    ///
    /// # Errors
    /// As [`from_tokens`](Self::from_tokens); a first position is like any other.
    pub fn from_labels<R: AsRef<[i64]>>(rows: &[R]) -> Result<Self> {
        Self::named("sentence ids", rows, 0)
    }

    fn named<R: AsRef<[i64]>>(what: &str, rows: &[R], shift: usize) -> Result<Self> {
        let what = || what.to_string();
        if rows.is_empty() {
            return Err(Error::Empty { what: what() });
        }
        let mut width = 0;
        let mut starts = vec![0];
        let mut parsed = Vec::with_capacity(rows.len());
        for (row, ids) in rows.iter().enumerate() {
            let ids = ids.as_ref();
            if shift == 1 && ids.first().is_some_and(|&id| id >= 0) {
                return Err(Error::FirstToken { what: what(), row });
            }
            width = width.max(ids.len().saturating_sub(shift));
            let mut positions = Vec::new();
            let mut sentences = Vec::new();
            for (position, &found) in ids.iter().enumerate() {
                // An id cannot exceed the number of tokens that could own the sentences below it.
                if found < -1 || found >= ids.len() as i64 {
                    return Err(Error::SentenceId { what: what(), row, position, found });
                }
                if found >= 0 {
                    positions.push(position - shift);
                    sentences.push(found as usize);
                }
            }
            let Some(&last) = sentences.iter().max() else {
                return Err(Error::NoResponse { what: what(), row });
            };
            let mut counts = vec![0; last + 1];
            for &sentence in &sentences {
                counts[sentence] += 1;
            }
            if let Some(sentence) = counts.iter().position(|&n| n == 0) {
                return Err(Error::EmptySentence { what: what(), row, sentence, sentences: last + 1 });
            }
            starts.push(starts[row] + positions.len());
            parsed.push(Row { positions, sentences, counts });
        }
        Ok(Self(Arc::new(Inner { rows: parsed, starts, width, shift })))
    }

    /// Number of rows, B.
    pub fn batch_size(&self) -> usize {
        self.0.rows.len()
    }

    /// Number of response tokens of the whole batch, N: the length of every flat vector of this side.
    pub fn num_tokens(&self) -> usize {
        self.0.starts[self.0.rows.len()]
    }

    /// Number of response tokens of one row.
    pub fn row_tokens(&self, row: usize) -> usize {
        self.0.rows[row].positions.len()
    }

    /// Tokens of each sentence of one row; its length is the number of sentences.
    pub fn counts(&self, row: usize) -> &[usize] {
        &self.0.rows[row].counts
    }

    /// The largest number of sentences of any row, K.
    pub fn max_sentences(&self) -> usize {
        self.0.rows.iter().map(|row| row.counts.len()).max().unwrap_or(0)
    }

    /// The least T of a padded `[B, T, D]` tensor of hidden states that it can address: the longest row of labels.
    pub fn width(&self) -> usize {
        self.0.width
    }

    /// The sentence of each response token of one row.
    pub fn sentences(&self, row: usize) -> &[usize] {
        &self.0.rows[row].sentences
    }

    /// The positions in the padded row of the hidden states that score the response tokens of one row.
    pub fn positions(&self, row: usize) -> &[usize] {
        &self.0.rows[row].positions
    }

    /// The part of a flat vector that belongs to one row.
    pub fn range(&self, row: usize) -> core::ops::Range<usize> {
        self.0.starts[row]..self.0.starts[row + 1]
    }

    /// The same of all rows, as indices into a row-major `[B, T]` tensor, in the order of the flat vector.
    pub fn flat_positions(&self, row_length: usize) -> Vec<usize> {
        let place = |(row, r): (usize, &Row)| {
            r.positions.iter().map(move |&p| row * row_length + p).collect::<Vec<_>>()
        };
        self.0.rows.iter().enumerate().flat_map(place).collect()
    }

    /// The hidden states (or logits) that score response tokens: `[B, T, D]` to `[N, D]`, so that only they are projected.
    ///
    /// # Errors
    /// A tensor of another number of rows, or shorter than the layout.
    pub fn select_hidden<B: Backend>(&self, hidden: Tensor<B, 3>) -> Result<Tensor<B, 2>> {
        let [batch, length, features] = hidden.dims();
        self.check_padded("hidden states [B, T, D]", batch, length, 0)?;
        let index = self.device_positions(length, 0, &hidden.device())?;
        Ok(hidden.reshape([batch * length, features]).select(0, index))
    }

    /// The response tokens: `[B, T]` to `[N]`. The ids are aligned as the layout's were: tokens as a model reads them with
    /// [`from_tokens`](Self::from_tokens), shifted labels with [`from_labels`](Self::from_labels).
    ///
    /// # Errors
    /// As [`select_hidden`](Self::select_hidden).
    pub fn select_targets<B: Backend>(&self, ids: Tensor<B, 2, Int>) -> Result<Tensor<B, 1, Int>> {
        let ([batch, length], shift) = (ids.dims(), self.0.shift);
        self.check_padded("ids [B, T]", batch, length, shift)?;
        let index = self.device_positions(length, shift, &ids.device())?;
        Ok(ids.reshape([batch * length]).select(0, index))
    }

    pub(crate) fn select_log_probs<B: Backend>(
        &self,
        what: &str,
        padded: Tensor<B, 2>,
    ) -> Result<Tensor<B, 1>> {
        let [batch, length] = padded.dims();
        self.check_padded(what, batch, length, 0)?;
        let index = self.device_positions(length, 0, &padded.device())?;
        Ok(padded.reshape([batch * length]).select(0, index))
    }

    fn device_positions<B: Backend>(
        &self,
        length: usize,
        shift: usize,
        device: &B::Device,
    ) -> Result<Tensor<B, 1, Int>> {
        let place = |p: usize| {
            i32::try_from(p + shift).map_err(|_| {
                let expected = "at most 2^31 positions";
                Error::shape("the batch", self.batch_size() * length, expected, "a device counts them in i32")
            })
        };
        let places = self.flat_positions(length).into_iter().map(place).collect::<Result<_>>()?;
        Ok(math::indices(places, device))
    }

    fn check_padded(&self, what: &str, batch: usize, length: usize, shift: usize) -> Result<()> {
        let least = self.0.width + shift;
        if batch != self.batch_size() || length < least {
            let expected = format!("[{}, at least {least}, …]", self.batch_size());
            let found = format!("[{batch}, {length}, …]");
            let why = "the layout's rows and longest row";
            return Err(Error::Shape { what: what.into(), found, expected, why });
        }
        Ok(())
    }
}

/// The layouts of both sides of a batch of pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairLayout {
    /// The chosen responses.
    pub chosen: ResponseLayout,
    /// The rejected responses. A response taken whole has id 0 for every token; the finer split is used only by
    /// [`Weigh::Both`](crate::Weigh::Both) and by the report.
    pub rejected: ResponseLayout,
}

impl PairLayout {
    /// From the sentence ids of both sides, aligned with tokens; see [`ResponseLayout::from_tokens`].
    ///
    /// ```
    /// // One pair. Chosen: two prompt tokens, two sentences of one token each, padding. Rejected: one token.
    /// let layout = aspo_loss::PairLayout::from_tokens(&[[-1, -1, 0, 1, -1]], &[[-1, -1, 0]])?;
    /// assert_eq!(layout.chosen.counts(0), [1, 1]);
    /// // Hidden states 1 and 2 score tokens 2 and 3.
    /// assert_eq!(layout.chosen.positions(0), [1, 2]);
    /// # Ok::<(), aspo_loss::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`ResponseLayout::from_tokens`]; two sides of different numbers of rows.
    pub fn from_tokens<R: AsRef<[i64]>, S: AsRef<[i64]>>(chosen: &[R], rejected: &[S]) -> Result<Self> {
        Self::shifted(chosen, rejected, 1)
    }

    /// From the sentence ids of both sides, aligned with shifted labels; see [`ResponseLayout::from_labels`].
    ///
    /// # Errors
    /// As [`ResponseLayout::from_labels`]; two sides of different numbers of rows.
    pub fn from_labels<R: AsRef<[i64]>, S: AsRef<[i64]>>(chosen: &[R], rejected: &[S]) -> Result<Self> {
        Self::shifted(chosen, rejected, 0)
    }

    fn shifted<R: AsRef<[i64]>, S: AsRef<[i64]>>(chosen: &[R], rejected: &[S], shift: usize) -> Result<Self> {
        Self::from_sides(
            ResponseLayout::named("chosen sentence ids", chosen, shift)?,
            ResponseLayout::named("rejected sentence ids", rejected, shift)?,
        )
    }

    /// From two layouts that were made apart.
    ///
    /// # Errors
    /// Two sides of different numbers of rows.
    pub fn from_sides(chosen: ResponseLayout, rejected: ResponseLayout) -> Result<Self> {
        if chosen.batch_size() != rejected.batch_size() {
            let (found, expected) = (rejected.batch_size(), chosen.batch_size());
            let why = "the rows of the chosen side";
            return Err(Error::shape("rejected sentence ids", found, expected, why));
        }
        Ok(Self { chosen, rejected })
    }

    /// Number of pairs, B.
    pub fn batch_size(&self) -> usize {
        self.chosen.batch_size()
    }

    /// Response tokens of both sides: the length of a joined flat vector.
    pub fn num_tokens(&self) -> usize {
        self.chosen.num_tokens() + self.rejected.num_tokens()
    }
}
