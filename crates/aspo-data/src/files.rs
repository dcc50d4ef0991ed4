//! Files: paths that stay under their root, writes that are whole or absent.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Component, Path, PathBuf};

use atomic_write_file::AtomicWriteFile;

use crate::error::{Error, Result};

/// The file that `reference` names under `root`, refused where it could lie elsewhere.
///
/// Refused are empty paths, `..`, drive letters, backslashes, NUL, URLs, and, after links have been followed, anything
/// that lies outside `root`; an absolute path may lead into it. The file must exist.
pub fn resolve(root: &Path, reference: &str) -> Result<PathBuf> {
    check_reference(reference)?;
    let root = root.canonicalize().map_err(|source| Error::io(root, source))?;
    let path = root.join(reference);
    let real = path.canonicalize().map_err(|source| Error::io(&path, source))?;
    if !real.starts_with(&root) {
        let why = match Path::new(reference).is_absolute() {
            true => "it is not in the image folder: give the folder that it is in",
            false => "a link leads out of the image folder",
        };
        return Err(Error::ImagePath { reference: reference.to_owned(), why });
    }
    Ok(real)
}

/// The part of [`resolve`] that needs no disk: is this a plain path?
pub fn check_reference(reference: &str) -> Result<()> {
    let refuse = |why| Err(Error::ImagePath { reference: reference.chars().take(200).collect(), why });
    if reference.trim().is_empty() {
        return refuse("it is empty");
    }
    if reference.contains('\0') || reference.contains('\\') {
        return refuse("it contains a NUL or a backslash");
    }
    if reference.contains("://") {
        return refuse("it is a URL: download the images and give their folder");
    }
    let bytes = reference.as_bytes();
    if bytes.len() > 1 && bytes[1] == b':' && bytes[0].is_ascii_alphabetic() {
        return refuse("it has a drive letter: give it relative to the image folder");
    }
    if Path::new(reference).components().any(|part| part == Component::ParentDir) {
        return refuse("it contains `..`");
    }
    Ok(())
}

/// Writes a file so that a reader sees the old content or all of the new: a temporary name in the same folder,
/// synced, then renamed. Missing folders are made. Nothing is left behind when `write` fails.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    write(&mut file)?;
    file.commit()
}

/// A file under construction; it takes its name only at [`AtomicFile::commit`] and vanishes when dropped before.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    writer: BufWriter<AtomicWriteFile>,
}

impl AtomicFile {
    /// Starts a file that will be `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = folder_of(path);
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        let file = AtomicWriteFile::open(path).map_err(|source| Error::io(path, source))?;
        Ok(Self { target: path.to_owned(), writer: BufWriter::new(file) })
    }

    /// Syncs the content and gives the file its name. Its permissions are those of the file that it replaces, else those
    /// that the process gives to new files (its umask).
    pub fn commit(self) -> Result<()> {
        let target = self.target;
        let fail = |source| Error::io(&target, source);
        let file = self.writer.into_inner().map_err(|error| fail(error.into_error()))?;
        file.commit().map_err(fail)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.writer.flush()
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens a file to read and to go on writing; it and its folders are made where they are not there.
pub(crate) fn open(path: &Path) -> Result<File> {
    let fail = |source| Error::io(path, source);
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)
}
