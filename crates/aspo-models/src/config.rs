//! Reading and writing `config.json`, and the checks that all configs share.

use std::path::Path;

use atomic_write_file::AtomicWriteFile;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The largest config we read; real ones have a few kilobytes.
const MAX_JSON: u64 = 64 << 20;

/// More layers than any model of these families has; a lying config shall not fill the memory.
const MAX_LAYERS: usize = 1024;

/// A config that is read from a Hugging Face folder.
pub trait ModelConfig: Serialize + DeserializeOwned {
    /// `model_type` of such a config.
    const MODEL_TYPE: &'static str;
    /// Where several kinds are one model: all their `model_type`s.
    const MODEL_TYPES: &'static [&'static str] = &[Self::MODEL_TYPE];
    /// Names in `architectures` that mean this model; the first is what a message tells. None by default: a config then says
    /// what it is by `model_type`.
    const ARCHITECTURES: &'static [&'static str] = &[];

    /// Bring older spellings into the newest one.
    fn normalize(json: &mut Map<String, Value>) {
        let _ = json;
    }

    /// Refuse what cannot be honoured; nothing by default.
    ///
    /// # Errors
    /// The first field that does not fit, by name.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Take the ids that end an answer from `generation_config.json`, for models whose `config.json` knows only where a text
    /// ends; nothing by default.
    fn set_end_tokens(&mut self, ids: OneOrMany) {
        let _ = ids;
    }

    /// Read `config.json` of a folder (or the file itself), of any age, and what `generation_config.json` beside it says of
    /// the ends of an answer.
    ///
    /// # Errors
    /// A missing or unreadable file, another architecture (by name), or a field that cannot be honoured.
    fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let mut config = Self::from_json(read_json(&file, "a model config")?).map_err(|e| match e {
            Error::Json { source, what, .. } => Error::Json { path: file.clone(), what, source },
            other => other,
        })?;
        let generation = file.with_file_name("generation_config.json");
        if generation.is_file()
            && let GenerationFile { eos_token_id: Some(ids) } = read_json(&generation, "a generation config")?
        {
            config.set_end_tokens(ids);
        }
        Ok(config)
    }

    /// From JSON that is already read.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    fn from_json(json: Value) -> Result<Self> {
        let unreadable = |source| Error::Json { path: "config.json".into(), what: "a model config", source };
        let Value::Object(mut json) = json else {
            return Err(unreadable(serde::de::Error::custom("expected an object")));
        };
        check_architecture(&json, Self::MODEL_TYPES, Self::ARCHITECTURES)?;
        drop_nulls(&mut json);
        Self::normalize(&mut json);
        let config: Self = serde_json::from_value(Value::Object(json)).map_err(unreadable)?;
        config.check()?;
        Ok(config)
    }

    /// Write `config.json` into a folder.
    ///
    /// # Errors
    /// The file cannot be written.
    fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        write_json(&folder.as_ref().join("config.json"), self)
    }
}

/// Which model a folder holds, by `model_type` of its `config.json`.
///
/// # Errors
/// A missing or unreadable file, or one without `model_type`.
pub fn model_type(path: impl AsRef<Path>) -> Result<String> {
    let file = path.as_ref().join("config.json");
    let json: Value = read_json(&file, "a model config")?;
    match json.get("model_type").and_then(Value::as_str) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Error::config("model_type", format!("missing in {}", file.display()))),
    }
}

/// An explicit null means the default, in nested configs too.
fn drop_nulls(json: &mut Map<String, Value>) {
    json.retain(|_, value| !value.is_null());
    for value in json.values_mut() {
        if let Value::Object(nested) = value {
            drop_nulls(nested);
        }
    }
}

fn check_architecture(
    json: &Map<String, Value>,
    model_types: &[&'static str],
    known: &'static [&'static str],
) -> Result<()> {
    let expected = known.first().or(model_types.first()).copied().unwrap_or_default();
    let refuse = |found: &str| Err(Error::Architecture { found: found.to_owned(), expected });
    if let Some(names) = json.get("architectures").and_then(Value::as_array) {
        for name in names.iter().filter_map(Value::as_str) {
            if !known.contains(&name) {
                return refuse(name);
            }
        }
    }
    match json.get("model_type").and_then(Value::as_str) {
        Some(found) if !model_types.contains(&found) => refuse(found),
        Some(_) => Ok(()),
        None if json.contains_key("architectures") => Ok(()),
        None => refuse("(neither `model_type` nor `architectures` given)"),
    }
}

