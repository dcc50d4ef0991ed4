//! Records in a file: made once, then read in any order without being held in memory.
//!
//! What takes long to make of data (encoded pairs, scores, log-probabilities) is kept in such files, each under a key that
//! names everything it was made from. While it is made a file is called `NAME.part`; a process that ends before, however it
//! ends, loses no whole record, and the next one goes on behind them. A finished file never changes. In memory are 16 bytes a
//! record.
//!
//! Layout, numbers in little endian: `aspo records 1\n`, 64 characters of key, `\n`; each record as length, tag, CRC-32 of
//! tag and bytes (4, 8 and 4 bytes), bytes; then a note, the table (offset and tag of each record), its CRC-32, the note's
//! length and the number of records (8 bytes each), and `ASPO.END`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const HEAD: &[u8] = b"aspo records 1\n";
const END: &[u8] = b"ASPO.END";
/// Head, key and its line's end.
const START: u64 = HEAD.len() as u64 + 65;
/// CRC-32, length of the note, number of records, `ASPO.END`.
const TRAILER: u64 = 4 + 8 + 8 + END.len() as u64;
/// Length, tag, CRC-32.
const BEFORE: u64 = 16;
/// Largest record.
pub const MAX_RECORD_BYTES: usize = 128 << 20;

/// The key of records: SHA-256, in hexadecimal, of a text that names everything they are made from.
pub fn key_of(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

/// A finished file of records.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    file: Mutex<File>,
    offsets: Vec<u64>,
    tags: Vec<u64>,
    note: Vec<u8>,
}

impl Records {
    /// The records of this key, made by `make` if they are not there: it is given a writer that may hold the first of them
    /// already, and gives the note that is kept with them. A process that is making the same is waited for.
    ///
    /// # Errors
    /// What `make` refuses; [`Error::Io`]. The records made so far are kept.
    pub fn open_or<E: From<Error>>(
        path: &Path,
        key: &str,
        make: impl FnOnce(&mut RecordWriter) -> std::result::Result<Vec<u8>, E>,
    ) -> std::result::Result<Self, E> {
        if let Some(records) = Self::open(path, key)? {
            return Ok(records);
        }
        let mut writer = RecordWriter::begin(path, key)?;
        // Another process may have finished them meanwhile.
        if let Some(records) = Self::open(path, key)? {
            writer.discard();
            return Ok(records);
        }
        let note = make(&mut writer);
        writer.sync()?;
        Ok(writer.finish(&note?)?)
    }

    /// The records of this key; none if there is no such file, or it is of another key or damaged: it may be made again.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, key: &str) -> Result<Option<Self>> {
        Self::open_if(path, |start| start == head(key))
    }

    /// The records of whatever key.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn open_any(path: &Path) -> Result<Option<Self>> {
        Self::open_if(path, |start| start.starts_with(HEAD))
    }

    fn open_if(path: &Path, fits: impl FnOnce(&[u8]) -> bool) -> Result<Option<Self>> {
        let fail = |source| Error::io(path, source);
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        };
        let length = file.metadata().map_err(fail)?.len();
        let Some(body) = length.checked_sub(START + TRAILER) else { return Ok(None) };
        let mut start = vec![0; START as usize];
        file.read_exact(&mut start).map_err(fail)?;
        let mut trailer = [0; TRAILER as usize];
        file.seek(SeekFrom::Start(length - TRAILER)).map_err(fail)?;
        file.read_exact(&mut trailer).map_err(fail)?;
        let [sum, note, count] =
            [(0, 4), (4, 8), (12, 8)].map(|(at, bytes)| number(&trailer[at..at + bytes]));
        let table =
            count.checked_mul(16).and_then(|table| table.checked_add(note)).filter(|part| *part <= body);
        let Some(part) = table.filter(|_| fits(&start) && trailer.ends_with(END)) else { return Ok(None) };
        let mut bytes = vec![0; part as usize];
        file.seek(SeekFrom::Start(length - TRAILER - part)).map_err(fail)?;
        file.read_exact(&mut bytes).map_err(fail)?;
        if u64::from(crc32fast::hash(&bytes)) != sum {
            return Ok(None);
        }
        let table = bytes.split_off(note as usize);
        let rows = table.chunks_exact(16);
        let offsets = rows.clone().map(|row| number(&row[..8])).collect();
        let tags = rows.map(|row| number(&row[8..])).collect();
        Ok(Some(Self { path: path.to_owned(), file: Mutex::new(file), offsets, tags, note: bytes }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// No records.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// What the writer left with the records.
    pub fn note(&self) -> &[u8] {
        &self.note
    }

    /// The number that stands beside each record.
    pub fn tags(&self) -> &[u64] {
        &self.tags
    }

    /// The bytes of a record, read from the file.
    ///
    /// # Errors
    /// [`Error::Stored`] for a record that is not there or is damaged; [`Error::Io`].
    pub fn get(&self, index: usize) -> Result<Vec<u8>> {
        let fail = |source| Error::io(&self.path, source);
        let damaged = || {
            let why =
                format!("record {index} of {} is damaged: delete the file, it is made again", self.len());
            Error::Stored { path: self.path.clone(), why }
        };
        let offset = *self.offsets.get(index).ok_or_else(damaged)?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset)).map_err(fail)?;
        read_record(&mut *file).map_err(fail)?.map(|(_, bytes)| bytes).ok_or_else(damaged)
    }
}

/// A file of records under way. Only one process at a time has it.
#[derive(Debug)]
pub struct RecordWriter {
    path: PathBuf,
    part: PathBuf,
    out: BufWriter<File>,
    end: u64,
    offsets: Vec<u64>,
    tags: Vec<u64>,
}

