//! TRL's columns: `prompt`, `chosen`, `rejected` as texts, or as messages; `images` or `image`.
//!
//! Without `prompt`, `chosen` and `rejected` are whole conversations, and what they share is the prompt.

use super::chat::{self, Message, Role};
use super::{Row, wrong};
use crate::error::RowFault;
use crate::pair::Pair;
use serde_json::Value;

pub(super) fn pair(mut row: Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    pair.images = row.take_images()?;
    if matches!(row.keys.get("prompt"), None | Some(Value::Null)) && row.get("chosen")?.is_array() {
        return implicit(&row, pair);
    }
    match row.get("prompt")? {
        Value::String(text) => pair.prompt = text.clone(),
        messages @ Value::Array(_) => chat::set_prompt(&mut pair, chat::messages("prompt", messages)?)?,
        other => return Err(wrong("prompt", "a text or messages", other)),
    }
    pair.chosen = chat::answer("chosen", row.get("chosen")?)?;
    pair.rejected = chat::answer("rejected", row.get("rejected")?)?;
    Ok(pair)
}

fn implicit(row: &Row, mut pair: Pair) -> Result<Pair, RowFault> {
    let mut chosen = chat::messages("chosen", row.get("chosen")?)?;
    let mut rejected = chat::messages("rejected", row.get("rejected")?)?;
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    // Two equal answers share everything; the last message is the answer all the same.
    let shared = shared.min(chosen.len().min(rejected.len()).saturating_sub(1));
    let last = |messages: &mut Vec<Message>, key: &str| match messages.pop() {
        Some(message) if messages.len() == shared && message.role == Role::Assistant => Ok(message.text),
        _ => Err(RowFault::Turns(format!(
            "`{key}` should be the shared prompt and one answer of the assistant"
        ))),
    };
    pair.chosen = last(&mut chosen, "chosen")?;
    pair.rejected = last(&mut rejected, "rejected")?;
    chat::set_prompt(&mut pair, chosen)?;
    Ok(pair)
}
