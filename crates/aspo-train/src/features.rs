//! What the frozen vision tower sees in each picture, computed once while it fits.

use std::collections::HashMap;

use aspo_data::batch::pixel_tensor;
use aspo_data::{HostBatch, ImageLoader};
use aspo_models::VisionLanguageModel;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::error::{Error, Result};

/// Bytes of features kept in memory; pictures beyond are computed again when they are met.
const BUDGET: usize = 1 << 30;

/// Features by picture.
#[derive(Debug)]
pub struct VisionFeatures {
    loader: ImageLoader,
    kept: HashMap<String, Seen>,
    bytes: usize,
}

/// A picture's features, `[rows, width]`. InstructBLIP's tower gives more rows than image tokens.
#[derive(Debug)]
struct Seen {
    shape: [usize; 2],
    values: Vec<f32>,
}

impl VisionFeatures {
    /// Features of the pictures that `loader` finds.
    pub fn new(loader: ImageLoader) -> Self {
        Self { loader, kept: HashMap::new(), bytes: 0 }
    }

    /// Keeps the features, `[rows, width]`, of the picture with this [key](aspo_data::ImageSource::key), while there is room.
    ///
    /// # Errors
    /// Values of another number than the shape says.
    pub fn keep(&mut self, key: &str, shape: [usize; 2], values: Vec<f32>) -> Result<()> {
        if values.len() != shape[0] * shape[1] {
            return Err(unlike(key, format!("{} values for {shape:?}", values.len())));
        }
        let size = 4 * values.len();
        if self.bytes + size <= BUDGET {
            self.bytes += size;
            self.kept.insert(key.to_owned(), Seen { shape, values });
        }
        Ok(())
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
        let mut fresh: HashMap<&str, Seen> = HashMap::new();
        if !new.is_empty() {
            let sources: Vec<_> = new.iter().map(|&index| batch.images[index].clone()).collect();
            let pixels = self.loader.load_all(&sources).into_iter().collect::<Result<Vec<_>, _>>()?;
            // One picture at a time: products round by the shape of their batch, and which pictures are new together
            // is another matter after a resume.
            for (&index, pixels) in new.iter().zip(pixels) {
                let features = model.vision_features(pixel_tensor(&[pixels], model.image_size(), device)?)?;
                let [_, rows, width] = features.dims();
                let values = features.into_data().iter::<f32>().collect();
                fresh.insert(&keys[index], Seen { shape: [rows, width], values });
            }
        }
        let (mut values, mut shape) = (Vec::new(), None);
        for &index in &batch.image_index {
            let key = keys[index].as_str();
            let seen = fresh.get(key).or_else(|| self.kept.get(key));
            let seen = seen.ok_or_else(|| unlike(key, "no features were made".into()))?;
            if *shape.get_or_insert(seen.shape) != seen.shape {
                return Err(unlike(key, format!("{:?} beside {shape:?}", seen.shape)));
            }
            values.extend_from_slice(&seen.values);
        }
        for (key, seen) in fresh {
            self.keep(key, seen.shape, seen.values)?;
        }
        let [rows, width] = shape.unwrap_or_default();
        let shape = [batch.image_index.len(), rows, width];
        Ok(Some(Tensor::from_data(TensorData::new(values, shape), device)))
    }
}

fn unlike(key: &str, reason: String) -> Error {
    aspo_models::Error::Input { name: "image_features", reason: format!("picture {key}: {reason}") }.into()
}
