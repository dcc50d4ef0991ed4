//! Names and options as text: how they are read, and written to a configuration.

use crate::error::{Error, Result};

/// A number of an option.
pub(crate) fn number(option: &'static str, text: &str) -> Result<f64> {
    text.trim().parse().map_err(|_| Error::option(option, text, "give a number"))
}

/// Names and values of `a=1, b=2`.
pub(crate) fn assignments(text: &str) -> Result<Vec<(&str, &str)>> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let pair = |part: &'_ str| -> Result<usize> {
        part.find('=').ok_or_else(|| Error::option("objective", part, "write options as name=value"))
    };
    parts
        .map(|part| {
            let at = pair(part)?;
            Ok((part[..at].trim(), part[at + 1..].trim()))
        })
        .collect()
}

/// Name and options of `name` or `name(a=1, b=2)`.
pub(crate) fn call(text: &str) -> Result<(&str, Vec<(&str, &str)>)> {
    let text = text.trim();
    match text.strip_suffix(')').and_then(|open| open.split_once('(')) {
        Some((name, options)) => Ok((name.trim(), assignments(options)?)),
        None => Ok((text, vec![])),
    }
}

/// `Display` and `FromStr` of an enum of plain names.
macro_rules! by_name {
    ($type:ty, $what:literal, $all:expr) => {
        impl core::fmt::Display for $type {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl core::str::FromStr for $type {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> $crate::error::Result<Self> {
                $all.into_iter().find(|x| x.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
                    $crate::error::Error::Unknown {
                        what: $what,
                        found: name.into(),
                        known: $all.map(|x| x.name()).join(", "),
                    }
                })
            }
        }
    };
}
pub(crate) use by_name;

/// serde by way of `Display` and `FromStr`: a configuration holds the text.
macro_rules! serde_as_text {
    ($($type:ty),+) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> core::result::Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;
