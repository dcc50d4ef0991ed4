//! ms-swift: `messages` that end with the chosen answer, and `rejected_response`, a text, or `rejected_messages`, the whole
//! other conversation. Its older files have `query`, `response`, `history` instead of `messages`.

use serde_json::Value;

use super::chat::{self, Message};
use super::{Row, llama_factory};
use crate::error::RowFault;
use crate::pair::Pair;

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    if !row.has("messages") && row.has("query") {
        pair.images = images;
        pair.history = llama_factory::history(row)?;
        pair.prompt = row.take_text("query")?;
        pair.chosen = row.take_text("response")?;
        pair.rejected = row.take_text("rejected_response")?;
        return Ok(pair);
    }
    let chosen = chat::messages("messages", &row.take("messages")?)?;
    let (key, rejected) = if row.has("rejected_messages") {
        ("rejected_messages", chat::messages("rejected_messages", &row.take("rejected_messages")?)?)
    } else {
        let key = "rejected_response";
        let last = match row.take(key)? {
            Value::String(text) => vec![Message::assistant(text)],
            other => chat::messages(key, &other)?,
        };
        (key, chosen[..chosen.len().saturating_sub(1)].iter().cloned().chain(last).collect())
    };
    chat::set_both(&mut pair, ["messages", key], chosen, rejected, images)?;
    Ok(pair)
}
