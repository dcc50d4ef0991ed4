//! LLaMA-Factory's ranking data: sharegpt (`conversations`, `chosen {from, value}`, `rejected`) and alpaca
//! (`instruction`, `input`, `chosen`, `rejected`, `history`, `system`).

use serde_json::Value;

use super::{Row, chat, wrong};
use crate::error::RowFault;
use crate::pair::{Pair, Turn};

pub(super) fn pair(mut row: Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    pair.images = row.take_images()?;
    let system = row.optional_text("system")?.filter(|system| !system.is_empty());
    if row.keys.contains_key("conversations") {
        chat::set_prompt(&mut pair, chat::messages("conversations", row.get("conversations")?)?)?;
    } else {
        alpaca_prompt(&row, &mut pair)?;
    }
    pair.system = system.or(pair.system);
    pair.chosen = chat::answer("chosen", row.get("chosen")?)?;
    pair.rejected = chat::answer("rejected", row.get("rejected")?)?;
    Ok(pair)
}

fn alpaca_prompt(row: &Row, pair: &mut Pair) -> Result<(), RowFault> {
    let instruction = row.text("instruction")?;
    pair.prompt = match row.optional_text("input")?.filter(|input| !input.is_empty()) {
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    let history = match row.keys.get("history") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(wrong("history", "a list of [question, answer]", other)),
    };
    for turn in history {
        match turn.as_array().map(Vec::as_slice) {
            Some([Value::String(user), Value::String(assistant)]) => {
                pair.history.push(Turn { user: user.clone(), assistant: assistant.clone() });
            }
            _ => return Err(wrong("history", "a list of [question, answer]", turn)),
        }
    }
    Ok(())
}
