//! The files that a run adds lines to: metrics and samples, a JSON object a line.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::callback::Callback;
use crate::error::{Error, Result};
use crate::metric::MetricLine;
use crate::sample::Sample;

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

/// Name of the file of samples.
const SAMPLES: &str = "samples.jsonl";

/// `samples.jsonl`, appended line by line.
#[derive(Debug)]
pub struct SampleFile {
    path: PathBuf,
}

impl SampleFile {
    /// The file of a run that goes on from `step`: samples of later steps are taken out.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn open(folder: &Path, step: usize) -> Result<Self> {
        let path = folder.join(SAMPLES);
        keep_lines(&path, step)?;
        Ok(Self { path })
    }

    /// All samples of a run, oldest first.
    ///
    /// # Errors
    /// A file that is not there or holds something else.
    pub fn read(folder: &Path) -> Result<Vec<Sample>> {
        read_lines(&folder.join(SAMPLES))
    }
}

impl Callback for SampleFile {
    fn on_samples(&mut self, samples: &[Sample]) -> Result<()> {
        samples.iter().try_for_each(|sample| {
            let line = serde_json::to_string(sample)
                .map_err(|error| Error::stored(&self.path, error.to_string()))?;
            append_line(&self.path, line)
        })
    }
}

/// Takes out what an interrupted process wrote of steps after `step`, and a line that it left torn.
fn keep_lines(path: &Path, step: usize) -> Result<()> {
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

fn append_line(path: &Path, mut line: String) -> Result<()> {
    line.push('\n');
    let fail = |source| Error::io(path, source);
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).map_err(fail)?;
    file.write_all(line.as_bytes()).map_err(fail)
}

fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let parse = |(index, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|error| Error::stored(path, format!("line {}: {error}; delete the line", index + 1)))
    };
    text.lines().enumerate().map(parse).collect()
}
