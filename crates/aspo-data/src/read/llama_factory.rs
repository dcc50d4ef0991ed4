//! LLaMA-Factory's ranking data: sharegpt (`conversations` or, with OpenAI's tags, `messages`; `chosen`, `rejected` as one
//! message each) and alpaca (`instruction`, `input`, `chosen`, `rejected`, `history`). Its version 1 has both
//! whole conversations, `chosen_messages` and `rejected_messages`. `system` is read in every format.

use serde_json::Value;

use super::{Row, chat, wrong};
use crate::error::RowFault;
use crate::pair::{Pair, Turn};

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    if row.has("chosen_messages") {
        let keys = ["chosen_messages", "rejected_messages"];
        let [chosen, rejected] = keys.map(|key| chat::messages(key, &row.take(key)?));
        chat::set_both(&mut pair, keys, chosen?, rejected?, images)?;
        return Ok(pair);
    }
    match ["conversations", "messages"].into_iter().find(|key| row.has(key)) {
        Some(key) => {
            let messages = chat::messages(key, &row.take(key)?)?;
            chat::set_prompt(&mut pair, messages, images)?;
        }
        None => {
            pair.images = images;
            alpaca_prompt(row, &mut pair)?;
        }
    }
    pair.chosen = chat::answer("chosen", &row.take("chosen")?)?;
    pair.rejected = chat::answer("rejected", &row.take("rejected")?)?;
    Ok(pair)
}

fn alpaca_prompt(row: &mut Row, pair: &mut Pair) -> Result<(), RowFault> {
    let instruction = row.take_text("instruction")?;
    pair.prompt = match row.take_optional_text("input")?.filter(|input| !input.is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    pair.history = history(row)?;
    Ok(())
}

/// `history`: a list of `[question, answer]`.
pub(super) fn history(row: &mut Row) -> Result<Vec<Turn>, RowFault> {
    let expected = "a list of [question, answer]";
    let turns = match row.take_optional("history") {
        None => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(wrong("history", expected, &other)),
    };
    turns
        .iter()
        .map(|turn| match turn.as_array().map(Vec::as_slice) {
            Some([Value::String(user), Value::String(assistant)]) => {
                Ok(Turn { user: user.clone(), assistant: assistant.clone() })
            }
            _ => Err(wrong("history", expected, turn)),
        })
        .collect()
}
