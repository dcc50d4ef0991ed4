//! TRL's columns: `prompt`, `chosen`, `rejected` as texts, or as messages; `images` or `image`.
//!
//! Without `prompt`, `chosen` and `rejected` are whole conversations or texts, and what they share is the prompt. Texts
//! are parted at white space; TRL itself parts them at the first letter that differs, also within a word.

use super::chat;
use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::Pair;
use serde_json::Value;

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    let prompt = row.take_optional("prompt");
    let [chosen, rejected] = [row.take("chosen")?, row.take("rejected")?];
    let is_conversation = |value: &Value| value.as_array().is_some_and(|messages| messages.len() > 1);
    match &prompt {
        // Beside whole conversations a prompt only repeats what they share.
        Some(Value::String(text)) if is_conversation(&chosen) && is_conversation(&rejected) => {
            conversations(&mut pair, &chosen, &rejected, images)?;
            if pair.prompt.trim() != text.trim() {
                let found = "`prompt` is not what the conversations in `chosen` and `rejected` share";
                return Err(RowFault::Turns(found.to_owned()));
            }
            return Ok(pair);
        }
        Some(Value::String(text)) => {
            pair.prompt.clone_from(text);
            pair.images = images;
        }
        Some(messages @ Value::Array(_)) => {
            chat::set_prompt(&mut pair, chat::messages("prompt", messages)?, images)?;
        }
        Some(other) => return Err(wrong("prompt", "a text or messages", other)),
        None => match (&chosen, &rejected) {
            (Value::String(chosen), Value::String(rejected)) => {
                let shared = shared_words(chosen, rejected);
                if shared == 0 {
                    return Err(row.missing("prompt"));
                }
                pair.prompt = chosen[..shared].trim_end().to_owned();
                pair.images = images;
                pair.chosen = chosen[shared..].to_owned();
                pair.rejected = rejected[shared..].to_owned();
                return Ok(pair);
            }
            _ => {
                conversations(&mut pair, &chosen, &rejected, images)?;
                return Ok(pair);
            }
        },
    }
    pair.chosen = chat::answer("chosen", &chosen)?;
    pair.rejected = chat::answer("rejected", &rejected)?;
    Ok(pair)
}

fn conversations(
    pair: &mut Pair,
    chosen: &Value,
    rejected: &Value,
    images: Vec<crate::ImageSource>,
) -> Result<(), RowFault> {
    let [chosen, rejected] = [chat::messages("chosen", chosen)?, chat::messages("rejected", rejected)?];
    chat::set_both(pair, ["chosen", "rejected"], chosen, rejected, images)
}

/// Bytes of the words and the white space that two texts begin with; 0 where they are equal.
fn shared_words(a: &str, b: &str) -> usize {
    if a == b {
        return 0;
    }
    let shared = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let shared = a.floor_char_boundary(shared);
    // Within a word: back to its start.
    a[..shared].rfind(char::is_whitespace).map_or(0, |at| {
        let space = a[at..].chars().next().map_or(0, char::len_utf8);
        at + space
    })
}
