//! RLAIF-V: `question`, `chosen`, `rejected` and the image's bytes. RLHF-V keeps the three texts as JSON in `text`.

use serde_json::Value;

use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::{AnswerLogps, Pair, PairLogps};

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

/// `logps`: sum, mean and values of each position, of the chosen answer and of the rejected one; RLAIF-V writes the six in a list, or in an
/// object under the same name, as a text.
pub(super) fn logps(row: &mut Row) -> Result<PairLogps, RowFault> {
    let key = "logps";
    let expected = "sum, mean and values by token of both answers, as RLAIF-V writes them";
    let mut value = row.take(key)?;
    if let Value::String(text) = &value {
        value = serde_json::from_str(text).map_err(|error| RowFault::Json(format!("in `{key}`: {error}")))?;
    }
    if let Some(inner) = value.get_mut(key) {
        value = inner.take();
    }
    let answer = |at: usize| {
        let number = |at: usize| value.get(at)?.as_f64().filter(|number| number.is_finite());
        let (sum, mean) = (number(at)?, number(at + 1)?);
        let values = value.get(at + 2)?.as_array()?.iter().map(|value| Some(value.as_f64()? as f32));
        let values: Vec<f32> = values.collect::<Option<_>>()?;
        let tokens = (sum / mean).round();
        let counted = tokens >= 1.0 && tokens <= values.len() as f64;
        counted.then_some(AnswerLogps { tokens: tokens as usize, values })
    };
    match (value.as_array().map(Vec::len), answer(0), answer(3)) {
        (Some(6), Some(chosen), Some(rejected)) => Ok(PairLogps { chosen, rejected }),
        _ => Err(wrong(key, expected, &value)),
    }
}
