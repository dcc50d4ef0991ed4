//! A split on disk: PNG files and the truth beside them.

use std::io::{BufRead, BufReader, Cursor};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Scene, Split, render, scene};
use crate::error::{Error, Result};
use crate::files::write_atomic;

/// Name of the file with the truth, one scene a line.
const TRUTH: &str = "scenes.jsonl";

/// One line of a split's `scenes.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WrittenScene {
    /// Path of the picture, relative to the folder: `test/000017.png`.
    pub image: String,
    /// The truth.
    #[serde(flatten)]
    pub scene: Scene,
}

/// Where a split's truth lies under a world's folder.
fn truth(folder: &Path, split: Split) -> PathBuf {
    folder.join(split.name()).join(TRUTH)
}

/// Draws the first `count` scenes of a split and writes `SPLIT/NNNNNN.png` and `SPLIT/scenes.jsonl` under `folder`.
/// The truth is written last, so a folder that has it has every picture it names.
///
/// # Errors
/// A folder that cannot be written.
pub fn write(folder: &Path, seed: u64, split: Split, count: usize) -> Result<Vec<WrittenScene>> {
    let written = (0..count)
        .map(|index| {
            let scene = scene(seed, split, index);
            let image = format!("{}/{index:06}.png", split.name());
            let mut bytes = Cursor::new(Vec::new());
            let path = folder.join(&image);
            render(&scene)
                .write_to(&mut bytes, image::ImageFormat::Png)
                .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
            write_atomic(&path, |file| {
                file.write_all(bytes.get_ref()).map_err(|source| Error::io(&path, source))
            })?;
            Ok(WrittenScene { image, scene })
        })
        .collect::<Result<Vec<_>>>()?;
    let path = truth(folder, split);
    write_atomic(&path, |file| {
        for line in &written {
            let line = serde_json::to_string(line).map_err(std::io::Error::other);
            line.and_then(|line| writeln!(file, "{line}")).map_err(|source| Error::io(&path, source))?;
        }
        Ok(())
    })?;
    Ok(written)
}

/// Reads a split that [`write()`] wrote.
///
/// # Errors
/// A missing file; a line that is no scene, by number.
pub fn load(folder: &Path, split: Split) -> Result<Vec<WrittenScene>> {
    let path = truth(folder, split);
    let file = std::fs::File::open(&path).map_err(|source| Error::io(&path, source))?;
    BufReader::new(file)
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let line = line.map_err(|source| Error::io(&path, source))?;
            serde_json::from_str(&line).map_err(|error| {
                let why = format!("line {}: {error}; make the world anew", index + 1);
                Error::io(&path, std::io::Error::other(why))
            })
        })
        .collect()
}
