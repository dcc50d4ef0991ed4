//! The paths that a config names.

use std::path::Path;

use aspo_data::{Sources, Template};

use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::read::{qformer_tokenizer_path, tokenizer_path};

/// Checks that every path of the config is there, and is a file or a folder as it should be.
///
/// # Errors
/// The first that is not, by option.
pub fn check_paths(config: &TrainConfig) -> Result<()> {
    let file = |option, path: &Path, remedy| match path {
        path if path.as_os_str().is_empty() => Err(Error::option(option, "not given", remedy)),
        path if !path.exists() => Err(Error::Missing { option, path: path.into(), remedy }),
        path if path.is_dir() => {
            Err(Error::option(option, format!("{} is a folder", path.display()), remedy))
        }
        _ => Ok(()),
    };
    let folder = |option, path: &Path, remedy| match path {
        path if path.as_os_str().is_empty() => Err(Error::option(option, "not given", remedy)),
        path if !path.exists() => Err(Error::Missing { option, path: path.into(), remedy }),
        path if !path.is_dir() => Err(Error::option(option, format!("{} is a file", path.display()), remedy)),
        _ => Ok(()),
    };
    folder("model", &config.model, "give the folder of a Hugging Face checkpoint")?;
    file("model", &config.model.join("config.json"), "the folder holds no Hugging Face checkpoint")?;
    file("tokenizer", &tokenizer_path(config), "give the model's tokenizer.json with `tokenizer`")?;
    if config.template == Template::InstructBlip {
        file(
            "template",
            &qformer_tokenizer_path(&config.model),
            "put the Q-Former's tokenizer there, or give another template",
        )?;
    }
    if let Some(reference) = &config.ref_model {
        let remedy = "give the folder of a Hugging Face checkpoint (merge an adapter into its base first)";
        file("ref_model", &reference.join("config.json"), remedy)?;
    }
    let pairs = |option, sources: &Sources| {
        if sources.is_empty() {
            return Err(Error::option(option, "not given", "give a file of preference pairs"));
        }
        sources.0.iter().try_for_each(|source| {
            let files = aspo_data::read::source_files(&source.path).map_err(|error| {
                Error::option(
                    option,
                    error,
                    "give a file of preference pairs, a folder of them, or a pattern",
                )
            })?;
            files.iter().try_for_each(|path| file(option, path, "give a file of preference pairs"))
        })
    };
    pairs("data", &config.data)?;
    if let Some(held_out) = &config.eval_data {
        pairs("eval_data", held_out)?;
    }
    folder("images", &config.images, "give the folder that image paths are relative to")?;
    if let Some(clip) = &config.clip {
        file("clip", &clip.join("config.json"), "give the folder of a CLIP checkpoint")?;
        file("clip", &clip.join("tokenizer.json"), "put CLIP's tokenizer.json into its folder")?;
    }
    Ok(())
}
