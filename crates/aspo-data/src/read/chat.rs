//! Messages, in the two spellings people use: `{role, content}` and `{from, value}`.

use serde_json::Value;

use super::{kind, wrong};
use crate::error::RowFault;
use crate::pair::{Pair, Turn};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) text: String,
}

/// A list of messages, or a single one.
pub(super) fn messages(key: &'static str, value: &Value) -> Result<Vec<Message>, RowFault> {
    match value {
        Value::Array(items) => items.iter().map(|item| message(key, item)).collect(),
        item => Ok(vec![message(key, item)?]),
    }
}

fn message(key: &'static str, item: &Value) -> Result<Message, RowFault> {
    let expected = "a message with role and content, or from and value";
    let Value::Object(fields) = item else { return Err(wrong(key, expected, item)) };
    let field = |names: [&str; 2]| names.iter().find_map(|name| fields.get(*name));
    let role = match field(["role", "from"]).and_then(Value::as_str) {
        Some("system") => Role::System,
        Some("user" | "human") => Role::User,
        Some("assistant" | "gpt") => Role::Assistant,
        Some(other) => {
            return Err(RowFault::Turns(format!("`{key}` has a message of the unknown role {other:?}")));
        }
        None => return Err(wrong(key, expected, item)),
    };
    let text = match field(["content", "value"]) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| part_text(key, part)).collect::<Result<_, _>>()?
        }
        _ => return Err(wrong(key, expected, item)),
    };
    Ok(Message { role, text })
}

/// Typed parts: texts are joined, images leave their tag.
fn part_text(key: &'static str, part: &Value) -> Result<String, RowFault> {
    match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("image"), _) => Ok("<image>".to_owned()),
        (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
        _ => Err(RowFault::Type {
            key: key.to_owned(),
            expected: "parts of type text or image",
            found: kind(part),
        }),
    }
}

/// Sets system, history and prompt from messages that end with the user's.
pub(super) fn set_prompt(pair: &mut Pair, messages: Vec<Message>) -> Result<(), RowFault> {
    let mut messages = messages.into_iter().peekable();
    if let Some(first) = messages.next_if(|message| message.role == Role::System) {
        pair.system = Some(first.text);
    }
    while let Some(user) = messages.next() {
        if user.role != Role::User {
            return Err(RowFault::Turns(format!("the user should speak, not {:?}", user.role)));
        }
        match messages.next() {
            None => {
                pair.prompt = user.text;
                return Ok(());
            }
            Some(answer) if answer.role == Role::Assistant => {
                pair.history.push(Turn { user: user.text, assistant: answer.text });
            }
            Some(other) => {
                return Err(RowFault::Turns(format!("the assistant should speak, not {:?}", other.role)));
            }
        }
    }
    Err(RowFault::Turns("the prompt should end with the user's message".to_owned()))
}

/// The text of an answer: a string, or exactly one message of the assistant.
pub(super) fn answer(key: &'static str, value: &Value) -> Result<String, RowFault> {
    if let Value::String(text) = value {
        return Ok(text.clone());
    }
    let mut messages = messages(key, value)?;
    match (messages.pop(), messages.len()) {
        (Some(message), 0) if message.role == Role::Assistant => Ok(message.text),
        (Some(_), 0) => Err(RowFault::Turns(format!("`{key}` should be the assistant's"))),
        (_, more) => Err(RowFault::Turns(format!("`{key}` should be one message, found {}", more + 1))),
    }
}
