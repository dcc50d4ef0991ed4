//! The JSON formats.

use std::borrow::Borrow;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use super::{no_other_images, single_question, unsupported};
use crate::error::{Error, Result};
use crate::files::{AtomicFile, write_atomic};
use crate::pair::{IMAGE_TAG, ImageSource, Pair, Turn};
use crate::read::Conversation;

/// SeVa's list: `{"chosen", "reject", "question", "image_id"}`, one pair a line inside the brackets. Ids are not stored.
///
/// # Errors
/// [`Error::File`] for a pair with a system message, earlier turns, several images, or image bytes.
pub fn write_seva<P: Borrow<Pair>>(path: &Path, pairs: impl IntoIterator<Item = P>) -> Result<()> {
    write_list(path, pairs, |pair: &Pair| seva_row(path, pair))
}

/// A pair as SeVa's object.
pub(crate) fn seva_row(path: &Path, pair: &Pair) -> Result<Value> {
    single_question(path, pair)?;
    let mut row = json!({"chosen": pair.chosen, "reject": pair.rejected, "question": pair.prompt});
    match image_paths(path, pair)?.as_slice() {
        [] => {}
        [image] => row["image_id"] = json!(image),
        _ => return Err(unsupported(path, &pair.id, "several images")),
    }
    Ok(row)
}

/// TRL's columns, one object a line: texts for a single question, messages for a conversation; `images` as paths.
///
/// # Errors
/// [`Error::File`] for a pair with image bytes: write parquet.
pub fn write_trl_jsonl<P: Borrow<Pair>>(path: &Path, pairs: impl IntoIterator<Item = P>) -> Result<()> {
    write_atomic(path, |out| {
        for pair in pairs {
            let pair = pair.borrow();
            let mut row = if pair.system.is_none() && pair.history.is_empty() {
                json!({"id": pair.id, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
            } else {
                let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
                json!({
                    "id": pair.id,
                    "prompt": messages(pair.system.as_deref(), &pair.history, &pair.prompt, ["role", "content"], ["system", "user", "assistant"]),
                    "chosen": answer(&pair.chosen),
                    "rejected": answer(&pair.rejected),
                })
            };
            for (key, images) in [("images", &pair.images), ("rejected_images", &pair.rejected_images)] {
                if !images.is_empty() {
                    row[key] = json!(paths(path, pair, images)?);
                }
            }
            write_json(path, out, &row)?;
            out.write_all(b"\n").map_err(|source| Error::io(path, source))?;
        }
        Ok(())
    })
}

/// LLaMA-Factory's sharegpt ranking list; images without a tag get one in front of the first question.
///
/// # Errors
/// [`Error::File`] for a pair with image bytes.
pub fn write_llama_factory<P: Borrow<Pair>>(path: &Path, pairs: impl IntoIterator<Item = P>) -> Result<()> {
    write_list(path, pairs, |pair: &Pair| {
        no_other_images(path, pair)?;
        let (history, prompt) = with_tags(pair);
        let gpt = |text: &str| json!({"from": "gpt", "value": text});
        let mut row = json!({
            "id": pair.id,
            "conversations": messages(None, &history, &prompt, ["from", "value"], ["system", "human", "gpt"]),
            "chosen": gpt(&pair.chosen),
            "rejected": gpt(&pair.rejected),
        });
        if let Some(system) = &pair.system {
            row["system"] = json!(system);
        }
        let images = image_paths(path, pair)?;
        if !images.is_empty() {
            row["images"] = json!(images);
        }
        Ok(row)
    })
}

/// LLaVA's instruction list.
///
/// # Errors
/// [`Error::File`] for a conversation without turns, with several images or with image bytes.
pub fn write_conversations<C: Borrow<Conversation>>(
    path: &Path,
    conversations: impl IntoIterator<Item = C>,
) -> Result<()> {
    write_list(path, conversations, |conversation: &Conversation| {
        let last = conversation.turns.len().wrapping_sub(1);
        let Some(mut pair) = conversation.question(last) else {
            return Err(unsupported(path, &conversation.id, "no turns"));
        };
        pair.chosen = conversation.turns[last].assistant.clone();
        let (history, prompt) = with_tags(&pair);
        let mut list = messages(
            pair.system.as_deref(),
            &history,
            &prompt,
            ["from", "value"],
            ["system", "human", "gpt"],
        );
        list.push(json!({"from": "gpt", "value": pair.chosen}));
        let mut row = json!({"id": conversation.id, "conversations": list});
        match image_paths(path, &pair)?.as_slice() {
            [] => {}
            [image] => row["image"] = json!(image),
            _ => return Err(unsupported(path, &conversation.id, "several images")),
        }
        Ok(row)
    })
}

fn write_list<T, B: Borrow<T>>(
    path: &Path,
    items: impl IntoIterator<Item = B>,
    row: impl Fn(&T) -> Result<Value>,
) -> Result<()> {
    let mut out = AtomicFile::create(path)?;
    let fail = |source| Error::io(path, source);
    out.write_all(b"[").map_err(fail)?;
    for (index, item) in items.into_iter().enumerate() {
        out.write_all(if index == 0 { b"\n" } else { b",\n" }).map_err(fail)?;
        write_json(path, &mut out, &row(item.borrow())?)?;
    }
    out.write_all(b"\n]\n").map_err(fail)?;
    out.commit()
}

fn write_json(path: &Path, out: &mut dyn Write, row: &Value) -> Result<()> {
    serde_json::to_writer(out, row).map_err(|error| Error::io(path, error.into()))
}

/// The messages up to the last question. `fields` are the names of speaker and text, `roles` those of the speakers.
fn messages(
    system: Option<&str>,
    history: &[Turn],
    prompt: &str,
    fields: [&str; 2],
    roles: [&str; 3],
) -> Vec<Value> {
    let message = |role: usize, text: &str| json!({fields[0]: roles[role], fields[1]: text});
    let mut list: Vec<Value> = system.into_iter().map(|text| message(0, text)).collect();
    for turn in history {
        list.extend([message(1, &turn.user), message(2, &turn.assistant)]);
    }
    list.push(message(1, prompt));
    list
}

/// History and prompt with the images' tags: in their places, else in front of the first question.
fn with_tags(pair: &Pair) -> (Vec<Turn>, String) {
    let (mut history, mut prompt) = (pair.history.clone(), pair.prompt.clone());
    if pair.tags() == 0 {
        let first = history.first_mut().map_or(&mut prompt, |turn| &mut turn.user);
        first.insert_str(0, &format!("{IMAGE_TAG}\n").repeat(pair.images.len()));
    }
    (history, prompt)
}

fn image_paths<'a>(path: &Path, pair: &'a Pair) -> Result<Vec<&'a str>> {
    paths(path, pair, &pair.images)
}

fn paths<'a>(path: &Path, pair: &Pair, images: &'a [ImageSource]) -> Result<Vec<&'a str>> {
    images
        .iter()
        .map(|image| match image {
            ImageSource::Path(image) => Ok(image.as_str()),
            ImageSource::Bytes(_) | ImageSource::Place(_) => Err(unsupported(path, &pair.id, "image bytes")),
        })
        .collect()
}
