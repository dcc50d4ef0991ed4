//! The output folder of a run: for one process alone, and refused before anything is computed if the run could not be
//! begun, or gone on with, in it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::checkpoint::{self, TrainerState};
use crate::config::{OnNonFinite, TrainConfig};
use crate::content::Inputs;
use crate::error::{Error, Result};
use crate::ranks::Ranks;
use crate::read::Data;

const LOCK: &str = ".lock";

/// An output folder that this process holds until the value is dropped.
#[derive(Debug)]
pub struct Output {
    folder: PathBuf,
    checkpoint: Option<(PathBuf, TrainerState)>,
    notes: Vec<String>,
    inputs: Option<Inputs>,
    /// The folder was not there before.
    made: bool,
    /// The first rank's.
    _lock: Option<File>,
}

impl Output {
    /// Takes the config's `output_dir` for a run that begins there, or, with `resume`, goes on from its newest whole
    /// checkpoint. A folder that is not there is made, and taken away again if nothing comes into it.
    ///
    /// # Errors
    /// A folder that is not named, is a file, cannot be written, or is written by another process; one that holds a run if
    /// one is to begin, or none if one is to go on; a checkpoint that was made with other options or another model.
    pub fn open(config: &TrainConfig, resume: bool) -> Result<Self> {
        let folder = config.output_dir.as_path();
        let refuse = |found: String, remedy: &str| Err(Error::option("output_dir", found, remedy));
        if folder.as_os_str().is_empty() {
            return refuse("not given".into(), "name the folder that the run is written to");
        }
        if folder.exists() && !folder.is_dir() {
            return refuse(format!("{} is a file", folder.display()), "name a folder");
        }
        let none = || {
            let why = "no checkpoint to resume from; start the run without `--resume`";
            Err(Error::stored(folder, why))
        };
        if resume && !folder.exists() {
            return none();
        }
        let made = !folder.exists();
        let lock = lock(folder)?;
        let mut output = Self {
            folder: folder.into(),
            checkpoint: None,
            notes: Vec::new(),
            inputs: None,
            made,
            _lock: Some(lock),
        };
        // A folder whose lock was there before may be read-only all the same.
        tempfile::tempfile_in(folder).map_err(|source| Error::io(folder, source))?;
        let begun = !checkpoint::list(folder)?.is_empty();
        if !resume {
            if begun || folder.join("adapter").exists() {
                let remedy = "give `--resume` to go on, or another output folder";
                return refuse(format!("{} holds a run", folder.display()), remedy);
            }
            return Ok(output);
        }
        if !begun {
            return none();
        }
        let (path, state, faults) = checkpoint::newest(folder)?;
        same_options(config, &path, &state)?;
        let inputs = Inputs::of_models(config)?;
        same_inputs(&inputs, &path, &state.inputs)?;
        output.notes.extend(faults.iter().map(|fault| format!("{fault}; {} is taken", path.display())));
        output.inputs = Some(inputs);
        output.checkpoint = Some((path, state));
        Ok(output)
    }

    /// The same for the processes of a run: the first takes the folder, the others go on from the checkpoint that it found.
    ///
    /// # Errors
    /// As [`open`](Self::open), on all of them.
    pub fn open_on(ranks: &Ranks, config: &TrainConfig, resume: bool) -> Result<Self> {
        let own = ranks.is_first().then(|| Self::open(config, resume));
        let found = match &own {
            Some(Ok(output)) => Ok(output.checkpoint.as_ref().map(|(path, _)| path.clone())),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(None),
        };
        let found = ranks.of_first(found);
        if let Some(own) = own {
            return own;
        }
        let path = found.map_err(|text| Error::Rank { rank: 0, text })?;
        let checkpoint = match path {
            Some(path) => Some((path.clone(), checkpoint::read(&path)?)),
            None => None,
        };
        let inputs = checkpoint.as_ref().map(|(_, state)| state.inputs.clone());
        let folder = config.output_dir.clone();
        Ok(Self { folder, checkpoint, notes: Vec::new(), inputs, made: false, _lock: None })
    }

    /// The checkpoint that the run goes on from, and the steps done there.
    pub fn resumed(&self) -> Option<(&Path, usize)> {
        self.checkpoint.as_ref().map(|(path, state)| (path.as_path(), state.step))
    }

    /// What was found wrong and could be got around: a damaged checkpoint and which one is taken instead.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Refuses pairs or pictures other than those of the checkpoint, and tells if the run has another length now.
    ///
    /// # Errors
    /// That, and data whose pictures were not looked at.
    pub fn accept(&self, config: &TrainConfig, data: &Data) -> Result<Option<String>> {
        let Some([pictures, _]) = &data.pictures else {
            let remedy = "call `Data::decode_pictures` first";
            return Err(Error::option("data", "pictures that nobody has looked at", remedy));
        };
        let Some((path, state)) = &self.checkpoint else { return Ok(None) };
        let ours = Inputs {
            pairs: data.pairs.hash().to_owned(),
            pictures: pictures.clone(),
            ..state.inputs.clone()
        };
        same_inputs(&ours, path, &state.inputs)?;
        let (old, new) = (state.config.total_steps(data.pairs.len()), config.total_steps(data.pairs.len()));
        Ok((old != new).then(|| {
            format!(
                "{new} steps in place of {old}: the learning rate follows the new length from step {}",
                state.step + 1
            )
        }))
    }

