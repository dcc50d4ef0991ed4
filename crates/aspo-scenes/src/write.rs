//! A split on disk: PNG files and the truth beside them.

use std::io::{BufRead, BufReader, Cursor, Write};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::{Scene, Split, render, scene};

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
    let path = truth(folder, split);
    let parent = folder.join(split.name());
    std::fs::create_dir_all(&parent).map_err(Error::io(&parent))?;
    let written = (0..count)
        .map(|index| {
            let scene = scene(seed, split, index);
            let image = format!("{}/{index:06}.png", split.name());
            let path = folder.join(&image);
            let mut bytes = Cursor::new(Vec::new());
            render(&scene)
                .write_to(&mut bytes, image::ImageFormat::Png)
                .map_err(|error| Error::io(&path)(std::io::Error::other(error)))?;
            write_file(&path, bytes.get_ref())?;
            Ok(WrittenScene { image, scene })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut lines = Vec::new();
    for line in &written {
        let line = serde_json::to_string(line).map_err(|error| Error::io(&path)(error.into()))?;
        writeln!(lines, "{line}").expect("memory takes every line");
    }
    write_file(&path, &lines)?;
    Ok(written)
}

/// The old content or all of the new.
fn write_file(path: &Path, content: &[u8]) -> Result<()> {
    AtomicWriteFile::open(path)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.commit()
        })
        .map_err(Error::io(path))
}

/// Reads a split that [`write()`] wrote.
///
/// # Errors
/// A missing file; a line that is no scene, by number.
pub fn load(folder: &Path, split: Split) -> Result<Vec<WrittenScene>> {
    let path = truth(folder, split);
    let file = std::fs::File::open(&path).map_err(Error::io(&path))?;
    BufReader::new(file)
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let line = line.map_err(Error::io(&path))?;
            serde_json::from_str(&line).map_err(|error| {
                let reason = error.to_string();
                Error::Line { path: path.clone(), line: index + 1, reason }
            })
        })
        .collect()
}
