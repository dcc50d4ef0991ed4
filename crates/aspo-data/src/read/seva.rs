//! SeVa's list of `{"chosen", "reject", "question", "image_id"}` (Kevinz-code/SeVa, `data/step3`).
//!
//! `image_id` is a path relative to the image folder; a number is one without an extension and gets `.jpg`, as SeVa
//! appends it.

use serde_json::Value;

use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::{ImageSource, Pair};

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    let mut pair =
        Pair::new(row.id(), row.take_text("question")?, row.take_text("chosen")?, row.take_text("reject")?);
    pair.images = match image_id(row)? {
        Some(image) => vec![image],
        None => row.take_images()?,
    };
    Ok(pair)
}

pub(super) fn image_id(row: &mut Row) -> Result<Option<ImageSource>, RowFault> {
    match row.take_optional("image_id") {
        Some(Value::String(path)) => Ok(Some(ImageSource::Path(path))),
        Some(Value::Number(number)) => Ok(Some(ImageSource::Path(format!("{number}.jpg")))),
        None => Ok(None),
        Some(other) => Err(wrong("image_id", "a file name or a number", &other)),
    }
}
