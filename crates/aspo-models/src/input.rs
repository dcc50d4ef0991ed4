//! What a model is given, and checks on ids.

use burn::tensor::backend::Backend;

use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::picture::ImageFeatures;

/// One batch of token rows with their pictures.
///
/// Rows may be padded on either side. Image placeholders are already expanded: each picture stands as many image tokens
/// as the model says for its shape. Positions are no part of it: the model [computes](crate::LanguageModel::positions) them.
#[derive(Debug, Clone)]
pub struct ModelInput<B: Backend> {
    /// `[batch, tokens]`.
    pub input_ids: Ids<B>,
    /// `[batch, tokens]`, 1 = real, 0 = padding.
    pub attention_mask: Ids<B>,
    /// Features of all pictures of the batch in reading order: what
    /// [`vision_features`](crate::VisionLanguageModel::vision_features) gives, before the projector, so that they can be
    /// computed once and kept. Empty for text alone.
    pub image_features: Vec<ImageFeatures<B>>,
    /// `[batch, tokens]`, from 0 on: a token sees the earlier tokens of its own segment and of segment 0. `None` is plain
    /// causal attention. Used to pack a prompt (0) with two responses (1 and 2) in a row.
    pub segment_ids: Option<Ids<B>>,
    /// What is asked of each picture, for models whose vision side reads it too (InstructBLIP's Q-Former).
    pub instruction: Option<Instruction<B>>,
}

/// A question that the vision side reads beside the picture, in a vocabulary of its own: one row for each picture.
#[derive(Debug, Clone)]
pub struct Instruction<B: Backend> {
    /// `[pictures, tokens]`.
    pub ids: Ids<B>,
    /// `[pictures, tokens]`, 1 = real, 0 = padding.
    pub attention_mask: Ids<B>,
}

impl<B: Backend> Instruction<B> {
    /// From rows of unequal length, padded on the right with `pad`.
    pub fn from_rows(rows: &[Vec<u32>], pad: u32, device: &B::Device) -> Self {
        let [ids, attention_mask] = padded(rows, pad, device);
        Self { ids, attention_mask }
    }
}

impl<B: Backend> ModelInput<B> {
    /// Text alone, or add pictures with [`with_images`](Self::with_images).
    pub fn new(input_ids: impl Into<Ids<B>>, attention_mask: impl Into<Ids<B>>) -> Self {
        let (input_ids, attention_mask) = (input_ids.into(), attention_mask.into());
        Self { input_ids, attention_mask, image_features: Vec::new(), segment_ids: None, instruction: None }
    }

    /// From rows of unequal length, padded on the right with `pad`.
    pub fn from_rows(rows: &[Vec<u32>], pad: u32, device: &B::Device) -> Self {
        let [ids, mask] = padded(rows, pad, device);
        Self::new(ids, mask)
    }

    /// With the vision features of the pictures.
    pub fn with_images(mut self, features: Vec<ImageFeatures<B>>) -> Self {
        self.image_features = features;
        self
    }

    /// With what is asked of each picture.
    pub fn with_instruction(mut self, instruction: Instruction<B>) -> Self {
        self.instruction = Some(instruction);
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
        let parts =
            [("attention_mask", Some(&self.attention_mask)), ("segment_ids", self.segment_ids.as_ref())];
        for (name, part) in parts {
            if let Some(found) = part.map(|t| t.dims()).filter(|&found| found != expected) {
                return Err(Error::input(name, format!("shape {found:?}, but input_ids have {expected:?}")));
            }
        }
        Ok(())
    }

    /// The segment of every token on the host, row by row; -1 at padding.
    ///
    /// # Errors
    /// What [`check`](Self::check) refuses, and a real token in a segment below 0.
    pub fn segments(&self) -> Result<Vec<i64>> {
        self.check()?;
        let real = self.attention_mask.values();
        let segments = self.segment_ids.as_ref().map(|segments| segments.values().to_vec());
        let mut segments = segments.unwrap_or_else(|| vec![0; real.len()]);
        for (at, (segment, real)) in segments.iter_mut().zip(real).enumerate() {
            match *real {
                0 => *segment = -1,
                _ if *segment < 0 => {
                    let reason =
                        format!("{segment} at place {at}; segments count from 0, and padding is masked");
                    return Err(Error::input("segment_ids", reason));
                }
                _ => {}
            }
        }
        Ok(segments)
    }
}

/// Ids and mask of rows, padded on the right.
fn padded<B: Backend>(rows: &[Vec<u32>], pad: u32, device: &B::Device) -> [Ids<B>; 2] {
    let tokens = rows.iter().map(Vec::len).max().unwrap_or(0);
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for row in rows {
        ids.extend(row.iter().map(|&id| i64::from(id)));
        ids.resize(ids.len() + tokens - row.len(), i64::from(pad));
        mask.extend((0..tokens).map(|i| i64::from(i < row.len())));
    }
    [ids, mask].map(|values| Ids::new(values, [rows.len(), tokens], device))
}

/// Refuses ids outside the vocabulary.
pub(crate) fn check_ids<B: Backend>(ids: &Ids<B>, vocab: usize) -> Result<()> {
    let host = ids.values();
    match host.iter().position(|&id| id < 0 || id >= vocab as i64) {
        None => Ok(()),
        Some(at) => {
            Err(Error::input("input_ids", format!("id {} at place {at}, vocabulary of {vocab}", host[at])))
        }
    }
}
