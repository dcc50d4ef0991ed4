//! SeVa's list of `{"chosen", "reject", "question", "image_id"}` (Kevinz-code/SeVa, `data/step3`).
//!
//! `image_id` is a path relative to the image folder; a number is one without an extension and gets `.jpg`, as SeVa
//! appends it.

use serde_json::Value;

use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::{ImageSource, Pair};

pub(super) fn pair(mut row: Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), row.text("question")?, row.text("chosen")?, row.text("reject")?);
    pair.images = match row.keys.get("image_id") {
        Some(Value::String(path)) => vec![ImageSource::Path(path.clone())],
        Some(Value::Number(number)) => vec![ImageSource::Path(format!("{number}.jpg"))],
        None | Some(Value::Null) => row.take_images()?,
        Some(other) => return Err(wrong("image_id", "a file name or a number", other)),
    };
    Ok(pair)
}
