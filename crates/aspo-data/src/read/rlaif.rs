//! RLAIF-V: `question`, `chosen`, `rejected` and the image's bytes. RLHF-V keeps the three texts as JSON in `text`.

use serde_json::Value;

use super::{Row, key_list, wrong};
use crate::error::RowFault;
use crate::pair::{ImageSource, Pair};

pub(super) fn pair(mut row: Row) -> Result<Pair, RowFault> {
    if !row.keys.contains_key("chosen")
        && let Some(Value::String(text)) = row.keys.get("text")
    {
        match serde_json::from_str(text) {
            Ok(Value::Object(inner)) => row.keys.extend(inner),
            Ok(other) => return Err(wrong("text", "an object of question, chosen and rejected", &other)),
            Err(error) => return Err(RowFault::Json(format!("in `text`: {error}"))),
        }
    }
    let mut pair = Pair::new(row.id(), row.text("question")?, row.text("chosen")?, row.text("rejected")?);
    pair.images = row.take_images()?;
    if pair.images.is_empty() {
        let path = row.optional_text("image_path")?;
        let path = path.ok_or_else(|| RowFault::Missing { key: "image", found: key_list(&row.keys) })?;
        pair.images = vec![ImageSource::Path(path)];
    }
    Ok(pair)
}
