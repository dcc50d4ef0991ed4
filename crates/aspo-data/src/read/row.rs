//! A row of any container, from which the formats take what they read; what is left over was read by none.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Format, picture};
use crate::error::RowFault;
use crate::pair::{ImageSource, Pair};

/// JSON values by key, and the images that a parquet table carries beside them.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) number: usize,
    pub(crate) keys: Map<String, Value>,
    images: BTreeMap<String, Vec<ImageSource>>,
    /// What the row had before anything was taken.
    names: Vec<String>,
    format: Option<Format>,
}

impl Row {
    pub(crate) fn new(
        number: usize,
        keys: Map<String, Value>,
        images: BTreeMap<String, Vec<ImageSource>>,
    ) -> Self {
        let names = keys.keys().cloned().collect();
        let format = Format::of(&keys);
        Self { number, keys, images, names, format }
    }

    /// Adds the keys of an object that a text of the row held.
    pub(super) fn add(&mut self, inner: Map<String, Value>) {
        self.names.extend(inner.keys().cloned());
        self.keys.extend(inner);
    }

    /// Whether the key is there and not null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.get(key).is_some_and(|value| !value.is_null())
    }

    pub(super) fn missing(&self, key: &'static str) -> RowFault {
        match self.names.iter().any(|name| name == key) {
            true => RowFault::Null { key },
            false => {
                let remedy = "add it, or drop the row".to_owned();
                RowFault::Missing { key, found: key_list(&self.names), remedy }
            }
        }
    }

    /// Tells of a missing key that the row is of another format, if it is.
    pub(super) fn of_another_format(&self, fault: RowFault, format: Format) -> RowFault {
        match (fault, self.format) {
            (RowFault::Missing { key, found, .. }, Some(other)) if other != format => {
                let remedy = format!(
                    "these are the keys of {other}, the file is read as {format}: one format a file, or name it"
                );
                RowFault::Missing { key, found, remedy }
            }
            (fault, _) => fault,
        }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Result<Value, RowFault> {
        self.take_optional(key).ok_or_else(|| self.missing(key))
    }

    /// The value, unless it is null.
    pub(super) fn take_optional(&mut self, key: &str) -> Option<Value> {
        self.keys.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn take_text(&mut self, key: &'static str) -> Result<String, RowFault> {
        self.take_optional_text(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn take_optional_text(&mut self, key: &'static str) -> Result<Option<String>, RowFault> {
        match self.take_optional(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, "a text", &other)),
        }
    }

    /// `id`, `question_id` or `idx`, else the row number.
    pub(super) fn id(&mut self) -> String {
        let mut id = None;
        for key in ["id", "question_id", "idx"] {
            let found = match self.keys.get(key) {
                Some(Value::String(text)) => Some(text.clone()).filter(|text| !text.is_empty()),
                Some(Value::Number(number)) => Some(number.to_string()),
                _ => None,
            };
            if found.is_some() {
                self.keys.remove(key);
                id = id.or(found);
            }
        }
        id.unwrap_or_else(|| self.number.to_string())
    }

    /// `images`, `image` or `image_path`: the first that holds any. The first two must agree where both do; a path
    /// beside bytes only says where these are from.
    pub(super) fn take_images(&mut self) -> Result<Vec<ImageSource>, RowFault> {
        let mut column = |key: &'static str| {
            let carried = self.images.remove(key).unwrap_or_default();
            match self.take_optional(key) {
                Some(value) if carried.is_empty() => picture::of_column(key, &value),
                _ => Ok(carried),
            }
        };
        let (images, image, path) = (column("images")?, column("image")?, column("image_path")?);
        match (images.is_empty(), image.is_empty()) {
            (false, false) if images != image => {
                Err(RowFault::Images("`images` and `image` name different pictures: keep one"))
            }
            (false, _) => Ok(images),
            (true, false) => Ok(image),
            (true, true) => Ok(path),
        }
    }

    /// The column `system`, as the system message.
    pub(super) fn set_system(&mut self, pair: &mut Pair) -> Result<(), RowFault> {
        let column = match self.keys.get("system") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => return Err(wrong("system", "a text", other)),
        };
        if let (Some(column), Some(message)) = (&column, &pair.system)
            && column != message
        {
            let what = "the column `system` and the system message differ: keep one";
            return Err(RowFault::Turns(what.to_owned()));
        }
        pair.system = column.or(pair.system.take());
        Ok(())
    }

    /// Refuses video and audio.
    pub(super) fn refuse_other_media(&self) -> Result<(), RowFault> {
        let keys = ["videos", "video", "audios", "audio", "rejected_videos", "rejected_audios"];
        match keys.into_iter().find(|key| self.keys.get(*key).is_some_and(has_content)) {
            Some(key) => Err(RowFault::Media { key: key.to_owned(), what: kind(&self.keys[key]) }),
            None => Ok(()),
        }
    }

    /// Other pictures for the rejected answer, as many as the pair has.
    pub(super) fn set_rejected_images(&mut self, pair: &mut Pair) -> Result<(), RowFault> {
        let key = "rejected_images";
        let Some(value) = self.keys.get(key).filter(|value| has_content(value)) else { return Ok(()) };
        let images = picture::of_column(key, value)?;
        if images.len() != pair.images.len() {
            return Err(RowFault::Images("`rejected_images` are not as many as `images`: give one for each"));
        }
        if images != pair.images {
            pair.rejected_images = images;
        }
        Ok(())
    }

    /// The keys that hold something and that nobody took.
    pub(super) fn unread(&self) -> impl Iterator<Item = &str> {
        let known = |name: &str| matches!(name, "system" | "rejected_images");
        let left = self.keys.iter().filter(|(_, value)| has_content(value)).map(|(name, _)| name.as_str());
        left.filter(move |name| !known(name))
    }
}

fn has_content(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => items.iter().any(has_content),
        Value::Object(keys) => keys.values().any(has_content),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

/// The names, as far as a message has room.
pub(super) fn key_list<'a>(keys: impl IntoIterator<Item = &'a String>) -> String {
    let mut names: Vec<String> = keys.into_iter().map(|name| short(name)).collect();
    names.sort_unstable();
    let rest = names.split_off(names.len().min(50));
    match rest.len() {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// The beginning of a text of whatever length, for a message.
pub(super) fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(text) => format!("the text {:?}", short(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(keys) => format!("an object with {}", key_list(keys.keys())),
    }
}

pub(super) fn wrong(key: &str, expected: &'static str, found: &Value) -> RowFault {
    RowFault::Type { key: key.to_owned(), expected, found: kind(found) }
}
