//! A model's eyes: its image processor, its image token, and the tokens of a picture.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use aspo_data::{Fit, ImageLoader, ImageProcessor, ImageShape, ImageTokens, SizedTokens};
use aspo_models::{PictureShape, VisionLanguageModel};
use burn::tensor::backend::Backend;

use crate::config::TrainConfig;
use crate::error::Result;

/// The image processor of a checkpoint folder, for a model that takes pictures of `size` pixels:
/// [`ImageProcessor::of_checkpoint`] without its warning.
///
/// # Errors
/// A processor that is not implemented, or of another size: named, with its file.
pub fn processor(folder: &Path, size: usize) -> Result<ImageProcessor> {
    Ok(ImageProcessor::of_checkpoint(folder, u32::try_from(size).unwrap_or(u32::MAX))?.0)
}

impl TrainConfig {
    /// [`processor`], with pictures turned or not as the config says.
    ///
    /// # Errors
    /// As [`processor`].
    pub fn processor(&self, folder: &Path, size: usize) -> Result<ImageProcessor> {
        let mut processor = processor(folder, size)?;
        processor.decode.exif_orientation = self.exif_orientation;
        Ok(processor)
    }
}

/// How a model sees.
#[derive(Clone)]
pub struct Sight {
    /// The id that stands for a picture in a prompt.
    pub image_token: u32,
    /// The checkpoint's image processor.
    pub processor: ImageProcessor,
    count: Arc<dyn Fn(&ImageShape) -> usize + Send + Sync>,
}

impl std::fmt::Debug for Sight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { image_token, processor, .. } = self;
        f.debug_struct("Sight")
            .field("image_token", image_token)
            .field("processor", processor)
            .finish_non_exhaustive()
    }
}

impl Sight {
    /// That of `model`, whose checkpoint is the config's. Its weights need not be there yet.
    ///
    /// # Errors
    /// A processor that is not implemented, or of another size than the model's: named, with its file.
    pub fn of<B: Backend, M: VisionLanguageModel<B>>(config: &TrainConfig, model: &M) -> Result<Self> {
        Ok(Self::with(model, config.processor(&config.model, model.image_size())?))
    }

    /// The same with a processor of one's own.
    pub fn with<B: Backend, M: VisionLanguageModel<B>>(model: &M, processor: ImageProcessor) -> Self {
        let image_token = model.image_token();
        // A module may not be looked at by several threads.
        let model = Mutex::new(model.clone());
        let tokens = move |shape: &ImageShape| {
            model.lock().unwrap_or_else(PoisonError::into_inner).tokens(&picture_shape(shape))
        };
        Self { image_token, processor, count: Arc::new(tokens) }
    }

    /// What pictures of the folder `images` become in a prompt.
    ///
    /// # Errors
    /// Settings of the processor that cannot be honoured.
    pub fn image_tokens(&self, images: &Path) -> Result<ImageTokens> {
        if let Some(tokens) = self.fixed() {
            return Ok(ImageTokens::Fixed(tokens));
        }
        Ok(ImageTokens::Sized(SizedTokens {
            images: Arc::new(ImageLoader::new(images, self.processor.clone())?),
            count: self.count.clone(),
            tags: matches!(self.processor.fit, Fit::Tiles { .. }),
        }))
    }

    /// The tokens of every picture, where they do not depend on its size.
    pub fn fixed(&self) -> Option<usize> {
        let side = self.processor.size;
        let square = ImageShape { tile: [side; 2], grid: [0, 0], size: [side; 2] };
        self.processor.is_square().then(|| self.tokens(&square))
    }

    /// The tokens of a picture of this shape.
    pub fn tokens(&self, shape: &ImageShape) -> usize {
        (self.count)(shape)
    }
}

/// The same sizes, as models have them.
pub fn picture_shape(shape: &ImageShape) -> PictureShape {
    let whole = |sides: [u32; 2]| sides.map(|side| side as usize);
    PictureShape { tile: whole(shape.tile), grid: whole(shape.grid), size: whole(shape.size) }
}
