//! RLAIF-V: `question`, `chosen`, `rejected` and the image's bytes. RLHF-V keeps the three texts as JSON in `text`.

use serde_json::Value;

use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::Pair;

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    if !row.has("chosen") && row.has("text") {
        let text = row.take_text("text")?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(inner)) => row.add(inner),
            Ok(other) => return Err(wrong("text", "an object of question, chosen and rejected", &other)),
            Err(error) => return Err(RowFault::Json(format!("in `text`: {error}"))),
        }
    }
    let mut pair =
        Pair::new(row.id(), row.take_text("question")?, row.take_text("chosen")?, row.take_text("rejected")?);
    pair.images = row.take_images()?;
    if pair.images.is_empty() {
        return Err(row.missing("image"));
    }
    Ok(pair)
}
