//! A file of small values by content hash: scores that take long to compute, kept from run to run.
//!
//! A text file, one line a value: key, value and the first 8 bytes of the SHA-256 of both, in hexadecimal. Lines are only
//! ever added. One that is damaged, or torn by a crash, is passed over and counted: no other is lost with it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// First line of the file.
const HEAD: &str = "aspo-data store 2";
/// Largest value.
pub const MAX_VALUE_BYTES: usize = 1 << 16;

/// Key of a stored value: a SHA-256 of everything that it depends on.
pub type Key = [u8; 32];

/// Values on disk by content hash, all held in memory. One process at a time may have it open.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    writer: BufWriter<File>,
    values: HashMap<Key, Vec<u8>>,
    damaged: usize,
}

impl Store {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::Stored`] when the file is something else, or another process has it open; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let why = "another process has it open: wait for it, or use another file".to_owned();
        Self::open_if_free(path)?.ok_or_else(|| Error::Stored { path: path.to_owned(), why })
    }

    /// The same, or none while another process has the file open.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for that.
    pub fn open_if_free(path: &Path) -> Result<Option<Self>> {
        let fail = |source| Error::io(path, source);
        let stored = |why: &str| Error::Stored { path: path.to_owned(), why: why.to_owned() };
        let mut file = crate::files::open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        let (mut values, mut damaged, mut whole) = (HashMap::new(), 0, true);
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        let mut number = 0;
        while reader.read_until(b'\n', &mut line).map_err(fail)? > 0 {
            whole = line.ends_with(b"\n");
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            match (number, parse(text)) {
                (0, _) if text == HEAD.as_bytes() || (!whole && HEAD.as_bytes().starts_with(text)) => {}
                (0, _) => return Err(stored("it is no store of this crate: name another file")),
                // A crash between two values leaves an empty line.
                (_, None) => damaged += usize::from(!text.is_empty()),
                (_, Some((key, value))) => drop(values.insert(key, value)),
            }
            number += 1;
            line.clear();
        }
        if number == 1 && !whole {
            // The very first write was torn: nothing was stored yet.
            file.set_len(0).map_err(fail)?;
            (number, whole) = (0, true);
        }
        file.seek(SeekFrom::End(0)).map_err(fail)?;
        let mut store = Self { path: path.to_owned(), writer: BufWriter::new(file), values, damaged };
        if !whole {
            store.append("\n")?;
        }
        if number == 0 {
            store.append(&format!("{HEAD}\n"))?;
        }
        Ok(Some(store))
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// No values.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Lines that could not be read; they are still in the file.
    pub fn damaged(&self) -> usize {
        self.damaged
    }

    /// The value of a key.
    pub fn get(&self, key: &Key) -> Option<&[u8]> {
        self.values.get(key).map(Vec::as_slice)
    }

    /// Adds a value; a key that is there keeps its value. It is on disk for certain only after [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Stored`] for a value above [`MAX_VALUE_BYTES`].
    pub fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        if self.values.contains_key(key) {
            return Ok(());
        }
        if value.len() > MAX_VALUE_BYTES {
            let why = format!("a value of {} bytes is above the limit of {MAX_VALUE_BYTES}", value.len());
            return Err(Error::Stored { path: self.path.clone(), why });
        }
        let line = [&hex(key), " ", &hex(value), " ", &hex(&checksum(key, value)), "\n"].concat();
        self.append(&line)?;
        self.values.insert(*key, value.to_vec());
        Ok(())
    }

    /// Makes sure that everything added is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        let path = &self.path;
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_data())
            .map_err(|source| Error::io(path, source))
    }

    fn append(&mut self, line: &str) -> Result<()> {
        self.writer.write_all(line.as_bytes()).map_err(|source| Error::io(&self.path, source))
    }
}

fn checksum(key: &Key, value: &[u8]) -> [u8; 8] {
    let hash = Sha256::new().chain_update(key).chain_update(value).finalize();
    hash[..8].try_into().expect("a hash has 32 bytes")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let digits = text.chunks_exact(2);
    if !digits.remainder().is_empty() {
        return None;
    }
    digits.map(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()).collect()
}

/// Key and value of a line that is whole.
fn parse(line: &[u8]) -> Option<(Key, Vec<u8>)> {
    let mut parts = line.split(|byte| *byte == b' ');
    let mut part = || from_hex(parts.next()?);
    let (key, value, check) = (part()?, part()?, part()?);
    let key: Key = key.try_into().ok()?;
    (parts.next().is_none() && check == checksum(&key, &value)).then_some((key, value))
}
