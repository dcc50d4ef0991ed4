//! Metrics over the steps between two lines, and the file they go to.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::callback::Callback;
use crate::error::{Error, Result};

/// Sums of the steps since the last line. Stored with a checkpoint, so that a resumed run writes the same line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// By name: sum and weight, as the bits of an `f64` so that nothing is lost on the way through a file.
    sums: BTreeMap<String, (u64, u64)>,
}

impl Window {
    /// Adds a step's mean, weighed by its pairs.
    pub fn add(&mut self, name: &str, mean: f64, weight: f64) {
        let entry = self.sums.entry(name.to_owned()).or_default();
        let (sum, total) = (f64::from_bits(entry.0) + mean * weight, f64::from_bits(entry.1) + weight);
        *entry = (sum.to_bits(), total.to_bits());
    }

    /// The means; the window is empty afterwards.
    pub fn take(&mut self) -> BTreeMap<String, f64> {
        std::mem::take(&mut self.sums)
            .into_iter()
            .map(|(name, (sum, weight))| (name, f64::from_bits(sum) / f64::from_bits(weight)))
            .collect()
    }
}

/// One line of `metrics.jsonl`: `step` and everything by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricLine {
    /// Optimiser steps done.
    pub step: usize,
    /// Everything else, by TRL's names.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

/// `metrics.jsonl`, appended line by line.
#[derive(Debug)]
pub struct MetricFile {
    path: PathBuf,
}

impl MetricFile {
    /// The file of a run that goes on from `step`: lines of later steps, which an interrupted run may have written
    /// after its checkpoint, are taken out.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open(folder: &Path, step: usize) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        keep_lines(&path, step)?;
        Ok(Self { path })
    }

    /// All lines, oldest first.
    ///
    /// # Errors
    /// A file that is not there or holds something else.
    pub fn read(folder: &Path) -> Result<Vec<MetricLine>> {
        read_lines(&folder.join("metrics.jsonl"))
    }
}

impl Callback for MetricFile {
    fn on_log(&mut self, line: &MetricLine) -> Result<()> {
        let mut object = Map::new();
        object.insert("step".into(), line.step.into());
        // JSON has no name for what is not finite: such a value is left out of its line.
        let finite = line.values.iter().filter(|(_, value)| value.is_finite());
        object.extend(finite.map(|(name, value)| (name.clone(), Value::from(*value))));
        append_line(&self.path, Value::Object(object).to_string())
    }
}

/// Takes out what an interrupted process wrote of steps after `step`, and a line that it left torn.
pub(crate) fn keep_lines(path: &Path, step: usize) -> Result<()> {
    #[derive(Deserialize)]
    struct Line {
        step: usize,
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(Error::io(path, source)),
    };
    let kept = |line: &&str| serde_json::from_str::<Line>(line).is_ok_and(|line| line.step <= step);
    Ok(aspo_data::files::write_atomic(path, |file| {
        let mut lines = text.lines().filter(kept);
        lines
            .try_for_each(|line| writeln!(file, "{line}"))
            .map_err(|source| aspo_data::Error::Io { path: path.into(), source })
    })?)
}

pub(crate) fn append_line(path: &Path, mut line: String) -> Result<()> {
    line.push('\n');
    let fail = |source| Error::io(path, source);
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(fail)?;
    file.write_all(line.as_bytes()).map_err(fail)
}

pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Error::stored(path, format!("line {}: {error}; delete the line", index + 1)))
    };
    text.lines().enumerate().map(parse).collect()
}
