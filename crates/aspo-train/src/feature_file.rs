//! What the frozen vision tower sees in each picture, kept on disk in bf16.

use std::collections::{HashMap, HashSet};

use aspo_data::records::{Records, key_of};
use aspo_data::set::{from_bytes, to_bytes};
use aspo_data::{EncodedPair, ImageLoader, ImageSource};
use aspo_models::{PictureShape, VisionLanguageModel};
use burn::tensor::backend::Backend;
use half::bf16;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::features::{Seen, picture, picture_key};
use crate::ranks::Ranks;
use crate::read::Data;

fn tag(key: &str) -> u64 {
    u64::from_le_bytes(Sha256::digest(key)[..8].try_into().expect("a hash has 32 bytes"))
}

/// Features of all pictures of a run, by their keys.
#[derive(Debug)]
pub(crate) struct FeatureFile {
    records: Records,
    places: HashMap<u64, usize>,
}

/// A picture's features as a record.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    picture: [[usize; 2]; 3],
    shape: [usize; 2],
    values: Vec<u16>,
}

impl FeatureFile {
    /// The features of the pictures of `data`, computed where the folder of what is kept does not have them.
    ///
    /// # Errors
    /// No `cache_dir`; a picture that cannot be had; a full disk.
    pub fn open<B: Backend, M: VisionLanguageModel<B>>(
        ranks: &Ranks,
        config: &TrainConfig,
        data: &Data,
        loader: &ImageLoader,
        model: &M,
        device: &B::Device,
    ) -> Result<Self> {
        let (Some(folder), Some([pictures, held_out])) = (&config.cache_dir, &data.pictures) else {
            let found = "true, without a `cache_dir`, or with pictures that nobody has looked at";
            return Err(Error::option("cache_vision_features", found, "give a folder to keep them in"));
        };
        let key = key_of(&format!(
            "features 1 {} {} {} bf16 {} {pictures} {held_out} {} {}",
            folder_hash(&config.model)?,
            loader.processor().rules(),
            data.pairs.hash(),
            config.bf16,
            data.held_out.hash(),
            B::name(device),
        ));
        let path = folder.join(format!("features-{key:.16}.records"));
        let work = |(alone, images): (bool, Vec<ImageSource>)| {
            let sources: Vec<_> = images.iter().map(|image| (image, alone)).collect();
            let lines = images.iter().zip(loader.pixels_of_all(&sources)).map(|(image, pixels)| {
                let seen = Seen::of(model, picture(&pixels?, device))?;
                let PictureShape { tile, grid, size } = seen.picture;
                let values = seen.values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
                let key = picture_key(loader, image, alone);
                Ok(Line { picture: [tile, grid, size], shape: seen.shape, values, key })
            });
            lines.collect::<Result<Vec<Line>>>()
        };
        let records = ranks.share(work, |hand_out| {
            Records::open_or(&path, &key, |writer| {
                let mut known: HashSet<u64> = writer.tags().iter().copied().collect();
                let mut keep = |parts: &mut Vec<(bool, Vec<ImageSource>)>| -> Result<()> {
                    let lines = hand_out(std::mem::take(parts))?;
                    let mut lines = lines.iter().flatten();
                    Ok(lines.try_for_each(|line| writer.push(tag(&line.key), &to_bytes(line)))?)
                };
                let mut parts = Vec::new();
                for pair in data.pairs.iter().chain(data.held_out.iter()) {
                    let EncodedPair { images, .. } = pair?;
                    let alone = images.len() == 1;
                    let new = |image: &ImageSource| known.insert(tag(&picture_key(loader, image, alone)));
                    let new: Vec<ImageSource> = images.into_iter().filter(new).collect();
                    if !new.is_empty() {
                        parts.push((alone, new));
                    }
                    if parts.len() == ranks.size() {
                        keep(&mut parts)?;
                    }
                }
                keep(&mut parts)?;
                Ok::<_, Error>(Vec::new())
            })
        })?;
        let places = records.tags().iter().enumerate().map(|(index, tag)| (*tag, index)).collect();
        Ok(Self { records, places })
    }

    /// The features of a picture, if they are there.
    ///
    /// # Errors
    /// A file that is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Seen>> {
        let Some(&index) = self.places.get(&tag(key)) else { return Ok(None) };
        let line: Line = from_bytes(&self.records, &self.records.get(index)?)?;
        let [tile, grid, size] = line.picture;
        let values = line.values.iter().map(|bits| bf16::from_bits(*bits).to_f32()).collect();
        let seen = Seen { picture: PictureShape { tile, grid, size }, shape: line.shape, values };
        Ok((line.key == key).then_some(seen))
    }
}