pub(crate) fn expect_type(found: &str, known: &[&str], expected: &'static str) -> Result<()> {
    if known.contains(&found) {
        return Ok(());
    }
    Err(Error::Architecture { found: found.to_owned(), expected })
}

pub(crate) fn check_sizes(at: &str, sizes: &[(&str, usize)]) -> Result<()> {
    for &(name, size) in sizes {
        // Products of three sizes must stay far from overflow.
        if !(1..=1 << 20).contains(&size) {
            let field = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
            return Err(Error::config(field, format!("{size} is not within 1 and 1048576")));
        }
    }
    Ok(())
}

pub(crate) fn check_layers(at: &str, layers: usize) -> Result<()> {
    if layers > MAX_LAYERS {
        let field = format!("{at}.num_hidden_layers");
        return Err(Error::config(field, format!("{layers} layers; at most {MAX_LAYERS} are accepted")));
    }
    Ok(())
}

pub(crate) fn check_heads(at: &str, hidden: usize, heads: usize) -> Result<()> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        let field = format!("{at}.num_attention_heads");
        return Err(Error::config(field, format!("{heads} heads do not divide hidden_size {hidden}")));
    }
    Ok(())
}

/// Ids are 32-bit integers with a sign on some backends.
pub(crate) fn check_id(field: &str, id: u32) -> Result<()> {
    if id > i32::MAX as u32 {
        return Err(Error::config(field, format!("{id} is no token id; ids are below 2147483648")));
    }
    Ok(())
}

/// A field that is kept but not read, and the values it may have.
pub(crate) type Only<'a> = (&'a str, &'a dyn Fn(&Value) -> bool);

/// Refuse fields whose value asks for what is not implemented.
pub(crate) fn refuse_others(at: &str, extra: &Map<String, Value>, fields: &[Only]) -> Result<()> {
    for (name, may) in fields {
        if let Some(value) = extra.get(*name).filter(|value| !value.is_null() && !may(value)) {
            let field = if at.is_empty() { (*name).to_owned() } else { format!("{at}.{name}") };
            return Err(Error::config(field, format!("{value} is not implemented; leave it out")));
        }
    }
    Ok(())
}

/// The `architectures` entry of a config made here rather than read.
pub(crate) fn architectures(name: &str) -> Map<String, Value> {
    Map::from_iter([("architectures".to_owned(), Value::from(vec![name]))])
}

/// What is read of `generation_config.json`.
#[derive(serde::Deserialize)]
struct GenerationFile {
    eos_token_id: Option<OneOrMany>,
}

/// An unsigned number or a list of them, as `eos_token_id` comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One id.
    One(u32),
    /// Any of these ids.
    Many(Vec<u32>),
}

impl OneOrMany {
    /// As a list.
    pub fn to_vec(&self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![*id],
            Self::Many(ids) => ids.clone(),
        }
    }
}

/// An id, where -1 is how older configs write that there is none.
pub(crate) fn id_or_none<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    use serde::Deserialize;
    match Option::<i64>::deserialize(deserializer)? {
        None | Some(-1) => Ok(None),
        Some(id) => {
            u32::try_from(id).map(Some).map_err(|_| serde::de::Error::custom(format!("{id} is no token id")))
        }
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, what: &'static str) -> Result<T> {
    let size = std::fs::metadata(path).map_err(Error::io(path))?.len();
    if size > MAX_JSON {
        let reason = format!("{size} bytes of JSON where {what} is expected");
        return Err(Error::Checkpoint { path: path.to_owned(), reason });
    }
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), what, source })
}

pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| Error::Json {
        path: path.to_owned(),
        what: "JSON to write",
        source,
    })?;
    bytes.push(b'\n');
    write_file(path, &bytes)
}

/// Write to a temporary file in the same folder, sync, rename: never half a file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut file = AtomicWriteFile::open(path).map_err(Error::io(path))?;
    file.write_all(bytes).and_then(|()| file.commit()).map_err(Error::io(path))
}
