//! Pictures that rows carry, put where they can be read again.

use std::collections::HashMap;
use std::path::PathBuf;

use aspo_data::records::RecordWriter;
use aspo_data::{ImagePlace, ImageSource, PlaceInFile};

use crate::error::Result;

/// The pictures of rows that cannot be read again by themselves (base64 in JSON), each once, in a file of records. Those of tables
/// stay where they are.
pub(crate) struct Carried {
    path: PathBuf,
    key: String,
    writer: Option<RecordWriter>,
    known: HashMap<[u8; 32], u64>,
}

impl Carried {
    pub fn new(path: PathBuf, key: String) -> Self {
        Self { path, key, writer: None, known: HashMap::new() }
    }

    /// Puts places in the stead of bytes.
    ///
    /// # Errors
    /// A full disk.
    pub fn keep(&mut self, images: &mut [ImageSource]) -> Result<()> {
        for image in images {
            let ImageSource::Bytes(bytes) = image else { continue };
            if let Some(mut place) = bytes.place() {
                place.file = std::path::absolute(&place.file).unwrap_or(place.file);
                *image = ImageSource::Place(place);
                continue;
            }
            let digest = *bytes.digest();
            let index = match self.known.get(&digest) {
                Some(index) => *index,
                None => {
                    let writer = match &mut self.writer {
                        Some(writer) => writer,
                        none => {
                            let mut writer = RecordWriter::begin(&self.path, &self.key)?;
                            writer.clear()?;
                            none.insert(writer)
                        }
                    };
                    writer.push(0, bytes)?;
                    let index = self.known.len() as u64;
                    self.known.insert(digest, index);
                    index
                }
            };
            let at = PlaceInFile::Record(index);
            *image = ImageSource::Place(ImagePlace { file: self.path.clone(), at, digest });
        }
        Ok(())
    }

    /// Closes the file, if there is one.
    ///
    /// # Errors
    /// A full disk.
    pub fn finish(self) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.finish(&[])?;
        }
        Ok(())
    }
}
