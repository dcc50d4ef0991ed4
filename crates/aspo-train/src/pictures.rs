//! A look at every picture before the first step.

use std::collections::HashMap;
use std::path::Path;
use std::time::SystemTime;

use aspo_data::set::{from_bytes, to_bytes};
use aspo_data::{EncodedPair, ImageLoader, ImageProcessor, ImageSource, OnFault, PairSet, Records, records};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::account::none_left;
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::read::Data;

/// Pairs whose pictures are decoded between two calls of whoever watches.
const AT_A_TIME: usize = 64;

/// What was seen of the pictures of the pairs, and of those held out.
#[derive(Serialize, Deserialize)]
struct Seen {
    /// Hash of what is in the files, in the order of the pairs.
    hashes: [String; 2],
    /// Pairs with a picture that cannot be decoded, and why.
    broken: [Vec<(usize, String)>; 2],
}

/// A picture's file as it was when it was looked at.
#[derive(PartialEq, Serialize, Deserialize)]
struct FileSeen {
    path: String,
    bytes: u64,
    changed: Option<SystemTime>,
}

impl FileSeen {
    fn of(root: &Path, path: String) -> Self {
        let known = std::fs::metadata(root.join(&path)).ok();
        let bytes = known.as_ref().map_or(0, std::fs::Metadata::len);
        Self { path, bytes, changed: known.and_then(|known| known.modified().ok()) }
    }
}

impl Data {
    /// Decodes every picture once, on all cores, so that none is found broken in the middle of a run. `progress` is told
    /// of how many pairs of how many this is done. With `cache_dir` what was found is kept there, and pictures whose files have
    /// not changed since (by length and time) are not looked at again.
    ///
    /// # Errors
    /// A picture that cannot be decoded, with the row that names it; with `on_fault = "skip"` its pairs are left out and
    /// counted instead.
    pub fn decode_pictures(
        &mut self,
        config: &TrainConfig,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        let sets = [&self.pairs, &self.held_out];
        let seen = match &config.cache_dir {
            None => look(config, sets, &mut progress, |_| Ok(()))?,
            Some(folder) => kept_look(folder, config, sets, &mut progress)?,
        };
        self.pictures = Some(seen.hashes);
        let [of_pairs, of_held_out] = &seen.broken;
        let sources = [Some(&config.data), config.eval_data.as_ref()];
        let mut kept = [None, None];
        for (at, (set, broken)) in
            [(&self.pairs, of_pairs), (&self.held_out, of_held_out)].into_iter().enumerate()
        {
            for (number, fault) in broken {
                let pair = set.get(*number)?;
                let place = match &pair.origin {
                    Some((file, row)) => format!("{}: row {row}:", file.display()),
                    None => format!("{}:", sources[at].unwrap_or(&config.data)),
                };
                let found = format!("{place} pair {:?}: {fault} ({})", pair.id, config.images.display());
                let remedy = "mend the picture, or leave the row out (`on_fault = \"skip\"`)";
                self.account.skip(Error::option("images", found, remedy), config.on_fault)?;
                self.account.discount_cut(&pair);
            }
            if !broken.is_empty() {
                let mut left_out = broken.iter().map(|(number, _)| *number).peekable();
                let whole = |number: &usize| left_out.next_if_eq(number).is_none();
                kept[at] = Some(set.select(&(0..set.len()).filter(whole).collect::<Vec<_>>()));
            }
        }
        let [pairs, held_out] = kept;
        self.pairs = pairs.unwrap_or_else(|| self.pairs.clone());
        none_left("data", &config.data, self.pairs.len(), &self.account)?;
        if let Some(set) = held_out {
            self.held_out = set;
            none_left(
                "eval_data",
                config.eval_data.as_ref().unwrap_or(&config.data),
                self.held_out.len(),
                &self.account,
            )?;
        }
        Ok(())
    }
}

