//! From the files that a config names to encoded, scored pairs.

use std::path::{Path, PathBuf};

use aspo_data::similarity::{CLIP_WINDOW, Scorer, SimilarityReport};
use aspo_data::{
    EncodedPair, Encoder, Fit, ImageLoader, ImageProcessor, PairFault, SpecialTokens, Template, Tokenizer,
};
use aspo_models::{Clip, LoadOptions, Pretrained};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Everything that a run reads but the model.
#[derive(Debug)]
pub struct Data {
    /// Turns pairs into tokens.
    pub encoder: Encoder,
    /// The pairs, scored if the loss asks for it.
    pub pairs: Vec<EncodedPair>,
    /// Those of `eval_data`.
    pub held_out: Vec<EncodedPair>,
    /// Pairs left out because nothing of an answer fits beside the prompt.
    pub dropped: usize,
    /// What scoring did.
    pub similarity: SimilarityReport,
    /// Hash of the tokens and scores of `pairs`, in order.
    pub hash: String,
}

/// Checks that every path of the config is there.
///
/// # Errors
/// The first that is not, by option.
pub fn check_paths(config: &TrainConfig) -> Result<()> {
    let file = |option, path: &Path, remedy| match path.exists() {
        true => Ok(()),
        false => Err(Error::Missing { option, path: path.into(), remedy }),
    };
    file("model", &config.model, "give the folder of a Hugging Face checkpoint")?;
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
    file("images", &config.images, "give the folder that image paths are relative to")?;
    if let Some(clip) = &config.clip {
        file("clip", &clip.join("config.json"), "give the folder of a CLIP checkpoint")?;
        file("clip", &clip.join("tokenizer.json"), "put CLIP's tokenizer.json into its folder")?;
    }
    Ok(())
}

fn tokenizer_path(config: &TrainConfig) -> PathBuf {
    config.tokenizer.clone().unwrap_or_else(|| config.model.join("tokenizer.json"))
}

/// Refuses a reference whose own tokenizer reads other ids than the model's.
fn same_tokens(config: &TrainConfig, tokenizer: &Tokenizer) -> Result<()> {
    let Some(path) = config.ref_model.as_ref().map(|folder| folder.join("tokenizer.json")) else {
        return Ok(());
    };
    if !path.exists() {
        return Ok(());
    }
    let other = Tokenizer::from_file(&path)?;
    if other.content_hash() == tokenizer.content_hash() {
        return Ok(());
    }
    let (ours, theirs) = (tokenizer.inner().get_vocab(true), other.inner().get_vocab(true));
    let unlike =
        ours.keys().chain(theirs.keys()).filter(|token| ours.get(*token) != theirs.get(*token)).min();
    match unlike {
        None => Ok(()),
        Some(token) => {
            let id = |of: &std::collections::HashMap<String, u32>| match of.get(token) {
                Some(id) => format!("the id {id}"),
                None => "no id".to_owned(),
            };
            let found = format!(
                "{} gives {token:?} {}, the model's tokenizer {}",
                path.display(),
                id(&theirs),
                id(&ours)
            );
            Err(Error::option("ref_model", found, "give a reference that reads the same tokens"))
        }
    }
}

/// Where Hugging Face's InstructBLIP has the tokenizer of its Q-Former.
fn qformer_tokenizer_path(model: &Path) -> PathBuf {
    model.join("qformer_tokenizer").join("tokenizer.json")
}

/// The tokenizer of InstructBLIP's Q-Former, `qformer_tokenizer/tokenizer.json` in the model's folder.
///
/// # Errors
/// A file that is not there or no tokenizer of BERT's kind.
pub fn qformer_tokenizer(model: &Path) -> Result<Tokenizer> {
    let path = qformer_tokenizer_path(model);
    let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
    let names = SpecialTokens { eos: "[SEP]".into(), pad: "[PAD]".into(), ..SpecialTokens::default() };
    Ok(Tokenizer::from_bytes(&bytes, &path.display().to_string(), names)?)
}

/// The image processor of a checkpoint folder: its `preprocessor_config.json`, or CLIP's own for `size` pixels.
///
/// # Errors
/// A file that asks for something else than CLIP's processing.
pub fn processor(folder: &Path, size: usize) -> Result<ImageProcessor> {
    let path = folder.join("preprocessor_config.json");
    if path.exists() {
        return Ok(ImageProcessor::from_file(&path)?);
    }
    Ok(ImageProcessor::clip(size as u32).with_fit(Fit::Crop))
}

