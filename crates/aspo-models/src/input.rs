//! What a vision-language model is given, and checks on ids.

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::error::{Error, Result};

/// One batch of token rows with their pictures.
///
/// Rows may be padded on either side. Image placeholders are already expanded: each picture takes as many image
/// tokens as the model has features for it.
#[derive(Debug, Clone)]
pub struct ModelInput<B: Backend> {
    /// `[batch, tokens]`.
    pub input_ids: Tensor<B, 2, Int>,
    /// `[batch, tokens]`, 1 = real, 0 = padding.
    pub attention_mask: Tensor<B, 2, Int>,
    /// Features of all pictures of the batch in reading order, `[images, features, vision width]`: what
    /// [`vision_features`](crate::VisionLanguageModel::vision_features) gives, before the projector, so that they
    /// can be computed once and kept. `None` for text alone.
    pub image_features: Option<Tensor<B, 3>>,
    /// `[batch, tokens]`; `None` counts the real tokens of each row from 0.
    pub position_ids: Option<Tensor<B, 2, Int>>,
    /// `[batch, tokens]`: a token sees the earlier tokens of its own segment and of segment 0. `None` is plain
    /// causal attention. Used to pack a prompt (0) with two responses (1 and 2) in a row; give `position_ids` that
    /// restart after the prompt with it.
    pub segment_ids: Option<Tensor<B, 2, Int>>,
    /// InstructBLIP only: the instruction in the Q-Former's own vocabulary, one row for each picture.
    pub qformer_input_ids: Option<Tensor<B, 2, Int>>,
    /// InstructBLIP only: 1 = real, for `qformer_input_ids`.
    pub qformer_attention_mask: Option<Tensor<B, 2, Int>>,
}

impl<B: Backend> ModelInput<B> {
    /// Text alone, or add pictures with [`with_images`](Self::with_images).
    pub fn new(input_ids: Tensor<B, 2, Int>, attention_mask: Tensor<B, 2, Int>) -> Self {
        Self {
            input_ids,
            attention_mask,
            image_features: None,
            position_ids: None,
            segment_ids: None,
            qformer_input_ids: None,
            qformer_attention_mask: None,
        }
    }

    /// From rows of unequal length, padded on the right with `pad`.
    pub fn from_rows(rows: &[Vec<u32>], pad: u32, device: &B::Device) -> Self {
        let tokens = rows.iter().map(Vec::len).max().unwrap_or(0);
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for row in rows {
            ids.extend(row.iter().map(|&id| i64::from(id)));
            ids.resize(ids.len() + tokens - row.len(), i64::from(pad));
            mask.extend((0..tokens).map(|i| i64::from(i < row.len())));
        }
        let tensor = |v: Vec<i64>| Tensor::from_data(TensorData::new(v, [rows.len(), tokens]), device);
        Self::new(tensor(ids), tensor(mask))
    }

    /// With the vision features of the pictures.
    pub fn with_images(mut self, features: Tensor<B, 3>) -> Self {
        self.image_features = Some(features);
        self
    }

    /// Check that all parts have the shape of the ids.
    ///
    /// # Errors
    /// The part that has not, by name.
    pub fn check(&self) -> Result<()> {
        let expected = self.input_ids.dims();
        if expected.contains(&0) {
            return Err(Error::input("input_ids", format!("shape {expected:?}: there is no token")));
        }
        let parts = [
            ("attention_mask", Some(&self.attention_mask)),
            ("position_ids", self.position_ids.as_ref()),
            ("segment_ids", self.segment_ids.as_ref()),
        ];
        for (name, part) in parts {
            if let Some(found) = part.map(|t| t.dims()).filter(|&found| found != expected) {
                return Err(Error::input(name, format!("shape {found:?}, but input_ids have {expected:?}")));
            }
        }
        Ok(())
    }
}

/// Ids on the host, each checked to be within the vocabulary.
pub(crate) fn ids<B: Backend, const D: usize>(ids: &Tensor<B, D, Int>, vocab: usize) -> Result<Vec<i64>> {
    let host = host(ids);
    match host.iter().position(|&id| id < 0 || id >= vocab as i64) {
        None => Ok(host),
        Some(at) => {
            Err(Error::input("input_ids", format!("id {} at place {at}, vocabulary of {vocab}", host[at])))
        }
    }
}

/// Integers on the host, whatever their width on the device.
pub(crate) fn host<B: Backend, const D: usize>(ints: &Tensor<B, D, Int>) -> Vec<i64> {
    ints.to_data().iter::<i64>().collect()
}

/// Positions that count the real tokens of each row from 0, on the host.
pub(crate) fn positions<B: Backend>(attention_mask: &Tensor<B, 2, Int>) -> Vec<i64> {
    let tokens = attention_mask.dims()[1];
    let row = |row: &[i64]| {
        let mut next = 0;
        let count = |real: &i64| {
            next += i64::from(*real != 0);
            (next - 1).max(0)
        };
        row.iter().map(count).collect::<Vec<i64>>()
    };
    host(attention_mask).chunks(tokens.max(1)).flat_map(row).collect()
}
