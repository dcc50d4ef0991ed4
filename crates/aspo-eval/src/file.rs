//! Reading published files record by record, and writing files whole.

use std::collections::HashSet;
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{Error, Result};

/// One record of a file and its place there, counted from 1.
#[derive(Debug, Clone)]
pub(crate) struct Record<T> {
    pub row: usize,
    pub value: T,
}

/// The whole text of a file, without a byte-order mark.
pub(crate) fn text(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The top-level JSON values of a file: JSON lines, one document, or documents one after another.
pub(crate) fn values(path: &Path) -> Result<Vec<Record<Value>>> {
    let text = text(path)?;
    let mut values = Vec::new();
    for (at, value) in serde_json::Deserializer::from_str(&text).into_iter::<Value>().enumerate() {
        let row = at + 1;
        values.push(Record { row, value: value.map_err(|e| json_error(path, row, &e))? });
    }
    if values.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    Ok(values)
}

/// A file's records: its JSON lines, or the elements of the one array in it.
pub(crate) fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<Record<T>>> {
    let mut values = values(path)?;
    if let [Record { value: Value::Array(_), .. }] = values.as_slice()
        && let Some(Record { value: Value::Array(rows), .. }) = values.pop()
    {
        values = rows.into_iter().enumerate().map(|(at, value)| Record { row: at + 1, value }).collect();
        if values.is_empty() {
            return Err(Error::Empty { path: path.into() });
        }
    }
    values.into_iter().map(|r| Ok(Record { row: r.row, value: typed(path, r.row, r.value)? })).collect()
}

/// A file that is one JSON document.
pub(crate) fn document<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = text(path)?;
    if text.trim().is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    serde_json::from_str(&text).map_err(|e| json_error(path, 1, &e))
}

/// A record as its type; what it lacks is named.
pub(crate) fn typed<T: DeserializeOwned>(path: &Path, row: usize, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|e| json_error(path, row, &e))
}

fn json_error(path: &Path, row: usize, error: &serde_json::Error) -> Error {
    let path = path.to_path_buf();
    let message = error.to_string().replace('\n', " ");
    if error.is_eof() {
        return Error::Truncated { path, row };
    }
    match message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        Some(column) => Error::MissingColumn { path, row, column: column.to_owned() },
        None => Error::Malformed { path, row, message: message.chars().take(200).collect() },
    }
}

/// A JSON object as its entries, in the file's order; a key that is there twice is there twice.
#[derive(Debug, Clone)]
pub(crate) struct Entries<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Visit<V> {
            type Value = Entries<V>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object with one entry for each id")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Visit(PhantomData))
    }
}

/// A file that is one JSON object from ids to records; no id is there twice.
pub(crate) fn entries<V: DeserializeOwned>(path: &Path) -> Result<Vec<(String, V)>> {
    let Entries(entries) = document::<Entries<V>>(path)?;
    unique(path, &entries)?;
    Ok(entries)
}

/// No id is there twice, and there is one.
pub(crate) fn unique<V>(path: &Path, entries: &[(String, V)]) -> Result<()> {
    if entries.is_empty() {
        return Err(Error::Empty { path: path.into() });
    }
    let mut seen = HashSet::new();
    match entries.iter().position(|(id, _)| !seen.insert(id.as_str())) {
        Some(at) => Err(Error::DuplicateId { path: path.into(), row: at + 1, id: entries[at].0.clone() }),
        None => Ok(()),
    }
}

/// The first of the published `names` that is there, below the folder `root`.
pub(crate) fn find(root: &Path, names: &[&str]) -> Option<PathBuf> {
    names.iter().map(|name| root.join(name)).find(|path| path.is_file())
}

/// The same, or the named error.
pub(crate) fn find_or(benchmark: &'static str, root: &Path, names: &[&str]) -> Result<PathBuf> {
    find(root, names).ok_or_else(|| Error::NotFound {
        benchmark,
        path: root.into(),
        looked_for: names.join(", "),
    })
}

/// The folder of the data, where `data` may be a file in it. Neither there: an error.
pub(crate) fn folder(benchmark: &'static str, data: &Path) -> Result<PathBuf> {
    if data.is_dir() {
        Ok(data.into())
    } else if data.is_file() {
        Ok(match data.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
            _ => PathBuf::from("."),
        })
    } else {
        Err(Error::NotFound {
            benchmark,
            path: data.into(),
            looked_for: "a folder or file of that name".into(),
        })
    }
}

/// Writes a file whole: to a temporary name in the same folder, synced, renamed.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |source| Error::Io { path: path.into(), source };
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(io)?;
    let mut file = AtomicWriteFile::open(path).map_err(io)?;
    file.write_all(bytes).and_then(|()| file.commit()).map_err(io)
}
