//! Downloads from the Hugging Face Hub, for those who are online (feature `hub`).

use std::path::PathBuf;

use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Repo, RepoType};

use crate::error::{Error, Result};

/// Fetch the JSON files, templates and safetensors of a model (`owner/name`) into Hugging Face's own cache; returns the folder to
/// give to [`from_pretrained`](crate::Pretrained::from_pretrained).
///
/// `revision` is a branch, tag or commit; `None` is `main`. What the cache holds is not fetched again. The endpoint,
/// the cache and the token are those of `HF_ENDPOINT`, `HF_HOME` and the login of Hugging Face's tools.
///
/// # Errors
/// Whatever the network and the hub answer, or a repository without a config.
pub fn download(model: &str, revision: Option<&str>) -> Result<PathBuf> {
    let wanted = |file: &str| {
        !file.contains('/')
            && (file.ends_with(".json") || file.ends_with(".jinja") || file.ends_with(".safetensors"))
    };
    let folder = fetch(RepoType::Model, model, revision, wanted)?;
    if !folder.join("config.json").exists() {
        let reason = "the repository has no config.json".into();
        return Err(Error::Checkpoint { path: model.into(), reason });
    }
    Ok(folder)
}

/// Fetch the files of a data set (`owner/name`) whose names in the repository are `wanted`; returns the folder that the names are
/// relative to. The rest is as in [`download`].
///
/// # Errors
/// Whatever the network and the hub answer, or no such file.
pub fn download_data(data: &str, revision: Option<&str>, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    fetch(RepoType::Dataset, data, revision, wanted)
}

fn fetch(kind: RepoType, id: &str, revision: Option<&str>, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    let failed = |reason: String| Error::Checkpoint { path: id.into(), reason };
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(|e| failed(e.to_string()))?;
    let revision = revision.unwrap_or("main").to_owned();
    let repo = api.repo(Repo::with_revision(id.to_owned(), kind, revision));
    let files = repo.info().map_err(|e| failed(e.to_string()))?.siblings;
    let mut folder = None;
    for file in files.iter().map(|f| f.rfilename.as_str()).filter(|file| wanted(file)) {
        let path = repo.get(file).map_err(|e| failed(format!("{file}: {e}")))?;
        folder = path.ancestors().nth(file.split('/').count()).map(PathBuf::from);
    }
    folder.ok_or_else(|| failed("the repository has no file that is wanted".into()))
}
