//! The similarity of sentences with pictures, by the config's CLIP.

use std::cell::RefCell;
use std::path::Path;

use aspo_data::similarity::{CLIP_WINDOW, Scorer, SimilarityReport};
use aspo_data::{ImageLoader, PairSet, SpecialTokens, Tokenizer};
use aspo_models::{Clip, Ids, LoadOptions, Pretrained};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::lead::HandOut;
use crate::ranks::Ranks;
use crate::read::Data;

/// Scores every chosen sentence (and every rejected one with `rejected`) against its picture by the config's CLIP. Scores
/// are kept as they come, in `cache_dir`, else in the output folder, so that a run that goes on has those that it began with,
/// whatever device it goes on; where there is neither, or nobody has looked at the pictures, in memory.
///
/// # Errors
/// A CLIP that cannot be loaded, a picture that cannot be decoded.
pub fn score<B: Backend>(
    config: &TrainConfig,
    data: &mut Data,
    rejected: bool,
    device: &B::Device,
) -> Result<()> {
    score_on::<B>(&Ranks::alone(), config, data, rejected, device)
}

/// A part of the work: one batch for a tower of CLIP.
#[derive(Serialize, Deserialize)]
enum Part {
    Images(Vec<Vec<f32>>),
    Texts(Vec<Vec<u32>>),
}

/// Pictures, or windows of text, of a batch.
const BATCH: usize = 32;

/// The same, each process of a run embedding its share.
///
/// # Errors
/// As [`score`].
pub fn score_on<B: Backend>(
    ranks: &Ranks,
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
    let folder_of_scores = config.cache_dir.as_ref().unwrap_or(&config.output_dir);
    let kept = data.pictures.as_ref().filter(|_| !folder_of_scores.as_os_str().is_empty());
    let window = clip.config().text_config.max_position_embeddings.min(CLIP_WINDOW);
    let pad = tokenizer.eos();
    let scorer = Scorer {
        images: &images,
        tokenizer: &tokenizer,
        model: folder_hash(folder)?,
        window,
        batch: BATCH * ranks.size(),
        rejected,
    };
    let embed = |part: Part| {
        Ok(rows(match part {
            Part::Images(pixels) => {
                clip.image_embeds(aspo_data::batch::pixel_tensor::<B>(&pixels, size, device)?)?
            }
            Part::Texts(texts) => {
                let (ids, mask) = padded::<B>(&texts, pad, device);
                clip.text_embeds(ids, mask)?
            }
        }))
    };
    data.similarity = SimilarityReport::default();
    for (at, set) in [&mut data.pairs, &mut data.held_out].into_iter().enumerate() {
        if set.is_empty() {
            continue;
        }
        let kept = kept.map(|pictures| (folder_of_scores.as_path(), pictures[at].as_str()));
        let (scored, report) = ranks.share(&embed, |hand_out| scored(&scorer, set, kept, hand_out))?;
        *set = scored;
        data.similarity.add(report);
    }
    Ok(())
}

/// Scores a set, the embedding done by `hand_out`.
fn scored(
    scorer: &Scorer,
    set: &PairSet,
    kept: Option<(&Path, &str)>,
    hand_out: &mut HandOut<'_, Part, Vec<Vec<f32>>, Error>,
) -> Result<(PairSet, SimilarityReport)> {
    let hand_out = RefCell::new(hand_out);
    let embedded = |parts: Vec<Part>| {
        let done = (hand_out.borrow_mut())(parts);
        done.map(|vectors| vectors.concat()).map_err(|error| error.to_string())
    };
    Ok(scorer.score_set(
        set,
        kept,
        &mut |pixels| embedded(pixels.chunks(BATCH).map(|part| Part::Images(part.to_vec())).collect()),
        &mut |texts| embedded(texts.chunks(BATCH).map(|part| Part::Texts(part.to_vec())).collect()),
    )?)
}

fn padded<B: Backend>(texts: &[Vec<u32>], pad: u32, device: &B::Device) -> (Ids<B>, Ids<B>) {
    let input = aspo_models::ModelInput::<B>::from_rows(texts, pad, device);
    (input.input_ids, input.attention_mask)
}

fn rows<B: Backend>(embeds: Tensor<B, 2>) -> Vec<Vec<f32>> {
    let width = embeds.dims()[1];
    let values: Vec<f32> = TensorData::convert::<f32>(embeds.into_data()).iter::<f32>().collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}
