//! Messages, in the two spellings people use: `{role, content}` and `{from, value}`.

use serde_json::Value;

use super::picture;
use super::row::short;
use super::{count_tags, kind, wrong};
use crate::error::RowFault;
use crate::pair::{IMAGE_TAG, ImageSource, Pair, Turn};

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
    /// For each `<image>` of the text the picture that it brings along, if it does.
    images: Vec<Option<ImageSource>>,
}

impl Message {
    pub(super) fn assistant(text: String) -> Self {
        Self { role: Role::Assistant, text, images: Vec::new() }
    }
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
            return Err(RowFault::Turns(format!(
                "`{key}` has a message of the unknown role {:?}",
                short(other)
            )));
        }
        None => return Err(wrong(key, expected, item)),
    };
    let mut message = Message { role, text: String::new(), images: Vec::new() };
    match field(["content", "value"]) {
        Some(Value::String(text)) => message.push(text),
        Some(Value::Array(parts)) => parts.iter().try_for_each(|part| message.part(key, part))?,
        _ => return Err(wrong(key, expected, item)),
    }
    Ok(message)
}

impl Message {
    fn push(&mut self, text: &str) {
        self.images.extend(std::iter::repeat_n(None, count_tags(text)));
        self.text += text;
    }

    /// One typed part: texts are joined, a picture leaves its tag.
    fn part(&mut self, key: &'static str, part: &Value) -> Result<(), RowFault> {
        let kind_of = part.get("type").and_then(Value::as_str).unwrap_or_default();
        match (kind_of, part.get("text").or_else(|| part.get("value"))) {
            ("text" | "input_text" | "output_text", Some(Value::String(text))) => self.push(text),
            ("image" | "image_url" | "input_image", _) => {
                self.images.push(picture::of_part(key, part)?);
                self.text += IMAGE_TAG;
            }
            (other, _) if other.contains("video") || other.contains("audio") => {
                return Err(RowFault::Media { key: key.to_owned(), what: short(other) });
            }
            _ => {
                return Err(RowFault::Type {
                    key: key.to_owned(),
                    expected: "parts of type text or image",
                    found: kind(part),
                });
            }
        }
        Ok(())
    }
}

/// Sets system, history, prompt and images from messages that end with the user's. `images` are the row's own: they go to
/// the tags whose parts bring no picture.
pub(super) fn set_prompt(
    pair: &mut Pair,
    messages: Vec<Message>,
    images: Vec<ImageSource>,
) -> Result<(), RowFault> {
    let mut messages = messages.into_iter().peekable();
    let mut places = Vec::new();
    if let Some(first) = messages.next_if(|message| message.role == Role::System) {
        pair.system = Some(first.text);
    }
    while let Some(user) = messages.next() {
        if user.role != Role::User {
            return Err(RowFault::Turns(format!("the user should speak, not {:?}", user.role)));
        }
        places.extend(user.images);
        match messages.next() {
            None => {
                pair.prompt = user.text;
                pair.images = picture::fill(places, images)?;
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
        (Some(_), more) => Err(RowFault::Turns(format!("`{key}` should be one message, found {}", more + 1))),
        (None, _) => Err(RowFault::Turns(format!("`{key}` should be one message, found none"))),
    }
}

/// Sets a pair from two whole conversations: what they share is the prompt, the last message of each the answer.
pub(super) fn set_both(
    pair: &mut Pair,
    [chosen_key, rejected_key]: [&'static str; 2],
    mut chosen: Vec<Message>,
    mut rejected: Vec<Message>,
    images: Vec<ImageSource>,
) -> Result<(), RowFault> {
    let shared = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
    // Two equal answers share everything; the last message is the answer all the same.
    let shared = shared.min(chosen.len().min(rejected.len()).saturating_sub(1));
    let last = |messages: &mut Vec<Message>, key: &str| match messages.pop() {
        Some(message) if messages.len() == shared && message.role == Role::Assistant => Ok(message.text),
        _ => Err(RowFault::Turns(format!(
            "`{key}` should be the shared prompt and one answer of the assistant"
        ))),
    };
    pair.chosen = last(&mut chosen, chosen_key)?;
    pair.rejected = last(&mut rejected, rejected_key)?;
    set_prompt(pair, chosen, images)
}
