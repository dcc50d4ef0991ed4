//! From encoded pairs to the arrays of one step, on the host.
//!
//! Two layouts of the same pairs. [`HostBatch::stacked`]: two rows a pair, all chosen rows first. [`HostBatch::packed`]:
//! one row a pair, `prompt ‖ chosen ‖ rejected`, where the answers see the prompt but not each other (segments) and both
//! continue the prompt's positions: the prompt is computed once. The [`Responses`] of both list the same tokens in the
//! same order, so that everything after the model is written once.

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::encode::{EncodedAnswer, EncodedPair};
use crate::error::{Error, Result};
use crate::pair::ImageSource;

/// The answer tokens of a batch: chosen sequences `0..n`, then rejected ones `n..2n`, each in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Responses {
    /// `[N]` flat positions `row · length + column` of the hidden states that *predict* the tokens: one before each,
    /// for an answer's first token the last of the prompt.
    pub positions: Vec<i32>,
    /// `[N]` the tokens themselves.
    pub targets: Vec<i32>,
    /// `[N]` sequence of each token, `0..2n`.
    pub sequences: Vec<i32>,
    /// `[N]` sentence of each token within its answer.
    pub sentence_ids: Vec<i32>,
    /// `[2n]` tokens of each sequence.
    pub token_counts: Vec<usize>,
    /// `[2n]` sentences of each sequence.
    pub sentence_counts: Vec<usize>,
    /// `[2n]` rows of similarity, one number a sentence, empty where not computed.
    pub similarity: Vec<Vec<f32>>,
}

impl Responses {
    fn push(&mut self, answer: &EncodedAnswer, sequence: usize, before: usize, first: usize) {
        for (token, (id, sentence)) in answer.ids.iter().zip(&answer.sentences).enumerate() {
            self.positions.push(if token == 0 { before } else { first + token - 1 } as i32);
            self.targets.push(*id as i32);
            self.sequences.push(sequence as i32);
            self.sentence_ids.push(*sentence as i32);
        }
        self.token_counts.push(answer.ids.len());
        self.sentence_counts.push(answer.sentence_count());
        self.similarity.push(answer.similarity.clone());
    }

    /// Number of answer tokens `N`.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// No tokens: only a batch without pairs.
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

/// One batch in plain memory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostBatch {
    /// `[n]` pair ids.
    pub ids: Vec<String>,
    /// The distinct images; each is decoded and encoded once.
    pub images: Vec<ImageSource>,
    /// Whether each of them is the only one of its conversation: one that is so in one pair and not in another counts twice.
    pub alone: Vec<bool>,
    /// For each run of image tokens, rows in order, the index of its image in `images`.
    pub image_index: Vec<usize>,
    /// Rows: `2n` stacked, `n` packed.
    pub rows: usize,
    /// Columns: the longest row, rounded up.
    pub length: usize,
    /// `[rows · length]` token ids, right-padded.
    pub input_ids: Vec<i32>,
    /// `[rows · length]` true at tokens, false at padding.
    pub attention_mask: Vec<bool>,
    /// `[rows · length]` position of each token in its sequence; 0 at padding.
    pub position_ids: Vec<i32>,
    /// `[rows · length]` 0 prompt, 1 chosen, 2 rejected, -1 padding. A token attends to earlier tokens of its own segment
    /// and of segment 0. In the stacked layout this is the plain causal mask.
    pub segments: Vec<i32>,
    /// `[n · instruction_length]` the Q-Former's instruction, right-padded with 0; empty for other models.
    pub instruction_ids: Vec<i32>,
    /// True at the instruction's tokens.
    pub instruction_mask: Vec<bool>,
    /// Columns of the instruction.
    pub instruction_length: usize,
    /// The answer tokens.
    pub responses: Responses,
}

/// How rows are padded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// Id of the padding token.
    pub id: u32,
    /// The length is rounded up to a multiple of this: fewer shapes for a device to compile. At least 1.
    pub multiple_of: usize,
}

impl HostBatch {
    /// Two rows a pair: chosen rows `0..n`, rejected rows `n..2n`.
    ///
    /// # Errors
    /// [`Error::Option`] for no pairs or a multiple of 0.
    pub fn stacked(pairs: &[&EncodedPair], padding: Padding) -> Result<Self> {
        let mut batch = Self::start(pairs, padding, 2 * pairs.len(), EncodedPair::length)?;
        for (row, (pair, answer, segment)) in pairs
            .iter()
            .map(|pair| (pair, &pair.chosen, 1))
            .chain(pairs.iter().map(|pair| (pair, &pair.rejected, 2)))
            .enumerate()
        {
            batch.fill(row, 0, &pair.prompt_ids, 0, 0);
            let first = pair.prompt_ids.len();
            batch.fill(row, first, &answer.ids, segment, first);
            let at = row * batch.length + first;
            batch.responses.push(answer, row, at - 1, at);
            batch.point_images(pair);
        }
        Ok(batch)
    }

