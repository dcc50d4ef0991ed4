//! A file of values by content hash that survives a crash: what was stored whole stays, a torn end is cut off.
//!
//! Records follow each other: key (32 bytes), length (4), the first 8 bytes of the SHA-256 of key and value, the value.
//! Opening reads the keys and stops at the first record that is not whole; writing goes on from there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"aspo-kv1";
const HEADER: usize = 32 + 4 + 8;
/// Largest value.
pub const MAX_VALUE_BYTES: usize = 64 << 20;

/// Key of a stored value: a SHA-256 of everything that it depends on.
pub type Key = [u8; 32];

/// Where a record starts, and the length of its value.
type Index = HashMap<Key, (u64, u32)>;

/// Values on disk by content hash. One process at a time may have it open.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    reader: File,
    writer: BufWriter<File>,
    index: Index,
    end: u64,
    dirty: bool,
}

impl Store {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// [`Error::Stored`] when the file is something else, or another process has it open; [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |source| Error::io(path, source);
        let file = crate::files::open(path)?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => Error::Stored {
                path: path.to_owned(),
                why: "another process has it open: wait for it, or use another file".to_owned(),
            },
            std::fs::TryLockError::Error(source) => fail(source),
        })?;
        let (index, end) = scan(path, &file)?;
        file.set_len(end).map_err(fail)?;
        let reader = file.try_clone().map_err(fail)?;
        let mut store =
            Self { path: path.to_owned(), reader, writer: BufWriter::new(file), index, end, dirty: false };
        if store.end == 0 {
            store.append(MAGIC)?;
        }
        Ok(store)
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// No values.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Stored`] when the bytes on disk have changed since the file was opened.
    pub fn get(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        let Some(&(at, length)) = self.index.get(key) else { return Ok(None) };
        self.flush()?;
        let mut record = vec![0; HEADER + length as usize];
        self.reader
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.reader.read_exact(&mut record))
            .map_err(|source| Error::io(&self.path, source))?;
        let value = record.split_off(HEADER);
        if record[36..] != checksum(key, &value) {
            let why = "a stored value has changed on disk: delete the file, it will be made again".to_owned();
            return Err(Error::Stored { path: self.path.clone(), why });
        }
        Ok(Some(value))
    }

    /// Adds a value; a key that is there keeps its value. It is on disk for certain only after [`Store::sync`].
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::Stored`] for a value above [`MAX_VALUE_BYTES`].
    pub fn put(&mut self, key: &Key, value: &[u8]) -> Result<()> {
        if self.index.contains_key(key) {
            return Ok(());
        }
        if value.len() > MAX_VALUE_BYTES {
            let why = format!("a value of {} bytes is above the limit of {MAX_VALUE_BYTES}", value.len());
            return Err(Error::Stored { path: self.path.clone(), why });
        }
        let length = value.len() as u32;
        let record = [&key[..], &length.to_le_bytes(), &checksum(key, value), value].concat();
        self.index.insert(*key, (self.end, length));
        self.append(&record)
    }

    /// Makes sure that everything added is on disk.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.writer.get_ref().sync_data().map_err(|source| Error::io(&self.path, source))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let fail = |source| Error::io(&self.path, source);
        if !self.dirty {
            // Reading moves the position that both handles share.
            self.writer.get_mut().seek(SeekFrom::Start(self.end)).map_err(fail)?;
        }
        self.dirty = true;
        self.writer.write_all(bytes).map_err(fail)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.dirty = false;
        self.writer.flush().map_err(|source| Error::io(&self.path, source))
    }
}

fn checksum(key: &Key, value: &[u8]) -> [u8; 8] {
    let hash = Sha256::new().chain_update(key).chain_update(value).finalize();
    hash[..8].try_into().expect("a hash has 32 bytes")
}

/// Where each whole record lies, and where the last one ends.
fn scan(path: &Path, file: &File) -> Result<(Index, u64)> {
    let fail = |source| Error::io(path, source);
    let mut index = HashMap::new();
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0)).map_err(fail)?;
    let mut start = Vec::new();
    reader.by_ref().take(MAGIC.len() as u64).read_to_end(&mut start).map_err(fail)?;
    if start != MAGIC {
        // Nothing, or a part of the mark, which an interrupted first write leaves.
        if MAGIC.starts_with(&start) {
            return Ok((index, 0));
        }
        let why = "it is no store of this crate: name another file".to_owned();
        return Err(Error::Stored { path: path.to_owned(), why });
    }
    let mut end = MAGIC.len() as u64;
    let mut header = [0; HEADER];
    let mut value = Vec::new();
    loop {
        match reader.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok((index, end)),
            Err(error) => return Err(fail(error)),
        }
        let key: Key = header[..32].try_into().expect("32 bytes");
        let length = u32::from_le_bytes(header[32..36].try_into().expect("4 bytes"));
        if length as usize > MAX_VALUE_BYTES {
            return Ok((index, end));
        }
        value.clear();
        let read = reader.by_ref().take(length.into()).read_to_end(&mut value).map_err(fail)?;
        if read < length as usize || header[36..] != checksum(&key, &value) {
            return Ok((index, end));
        }
        index.insert(key, (end, length));
        end += (HEADER + read) as u64;
    }
}
