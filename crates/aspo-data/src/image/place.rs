//! Encoded pictures within files: a column of a parquet table, a record.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::error::{Error, ImageFault, Result};
use crate::pair::{ImagePlace, PlaceInFile};
use crate::records::Records;

/// Files that are kept open.
const OPEN: usize = 64;

/// The files that pictures were read from.
#[derive(Debug, Default)]
pub(crate) struct Places {
    open: Mutex<HashMap<PathBuf, Arc<Opened>>>,
}

enum Opened {
    Records(Records),
    /// Readers of one file, which each thread has for itself while it reads.
    #[cfg(feature = "parquet")]
    Table(Mutex<Vec<table::Reader>>),
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}

impl Places {
    /// The bytes of a picture.
    pub(crate) fn read(&self, place: &ImagePlace) -> Result<Vec<u8>> {
        let fail = |why: String| {
            let name = format!("in {} ({:?})", place.file.display(), place.at);
            Error::Image { name, fault: ImageFault::Io(why) }
        };
        let file = self.open(place)?;
        let bytes = match (&*file, &place.at) {
            (Opened::Records(records), PlaceInFile::Record(index)) => records.get(*index as usize)?,
            #[cfg(feature = "parquet")]
            (Opened::Table(table), PlaceInFile::Table { column, row, nth }) => {
                let idle = || table.lock().unwrap_or_else(PoisonError::into_inner);
                let one = idle().pop();
                let reader = one.map_or_else(|| table::open(&place.file), Ok).map_err(fail)?;
                let bytes = table::picture(&reader, column, *row, *nth).map_err(fail)?;
                idle().push(reader);
                bytes
            }
            _ => return Err(fail("it is a file of another kind".to_owned())),
        };
        if Sha256::digest(&bytes)[..] != place.digest {
            return Err(fail("the file has changed since it was read first".to_owned()));
        }
        Ok(bytes)
    }

    fn open(&self, place: &ImagePlace) -> Result<Arc<Opened>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&place.file) {
            return Ok(file.clone());
        }
        if open.len() >= OPEN {
            open.clear();
        }
        let file = Arc::new(opened(&place.file, &place.at)?);
        open.insert(place.file.clone(), file.clone());
        Ok(file)
    }
}

fn opened(path: &Path, at: &PlaceInFile) -> Result<Opened> {
    let stored = |why: &str| Error::Stored { path: path.to_owned(), why: why.to_owned() };
    match at {
        PlaceInFile::Record(_) => {
            let records = Records::open_any(path)?;
            records
                .map(Opened::Records)
                .ok_or_else(|| stored("no file of records: delete it, it is made again"))
        }
        #[cfg(feature = "parquet")]
        PlaceInFile::Table { .. } => Ok(Opened::Table(Mutex::default())),
        #[cfg(not(feature = "parquet"))]
        PlaceInFile::Table { .. } => Err(stored("built without the feature `parquet`")),
    }
}

#[cfg(feature = "parquet")]
mod table {
    use std::fs::File;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::reader::{FileReader, SerializedFileReader};

    pub(super) type Reader = SerializedFileReader<File>;

    pub(super) fn open(path: &std::path::Path) -> Result<Reader, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        SerializedFileReader::new(file).map_err(|error| error.to_string())
    }

    /// Only the page that holds the row is unpacked.
    pub(super) fn picture(table: &Reader, column: &str, row: u64, nth: u32) -> Result<Vec<u8>, String> {
        // The reader panics on some damaged tables.
        catch_unwind(AssertUnwindSafe(|| found(table, column, row, nth)))
            .unwrap_or_else(|_| Err("the table is damaged".to_owned()))
    }

    fn found(table: &Reader, column: &str, row: u64, nth: u32) -> Result<Vec<u8>, String> {
        let told = |error: parquet::errors::ParquetError| error.to_string();
        let leaf = table.metadata().file_metadata().schema_descr().columns().iter().position(|leaf| {
            let parts = leaf.path().parts();
            parts[0] == column && (parts.len() == 1 || parts.last().is_some_and(|part| part == "bytes"))
                || parts.len() > 1 && parts[0] == column && parts.last().is_some_and(|part| part == "element")
        });
        let leaf = leaf.ok_or_else(|| format!("there is no column {column} of bytes"))?;
        let mut within = row;
        for group in 0..table.num_row_groups() {
            let rows = table.metadata().row_group(group).num_rows().max(0) as u64;
            if within >= rows {
                within -= rows;
                continue;
            }
            let group = table.get_row_group(group).map_err(told)?;
            let ColumnReader::ByteArrayColumnReader(mut reader) =
                group.get_column_reader(leaf).map_err(told)?
            else {
                return Err(format!("the column {column} holds no bytes"));
            };
            skip(&mut reader, within as usize).map_err(told)?;
            let (mut values, mut defined, mut repeated) = (Vec::<ByteArray>::new(), Vec::new(), Vec::new());
            reader.read_records(1, Some(&mut defined), Some(&mut repeated), &mut values).map_err(told)?;
            let value = values.into_iter().nth(nth as usize);
            return value
                .map(|bytes| bytes.data().to_vec())
                .ok_or_else(|| format!("row {} has no picture", row + 1));
        }
        Err(format!("there is no row {}", row + 1))
    }

    fn skip(reader: &mut ColumnReaderImpl<ByteArrayType>, mut rows: usize) -> parquet::errors::Result<()> {
        while rows > 0 {
            match reader.skip_records(rows)? {
                0 => break,
                skipped => rows -= skipped,
            }
        }
        Ok(())
    }
}
