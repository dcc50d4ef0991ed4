//! Rows of a parquet table, row group by row group.
//!
//! The columns `image` and `images` become image sources (bytes where there are any, else the path); the others become
//! JSON values (bytes that a message carries in base64), so that the formats read tables and JSON alike. Columns that no format
//! reads are not decoded.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::{KEYS, MAX_IMAGES, MAX_ROW_BYTES, Row, Source, footer};
use crate::error::{Error, FileFault, Result, RowFault};
use crate::image::MAX_FILE_BYTES;
use crate::pair::{ImageBytes, ImageSource, PlaceInFile};

/// Rows decoded at a time: pictures are large.
const BATCH: usize = 16;

pub(super) struct ParquetRows {
    path: PathBuf,
    rows: Option<RowIter<'static>>,
    number: usize,
    total: usize,
    /// The file's own names of columns, and those that they have here.
    names: BTreeMap<String, String>,
    /// Columns that are not decoded, and whether they hold anything.
    left: Vec<(String, bool)>,
}

impl ParquetRows {
    pub(super) fn open(path: &Path, source: &Source) -> Result<Self> {
        let columns = &source.columns;
        let fail = |why: String| Error::file(path, FileFault::Parquet(why));
        let mut file = File::open(path).map_err(|source| Error::io(path, source))?;
        footer::check(&mut file).map_err(|source| Error::io(path, source))?.map_err(&fail)?;
        let reader = guarded(|| SerializedFileReader::new(file)).map_err(&fail)?;
        let total = reader.metadata().file_metadata().num_rows();
        let total = usize::try_from(total).map_err(|_| fail(format!("it says it has {total} rows")))?;
        let names: BTreeMap<String, String> =
            columns.iter().map(|(ours, theirs)| (theirs.clone(), ours.clone())).collect();
        let schema = reader.metadata().file_metadata().schema_descr().root_schema().clone();
        // A column that has one of our names by itself is not meant where that name is given to another.
        let ours = |name: &str| KEYS.contains(&name) && (name != "logps" || source.logps);
        let is_read = |name: &str| names.contains_key(name) || ours(name) && !columns.contains_key(name);
        let (read, left): (Vec<_>, Vec<_>) =
            schema.get_fields().iter().cloned().partition(|field| is_read(field.name()));
        let left =
            left.iter().map(|field| (field.name().to_owned(), holds_any(&reader, field.name()))).collect();
        let wanted = (!read.is_empty())
            .then(|| Type::group_type_builder(schema.name()).with_fields(read).build())
            .transpose();
        let rows = wanted.map_err(|error| fail(error.to_string()))?;
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(rows)).map_err(fail)?;
        let rows = Some(rows.with_batch_size(BATCH));
        Ok(Self { path: path.to_owned(), rows, number: 0, total, names, left })
    }

    /// The columns that hold something and are not decoded.
    pub(super) fn unread(&self) -> impl Iterator<Item = &str> {
        self.left.iter().filter(|(_, holds)| *holds).map(|(name, _)| name.as_str())
    }

    fn row(&self, record: Record) -> Result<Row, RowFault> {
        let mut row = row(&self.path, self.number, record, &self.names)?;
        // For messages that tell what a row has.
        let given = |name: &String| self.names.values().any(|ours| ours == name);
        let left = self.left.iter().filter(|(name, _)| !given(name));
        row.add(left.map(|(name, _)| (name.clone(), Value::Null)).collect());
        Ok(row)
    }
}

/// Whether a column has a value, as far as its statistics tell.
fn holds_any(reader: &SerializedFileReader<File>, name: &str) -> bool {
    let groups = reader.metadata().row_groups().iter();
    groups.flat_map(|group| group.columns()).filter(|leaf| leaf.column_path().parts()[0] == name).any(
        |leaf| {
            let nulls = leaf.statistics().and_then(|statistics| statistics.null_count_opt());
            leaf.num_values() > 0 && nulls.is_none_or(|nulls| nulls < leaf.num_values() as u64)
        },
    )
}

/// The reader was written for sound files: on some damaged ones it panics, which is an error of the file, not of ours.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the table is damaged".to_owned()),
    }
}

impl Iterator for ParquetRows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.as_mut()?;
        self.number += 1;
        let fault = match guarded(|| rows.next().transpose()) {
            Ok(Some(record)) => match self.row(record) {
                Ok(row) => return Some(Ok(row)),
                Err(fault) => return Some(Err(Error::row(&self.path, self.number, fault))),
            },
            Ok(None) if self.number > self.total => {
                self.rows = None;
                return None;
            }
            Ok(None) => RowFault::Cut,
            Err(why) => RowFault::Parquet(why),
        };
        // Columns are out of step after an error: nothing after it can be trusted.
        self.rows = None;
        let lost = Some((self.total + 1).saturating_sub(self.number));
        Some(Err(Error::file(&self.path, FileFault::Broken { row: self.number, lost, fault })))
    }
}

