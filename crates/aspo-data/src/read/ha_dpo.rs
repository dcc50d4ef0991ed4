//! HA-DPO's two files (opendatalab/HA-DPO): `desc_data.json`, an object of Visual Genome's image ids, each with lists of
//! `chosen` and `rejected` descriptions, and `pope_data.json`, a list of `{"image_id", "question", "chosen", "reject",
//! "correct"}`. Pictures are `{image_id}.jpg`.
//!
//! Descriptions hold no question: HA-DPO draws one of four, here they take turns. Every chosen text of a picture meets
//! every rejected one, as there where nothing is drawn.

use serde_json::Value;

use super::{Row, seva, wrong};
use crate::error::RowFault;
use crate::pair::{ImageSource, Pair};

const QUESTIONS: [&str; 4] = [
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Please provide a detailed description of the picture.",
    "Could you describe the contents of this image for me?",
];

/// Most descriptions of one kind; HA-DPO has three.
const MAX_TEXTS: usize = 64;

/// Whether HA-DPO leaves the row out: the model had answered it correctly.
pub(super) fn is_left_out(row: &mut Row) -> bool {
    row.take_optional("correct") == Some(Value::Bool(true))
}

pub(super) fn pairs(row: &mut Row) -> Result<Vec<Pair>, RowFault> {
    if row.has("reject") {
        return Ok(vec![seva::pair(row)?]);
    }
    let [chosen, rejected] = [texts(row, "chosen")?, texts(row, "rejected")?];
    let image = seva::image_id(row)?;
    let id = match &image {
        Some(ImageSource::Path(path)) => path.trim_end_matches(".jpg").to_owned(),
        _ => row.id(),
    };
    let image = image.ok_or_else(|| row.missing("image_id"))?;
    // An object's keys are texts, also where they are numbers.
    let image = match image {
        ImageSource::Path(path) if path.bytes().all(|byte| byte.is_ascii_digit()) => {
            ImageSource::Path(format!("{path}.jpg"))
        }
        other => other,
    };
    let mut pairs = Vec::with_capacity(chosen.len() * rejected.len());
    for chosen in &chosen {
        for rejected in &rejected {
            let question = QUESTIONS[(row.number + pairs.len()) % QUESTIONS.len()];
            pairs.push(
                Pair::new(format!("{id}-{}", pairs.len() + 1), question, chosen, rejected)
                    .with_image(image.clone()),
            );
        }
    }
    Ok(pairs)
}

fn texts(row: &mut Row, key: &'static str) -> Result<Vec<String>, RowFault> {
    let value = row.take(key)?;
    let texts: Option<Vec<String>> = value
        .as_array()
        .filter(|texts| (1..=MAX_TEXTS).contains(&texts.len()))
        .and_then(|texts| texts.iter().map(|text| text.as_str().map(str::to_owned)).collect());
    texts.ok_or_else(|| wrong(key, "a list of 1 to 64 texts", &value))
}
