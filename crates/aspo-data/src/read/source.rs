//! What a path of pairs names: one file, the files of a folder, or those that a pattern matches; plain or packed.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, FileFault, Result};

/// Ends of the names of files of pairs in a folder.
const ENDS: [&str; 7] = [".json", ".jsonl", ".parquet", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst"];

/// The files of pairs that `path` names, in the order of their names: itself, or those of a folder (not of folders in it) that end
/// as files of pairs do, or, where there is no such file and `path` has `*`, `?` or `[`, those that it matches as a pattern
/// (`train-*-of-*.parquet`).
///
/// # Errors
/// [`Error::File`] for a folder or a pattern without a file of pairs, or a pattern that is none.
pub fn source_files(path: &Path) -> Result<Vec<PathBuf>> {
    let unsupported = |why: String| Error::file(path, FileFault::Unsupported(why));
    let text = path.to_string_lossy();
    let mut files: Vec<PathBuf> = if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|source| Error::io(path, source))?;
        let files = entries.map(|entry| Ok(entry.map_err(|source| Error::io(path, source))?.path()));
        let is_pairs = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            file.is_file() && !name.starts_with('.') && ENDS.iter().any(|end| name.ends_with(end))
        };
        files.filter(|file| file.as_ref().map_or(true, is_pairs)).collect::<Result<_>>()?
    } else if !path.exists() && text.contains(['*', '?', '[']) {
        let matches = glob::glob(&text).map_err(|error| unsupported(format!("not a pattern: {error}")))?;
        matches.filter_map(std::result::Result::ok).filter(|file| file.is_file()).collect()
    } else {
        return Ok(vec![path.to_owned()]);
    };
    files.sort();
    match (files.is_empty(), path.is_dir()) {
        (false, _) => Ok(files),
        (true, true) => Err(Error::file(path, FileFault::Folder)),
        (true, false) => Err(unsupported("no file matches this pattern: name files that are there".into())),
    }
}

/// How a file is packed.
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// The text of a file, unpacked where it is gzip or zstd, by its first bytes.
pub(super) fn text(path: &Path) -> Result<BufReader<Box<dyn Read + Send>>> {
    let fail = |source| Error::io(path, source);
    let open = || File::open(path).map_err(fail);
    let mut start = [0; 4];
    let read = open()?.take(4).read(&mut start).map_err(fail)?;
    let packing = match start[..read] {
        [0x1F, 0x8B, ..] => Packing::Gzip,
        [0x28, 0xB5, 0x2F, 0xFD] => Packing::Zstd,
        _ => Packing::Plain,
    };
    let file = open()?;
    let inner: Box<dyn Read + Send> = match packing {
        Packing::Plain => Box::new(file),
        // Several members or frames in a row are one text.
        Packing::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::new(file).map_err(fail)?),
    };
    Ok(BufReader::with_capacity(1 << 16, inner))
}
