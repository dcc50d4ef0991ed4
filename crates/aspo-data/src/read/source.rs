//! Where pairs come from: a path names one file, the files of a folder, or those that a pattern matches; plain or packed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Format;
use crate::error::{Error, FileFault, Result};

/// Files of pairs, and how they are read. The default of every field but the path is that of plain paths.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// A file, a folder of files, or a pattern; see [`source_files`].
    pub path: PathBuf,
    /// The format; recognised where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// For files whose columns have other names: the name that a format here has, and the file's own
    /// (`chosen = "better_answer"`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// The share of this source in a mixture, against those of the others; above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Which answers make pairs where a row has several with scores.
    #[serde(skip_serializing_if = "is_default")]
    pub pairing: Pairing,
    /// Least difference of the scores of such a pair. Default 0: any.
    #[serde(skip_serializing_if = "is_default")]
    pub min_margin: f64,
    /// The column `logps`, in which RLAIF-V keeps log-probabilities of both answers, is of the run's reference, and saves computing
    /// them. Default: it is not read.
    #[serde(skip_serializing_if = "is_default")]
    pub logps: bool,
}

/// Which of several answers with scores make pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pairing {
    /// The best against the worst.
    #[default]
    BestWorst,
    /// Each against each that has a lower score.
    All,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl From<&Path> for Source {
    fn from(path: &Path) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }
}

/// One source or several; in files one path, or a list of paths and tables.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sources(pub Vec<Source>);

impl Sources {
    /// None.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|source| source.path.as_os_str().is_empty())
    }

    /// The path of each.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.0.iter_mut().map(|source| &mut source.path)
    }
}

impl<P: Into<PathBuf>> From<P> for Sources {
    fn from(path: P) -> Self {
        Self(vec![Source { path: path.into(), ..Source::default() }])
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths: Vec<String> = self.0.iter().map(|source| source.path.display().to_string()).collect();
        f.write_str(&paths.join(", "))
    }
}

/// How a source is written down.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a path, or a table with `path`")]
enum Written {
    Path(PathBuf),
    Table(Source),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "a path, a table with `path`, or a list of them")]
enum OneOrSeveral {
    One(Written),
    Several(Vec<Written>),
}

impl Serialize for Sources {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let written = |source: &Source| match *source == Source::from(source.path.as_path()) {
            true => Written::Path(source.path.clone()),
            false => Written::Table(source.clone()),
        };
        match self.0.as_slice() {
            [] => OneOrSeveral::One(Written::Path(PathBuf::new())).serialize(serializer),
            [one] => OneOrSeveral::One(written(one)).serialize(serializer),
            several => OneOrSeveral::Several(several.iter().map(written).collect()).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let source = |written| match written {
            Written::Path(path) => Source::from(path.as_path()),
            Written::Table(source) => source,
        };
        Ok(match OneOrSeveral::deserialize(deserializer)? {
            OneOrSeveral::One(Written::Path(path)) if path.as_os_str().is_empty() => Self::default(),
            OneOrSeveral::One(one) => Self(vec![source(one)]),
            OneOrSeveral::Several(several) => Self(several.into_iter().map(source).collect()),
        })
    }
}

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
        let own = |file: &PathBuf| {
            file.is_file() && is_pairs(&file.file_name().unwrap_or_default().to_string_lossy())
        };
        files.filter(|file| file.as_ref().map_or(true, own)).collect::<Result<_>>()?
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

/// Whether a file's name ends as those of files of pairs do.
pub fn is_pairs(name: &str) -> bool {
    let name = name.to_lowercase();
    !name.starts_with('.') && ENDS.iter().any(|end| name.ends_with(end))
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
