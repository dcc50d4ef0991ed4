//! Parquet tables in TRL's and RLAIF-V's columns, images inside.

use std::borrow::Borrow;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

use super::{single_question, unsupported};
use crate::error::{Error, FileFault, Result};
use crate::files::AtomicFile;
use crate::image::Places;
use crate::pair::{ImageSource, Pair};

/// A row group is written after this many pairs …
const GROUP_ROWS: usize = 1000;
/// … or this many bytes.
const GROUP_BYTES: usize = 64 << 20;

const TRL: &str = "message trl {
    required binary id (UTF8); required binary prompt (UTF8);
    required binary chosen (UTF8); required binary rejected (UTF8);
    optional group images (LIST) { repeated group list { optional group element {
        optional binary bytes; optional binary path (UTF8);
    } } }
}";

const RLAIF_V: &str = "message rlaif_v {
    required binary id (UTF8); required binary question (UTF8);
    required binary chosen (UTF8); required binary rejected (UTF8);
    optional group image { optional binary bytes; optional binary path (UTF8); }
    required int64 idx; optional binary image_path (UTF8);
    required binary origin_dataset (UTF8); required binary origin_split (UTF8);
}";

/// TRL's columns with `images` as a list of `{bytes, path}`, as Hugging Face's `datasets` stores them.
///
/// # Errors
/// [`Error::File`] for a pair with a system message or earlier turns: write JSON lines.
pub fn write_trl_parquet<P: Borrow<Pair>>(path: &Path, pairs: impl IntoIterator<Item = P>) -> Result<()> {
    write_table(path, TRL, pairs, |group, _, pairs| {
        texts(group, pairs, |pair| [&pair.id, &pair.prompt, &pair.chosen, &pair.rejected])?;
        // Levels: 1 an empty list, 3 an image without this part, 4 with it; repetition 0 starts a row.
        for part in [bytes as fn(&ImageSource) -> Option<ByteArray>, image_path] {
            let (mut values, mut defined, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
            for pair in pairs {
                if pair.images.is_empty() {
                    defined.push(1);
                    repeated.push(0);
                }
                for (index, image) in pair.images.iter().enumerate() {
                    let value = part(image);
                    defined.push(3 + i16::from(value.is_some()));
                    repeated.push(i16::from(index > 0));
                    values.extend(value);
                }
            }
            column(group, &values, Some(&defined), Some(&repeated))?;
        }
        Ok(())
    })
}

/// RLAIF-V's columns; `id` is ours, `idx` the row, the origin columns are empty.
///
/// # Errors
/// [`Error::File`] for a pair with a system message, earlier turns, or not exactly one image.
pub fn write_rlaif_parquet<P: Borrow<Pair>>(path: &Path, pairs: impl IntoIterator<Item = P>) -> Result<()> {
    write_table(path, RLAIF_V, pairs, |group, first, pairs| {
        for pair in pairs {
            if pair.images.len() != 1 {
                return Err(Fault::Pair(unsupported(path, &pair.id, "not exactly one image")));
            }
        }
        texts(group, pairs, |pair| [&pair.id, &pair.prompt, &pair.chosen, &pair.rejected])?;
        // Levels: 1 an image without this part, 2 with it.
        for part in [bytes as fn(&ImageSource) -> Option<ByteArray>, image_path] {
            let parts: Vec<Option<ByteArray>> = pairs.iter().map(|pair| part(&pair.images[0])).collect();
            let defined: Vec<i16> = parts.iter().map(|part| 1 + i16::from(part.is_some())).collect();
            column(group, &parts.into_iter().flatten().collect::<Vec<_>>(), Some(&defined), None)?;
        }
        let rows: Vec<i64> = (first..first + pairs.len()).map(|row| row as i64).collect();
        let mut writer = group.next_column()?.ok_or_else(no_column)?;
        writer.typed::<Int64Type>().write_batch(&rows, None, None)?;
        writer.close()?;
        let paths: Vec<Option<ByteArray>> = pairs.iter().map(|pair| image_path(&pair.images[0])).collect();
        let defined: Vec<i16> = paths.iter().map(|path| i16::from(path.is_some())).collect();
        column(group, &paths.into_iter().flatten().collect::<Vec<_>>(), Some(&defined), None)?;
        let empty = vec![ByteArray::from(""); pairs.len()];
        column(group, &empty, None, None)?;
        column(group, &empty, None, None)
    })
}

/// Parquet's errors and ours, until the file's name is put to the former.
enum Fault {
    Parquet(parquet::errors::ParquetError),
    Pair(Error),
}

impl From<parquet::errors::ParquetError> for Fault {
    fn from(error: parquet::errors::ParquetError) -> Self {
        Self::Parquet(error)
    }
}

type Group<'a> = SerializedRowGroupWriter<'a, AtomicFile>;

fn write_table<P: Borrow<Pair>>(
    path: &Path,
    schema: &str,
    pairs: impl IntoIterator<Item = P>,
    write_group: impl Fn(&mut Group<'_>, usize, &[Pair]) -> Result<(), Fault>,
) -> Result<()> {
    let named = |fault: Fault| match fault {
        Fault::Parquet(error) => Error::file(path, FileFault::Parquet(error.to_string())),
        Fault::Pair(error) => error,
    };
    let schema = Arc::new(parse_message_type(schema).expect("our own schema"));
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Pictures do not repeat: a dictionary of them would only hold them in memory.
        .set_dictionary_enabled(false)
        .set_created_by(concat!("aspo-data ", env!("CARGO_PKG_VERSION")).to_owned())
        .build();
    let file = AtomicFile::create(path)?;
    let mut writer =
        SerializedFileWriter::new(file, schema, Arc::new(properties)).map_err(|error| named(error.into()))?;
    let mut flush = |first: usize, held: &mut Vec<Pair>| -> Result<(), Fault> {
        let mut group = writer.next_row_group()?;
        write_group(&mut group, first, held)?;
        group.close()?;
        held.clear();
        Ok(())
    };
    let places = Places::default();
    let (mut held, mut bytes, mut first) = (Vec::new(), 0, 0);
    for pair in pairs {
        let mut pair = pair.borrow().clone();
        single_question(path, &pair)?;
        for image in &mut pair.images {
            if let ImageSource::Place(place) = image {
                *image = ImageSource::from(places.read(place)?);
            }
        }
        bytes += pair.prompt.len() + pair.chosen.len() + pair.rejected.len();
        bytes += pair
            .images
            .iter()
            .map(|image| if let ImageSource::Bytes(bytes) = image { bytes.len() } else { 0 })
            .sum::<usize>();
        held.push(pair);
        if held.len() == GROUP_ROWS || bytes > GROUP_BYTES {
            let count = held.len();
            flush(first, &mut held).map_err(named)?;
            (bytes, first) = (0, first + count);
        }
    }
    if !held.is_empty() {
        flush(first, &mut held).map_err(named)?;
    }
    writer.into_inner().map_err(|error| named(error.into()))?.commit()
}

fn texts<'a>(
    group: &mut Group<'_>,
    pairs: &'a [Pair],
    of: impl Fn(&'a Pair) -> [&'a String; 4],
) -> Result<(), Fault> {
    for index in 0..4 {
        let values: Vec<ByteArray> =
            pairs.iter().map(|pair| ByteArray::from(of(pair)[index].as_str())).collect();
        column(group, &values, None, None)?;
    }
    Ok(())
}

fn column(
    group: &mut Group<'_>,
    values: &[ByteArray],
    defined: Option<&[i16]>,
    repeated: Option<&[i16]>,
) -> Result<(), Fault> {
    let mut writer = group.next_column()?.ok_or_else(no_column)?;
    writer.typed::<ByteArrayType>().write_batch(values, defined, repeated)?;
    Ok(writer.close()?)
}

fn no_column() -> parquet::errors::ParquetError {
    parquet::errors::ParquetError::General("more columns than the schema has".to_owned())
}

fn bytes(image: &ImageSource) -> Option<ByteArray> {
    match image {
        ImageSource::Bytes(bytes) => Some(ByteArray::from(bytes.to_vec())),
        ImageSource::Path(_) | ImageSource::Place(_) => None,
    }
}

fn image_path(image: &ImageSource) -> Option<ByteArray> {
    match image {
        ImageSource::Path(path) => Some(ByteArray::from(path.as_str())),
        ImageSource::Bytes(_) | ImageSource::Place(_) => None,
    }
}
