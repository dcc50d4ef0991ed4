//! OpenAI's preference data: `input {messages}`, `preferred_output`, `non_preferred_output`, each one message in a list.

use super::{Row, chat, wrong};
use crate::error::RowFault;
use crate::pair::Pair;

pub(super) fn pair(row: &mut Row) -> Result<Pair, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    let input = row.take("input")?;
    let messages =
        input.get("messages").ok_or_else(|| wrong("input", "an object with `messages`", &input))?;
    chat::set_prompt(&mut pair, chat::messages("input", messages)?, images)?;
    pair.chosen = chat::answer("preferred_output", &row.take("preferred_output")?)?;
    pair.rejected = chat::answer("non_preferred_output", &row.take("non_preferred_output")?)?;
    Ok(pair)
}
