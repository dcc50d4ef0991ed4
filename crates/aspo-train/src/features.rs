//! What the frozen vision tower sees in each picture, computed once while it fits.

use std::collections::HashMap;

use aspo_data::{Fit, HostBatch, ImageLoader, Pixels};
use aspo_models::{ImageFeatures, Picture, PictureShape, VisionLanguageModel};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::corrupt::Piece;
use crate::error::{Error, Result};
use crate::sight::picture_shape;

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
    picture: PictureShape,
    shape: [usize; 2],
    values: Vec<f32>,
}

impl VisionFeatures {
    /// Features of the pictures that `loader` finds.
    pub fn new(loader: ImageLoader) -> Self {
        Self { loader, kept: HashMap::new(), bytes: 0 }
    }

    /// Keeps the features, `[rows, width]`, of the picture with this [key](aspo_data::ImageSource::key) and shape, while there
    /// is room.
    ///
    /// # Errors
    /// Values of another number than the shape says.
    pub fn keep(
        &mut self,
        key: &str,
        picture: PictureShape,
        shape: [usize; 2],
        values: Vec<f32>,
    ) -> Result<()> {
        if values.len() != shape[0] * shape[1] {
            return Err(unlike(key, format!("{} values for {shape:?}", values.len())));
        }
        let size = 4 * values.len();
        if self.bytes + size <= BUDGET {
            self.bytes += size;
            self.kept.insert(key.to_owned(), Seen { picture, shape, values });
        }
        Ok(())
    }

    /// The features of a batch's pictures, one entry for each run of image tokens.
    ///
    /// # Errors
    /// A picture that is not there or cannot be decoded, by name.
    pub fn of_batch<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        model: &M,
        batch: &HostBatch,
        device: &B::Device,
    ) -> Result<Vec<ImageFeatures<B>>> {
        self.of_pieces(model, batch, &[], device)
    }

    /// The same with `pieces` of pictures in place of the whole, one entry for each run of image tokens.
    ///
    /// # Errors
    /// As [`of_batch`](Self::of_batch).
    pub(crate) fn of_pieces<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        model: &M,
        batch: &HostBatch,
        pieces: &[Option<Piece>],
        device: &B::Device,
    ) -> Result<Vec<ImageFeatures<B>>> {
        // What is seen in each run of image tokens, and its name.
        let piece = |run: usize| pieces.get(run).copied().flatten();
        let whole = self.loader.processor().fit == Fit::AnyRes;
        let key = |(run, &image): (usize, &usize)| {
            let mut key = batch.images[image].key();
            if whole && !batch.alone[image] {
                // One of several pictures is not cut.
                key += "#uncut";
            }
            piece(run).map_or(key.clone(), |piece| format!("{key}#{}", piece.name()))
        };
        let keys: Vec<String> = batch.image_index.iter().enumerate().map(key).collect();
        let mut new: Vec<usize> = Vec::new();
        for run in 0..keys.len() {
            if !self.kept.contains_key(&keys[run]) && !new.iter().any(|&other| keys[other] == keys[run]) {
                new.push(run);
            }
        }
        let mut fresh: HashMap<&str, Seen> = HashMap::new();
        if !new.is_empty() {
            let image = |&run: &usize| batch.image_index[run];
            let source = |image: usize| (&batch.images[image], batch.alone[image]);
            let sources: Vec<_> = new.iter().map(image).map(source).collect();
            let pixels = self.loader.pixels_of_all(&sources).into_iter().collect::<Result<Vec<_>, _>>()?;
            // One picture at a time: products round by the shape of their batch, and which pictures are new together
            // is another matter after a resume.
            for (&run, mut pixels) in new.iter().zip(pixels) {
                if let Some(piece) = piece(run) {
                    pixels.values = piece.of(&pixels.values, model.image_size());
                }
                let features = model.vision_features(&[picture(&pixels, device)])?.swap_remove(0);
                let shape = features.values.dims();
                let values = features.values.into_data().iter::<f32>().collect();
                fresh.insert(&keys[run], Seen { picture: features.shape, shape, values });
            }
        }
        let mut all = Vec::with_capacity(keys.len());
        for key in keys.iter().map(String::as_str) {
            let seen = fresh.get(key).or_else(|| self.kept.get(key));
            let seen = seen.ok_or_else(|| unlike(key, "no features were made".into()))?;
            let values = TensorData::new(seen.values.clone(), seen.shape);
            all.push(ImageFeatures { values: Tensor::from_data(values, device), shape: seen.picture });
        }
        for (key, seen) in fresh {
            self.keep(key, seen.picture, seen.shape, seen.values)?;
        }
        Ok(all)
    }
}

/// Preprocessed pixels as a model takes them.
pub fn picture<B: Backend>(pixels: &Pixels, device: &B::Device) -> Picture<B> {
    let shape = picture_shape(&pixels.shape);
    let [height, width] = shape.tile;
    let data = TensorData::new(pixels.values.clone(), [shape.tiles(), 3, height, width]);
    Picture { pixels: Tensor::from_data(data, device), shape }
}

fn unlike(key: &str, reason: String) -> Error {
    aspo_models::Error::Input { name: "image_features", reason: format!("picture {key}: {reason}") }.into()
}