/// The same look by what was kept of an earlier one.
fn kept_look(
    folder: &Path,
    config: &TrainConfig,
    sets: [&PairSet; 2],
    progress: &mut impl FnMut(usize, usize),
) -> Result<Seen> {
    let root = std::path::absolute(&config.images).unwrap_or_default();
    let [pairs, held_out] = sets.map(PairSet::hash);
    let key = records::key_of(&format!("pictures 1 {root:?} {pairs} {held_out}"));
    let path = folder.join(format!("looked-{key:.16}.records"));
    if let Some(records) = Records::open(&path, &key)? {
        if is_unchanged(&records, &root)? {
            return Ok(from_bytes(&records, records.note())?);
        }
        std::fs::remove_file(&path).map_err(|source| Error::io(&path, source))?;
    }
    let records = Records::open_or(&path, &key, |writer| {
        writer.clear()?;
        let seen = look(config, sets, progress, |files| {
            let files: Vec<FileSeen> = files.into_par_iter().map(|path| FileSeen::of(&root, path)).collect();
            Ok(writer.push(0, &to_bytes(&files))?)
        })?;
        if config.on_fault == OnFault::Stop && seen.broken.iter().any(|broken| !broken.is_empty()) {
            // It will be mended: nothing is kept of it.
            return Err(Stopped::Broken(seen));
        }
        Ok(to_bytes(&seen))
    });
    match records {
        Ok(records) => Ok(from_bytes(&records, records.note())?),
        Err(Stopped::Broken(seen)) => Ok(seen),
        Err(Stopped::Error(error)) => Err(error),
    }
}

enum Stopped {
    Broken(Seen),
    Error(Error),
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

fn is_unchanged(records: &Records, root: &Path) -> Result<bool> {
    for index in 0..records.len() {
        let files: Vec<FileSeen> = from_bytes(records, &records.get(index)?)?;
        if files.into_par_iter().any(|file| FileSeen::of(root, file.path.clone()) != file) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Decodes every picture. `files` is told the paths of those that are files of their own.
fn look(
    config: &TrainConfig,
    sets: [&PairSet; 2],
    progress: &mut impl FnMut(usize, usize),
    mut files: impl FnMut(Vec<String>) -> Result<()>,
) -> Result<Seen> {
    // Nothing is preprocessed: any processor will do.
    let loader = ImageLoader::new(&config.images, ImageProcessor::clip(224))?;
    let short = |image: &ImageSource| -> [u8; 16] {
        Sha256::digest(image.key())[..16].try_into().expect("a hash has 32 bytes")
    };
    let mut known: HashMap<[u8; 16], std::result::Result<[u8; 32], String>> = HashMap::new();
    let mut seen = Seen { hashes: Default::default(), broken: Default::default() };
    let (mut done, all) = (0, sets[0].len() + sets[1].len());
    for (at, set) in sets.into_iter().enumerate() {
        let mut hash = Sha256::new();
        for start in (0..set.len()).step_by(AT_A_TIME) {
            let part: Vec<EncodedPair> = set.get_all(start..set.len().min(start + AT_A_TIME))?;
            let mut fresh: Vec<([u8; 16], &ImageSource)> = Vec::new();
            for image in part.iter().flat_map(|pair| pair.images.iter().chain(&pair.rejected_images)) {
                let name = short(image);
                if !known.contains_key(&name) && !fresh.iter().any(|(other, _)| *other == name) {
                    fresh.push((name, image));
                }
            }
            let paths = fresh.iter().filter_map(|(_, image)| match image {
                ImageSource::Path(path) => Some(path.clone()),
                _ => None,
            });
            files(paths.collect())?;
            let look = |(name, image): ([u8; 16], &ImageSource)| {
                (name, loader.check(image).map_err(|error| error.to_string()))
            };
            known.par_extend(fresh.into_par_iter().map(look));
            for (number, pair) in part.iter().enumerate() {
                let images = pair.images.iter().chain(&pair.rejected_images);
                let found: Vec<_> = images.map(|image| &known[&short(image)]).collect();
                match found.iter().find_map(|found| found.as_ref().err()) {
                    Some(fault) => seen.broken[at].push((start + number, fault.clone())),
                    None => found.into_iter().flatten().for_each(|digest| hash.update(digest)),
                }
            }
            done += part.len();
            progress(done, all);
        }
        seen.hashes[at] = format!("{:x}", hash.finalize());
    }
    Ok(seen)
}
