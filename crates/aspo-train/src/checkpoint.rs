//! A run's state on disk: adapter, optimiser, counters. A folder appears whole or not at all.

use std::path::{Path, PathBuf};

use aspo_models::{Adapter, EachLinear, lora};
use burn::module::Module;
use burn::record::{BinFileRecorder, FullPrecisionSettings, Record, Recorder};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::content::{Inputs, file_hash};
use crate::error::{Error, Result};
use crate::metric::Window;

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer";
const MANIFEST: &str = "manifest.json";

/// What a checkpoint holds beside adapter and moments. Data order and learning rate follow from `step` and `config`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimiser steps done.
    pub step: usize,
    /// Steps left out because something was not finite.
    pub skipped_steps: usize,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Metrics since the last line.
    pub window: Window,
    /// The run's options, their paths absolute.
    pub config: TrainConfig,
    /// What the run was made from, by content.
    pub inputs: Inputs,
    /// Version of this crate.
    pub version: String,
}

impl TrainerState {
    /// Of a run that has not begun.
    pub(crate) fn new(config: TrainConfig, inputs: Inputs) -> Self {
        Self {
            step: 0,
            skipped_steps: 0,
            seconds: 0.0,
            window: Window::default(),
            config,
            inputs,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// Writes `checkpoint-NNNNNN` under `folder` and removes the oldest beyond `limit` (0 keeps all).
///
/// # Errors
/// A disk that is full or read-only; what was there before is untouched.
pub fn save<B, M, O>(
    folder: &Path,
    model: &M,
    adapter: &Adapter,
    optimizer: O,
    state: &TrainerState,
    limit: usize,
) -> Result<PathBuf>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
    O: Record<B>,
{
    let target = folder.join(format!("checkpoint-{:06}", state.step));
    let scratch = folder.join(format!(".checkpoint-{:06}.tmp", state.step));
    remove(&scratch)?;
    std::fs::create_dir_all(&scratch).map_err(|source| Error::io(&scratch, source))?;
    let written = write_parts::<B, M, O>(&scratch, model, adapter, optimizer, state);
    if let Err(error) = written {
        // The disk may be full: leave nothing behind that helps it stay so.
        let _ = std::fs::remove_dir_all(&scratch);
        return Err(error);
    }
    remove(&target)?;
    std::fs::rename(&scratch, &target).map_err(|source| Error::io(&target, source))?;
    sync(folder)?;
    if limit > 0 {
        // Later ones are damaged, or the run would have gone on from them: they must not push out this one.
        let kept: Vec<_> = list(folder)?.into_iter().filter(|(step, _)| *step <= state.step).collect();
        for (_, old) in kept.iter().rev().skip(limit) {
            remove(old)?;
        }
    }
    Ok(target)
}

fn write_parts<B, M, O>(
    scratch: &Path,
    model: &M,
    adapter: &Adapter,
    optimizer: O,
    state: &TrainerState,
) -> Result<()>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
    O: Record<B>,
{
    lora::save_adapter(model, adapter, scratch)?;
    let path = scratch.join(OPTIMIZER);
    Recorder::<B>::record(&recorder(), optimizer, path.clone()).map_err(|error| {
        Error::stored(&path, format!("the optimiser state could not be written: {error}"))
    })?;
    let json = serde_json::to_vec_pretty(state).map_err(|error| Error::stored(scratch, error.to_string()))?;
    let path = scratch.join(STATE);
    std::fs::write(&path, json).map_err(|source| Error::io(&path, source))?;
    let mut hashes = std::collections::BTreeMap::new();
    for path in files(scratch)? {
        sync(&path)?;
        hashes.insert(name(&path), file_hash(&path)?);
    }
    let path = scratch.join(MANIFEST);
    let json = serde_json::to_vec_pretty(&hashes).map_err(|error| Error::stored(&path, error.to_string()))?;
    std::fs::write(&path, json).map_err(|source| Error::io(&path, source))?;
    sync(&path)?;
    sync(scratch)
}

/// The newest checkpoint under `folder` that is whole, and what was found wrong with newer ones.
///
/// # Errors
/// No checkpoint, or none that is whole: every fault is told.
pub fn newest(folder: &Path) -> Result<(PathBuf, TrainerState, Vec<Error>)> {
    let mut faults = Vec::new();
    for (_, path) in list(folder)?.into_iter().rev() {
        match read(&path) {
            Ok(state) => return Ok((path, state, faults)),
            Err(error) => faults.push(error),
        }
    }
    let found = match faults.as_slice() {
        [] => "no checkpoint to resume from; start the run without `--resume`".to_owned(),
        faults => faults.iter().map(Error::to_string).collect::<Vec<_>>().join("; "),
    };
    Err(Error::stored(folder, found))
}

/// The state of the newest checkpoint under `folder` that can be read; its other files are not looked at.
///
/// # Errors
/// No such checkpoint.
pub(crate) fn newest_state(folder: &Path) -> Result<TrainerState> {
    let state = |path: &PathBuf| serde_json::from_slice(&std::fs::read(path.join(STATE)).ok()?).ok();
    match list(folder)?.into_iter().rev().find_map(|(_, path)| state(&path)) {
        Some(state) => Ok(state),
        // Told with all that is wrong.
        None => newest(folder).map(|(_, state, _)| state),
    }
}

/// Checks every file against its hash and reads the state.
pub(crate) fn read(path: &Path) -> Result<TrainerState> {
    let damaged = |why: String| Error::stored(path, format!("damaged checkpoint ({why}): delete it"));
    let manifest = path.join(MANIFEST);
    let bytes = std::fs::read(&manifest).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    let hashes: std::collections::BTreeMap<String, String> =
        serde_json::from_slice(&bytes).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
    for (file, expected) in &hashes {
        let found = file_hash(&path.join(file)).map_err(|error| damaged(error.to_string()))?;
        if found != *expected {
            return Err(damaged(format!("{file} is not what was written")));
        }
    }
    let bytes = std::fs::read(path.join(STATE)).map_err(|error| damaged(format!("{STATE}: {error}")))?;
    // Whole, and yet it cannot be read.
    let other = |error| {
        format!("{STATE} was written by another version ({error}): go on with that one, or begin a new run")
    };
    serde_json::from_slice(&bytes).map_err(|error| Error::stored(path, other(error)))
}

/// Reads the optimiser's record of a checkpoint.
///
/// # Errors
/// A file that is not what this optimiser wrote.
pub fn optimizer<B: Backend, O: Record<B>>(checkpoint: &Path, device: &B::Device) -> Result<O> {
    let path = checkpoint.join(OPTIMIZER);
    Recorder::<B>::load(&recorder(), path.clone(), device)
        .map_err(|error| Error::stored(&path, format!("the optimiser state cannot be read: {error}")))
}

fn recorder() -> BinFileRecorder<FullPrecisionSettings> {
    BinFileRecorder::new()
}

/// Takes away what processes that were killed while they wrote a checkpoint have left.
///
/// # Errors
/// A folder that cannot be written.
pub(crate) fn sweep(folder: &Path) -> Result<()> {
    let unfinished = |path: &PathBuf| name(path).starts_with(".checkpoint-") && name(path).ends_with(".tmp");
    entries(folder)?.iter().filter(|path| unfinished(path)).try_for_each(|path| remove(path))
}

/// Checkpoints by step, oldest first.
pub(crate) fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<(usize, PathBuf)> = entries(folder)?
        .into_iter()
        .filter_map(|path| Some((name(&path).strip_prefix("checkpoint-")?.parse().ok()?, path)))
        .collect();
    found.sort();
    Ok(found)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let fail = |source| Error::io(folder, source);
    std::fs::read_dir(folder).map_err(fail)?.map(|entry| Ok(entry.map_err(fail)?.path())).collect()
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_file()).collect())
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn sync(path: &Path) -> Result<()> {
    std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|source| Error::io(path, source))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, error)),
        _ => Ok(()),
    }
}
