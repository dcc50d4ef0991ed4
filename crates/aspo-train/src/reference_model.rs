//! A second checkpoint as the reference (`ref_model`).

use std::path::Path;

use aspo_data::EncodedPair;
use aspo_loss::ChunkOptions;
use aspo_models::{PictureShape, Pretrained, VisionLanguageModel};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use crate::batcher::Batcher;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::read::Data;
use crate::step::ReferenceRow;

/// A frozen model that looks at the pictures through its own tower, with its own image processor.
pub(crate) struct ReferenceModel<B: Backend, P> {
    model: P,
    batcher: Batcher<B>,
}

impl<B: Backend, P: Pretrained<B> + VisionLanguageModel<B>> ReferenceModel<B, P> {
    /// Reads the checkpoint in `folder`, in the precision of the policy.
    ///
    /// # Errors
    /// Another architecture; a picture that takes other tokens than in the policy's rows, a vocabulary that lacks some of
    /// the pairs' ids.
    pub fn load(
        config: &TrainConfig,
        folder: &Path,
        policy: &impl VisionLanguageModel<B>,
        data: &Data,
        device: &B::Device,
    ) -> Result<Self> {
        let (model, _) = P::from_pretrained(folder, &config.load_options(), device)?;
        let told = |what: &str, its: usize, ours: usize| {
            let found = format!("{} has {what} {its}, the model {ours}", folder.display());
            Err(Error::option("ref_model", found, "give a reference that reads the same rows of tokens"))
        };
        let square = PictureShape::whole([policy.image_size(); 2]);
        if model.tokens(&square) != policy.tokens(&square) {
            return told("tokens a picture:", model.tokens(&square), policy.tokens(&square));
        }
        if model.image_token() != policy.image_token() {
            return told("the image token", model.image_token() as usize, policy.image_token() as usize);
        }
        let [vocabulary, _] = model.head().dims();
        let highest = [&data.pairs, &data.held_out].map(|set| set.summary().highest);
        if highest.iter().flatten().any(|&(id, _)| id != policy.image_token() && id as usize >= vocabulary) {
            return told("a vocabulary of", vocabulary, policy.head().dims()[0]);
        }
        let pad = data.encoder.tokenizer.pad();
        let batcher = Batcher::new(config, folder, model.image_size(), pad, device)?;
        Ok(Self { model, batcher })
    }

    /// Its log-probabilities of the answers of `pairs`, on the device.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn log_probs(&mut self, pairs: &[&EncodedPair]) -> Result<Tensor<B, 1>> {
        let chunk = ChunkOptions::of::<B>(&self.batcher.device);
        self.batcher.batch(pairs, &self.model)?.reference_log_probs(&self.model, &chunk)
    }

    /// Its log-probabilities of the answers of `pairs`.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn rows(&mut self, pairs: &[&EncodedPair]) -> Result<Vec<ReferenceRow>> {
        let chunk = ChunkOptions::of::<B>(&self.batcher.device);
        self.batcher.batch(pairs, &self.model)?.reference(&self.model, &chunk)
    }
}