/// Reads and encodes the pairs. `image_tokens` is what a picture takes in a row.
///
/// A pair that cannot be used is an error that names it; only one whose prompt leaves no room for an answer is dropped
/// and counted.
///
/// # Errors
/// A row that is not a pair, an empty answer, a picture that is not there: all name file and row. A tokenizer of
/// `ref_model` that reads other ids.
pub fn read(config: &TrainConfig, image_tokens: usize) -> Result<Data> {
    let tokenizer = Tokenizer::from_file(&tokenizer_path(config))?;
    same_tokens(config, &tokenizer)?;
    let mut encoder = Encoder::new(tokenizer, config.template, image_tokens);
    encoder.max_length = Some(config.max_length);
    if config.template == Template::InstructBlip {
        encoder.instruction = Some(qformer_tokenizer(&config.model)?);
    }
    let (pairs, mut dropped) = encode(config, "data", &config.data, &encoder)?;
    let mut held_out = Vec::new();
    if let Some(file) = &config.eval_data {
        let (pairs, more) = encode(config, "eval_data", file, &encoder)?;
        held_out = pairs;
        dropped += more;
    }
    let hash = hash(&pairs);
    Ok(Data { encoder, pairs, held_out, dropped, similarity: SimilarityReport::default(), hash })
}

/// The pairs of a file that can be used, and how many leave no room for an answer.
fn encode(
    config: &TrainConfig,
    option: &'static str,
    file: &Path,
    encoder: &Encoder,
) -> Result<(Vec<EncodedPair>, usize)> {
    let (mut pairs, mut dropped) = (Vec::new(), 0);
    for pair in aspo_data::read_pairs(file)? {
        let pair = pair?;
        if pair.images.is_empty() && config.objective()?.needs_similarity() {
            let found = format!("{}: pair {:?} has no picture", file.display(), pair.id);
            let remedy = "leave the row out, or set `alpha = 0` to weigh by perplexity alone";
            return Err(Error::option(option, found, remedy));
        }
        for image in &pair.images {
            if let aspo_data::ImageSource::Path(path) = image {
                aspo_data::files::resolve(&config.images, path).map_err(|error| {
                    let found = format!("pair {:?} of {}: {error}", pair.id, file.display());
                    Error::option("images", found, "put the picture there, or give another `images` folder")
                })?;
            }
        }
        match encoder.encode(&pair) {
            Ok(encoded) => pairs.push(encoded),
            Err(aspo_data::Error::Pair { fault: PairFault::NoRoom { .. }, .. }) => dropped += 1,
            Err(error) => {
                return Err(Error::option(option, format!("{}: {error}", file.display()), "mend the row"));
            }
        }
    }
    if pairs.is_empty() {
        let found = format!("{} holds no pair that can be used ({dropped} leave no room)", file.display());
        return Err(Error::option(option, found, "give pairs, or a larger max_length"));
    }
    Ok((pairs, dropped))
}

/// Scores every chosen sentence (and every rejected one with `rejected`) against its picture by the config's CLIP.
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
    let images = ImageLoader::new(&config.images, processor(folder, size)?)?;
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
    let names = SpecialTokens { eos: "<|endoftext|>".into(), ..SpecialTokens::default() };
    let tokenizer = Tokenizer::from_bytes(&bytes, &path.display().to_string(), names)?;
    let window = clip.config().text_config.max_position_embeddings.min(CLIP_WINDOW);
    let pad = tokenizer.eos();
    let scorer = Scorer {
        images: &images,
        tokenizer: &tokenizer,
        model: folder.display().to_string(),
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
        None,
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
    data.hash = hash(&data.pairs);
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

fn hash(pairs: &[EncodedPair]) -> String {
    let mut hash = Sha256::new();
    for pair in pairs {
        hash.update((pair.prompt_ids.len() as u64).to_le_bytes());
        pair.instruction_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        for side in [&pair.chosen, &pair.rejected] {
            hash.update((side.ids.len() as u64).to_le_bytes());
            pair.prompt_ids
                .iter()
                .chain(&side.ids)
                .chain(&side.sentences)
                .for_each(|id| hash.update(id.to_le_bytes()));
            side.similarity.iter().for_each(|score| hash.update(score.to_le_bytes()));
        }
        pair.images.iter().for_each(|image| hash.update(image.key()));
    }
    format!("{:x}", hash.finalize())
}
