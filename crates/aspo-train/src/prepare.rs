//! The paths that a config names, image processors, and the similarity of sentences with pictures.

use std::path::Path;

use aspo_data::similarity::{CLIP_WINDOW, Scorer};
use aspo_data::{ImageLoader, ImageProcessor, SpecialTokens, Store, Template, Tokenizer};
use aspo_models::{Clip, LoadOptions, Pretrained};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::read::{Data, qformer_tokenizer_path, tokenizer_path};

/// Checks that every path of the config is there, and is a file or a folder as it should be.
///
/// # Errors
/// The first that is not, by option.
pub fn check_paths(config: &TrainConfig) -> Result<()> {
    let file = |option, path: &Path, remedy| match path {
        path if path.as_os_str().is_empty() => Err(Error::option(option, "not given", remedy)),
        path if !path.exists() => Err(Error::Missing { option, path: path.into(), remedy }),
        path if path.is_dir() => {
            Err(Error::option(option, format!("{} is a folder", path.display()), remedy))
        }
        _ => Ok(()),
    };
    let folder = |option, path: &Path, remedy| match path {
        path if path.as_os_str().is_empty() => Err(Error::option(option, "not given", remedy)),
        path if !path.exists() => Err(Error::Missing { option, path: path.into(), remedy }),
        path if !path.is_dir() => Err(Error::option(option, format!("{} is a file", path.display()), remedy)),
        _ => Ok(()),
    };
    folder("model", &config.model, "give the folder of a Hugging Face checkpoint")?;
    file("model", &config.model.join("config.json"), "the folder holds no Hugging Face checkpoint")?;
    file("tokenizer", &tokenizer_path(config), "give the model's tokenizer.json with `tokenizer`")?;
    if config.template == Template::InstructBlip {
        file(
            "template",
            &qformer_tokenizer_path(&config.model),
            "put the Q-Former's tokenizer there, or give another template",
        )?;
    }
    if let Some(reference) = &config.ref_model {
        let remedy = "give the folder of a Hugging Face checkpoint (merge an adapter into its base first)";
        file("ref_model", &reference.join("config.json"), remedy)?;
    }
    file("data", &config.data, "give a file of preference pairs")?;
    if let Some(held_out) = &config.eval_data {
        file("eval_data", held_out, "give a file of preference pairs")?;
    }
    folder("images", &config.images, "give the folder that image paths are relative to")?;
    if let Some(clip) = &config.clip {
        file("clip", &clip.join("config.json"), "give the folder of a CLIP checkpoint")?;
        file("clip", &clip.join("tokenizer.json"), "put CLIP's tokenizer.json into its folder")?;
    }
    Ok(())
}

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

/// Name of the file in a run's output folder, and in `cache_dir`, that keeps the scores of sentences, by their content.
pub const SIMILARITY_FILE: &str = "similarity.txt";

/// Scores every chosen sentence (and every rejected one with `rejected`) against its picture by the config's CLIP. Scores
/// are kept in the output folder as they come ([`SIMILARITY_FILE`]), so that a run that goes on has those that it began
/// with, whatever device it goes on; and in `cache_dir`, for the next run.
///
/// # Errors
/// A CLIP that cannot be loaded, a picture that cannot be decoded.
pub fn score<B: Backend>(
    config: &TrainConfig,
    data: &mut Data,
    rejected: bool,
    device: &B::Device,
) -> Result<()> {
    let Some(folder) = &config.clip else {
        return Err(Error::option("clip", "not given", "name the folder of a CLIP"));
    };
    let clip: Clip<B> = Clip::from_pretrained(folder, &LoadOptions::default(), device)?.0;
    let size = clip.config().vision_config.image_size;
    let images = ImageLoader::new(&config.images, config.processor(folder, size)?)?;
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
    let names = SpecialTokens { eos: "<|endoftext|>".into(), ..SpecialTokens::default() };
    let tokenizer = Tokenizer::from_bytes(&bytes, &path.display().to_string(), names)?;
    let mut stores = Vec::new();
    if !config.output_dir.as_os_str().is_empty() {
        stores.push(Store::open(&config.output_dir.join(SIMILARITY_FILE))?);
    }
    if let Some(folder) = &config.cache_dir {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        // Another run that is at its scores has it: this one does without.
        stores.extend(Store::open_if_free(&folder.join(SIMILARITY_FILE))?);
    }
    let window = clip.config().text_config.max_position_embeddings.min(CLIP_WINDOW);
    let pad = tokenizer.eos();
    let scorer = Scorer {
        images: &images,
        tokenizer: &tokenizer,
        model: folder_hash(folder)?,
        window,
        batch: 32,
        rejected,
    };
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let mut all = std::mem::take(&mut data.pairs);
    let count = all.len();
    all.append(&mut data.held_out);
    data.similarity = scorer.score(
        &mut all,
        &mut stores,
        &mut |pixels| {
            let pixels =
                aspo_data::batch::pixel_tensor::<B>(pixels, size, device).map_err(|error| told(&error))?;
            Ok(rows(clip.image_embeds(pixels).map_err(|error| told(&error))?))
        },
        &mut |texts| {
            let (ids, mask) = padded::<B>(texts, pad, device);
            Ok(rows(clip.text_embeds(ids, mask).map_err(|error| told(&error))?))
        },
    )?;
    data.held_out = all.split_off(count);
    data.pairs = all;
    Ok(())
}

fn padded<B: Backend>(
    texts: &[Vec<u32>],
    pad: u32,
    device: &B::Device,
) -> (Tensor<B, 2, Int>, Tensor<B, 2, Int>) {
    let input = aspo_models::ModelInput::<B>::from_rows(texts, pad, device);
    (input.input_ids, input.attention_mask)
}

fn rows<B: Backend>(embeds: Tensor<B, 2>) -> Vec<Vec<f32>> {
    let width = embeds.dims()[1];
    let values: Vec<f32> = TensorData::convert::<f32>(embeds.into_data()).iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}
