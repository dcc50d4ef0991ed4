//! What a run was made from, by content: a path may be spelled otherwise or lead through another folder.

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::TrainConfig;
use crate::error::{Error, Result};

/// Files of a checkpoint's or adapter's folder, beside its weights, that decide what its model computes.
const SIDE_FILES: [&str; 9] = [
    "adapter_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// SHA-256 of everything that the numbers of a run follow from, beside its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// Weights, config and processor of the model.
    pub model: String,
    /// Of `ref_model`.
    pub reference: Option<String>,
    /// Of the CLIP that scores sentences, where the loss weighs by it.
    pub clip: Option<String>,
    /// Tokens and sentences of the pairs, in order.
    pub pairs: String,
    /// What is in the pictures' files.
    pub pictures: String,
}

impl Inputs {
    /// Reads all files of the models once; what follows from the data is left empty.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn of_models(config: &TrainConfig) -> Result<Self> {
        let scores = config.objective()?.needs_similarity();
        let clip = config.clip.as_deref().filter(|_| scores);
        Ok(Self {
            model: folder_hash(&config.model)?,
            reference: config.ref_model.as_deref().map(folder_hash).transpose()?,
            clip: clip.map(folder_hash).transpose()?,
            ..Self::default()
        })
    }

    /// The first part that differs, in words; of parts that one of the two does not know, nothing is said.
    pub(crate) fn unlike(&self, other: &Self) -> Option<&'static str> {
        let known = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
        [
            (known(&self.model, &other.model), "weights (`model`)"),
            (self.reference != other.reference, "weights (`ref_model`)"),
            (self.clip != other.clip, "scores (`clip`)"),
            (known(&self.pairs, &other.pairs), "pairs (`data`, `tokenizer`, `template` or `max_length`)"),
            (known(&self.pictures, &other.pictures), "pictures (`images`)"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }
}

/// Hash of the weights and of what else decides what the model of a folder computes.
///
/// # Errors
/// A folder or file that cannot be read.
pub fn folder_hash(folder: &Path) -> Result<String> {
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, source))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension().is_some_and(|kind| kind == "safetensors")
                || path.file_name().is_some_and(|name| SIDE_FILES.iter().any(|side| name == *side))
        })
        .collect();
    files.sort();
    let hashes = files.par_iter().map(|path| file_hash(path)).collect::<Result<Vec<_>>>()?;
    let mut hash = Sha256::new();
    for (path, of_file) in files.iter().zip(hashes) {
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(of_file);
    }
    Ok(format!("{:x}", hash.finalize()))
}

pub(crate) fn file_hash(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    std::fs::File::open(path)
        .and_then(|mut file| std::io::copy(&mut file, &mut hash))
        .map_err(|source| Error::io(path, source))?;
    Ok(format!("{:x}", hash.finalize()))
}