    /// One row a pair: `prompt ‖ chosen ‖ rejected`.
    ///
    /// # Errors
    /// As [`HostBatch::stacked`].
    pub fn packed(pairs: &[&EncodedPair], padding: Padding) -> Result<Self> {
        let length =
            |pair: &EncodedPair| pair.prompt_ids.len() + pair.chosen.ids.len() + pair.rejected.ids.len();
        let mut batch = Self::start(pairs, padding, pairs.len(), length)?;
        for (row, pair) in pairs.iter().enumerate() {
            let chosen = pair.prompt_ids.len();
            let rejected = chosen + pair.chosen.ids.len();
            batch.fill(row, 0, &pair.prompt_ids, 0, 0);
            batch.fill(row, chosen, &pair.chosen.ids, 1, chosen);
            batch.fill(row, rejected, &pair.rejected.ids, 2, chosen);
            batch.point_images(pair);
        }
        for (sequence, pair) in pairs.iter().chain(pairs).enumerate() {
            let row = sequence % pairs.len();
            let start = row * batch.length + pair.prompt_ids.len();
            if sequence < pairs.len() {
                batch.responses.push(&pair.chosen, sequence, start - 1, start);
            } else {
                batch.responses.push(&pair.rejected, sequence, start - 1, start + pair.chosen.ids.len());
            }
        }
        Ok(batch)
    }

    /// Number of pairs.
    pub fn pairs(&self) -> usize {
        self.ids.len()
    }

    fn start(
        pairs: &[&EncodedPair],
        padding: Padding,
        rows: usize,
        length: impl Fn(&EncodedPair) -> usize,
    ) -> Result<Self> {
        if padding.multiple_of == 0 {
            let found = "0".to_owned();
            return Err(Error::Option { name: "pad_to_multiple_of", found, remedy: "use 1 or more" });
        }
        let Some(longest) = pairs.iter().map(|pair| length(pair)).max() else {
            return Err(Error::Option {
                name: "batch",
                found: "no pairs".to_owned(),
                remedy: "give at least one",
            });
        };
        let length = longest.next_multiple_of(padding.multiple_of);
        let cells = rows * length;
        let mut batch = Self {
            ids: pairs.iter().map(|pair| pair.id.clone()).collect(),
            rows,
            length,
            input_ids: vec![padding.id as i32; cells],
            attention_mask: vec![false; cells],
            position_ids: vec![0; cells],
            segments: vec![-1; cells],
            ..Self::default()
        };
        for (pair, image) in pairs.iter().flat_map(|pair| pair.images.iter().map(move |image| (pair, image)))
        {
            let alone = pair.images.len() == 1;
            if batch.image(image, alone).is_none() {
                batch.images.push(image.clone());
                batch.alone.push(alone);
            }
        }
        batch.instruction_length = pairs.iter().map(|pair| pair.instruction_ids.len()).max().unwrap_or(0);
        for pair in pairs {
            let ids = pair.instruction_ids.iter().map(|id| *id as i32);
            let empty = batch.instruction_length - pair.instruction_ids.len();
            batch.instruction_ids.extend(ids.chain(std::iter::repeat_n(0, empty)));
            let mask = std::iter::repeat_n(true, pair.instruction_ids.len());
            batch.instruction_mask.extend(mask.chain(std::iter::repeat_n(false, empty)));
        }
        Ok(batch)
    }

    fn fill(&mut self, row: usize, column: usize, ids: &[u32], segment: i32, position: usize) {
        for (index, id) in ids.iter().enumerate() {
            let cell = row * self.length + column + index;
            self.input_ids[cell] = *id as i32;
            self.attention_mask[cell] = true;
            self.position_ids[cell] = (position + index) as i32;
            self.segments[cell] = segment;
        }
    }

    fn point_images(&mut self, pair: &EncodedPair) {
        for image in &pair.images {
            let index = self.image(image, pair.images.len() == 1);
            self.image_index.push(index.expect("the images of all pairs were listed"));
        }
    }

    fn image(&self, image: &ImageSource, alone: bool) -> Option<usize> {
        (0..self.images.len()).find(|&at| self.images[at] == *image && self.alone[at] == alone)
    }
}

/// Preprocessed images as one tensor `[images, 3, size, size]`.
///
/// # Errors
/// [`Error::Option`] when an image does not have `3 · size · size` values or there is none.
pub fn pixel_tensor<B: Backend>(
    images: &[Vec<f32>],
    size: usize,
    device: &B::Device,
) -> Result<Tensor<B, 4>> {
    let wanted = 3 * size * size;
    let wrong = images.iter().map(Vec::len).find(|length| *length != wanted);
    if images.is_empty() || wrong.is_some() {
        let found = wrong.map_or("no images".to_owned(), |length| format!("an image of {length} values"));
        return Err(Error::Option {
            name: "pixels",
            found,
            remedy: "give images preprocessed to the same size",
        });
    }
    Ok(Tensor::from_data(TensorData::new(images.concat(), [images.len(), 3, size, size]), device))
}
