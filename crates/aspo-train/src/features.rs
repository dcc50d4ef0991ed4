//! What the frozen vision tower sees in each picture: on a CPU computed once while it fits, elsewhere where it is needed.

use std::collections::HashMap;
use std::sync::Arc;

use aspo_data::{Fit, HostBatch, ImageLoader, ImageSource, Pixels};
use aspo_kernels::on_cpu;
use aspo_models::{ImageFeatures, Picture, PictureShape, VisionLanguageModel};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::corrupt::Piece;
use crate::error::{Error, Result};
use crate::feature_file::FeatureFile;
use crate::prefetch::{KeptKeys, Ready};
use crate::sight::picture_shape;

/// Bytes of features kept in memory on a CPU; pictures beyond are computed again when they are met. From another device nothing is
/// read back to be kept: that would stop it in every micro-batch, and a file (`cache_vision_features`) holds more than
/// memory could.
const BUDGET: usize = 1 << 30;

/// Features by picture.
#[derive(Debug)]
pub struct VisionFeatures {
    pub(crate) loader: Arc<ImageLoader>,
    kept: HashMap<String, Seen>,
    pub(crate) kept_keys: KeptKeys,
    bytes: usize,
    /// Pixels of pictures that will be asked for.
    pub(crate) ready: Ready,
    /// Features on disk.
    pub(crate) file: Option<FeatureFile>,
}

/// A picture's features, `[rows, width]`. InstructBLIP's tower gives more rows than image tokens.
#[derive(Debug)]
pub(crate) struct Seen {
    pub picture: PictureShape,
    pub shape: [usize; 2],
    pub values: Vec<f32>,
}

impl Seen {
    /// What `model` sees in a picture.
    ///
    /// # Errors
    /// A picture of another size than the model's.
    pub fn of<B: Backend, M: VisionLanguageModel<B>>(model: &M, picture: Picture<B>) -> Result<Self> {
        Ok(Self::from(model.vision_features(&[picture])?.swap_remove(0)))
    }

    fn from<B: Backend>(features: ImageFeatures<B>) -> Self {
        let shape = features.values.dims();
        Self { picture: features.shape, shape, values: features.values.into_data().iter::<f32>().collect() }
    }
}

/// The name of a picture's features: of several pictures each is seen whole where one alone would be cut.
pub(crate) fn picture_key(loader: &ImageLoader, image: &ImageSource, alone: bool) -> String {
    let uncut = loader.processor().fit == Fit::AnyRes && !alone;
    image.key() + if uncut { "#uncut" } else { "" }
}

/// Pictures of one size that go through the tower together on a device that is no CPU. There products round by the shape of
/// their batch anyhow; on a CPU a run that is resumed is the same to the bit, and which pictures are new together is another
/// matter after a resume: one at a time.
const TOGETHER: usize = 8;

impl VisionFeatures {
    /// Features of the pictures that `loader` finds.
    pub fn new(loader: ImageLoader) -> Self {
        Self {
            loader: Arc::new(loader),
            kept: HashMap::new(),
            kept_keys: KeptKeys::default(),
            bytes: 0,
            ready: Ready::default(),
            file: None,
        }
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
            self.kept_keys.add(key);
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
        let key = |(run, &image): (usize, &usize)| {
            let key = picture_key(&self.loader, &batch.images[image], batch.alone[image]);
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
        if let Some(file) = &self.file {
            for &run in &new {
                if let Some(seen) = file.get(&keys[run])? {
                    fresh.insert(&keys[run], seen);
                }
            }
            new.retain(|&run| !fresh.contains_key(&*keys[run]));
        }
        let mut pictures = Vec::with_capacity(new.len());
        for (&run, mut pixels) in new.iter().zip(self.pixels(batch, &new)?) {
            if let Some(piece) = piece(run) {
                pixels.values = piece.of(&pixels.values, model.image_size());
            }
            pictures.push((run, picture(&pixels, device)));
        }
        let (mut made, together) = (HashMap::new(), if on_cpu::<B>(device) { 1 } else { TOGETHER });
        while let Some((_, first)) = pictures.first() {
            let tile = first.shape.tile;
            let alike =
                pictures.iter().take(together).take_while(|(_, picture)| picture.shape.tile == tile).count();
            let (runs, group): (Vec<usize>, Vec<Picture<B>>) = pictures.drain(..alike).unzip();
            let seen = model.vision_features(&group)?;
            made.extend(runs.into_iter().map(|run| &*keys[run]).zip(seen));
        }
        let mut all = Vec::with_capacity(keys.len());
        for key in keys.iter().map(String::as_str) {
            if let Some(seen) = made.get(key) {
                all.push(ImageFeatures::clone(seen));
                continue;
            }
            let seen = fresh.get(key).or_else(|| self.kept.get(key));
            let seen = seen.ok_or_else(|| unlike(key, "no features were made".into()))?;
            let values = TensorData::new(seen.values.clone(), seen.shape);
            all.push(ImageFeatures { values: Tensor::from_data(values, device), shape: seen.picture });
        }
        if on_cpu::<B>(device) {
            fresh.extend(made.into_iter().map(|(key, seen)| (key, Seen::from(seen))));
        }
        for (key, seen) in fresh {
            self.keep(key, seen.picture, seen.shape, seen.values)?;
        }
        Ok(all)
    }
}

impl VisionFeatures {
    /// The pixels of some runs' pictures: those that are ready, the others as they are read now.
    fn pixels(&mut self, batch: &HostBatch, runs: &[usize]) -> Result<Vec<Pixels>> {
        let source = |&run: &usize| {
            let image = batch.image_index[run];
            (batch.images[image].clone(), batch.alone[image])
        };
        let mut pixels: Vec<Option<Pixels>> =
            runs.iter().map(|run| self.ready.remove(&source(run))).collect();
        let missing: Vec<_> = runs
            .iter()
            .zip(&pixels)
            .filter(|(_, ready)| ready.is_none())
            .map(|(run, _)| source(run))
            .collect();
        let sources: Vec<_> = missing.iter().map(|(image, alone)| (image, *alone)).collect();
        let mut loaded = self.loader.pixels_of_all(&sources).into_iter();
        for pixels in pixels.iter_mut().filter(|ready| ready.is_none()) {
            *pixels = loaded.next().transpose()?;
        }
        Ok(pixels.into_iter().flatten().collect())
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
