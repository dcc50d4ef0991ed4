//! Cached reference log-probabilities: a file keyed by everything they depend on, made resumably.

use std::io::Write;
use std::path::{Path, PathBuf};

use aspo_data::image::PIXEL_RULES;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::content::folder_hash;
use crate::error::{Error, Result};
use crate::read::Data;
use crate::step::ReferenceRow;

/// Name of the file in a run's output folder.
pub const REFERENCE_FILE: &str = "reference_log_probs.jsonl";

/// What the values depend on; the first line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceKey {
    /// Hash of the reference's weights and config.
    pub model: String,
    /// Hash of the encoded pairs: tokens and sentences.
    pub data: String,
    /// Hash of what is in the pictures' files.
    pub images: String,
    /// Version of the rules by which pixels are made of them, and whether they are turned.
    pub pixels: String,
    /// Precision of the weights.
    pub bf16: bool,
}

impl ReferenceKey {
    /// The key of a run: reads all of the reference's files once.
    ///
    /// # Errors
    /// A folder that cannot be read, data whose pictures nobody has looked at.
    pub fn new(config: &TrainConfig, data: &Data) -> Result<Self> {
        let folder = config.ref_model.as_ref().unwrap_or(&config.model).as_path();
        let Some(images) = data.pictures.clone() else {
            let remedy = "call `Data::decode_pictures` first";
            return Err(Error::option("data", "pictures that nobody has looked at", remedy));
        };
        let pixels = format!("{PIXEL_RULES}, orientation {}", config.exif_orientation);
        Ok(Self { model: folder_hash(folder)?, data: data.hash.clone(), images, pixels, bf16: config.bf16 })
    }
}

/// One line a pair, in the order of the data; floats as bits, so that nothing is lost.
#[derive(Serialize, Deserialize)]
struct Line {
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

/// The rows that are known so far.
#[derive(Debug)]
pub struct ReferenceCache {
    path: PathBuf,
    rows: Vec<ReferenceRow>,
}

impl ReferenceCache {
    /// Opens a cache, or begins one. A line that an interrupted run left torn is taken out.
    ///
    /// # Errors
    /// A cache of another model or other data: it is refused, not overwritten.
    pub fn open(path: &Path, key: &ReferenceKey) -> Result<Self> {
        let head = serde_json::to_string(key).map_err(|error| Error::stored(path, error.to_string()))?;
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!("{head}\n"),
            Err(source) => return Err(Error::io(path, source)),
        };
        let mut lines = text.split_inclusive('\n');
        let found = lines.next().unwrap_or_default();
        if found.trim_end() != head {
            let why = "holds log-probabilities of another reference, template, data or pictures; delete it, or give another output_dir";
            return Err(Error::stored(path, why));
        }
        let (mut rows, mut kept) = (Vec::new(), found.to_owned());
        for line in lines.take_while(|line| line.ends_with('\n')) {
            let Ok(row) = serde_json::from_str::<Line>(line) else { break };
            let floats = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
            let (chosen, rejected) = (floats(row.chosen), floats(row.rejected));
            rows.push(ReferenceRow { chosen, rejected, ..ReferenceRow::default() });
            kept.push_str(line);
        }
        aspo_data::files::write_atomic(path, |file| {
            file.write_all(kept.as_bytes())
                .map_err(|source| aspo_data::Error::Io { path: path.into(), source })
        })?;
        Ok(Self { path: path.into(), rows })
    }

    /// Pairs known.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The values of pair `index`.
    pub fn row(&self, index: usize) -> &ReferenceRow {
        &self.rows[index]
    }

    /// Adds the next pairs and syncs the file.
    ///
    /// # Errors
    /// A disk that is full.
    pub fn extend(&mut self, rows: Vec<ReferenceRow>) -> Result<()> {
        let fail = |source| Error::io(&self.path, source);
        let mut text = String::new();
        for row in &rows {
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
            let line = Line { chosen: bits(&row.chosen), rejected: bits(&row.rejected) };
            text += &serde_json::to_string(&line).map_err(|error| fail(error.into()))?;
            text.push('\n');
        }
        let mut file = std::fs::OpenOptions::new().append(true).open(&self.path).map_err(fail)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)?;
        self.rows.extend(rows);
        Ok(())
    }
}
