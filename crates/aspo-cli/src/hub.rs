//! Ids of the Hugging Face Hub in the place of paths: `hf://owner/name` for a model, `hf://datasets/owner/name` and
//! `hf://datasets/owner/name/train-*.parquet` for data, either with `@revision` behind the name.

use std::path::PathBuf;

use aspo_train::TrainConfig;

use crate::Failure;

/// How ids begin, as in Hugging Face's file system.
const SCHEME: &str = "hf://";

/// Puts what was fetched in the place of ids.
///
/// # Errors
/// Whatever the Hub answers; an id in a build without the feature `hub`.
pub fn fetch(config: &mut TrainConfig) -> Result<(), Failure> {
    let TrainConfig { model, ref_model, clip, images, data, eval_data, .. } = config;
    for path in [model].into_iter().chain(ref_model).chain(clip) {
        replace(path, "model", fetch_model)?;
    }
    replace(images, "images", fetch_data)?;
    for path in data.paths_mut().chain(eval_data.iter_mut().flat_map(|sources| sources.paths_mut())) {
        replace(path, "data", fetch_data)?;
    }
    Ok(())
}

fn replace(
    path: &mut PathBuf,
    option: &str,
    fetch: impl Fn(&Id) -> Result<PathBuf, Failure>,
) -> Result<(), Failure> {
    let text = path.to_string_lossy().into_owned();
    let Some(id) = text.strip_prefix(SCHEME) else { return Ok(()) };
    let told = |why: String| format!("option `{option}`: {text}: {why}");
    let id = Id::of(id).ok_or_else(|| told("write hf://owner/name or hf://datasets/owner/name".into()))?;
    *path = fetch(&id).map_err(|error| told(error.to_string()))?;
    Ok(())
}

/// The parts of an id.
#[derive(Debug, PartialEq)]
struct Id {
    data: bool,
    name: String,
    revision: Option<String>,
    /// What is wanted of its files: all, or a pattern.
    files: Option<String>,
}

impl Id {
    fn of(text: &str) -> Option<Self> {
        let (data, text) = text.strip_prefix("datasets/").map_or((false, text), |rest| (true, rest));
        let mut parts = text.splitn(3, '/');
        let (owner, name, files) = (parts.next()?, parts.next()?, parts.next().map(str::to_owned));
        let (name, revision) =
            name.split_once('@').map_or((name, None), |(name, at)| (name, Some(at.to_owned())));
        let whole = !owner.is_empty() && !name.is_empty();
        whole.then(|| Self {
            data,
            name: format!("{owner}/{name}"),
            revision,
            files: files.filter(|files| !files.is_empty()),
        })
    }
}

#[cfg(feature = "hub")]
fn fetch_model(id: &Id) -> Result<PathBuf, Failure> {
    if id.data || id.files.is_some() {
        return Err("a model is wanted: hf://owner/name".into());
    }
    Ok(aspo_models::hub::download(&id.name, id.revision.as_deref())?)
}

#[cfg(feature = "hub")]
fn fetch_data(id: &Id) -> Result<PathBuf, Failure> {
    use aspo_data::read::is_pairs;
    if !id.data {
        return Err("data are wanted: hf://datasets/owner/name".into());
    }
    let pattern = id.files.as_deref().map(aspo_data::read::Pattern::new).transpose()?;
    let wanted = |file: &str| match &pattern {
        Some(pattern) => pattern.matches(file),
        None => !file.contains('/') && is_pairs(file),
    };
    let folder = aspo_models::hub::download_data(&id.name, id.revision.as_deref(), wanted)?;
    Ok(match &id.files {
        Some(files) => folder.join(files),
        None => folder,
    })
}

#[cfg(not(feature = "hub"))]
fn fetch_model(_: &Id) -> Result<PathBuf, Failure> {
    Err("this build does not fetch: build with the feature `hub`, or give a folder".into())
}

#[cfg(not(feature = "hub"))]
fn fetch_data(id: &Id) -> Result<PathBuf, Failure> {
    fetch_model(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_a_name_and_may_have_a_revision_and_files() {
        let id = |data, name: &str, revision: Option<&str>, files: Option<&str>| {
            let text = |text: Option<&str>| text.map(str::to_owned);
            Some(Id { data, name: name.into(), revision: text(revision), files: text(files) })
        };
        assert_eq!(Id::of("llava-hf/llava-1.5-7b-hf"), id(false, "llava-hf/llava-1.5-7b-hf", None, None));
        assert_eq!(Id::of("a/b@v1"), id(false, "a/b", Some("v1"), None));
        assert_eq!(
            Id::of("datasets/a/b@main/data/*.parquet"),
            id(true, "a/b", Some("main"), Some("data/*.parquet"))
        );
        assert_eq!(Id::of("datasets/a/b/"), id(true, "a/b", None, None));
        assert_eq!((Id::of("alone"), Id::of("datasets/alone")), (None, None));
    }

    #[test]
    #[cfg(not(feature = "hub"))]
    fn a_build_that_does_not_fetch_says_so() {
        let mut config = TrainConfig { data: "hf://datasets/a/b".into(), ..TrainConfig::default() };
        let told = fetch(&mut config).unwrap_err().to_string();
        assert!(
            told.contains("option `data`: hf://datasets/a/b") && told.contains("feature `hub`"),
            "{told}"
        );
    }
}