fn row(
    path: &Path,
    number: usize,
    record: Record,
    names: &BTreeMap<String, String>,
) -> Result<Row, RowFault> {
    let (mut keys, mut pictures) = (Map::new(), BTreeMap::new());
    let mut text_bytes = 0;
    for (column, field) in record.into_columns() {
        let name = names.get(&column).cloned().unwrap_or_else(|| column.clone());
        match name.as_str() {
            "image" | "images" => {
                let mut sources = Vec::new();
                images(&name, field, &mut sources)?;
                pictures.insert(name.clone(), placed(sources, path, &column, number as u64 - 1));
                // The key tells the format.
                keys.insert(name, Value::Array(Vec::new()));
            }
            _ => {
                let value = value(field, &mut text_bytes)?;
                keys.insert(name, value);
            }
        }
    }
    Ok(Row::new(number, keys, pictures))
}

/// The same pictures, known to be in their column and row.
fn placed(sources: Vec<ImageSource>, path: &Path, column: &str, row: u64) -> Vec<ImageSource> {
    let mut nth = 0;
    let place = |source| match source {
        ImageSource::Bytes(bytes) => {
            nth += 1;
            let at = PlaceInFile::Table { column: column.to_owned(), row, nth: nth - 1 };
            ImageSource::Bytes(ImageBytes::at(bytes, path.to_owned(), at))
        }
        other => other,
    };
    sources.into_iter().map(place).collect()
}

fn images(key: &str, field: Field, images: &mut Vec<ImageSource>) -> Result<(), RowFault> {
    let wrong = |found: &Field| RowFault::Type {
        key: key.to_owned(),
        expected: "image bytes, a path, or a list of them",
        found: format!("{found:.40}"),
    };
    match field {
        Field::Null => {}
        Field::Str(path) => images.push(ImageSource::Path(path)),
        Field::Bytes(bytes) => {
            if bytes.len() as u64 > MAX_FILE_BYTES {
                return Err(RowFault::TooLong { limit: MAX_FILE_BYTES as usize });
            }
            images.push(ImageSource::from(bytes.data().to_vec()));
        }
        Field::Group(group) => {
            let mut path = None;
            for (name, field) in group.into_columns() {
                match (name.as_str(), field) {
                    ("bytes", Field::Bytes(bytes)) => return self::images(key, Field::Bytes(bytes), images),
                    ("path", Field::Str(text)) => path = Some(text),
                    _ => {}
                }
            }
            match path {
                Some(path) => images.push(ImageSource::Path(path)),
                None => return Err(wrong(&Field::Str("an object without bytes and path".to_owned()))),
            }
        }
        Field::ListInternal(list) => {
            if list.len() > MAX_IMAGES {
                return Err(wrong(&Field::Str(format!("{} images", list.len()))));
            }
            for element in list.elements() {
                self::images(key, element.clone(), images)?;
            }
        }
        other => return Err(wrong(&other)),
    }
    Ok(())
}

fn value(field: Field, text_bytes: &mut usize) -> Result<Value, RowFault> {
    let mut text = |text: String| {
        *text_bytes += text.len();
        match *text_bytes > MAX_ROW_BYTES {
            true => Err(RowFault::TooLong { limit: MAX_ROW_BYTES }),
            false => Ok(Value::String(text)),
        }
    };
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => number(value.into()),
        Field::Float(value) => number(value.into()),
        Field::Double(value) => number(value),
        Field::Str(value) => text(value)?,
        // Texts written without the UTF-8 mark.
        Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
            Ok(value) => text(value)?,
            Err(error) => return Err(RowFault::NotUtf8 { at: error.utf8_error().valid_up_to() }),
        },
        Field::Group(group) => Value::Object(
            group
                .into_columns()
                .into_iter()
                .map(|(name, field)| match (name.as_str(), field) {
                    // A picture that a message carries.
                    ("bytes", Field::Bytes(bytes)) => {
                        if bytes.len() as u64 > MAX_FILE_BYTES {
                            return Err(RowFault::TooLong { limit: MAX_FILE_BYTES as usize });
                        }
                        Ok((name, Value::String(BASE64.encode(bytes.data()))))
                    }
                    (_, field) => Ok((name, value(field, text_bytes)?)),
                })
                .collect::<Result<_, RowFault>>()?,
        ),
        Field::ListInternal(list) => Value::Array(
            list.elements()
                .iter()
                .map(|element| value(element.clone(), text_bytes))
                .collect::<Result<_, RowFault>>()?,
        ),
        Field::MapInternal(map) => Value::Array(
            map.entries()
                .iter()
                .map(|(key, item)| {
                    Ok(Value::Array(vec![value(key.clone(), text_bytes)?, value(item.clone(), text_bytes)?]))
                })
                .collect::<Result<_, RowFault>>()?,
        ),
        // Dates, times and decimals: nothing that a pair holds.
        other @ (Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_)) => text(other.to_string())?,
    })
}

/// JSON has no NaN and no infinity. These become neither null nor a text, which might pass for an answer, but an object
/// that tells what was found.
fn number(value: f64) -> Value {
    Number::from_f64(value).map_or_else(
        || Value::Object(Map::from_iter([(value.to_string(), Value::Bool(true))])),
        Value::Number,
    )
}
