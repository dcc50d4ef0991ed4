//! Pairs laid out for a model, with what it sees in their pictures.

use std::path::Path;

use aspo_data::{EncodedPair, ImageLoader};
use aspo_models::VisionLanguageModel;
use burn::tensor::backend::Backend;

use crate::config::TrainConfig;
use crate::error::Result;
use crate::features::VisionFeatures;
use crate::step::MicroBatch;

/// What does not change from batch to batch.
pub(crate) struct Batcher<B: Backend> {
    packed: bool,
    pad: u32,
    /// The seed of corrupted pictures, if the loss asks for them.
    corrupt: Option<u64>,
    pub features: VisionFeatures,
    pub device: B::Device,
}

impl<B: Backend> Batcher<B> {
    /// For a model of the checkpoint in `folder`, which has the image processor, that takes pictures of `size` pixels.
    ///
    /// # Errors
    /// An image processor that cannot be honoured.
    pub fn new(
        config: &TrainConfig,
        folder: &Path,
        size: usize,
        pad: u32,
        device: &B::Device,
    ) -> Result<Self> {
        let images = ImageLoader::new(&config.images, config.processor(folder, size)?)?;
        Ok(Self {
            packed: config.pair_packing,
            pad,
            corrupt: config.objective()?.needs_corrupted().then_some(config.seed),
            features: VisionFeatures::new(images),
            device: device.clone(),
        })
    }

    /// # Errors
    /// A picture that cannot be had.
    pub fn batch<M: VisionLanguageModel<B>>(
        &mut self,
        pairs: &[&EncodedPair],
        model: &M,
    ) -> Result<MicroBatch<B>> {
        let Self { packed, pad, corrupt, features, device } = self;
        MicroBatch::with_corrupted(pairs, *packed, *pad, *corrupt, features, model, device)
    }
}