    /// Whether all steps of the run are done and its adapter is written.
    pub fn is_finished(&self, config: &TrainConfig, data: &Data) -> bool {
        let total = config.total_steps(data.pairs.len());
        self.resumed().is_some_and(|(_, step)| step >= total)
            && ["adapter_config.json", "adapter_model.safetensors"]
                .iter()
                .all(|file| self.folder.join("adapter").join(file).exists())
    }

    /// Where the run is to go on, with everything that its checkpoints will hold of what it was made from.
    pub(crate) fn begin(&self, config: &TrainConfig, data: &Data) -> Result<(Option<PathBuf>, TrainerState)> {
        self.accept(config, data)?;
        if let Some((path, state)) = &self.checkpoint {
            if self._lock.is_some() {
                checkpoint::sweep(&self.folder)?;
            }
            return Ok((Some(path.clone()), TrainerState { config: config.absolute()?, ..state.clone() }));
        }
        let models = self.inputs.clone().map_or_else(|| Inputs::of_models(config), Ok)?;
        let [pictures, _] = data.pictures.clone().unwrap_or_default();
        let inputs = Inputs { pairs: data.pairs.hash().to_owned(), pictures, ..models };
        Ok((None, TrainerState::new(config.absolute()?, inputs)))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let lock = self.folder.join(LOCK);
        let alone = || {
            std::fs::read_dir(&self.folder).is_ok_and(|mut entries| {
                entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == LOCK))
            })
        };
        if self.made && alone() {
            let _ = std::fs::remove_file(lock).and_then(|()| std::fs::remove_dir(&self.folder));
        }
    }
}

/// The options of the run in `folder`, by its newest checkpoint. Inputs that are no longer where they were are looked
/// for beside the folder, with which they may have moved.
///
/// # Errors
/// A folder without a checkpoint.
pub fn stored_config(folder: &Path) -> Result<TrainConfig> {
    let mut config = checkpoint::newest_state(folder)?.config;
    let new = std::path::absolute(folder).map_err(|source| Error::io(folder, source))?;
    let old = std::mem::replace(&mut config.output_dir, folder.into());
    for input in config.inputs_mut() {
        *input = moved(input, &old, &new);
    }
    Ok(config)
}

/// `path`, or, if it is gone, where it is if it moved as `old` did to `new`.
fn moved(path: &Path, old: &Path, new: &Path) -> PathBuf {
    if path.exists() {
        return path.into();
    }
    let parts = |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
    let (from, to) = (parts(old), parts(new));
    let same = from.iter().rev().zip(to.iter().rev()).take_while(|(a, b)| a == b).count();
    let root = |parts: &[std::ffi::OsString], count: usize| parts[..count].iter().collect::<PathBuf>();
    let found =
        path.strip_prefix(root(&from, from.len() - same)).map(|rest| root(&to, to.len() - same).join(rest));
    found.ok().filter(|found| found.exists()).unwrap_or_else(|| path.into())
}

/// The folder, made if it is not there, for this process alone until the file is dropped.
fn lock(folder: &Path) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    let path = folder.join(LOCK);
    let file = File::create(&path).map_err(|source| Error::io(&path, source))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let found = format!("{} is written by another run", folder.display());
            Err(Error::option("output_dir", found, "wait for it to end, or give another folder"))
        }
        Err(TryLockError::Error(source)) => Err(Error::io(&path, source)),
    }
}

/// Refuses to go on with other options: the run would be neither the old nor a new one. Paths may differ, since what they
/// lead to is compared; so may what does not change a step that was made.
fn same_options(config: &TrainConfig, path: &Path, state: &TrainerState) -> Result<()> {
    let same = |config: &TrainConfig| TrainConfig {
        model: PathBuf::new(),
        tokenizer: None,
        ref_model: None,
        clip: None,
        data: Default::default(),
        eval_data: None,
        images: PathBuf::new(),
        output_dir: PathBuf::new(),
        cache_dir: None,
        max_steps: -1,
        num_train_epochs: 1.0,
        eval_steps: 0,
        save_steps: 0,
        save_total_limit: 0,
        on_fault: Default::default(),
        on_non_finite: OnNonFinite::Stop,
        ..config.clone()
    };
    // Through text, as the stored ones have gone: the last digit of a number may not come back.
    let options = |config: &TrainConfig| -> serde_json::Map<String, serde_json::Value> {
        let text = serde_json::to_string(&same(config)).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let (old, new) = (options(&state.config), options(config));
    let changed = old.keys().chain(new.keys()).find(|key| old.get(*key) != new.get(*key));
    let Some(key) = changed else { return Ok(()) };
    let show = |options: &serde_json::Map<String, serde_json::Value>| match options.get(key) {
        None | Some(serde_json::Value::Null) => "not set".to_owned(),
        Some(value) => value.to_string(),
    };
    let why = format!("was made with `{key}` = {}, now {}; resume with the same", show(&old), show(&new));
    Err(Error::stored(path, why))
}

fn same_inputs(ours: &Inputs, path: &Path, theirs: &Inputs) -> Result<()> {
    match ours.unlike(theirs) {
        None => Ok(()),
        Some(what) => Err(Error::stored(path, format!("was made with other {what}; resume with the same"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_with_the_output_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("b/data")).unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(moved(&at("a/data"), &at("a/out/run"), &at("b/out/run")), at("b/data"));
        // Elsewhere, or not moved at all: as it was.
        assert_eq!(moved(&at("c/data"), &at("a/out/run"), &at("b/out/run")), at("c/data"));
        assert_eq!(moved(&at("b/data"), &at("a/out/run"), &at("c/out/run")), at("b/data"));
    }
}
