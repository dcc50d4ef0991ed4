//! A second checkpoint as the reference (`ref_model`).

use std::path::Path;

use aspo_data::{EncodedPair, ImageLoader};
use aspo_loss::ChunkOptions;
use aspo_models::{PictureShape, Pretrained, VisionLanguageModel};
use burn::tensor::backend::Backend;

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::features::VisionFeatures;
use crate::read::Data;
use crate::step::{MicroBatch, ReferenceRow};

/// A frozen model that looks at the pictures through its own tower, with its own image processor.
pub(crate) struct ReferenceModel<B: Backend, P> {
    model: P,
    features: VisionFeatures,
    device: B::Device,
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
        let pairs = data.pairs.iter().chain(&data.held_out);
        let read = pairs.flat_map(|pair| [&pair.prompt_ids, &pair.chosen.ids, &pair.rejected.ids]);
        if read.flatten().any(|&id| id != policy.image_token() && id as usize >= vocabulary) {
            return told("a vocabulary of", vocabulary, policy.head().dims()[0]);
        }
        Self::of(model, config, folder, device)
    }

    /// The same model on another device.
    ///
    /// # Errors
    /// An image processor that cannot be honoured.
    #[cfg(feature = "collective")]
    pub fn on(&self, config: &TrainConfig, folder: &Path, device: &B::Device) -> Result<Self> {
        Self::of(self.model.clone().fork(device), config, folder, device)
    }

    fn of(model: P, config: &TrainConfig, folder: &Path, device: &B::Device) -> Result<Self> {
        let images = ImageLoader::new(&config.images, config.processor(folder, model.image_size())?)?;
        Ok(Self { model, features: VisionFeatures::new(images), device: device.clone() })
    }

    /// Its log-probabilities of the answers of `pairs`.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn rows(
        &mut self,
        pairs: &[&EncodedPair],
        packed: bool,
        pad: u32,
        corrupt: Option<u64>,
    ) -> Result<Vec<ReferenceRow>> {
        let (features, device) = (&mut self.features, &self.device);
        let batch = MicroBatch::with_corrupted(pairs, packed, pad, corrupt, features, &self.model, device)?;
        batch.reference(&self.model, &ChunkOptions::default())
    }
}
