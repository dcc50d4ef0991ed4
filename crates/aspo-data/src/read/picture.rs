//! The ways in which a row gives its pictures: a path, the URL of a file, a data URI, base64, bytes.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::wrong;
use crate::error::RowFault;
use crate::image::MAX_FILE_BYTES;
use crate::pair::ImageSource;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How base64 of a JPEG, PNG, GIF, WebP or TIFF begins: texts with such a start and of some length are no paths.
const BASE64_STARTS: [&str; 6] = ["/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK"];

/// The pictures of a column: one, or a list of them.
pub(super) fn of_column(key: &str, value: &Value) -> Result<Vec<ImageSource>, RowFault> {
    match value {
        Value::Array(items) => items.iter().filter_map(|item| of_value(key, item).transpose()).collect(),
        item => Ok(of_value(key, item)?.into_iter().collect()),
    }
}

/// The picture that a typed part brings along; `None` where it stands for one of the row's own.
pub(super) fn of_part(key: &str, part: &Value) -> Result<Option<ImageSource>, RowFault> {
    match FIELDS.iter().find_map(|name| part.get(*name).filter(|value| !value.is_null())) {
        Some(_) => of_value(key, part),
        None => Ok(None),
    }
}

/// The fields in which objects have a picture; its bytes come before its path.
const FIELDS: [&str; 10] =
    ["bytes", "base64", "data", "path", "image", "image_url", "url", "source", "image_path", "value"];

/// One picture: a text, or an object around it. `None` for null.
fn of_value(key: &str, value: &Value) -> Result<Option<ImageSource>, RowFault> {
    let expected = "a path, a data URI, base64, or an object with `path` or `bytes`";
    match value {
        Value::Null => Ok(None),
        Value::String(text) => of_text(key, text).map(Some),
        Value::Object(fields) => {
            let found =
                FIELDS.iter().find_map(|name| Some((*name, fields.get(*name).filter(|v| !v.is_null())?)));
            match found {
                Some(("bytes" | "base64" | "data", value)) => of_bytes(key, value).map(Some),
                Some((_, value @ (Value::String(_) | Value::Object(_)))) => of_value(key, value),
                _ => Err(wrong(key, expected, value)),
            }
        }
        _ => Err(wrong(key, expected, value)),
    }
}

fn of_text(key: &str, text: &str) -> Result<ImageSource, RowFault> {
    if let Some(uri) = text.strip_prefix("data:") {
        return match uri.split_once(',') {
            Some((kind, data)) if kind.ends_with(";base64") => decode(key, data),
            _ => Err(wrong(key, "a data URI in base64", &Value::String(text.to_owned()))),
        };
    }
    if let Some(path) = text.strip_prefix("file://") {
        return Ok(ImageSource::Path(percent_decoded(path)));
    }
    if text.len() > 100 && BASE64_STARTS.iter().any(|start| text.starts_with(start)) {
        return decode(key, text);
    }
    Ok(ImageSource::Path(text.to_owned()))
}

/// Bytes as base64, or as a list of numbers.
fn of_bytes(key: &str, value: &Value) -> Result<ImageSource, RowFault> {
    let expected = "base64, or a list of bytes";
    match value {
        Value::String(text) if text.starts_with("data:") => of_text(key, text),
        Value::String(text) => decode(key, text),
        Value::Array(numbers) => {
            let bytes: Option<Vec<u8>> =
                numbers.iter().map(|number| u8::try_from(number.as_u64()?).ok()).collect();
            bytes.map(ImageSource::from).ok_or_else(|| wrong(key, expected, value))
        }
        _ => Err(wrong(key, expected, value)),
    }
}

fn decode(key: &str, text: &str) -> Result<ImageSource, RowFault> {
    // base64 of mails and of some tools is cut into lines.
    let text: String = text.split_ascii_whitespace().collect();
    if text.len() as u64 > MAX_FILE_BYTES / 3 * 4 {
        return Err(RowFault::TooLong { limit: MAX_FILE_BYTES as usize });
    }
    match BASE64.decode(&text) {
        Ok(bytes) if !bytes.is_empty() => Ok(ImageSource::from(bytes)),
        _ => Err(wrong(key, "base64", &Value::String(text))),
    }
}

/// The path of a `file://` URL.
fn percent_decoded(path: &str) -> String {
    let path = path.strip_prefix("localhost/").map_or(path.to_owned(), |path| format!("/{path}"));
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[2..]).1,
            None => (bytes.push(*first), rest = tail).1,
        }
    }
    String::from_utf8(bytes).unwrap_or(path)
}

/// The pictures of a prompt: those that its parts bring along stay in their places, the row's own go to the others.
pub(super) fn fill(
    places: Vec<Option<ImageSource>>,
    images: Vec<ImageSource>,
) -> Result<Vec<ImageSource>, RowFault> {
    let brought: Vec<ImageSource> = places.iter().flatten().cloned().collect();
    if brought.is_empty() {
        return Ok(images);
    }
    let open = places.len() - brought.len();
    if open == 0 && (images.is_empty() || images == brought) {
        return Ok(brought);
    }
    if open != images.len() {
        return Err(RowFault::ImageCount { tags: places.len(), images: brought.len() + images.len() });
    }
    let mut images = images.into_iter();
    Ok(places.into_iter().filter_map(|place| place.or_else(|| images.next())).collect())
}
