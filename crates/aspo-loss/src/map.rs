//! Which token belongs to which sentence: the layout of a batch, held on the host.
//!
//! Every response token of a batch has one place in a flat vector: row after row, position after position.

use burn::prelude::*;

use crate::error::{Error, Result};
use crate::math;

/// Which response token belongs to which sentence, for one side (chosen or rejected) of a batch of B rows.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceMap {
    rows: Vec<Row>,
    starts: Vec<usize>,
    width: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    /// Position in the padded row, for each response token.
    positions: Vec<usize>,
    /// Sentence, for each response token.
    sentences: Vec<usize>,
    /// Tokens of each sentence.
    counts: Vec<usize>,
}

impl SentenceMap {
    /// From one row of sentence ids per response: -1 where the position is not a response token (prompt, image,
    /// padding), else the sentence's number from 0. Rows may differ in length.
    ///
    /// Positions are those of *labels*, of which label t is the token at t + 1: hidden state t scores it. Ids made for tokens
    /// are shifted one to the left first, as labels are.
    ///
    /// # Errors
    /// A batch without rows, a row without response tokens, an id below -1, a sentence without tokens below the highest
    /// id of its row.
    pub fn new<R: AsRef<[i64]>>(rows: &[R]) -> Result<Self> {
        Self::named("sentence ids", rows)
    }

    /// For responses taken whole: one sentence each, from the number of response tokens of each row, without padding.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn whole(lengths: &[usize]) -> Result<Self> {
        let rows: Vec<Vec<i64>> = lengths.iter().map(|&n| vec![0; n]).collect();
        Self::new(&rows)
    }

    fn named<R: AsRef<[i64]>>(what: &str, rows: &[R]) -> Result<Self> {
        let what = || what.to_string();
        if rows.is_empty() {
            return Err(Error::Empty { what: what() });
        }
        let mut width = 0;
        let mut starts = vec![0];
        let mut parsed = Vec::with_capacity(rows.len());
        for (row, ids) in rows.iter().enumerate() {
            let ids = ids.as_ref();
            width = width.max(ids.len());
            let mut positions = Vec::new();
            let mut sentences = Vec::new();
            for (position, &found) in ids.iter().enumerate() {
                // An id cannot exceed the number of tokens that could own the sentences below it.
                if found < -1 || found >= ids.len() as i64 {
                    return Err(Error::SentenceId { what: what(), row, position, found });
                }
                if found >= 0 {
                    positions.push(position);
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
        Ok(Self { rows: parsed, starts, width })
    }

    /// Number of rows, B.
    pub fn batch_size(&self) -> usize {
        self.rows.len()
    }

    /// Number of response tokens of the whole batch, N: the length of every flat vector of this side.
    pub fn num_tokens(&self) -> usize {
        self.starts[self.rows.len()]
    }

    /// Number of response tokens of one row.
    pub fn row_tokens(&self, row: usize) -> usize {
        self.rows[row].positions.len()
    }

    /// Tokens of each sentence of one row; its length is the number of sentences.
    pub fn counts(&self, row: usize) -> &[usize] {
        &self.rows[row].counts
    }

    /// The largest number of sentences of any row, K.
    pub fn max_sentences(&self) -> usize {
        self.rows.iter().map(|row| row.counts.len()).max().unwrap_or(0)
    }

    /// The longest row of ids the map was made from: the least T of a padded `[B, T]` tensor it can address.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The sentence of each response token of one row.
    pub fn sentences(&self, row: usize) -> &[usize] {
        &self.rows[row].sentences
    }

    /// The positions in the padded row of each response token of one row.
    pub fn positions(&self, row: usize) -> &[usize] {
        &self.rows[row].positions
    }

    /// The part of a flat vector that belongs to one row.
    pub fn range(&self, row: usize) -> core::ops::Range<usize> {
        self.starts[row]..self.starts[row + 1]
    }

    /// Flat indices into a row-major `[B, T]` tensor of each response token, in the order of the flat vector.
    pub fn flat_positions(&self, row_length: usize) -> Vec<usize> {
        let place = |(row, r): (usize, &Row)| {
            r.positions.iter().map(move |&p| row * row_length + p).collect::<Vec<_>>()
        };
        self.rows.iter().enumerate().flat_map(place).collect()
    }

    /// The response positions of hidden states or logits: `[B, T, D]` to `[N, D]`, so that only they are projected.
    ///
    /// # Errors
    /// A tensor of another number of rows, or shorter than the map.
    pub fn select_rows<B: Backend>(&self, states: Tensor<B, 3>) -> Result<Tensor<B, 2>> {
        let [batch, length, features] = states.dims();
        self.check_padded("states [B, T, D]", batch, length)?;
        let index = math::indices(self.device_positions(length), &states.device());
        Ok(states.reshape([batch * length, features]).select(0, index))
    }

    /// The labels of the response positions: `[B, T]` to `[N]`.
    ///
    /// # Errors
    /// As [`select_rows`](Self::select_rows).
    pub fn select_labels<B: Backend>(&self, labels: Tensor<B, 2, Int>) -> Result<Tensor<B, 1, Int>> {
        let [batch, length] = labels.dims();
        self.check_padded("labels [B, T]", batch, length)?;
        let index = math::indices(self.device_positions(length), &labels.device());
        Ok(labels.reshape([batch * length]).select(0, index))
    }

    pub(crate) fn select_scores<B: Backend>(&self, what: &str, padded: Tensor<B, 2>) -> Result<Tensor<B, 1>> {
        let [batch, length] = padded.dims();
        self.check_padded(what, batch, length)?;
        let index = math::indices(self.device_positions(length), &padded.device());
        Ok(padded.reshape([batch * length]).select(0, index))
    }

    fn device_positions(&self, length: usize) -> Vec<i32> {
        self.flat_positions(length).into_iter().map(|p| p as i32).collect()
    }

    fn check_padded(&self, what: &str, batch: usize, length: usize) -> Result<()> {
        if batch != self.batch_size() || length < self.width {
            let expected = format!("[{}, at least {}, …]", self.batch_size(), self.width);
            let found = format!("[{batch}, {length}, …]");
            let why = "the sentence map's rows and longest row";
            return Err(Error::Shape { what: what.into(), found, expected, why });
        }
        Ok(())
    }
}

/// The sentence maps of both sides of a batch of pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairMap {
    /// The chosen responses.
    pub chosen: SentenceMap,
    /// The rejected responses. Give every token id 0 for a response taken whole; the finer split is used only by
    /// [`Weigh::Both`](crate::Weigh::Both) and by the report.
    pub rejected: SentenceMap,
}

impl PairMap {
    /// From the sentence ids of both sides; see [`SentenceMap::new`].
    ///
    /// # Errors
    /// As [`SentenceMap::new`]; two sides of different numbers of rows.
    pub fn new<R: AsRef<[i64]>, S: AsRef<[i64]>>(chosen: &[R], rejected: &[S]) -> Result<Self> {
        Self::from_maps(
            SentenceMap::named("chosen sentence ids", chosen)?,
            SentenceMap::named("rejected sentence ids", rejected)?,
        )
    }

    /// From two maps that were made apart.
    ///
    /// # Errors
    /// Two sides of different numbers of rows.
    pub fn from_maps(chosen: SentenceMap, rejected: SentenceMap) -> Result<Self> {
        if chosen.batch_size() != rejected.batch_size() {
            let (found, expected) = (rejected.batch_size(), chosen.batch_size());
            return Err(Error::shape(
                "rejected sentence ids",
                found,
                expected,
                "the rows of the chosen side",
            ));
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
