//! What the frozen vision tower sees in each picture, computed once while it fits.

use std::collections::HashMap;

use aspo_data::batch::pixel_tensor;
use aspo_data::{HostBatch, ImageLoader};
use aspo_models::VisionLanguageModel;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::Result;

/// Bytes of features kept in memory; pictures beyond are computed again when they are met.
const BUDGET: usize = 1 << 30;

/// Features by picture.
#[derive(Debug)]
pub struct VisionFeatures {
    loader: ImageLoader,
    kept: HashMap<String, Vec<f32>>,
    bytes: usize,
    /// Rows of a picture's features, once one was made. InstructBLIP's tower gives more than its image tokens.
    rows: Option<usize>,
}

impl VisionFeatures {
    /// Features of the pictures that `loader` finds.
    pub fn new(loader: ImageLoader) -> Self {
        Self { loader, kept: HashMap::new(), bytes: 0, rows: None }
    }

    /// Keeps the features of the picture with this [key](aspo_data::ImageSource::key), while there is room.
    pub fn keep(&mut self, key: &str, values: Vec<f32>) {
        let size = 4 * values.len();
        if self.bytes + size <= BUDGET {
            self.bytes += size;
            self.kept.insert(key.to_owned(), values);
        }
    }

    /// The features of a batch's pictures, one entry for each run of image tokens: `[images, features, width]`.
    ///
    /// # Errors
    /// A picture that is not there or cannot be decoded, by name.
    pub fn of_batch<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        model: &M,
        batch: &HostBatch,
        device: &B::Device,
    ) -> Result<Option<Tensor<B, 3>>> {
        if batch.image_index.is_empty() {
            return Ok(None);
        }
        let keys: Vec<String> = batch.images.iter().map(|image| image.key()).collect();
        let new: Vec<usize> =
            (0..keys.len()).filter(|&index| !self.kept.contains_key(&keys[index])).collect();
        let mut fresh: HashMap<&str, Vec<f32>> = HashMap::new();
        if !new.is_empty() {
            let sources: Vec<_> = new.iter().map(|&index| batch.images[index].clone()).collect();
            let pixels = self.loader.load_all(&sources).into_iter().collect::<Result<Vec<_>, _>>()?;
            // One picture at a time: products round by the shape of their batch, and which pictures are new together
            // is another matter after a resume.
            for (&index, pixels) in new.iter().zip(pixels) {
                let features = model.vision_features(pixel_tensor(&[pixels], model.image_size(), device)?)?;
                self.rows = Some(features.dims()[1]);
                fresh.insert(&keys[index], features.into_data().iter::<f32>().collect());
            }
        }
        let mut values = Vec::new();
        for &index in &batch.image_index {
            let key = keys[index].as_str();
            values
                .extend_from_slice(fresh.get(key).or_else(|| self.kept.get(key)).map_or(&[], Vec::as_slice));
        }
        fresh.into_iter().for_each(|(key, values)| self.keep(key, values));
        let images = batch.image_index.len();
        let rows = self.rows.unwrap_or_else(|| model.tokens_per_image());
        let width = values.len() / (images * rows);
        Ok(Some(Tensor::from_data(TensorData::new(values, [images, rows, width]), device)))
    }
}