impl RecordWriter {
    /// Begins the records of a key, or goes on behind the whole ones that an ended process left. Waits for a process that is at
    /// it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn begin(path: &Path, key: &str) -> Result<Self> {
        let mut part = path.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let fail = |source| Error::io(&part, source);
        let mut file = loop {
            let file = crate::files::open(&part)?;
            file.lock().map_err(fail)?;
            // The one that was waited for may have given the file its name: it is no longer ours to write.
            if is_at(&file, &part) {
                break file;
            }
        };
        let (mut offsets, mut tags, mut end) = (Vec::new(), Vec::new(), START);
        let mut start = Vec::new();
        (&mut file).take(START).read_to_end(&mut start).map_err(fail)?;
        if start == head(key) {
            let mut reader = BufReader::new(&mut file);
            while let Some((tag, bytes)) = read_record(&mut reader).map_err(fail)? {
                offsets.push(end);
                tags.push(tag);
                end += BEFORE + bytes.len() as u64;
            }
            file.set_len(end).map_err(fail)?;
        } else {
            file.set_len(0).map_err(fail)?;
            file.seek(SeekFrom::Start(0)).map_err(fail)?;
            file.write_all(&head(key)).map_err(fail)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(fail)?;
        let out = BufWriter::with_capacity(1 << 20, file);
        Ok(Self { path: path.to_owned(), part, out, end, offsets, tags })
    }

    /// Number of records so far.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// None yet.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The number that stands beside each.
    pub fn tags(&self) -> &[u64] {
        &self.tags
    }

    /// Takes out everything that an ended process left.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn clear(&mut self) -> Result<()> {
        self.sync()?;
        (self.end, self.offsets, self.tags) = (START, Vec::new(), Vec::new());
        let file = self.out.get_mut();
        let done = file.set_len(START).and_then(|()| file.seek(SeekFrom::Start(START)));
        done.map(drop).map_err(|source| Error::io(&self.part, source))
    }

    /// Adds a record with a number beside it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Stored`] for one above [`MAX_RECORD_BYTES`].
    pub fn push(&mut self, tag: u64, bytes: &[u8]) -> Result<()> {
        if bytes.len() > MAX_RECORD_BYTES {
            let why = format!("a record of {} bytes is above the limit of {MAX_RECORD_BYTES}", bytes.len());
            return Err(Error::Stored { path: self.part.clone(), why });
        }
        let length = bytes.len() as u32;
        let parts: [&[u8]; 4] =
            [&length.to_le_bytes(), &tag.to_le_bytes(), &sum(tag, bytes).to_le_bytes(), bytes];
        for part in parts {
            self.out.write_all(part).map_err(|source| Error::io(&self.part, source))?;
        }
        self.offsets.push(self.end);
        self.tags.push(tag);
        self.end += BEFORE + u64::from(length);
        Ok(())
    }

    /// Makes sure that everything added is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        done.map_err(|source| Error::io(&self.part, source))
    }

    /// Closes the file with a note, and gives it its name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self, note: &[u8]) -> Result<Records> {
        let mut table = note.to_vec();
        for (offset, tag) in self.offsets.iter().zip(&self.tags) {
            table.extend(offset.to_le_bytes());
            table.extend(tag.to_le_bytes());
        }
        let fail = |source| Error::io(&self.part, source);
        let mut trailer = crc32fast::hash(&table).to_le_bytes().to_vec();
        trailer.extend((note.len() as u64).to_le_bytes());
        trailer.extend((self.offsets.len() as u64).to_le_bytes());
        trailer.extend(END);
        self.out.write_all(&table).and_then(|()| self.out.write_all(&trailer)).map_err(fail)?;
        self.sync()?;
        let Self { path, part, out, offsets, tags, .. } = self;
        std::fs::rename(&part, &path).map_err(|source| Error::io(&path, source))?;
        // Those who wait for the file wait no longer.
        drop(out);
        let file = File::open(&path).map_err(|source| Error::io(&path, source))?;
        Ok(Records { path, file: Mutex::new(file), offsets, tags, note: note.to_vec() })
    }

    fn discard(self) {
        // What is left behind is made nothing of.
        let _ = std::fs::remove_file(&self.part);
    }
}

/// Whether a path still leads to this file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (open.dev(), open.ino()) == (there.dev(), there.ino())
    }
    #[cfg(not(unix))]
    {
        open.len() == there.len()
    }
}

fn head(key: &str) -> Vec<u8> {
    [HEAD, format!("{key:0>64.64}\n").as_bytes()].concat()
}

fn sum(tag: u64, bytes: &[u8]) -> u32 {
    let mut hash = crc32fast::Hasher::new();
    hash.update(&tag.to_le_bytes());
    hash.update(bytes);
    hash.finalize()
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The record that begins here; none where there is no whole one.
fn read_record(reader: &mut impl Read) -> std::io::Result<Option<(u64, Vec<u8>)>> {
    let mut before = Vec::new();
    reader.take(BEFORE).read_to_end(&mut before)?;
    if before.len() < BEFORE as usize {
        return Ok(None);
    }
    let [length, expected] = [0, 12].map(|at| number(&before[at..at + 4]) as u32);
    let tag = number(&before[4..12]);
    if length as usize > MAX_RECORD_BYTES {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity((length as usize).min(1 << 16));
    reader.take(u64::from(length)).read_to_end(&mut bytes)?;
    Ok((bytes.len() == length as usize && sum(tag, &bytes) == expected).then_some((tag, bytes)))
}
