//! The similarity of sentences with pictures, by the config's CLIP.

use aspo_data::similarity::{CLIP_WINDOW, Scorer};
use aspo_data::{ImageLoader, SpecialTokens, Store, Tokenizer};
use aspo_models::{Clip, LoadOptions, Pretrained};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::read::Data;

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
