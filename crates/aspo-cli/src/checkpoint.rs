//! What a checkpoint folder says of the model in it, for commands that take any.

use std::path::{Path, PathBuf};

use aspo_data::{ChatTemplate, ImageProcessor, Template};
use aspo_models::config::model_type;
use aspo_models::{
    Architecture, ClipConfig, InstructBlipConfig, LlavaConfig, ModelConfig, OnArchitecture, on_architecture,
};
use aspo_train::stored_config;

use crate::{Failure, note};

/// What is known of a model before a weight of it is read.
#[derive(Clone, Debug)]
pub struct Known {
    /// Longest sequence that the language model was made for.
    pub positions: usize,
    /// Height and width of a picture in pixels.
    pub image_size: usize,
}

impl Known {
    /// Of the vision-language model in a folder.
    ///
    /// # Errors
    /// A config that cannot be read, or of another model.
    pub fn of(folder: &Path) -> Result<Self, Failure> {
        struct Ask;
        impl OnArchitecture for Ask {
            type Output = Known;

            fn run<A: Architecture>(self, config: A) -> Known {
                let positions = config.text_config().max_position_embeddings;
                Known { positions, image_size: config.image_size() }
            }
        }
        on_architecture(folder, Ask).map_err(|error| format!("option `model`: {error}").into())
    }
}

/// Whether a folder holds an InstructBLIP, whose Q-Former reads the question too.
///
/// # Errors
/// A config that cannot be read.
pub fn is_instruct_blip(folder: &Path) -> Result<bool, Failure> {
    Ok(model_type(folder)? == InstructBlipConfig::MODEL_TYPE)
}

/// How the model was taught to be asked, and how that is known: by a template of ours where its chat template is one of those,
/// else by its own.
///
/// # Errors
/// A chat template that is no Jinja; none, for a model whose prompts are not known otherwise.
pub fn template(folder: &Path) -> Result<(Template, String), Failure> {
    let kind = model_type(folder)?;
    if kind == InstructBlipConfig::MODEL_TYPE {
        return Ok((Template::InstructBlip, "by the model".into()));
    }
    let Some(chat) = ChatTemplate::of_checkpoint(folder)? else {
        if kind == LlavaConfig::MODEL_TYPE {
            return Ok((Template::LlavaHf, "assumed: the folder has no chat template".into()));
        }
        let names: Vec<&str> = Template::ALL.iter().map(|template| template.name()).collect();
        let (folder, names) = (folder.display(), names.join(", "));
        return Err(format!(
            "option `template`: {folder} has no chat template; put its chat_template.jinja there, or give one of {names}"
        )
        .into());
    };
    let has = |part: &str| chat.source().contains(part);
    let known = match () {
        () if has("A chat between a curious user") => Template::VicunaV1,
        () if has("[INST]") && has("<<SYS>>") => Template::LlavaLlama2,
        // `USER: … ASSISTANT:`, written out or as `message['role'].upper()`.
        () if has("ASSISTANT:") && (has("USER:") || has(".upper()")) && !has("A chat between") => {
            Template::LlavaHf
        }
        () => Template::Chat,
    };
    let file = chat.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((known, format!("by {file}")))
}

/// How the adapter's run, else the model, wants to be asked, and how that is known.
///
/// # Errors
/// As [`template`].
pub fn asked_by(folder: &Path, adapter: Option<&Path>) -> Result<(Template, String), Failure> {
    let run = adapter.map(run_of).transpose()?.flatten();
    match run.and_then(|run| Some((stored_config(&run).ok()?.template, run))) {
        Some((template, run)) => Ok((template, format!("as trained in {}", run.display()))),
        None => template(folder),
    }
}

/// The run that an adapter's folder is of: a training's output holds `adapter/` and `checkpoint-*/`.
fn run_of(adapter: &Path) -> Result<Option<PathBuf>, Failure> {
    let whole = std::path::absolute(adapter)?;
    let own = whole.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let of_run = own == "adapter" || own.starts_with("checkpoint-");
    Ok(whole.parent().filter(|_| of_run).map(Path::to_path_buf))
}

/// A name for a folder: its own, or its run's where every run's is the same.
///
/// # Errors
/// A working folder that is gone.
pub fn run_name(folder: &Path) -> Result<String, Failure> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let whole = std::path::absolute(folder)?;
    let own = name(&whole);
    Ok(match run_of(&whole)?.map(|run| name(&run)).filter(|run| !run.is_empty()) {
        None => own,
        Some(run) if own == "adapter" => run,
        Some(run) => format!("{run}-{own}"),
    })
}

/// Refuses the folder of a vision-language model or a CLIP whose image processor is not implemented, before anything is computed,
/// and warns of what is assumed where it has none.
///
/// # Errors
/// The setting that is not implemented; a config that cannot be read.
pub fn check_processor(folder: &Path) -> Result<(), Failure> {
    let size = match model_type(folder)?.as_str() {
        ClipConfig::MODEL_TYPE => ClipConfig::load(folder)?.vision_config.image_size,
        _ => Known::of(folder)?.image_size,
    };
    if let (_, Some(warning)) = ImageProcessor::of_checkpoint(folder, u32::try_from(size)?)? {
        note!("warning: {warning}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// As llava-hf/llava-1.5-7b-hf has it, shortened.
    const LLAVA_HF: &str = "{% for message in messages %}{% if message['role'] != 'system' %}\
        {{ message['role'].upper() + ': '}}{% endif %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
        {{ content['text'] + ' ' }}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

    fn told(files: &[(&str, Value)]) -> Result<(Template, String), String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content.to_string()).unwrap();
        }
        std::fs::write(folder.path().join("config.json"), r#"{"model_type": "llava"}"#).unwrap();
        template(folder.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_template_is_that_of_the_chat_template_wherever_transformers_keeps_it() {
        let text = serde_json::json!({ "chat_template": LLAVA_HF });
        let named = serde_json::json!({ "chat_template": [{"name": "default", "template": LLAVA_HF}] });
        for (file, content) in [
            ("chat_template.json", text.clone()),
            ("processor_config.json", text.clone()),
            ("tokenizer_config.json", named),
            ("chat_template.jinja", Value::from(LLAVA_HF)),
        ] {
            assert_eq!(told(&[(file, content)]), Ok((Template::LlavaHf, format!("by {file}"))));
        }
        let vicuna = "A chat between a curious user and an artificial intelligence assistant. USER: {{ messages[0]['content'] }} ASSISTANT:";
        let vicuna = serde_json::json!({ "chat_template": vicuna });
        // A file without one is passed over.
        let none = ("processor_config.json", serde_json::json!({ "image_processor": {} }));
        assert_eq!(told(&[none, ("tokenizer_config.json", vicuna)]).unwrap().0, Template::VicunaV1);
    }

    #[test]
    fn no_chat_template_is_told_as_an_assumption_and_another_one_is_the_checkpoints_own() {
        assert!(told(&[]).unwrap().1.starts_with("assumed"));
        let other = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}{% endfor %}";
        let other = serde_json::json!({ "chat_template": other });
        assert_eq!(
            told(&[("chat_template.json", other)]),
            Ok((Template::Chat, "by chat_template.json".into()))
        );
        let broken = serde_json::json!({ "chat_template": "{% for %}" });
        let error = told(&[("chat_template.json", broken)]).unwrap_err();
        assert!(error.contains("chat_template.json"), "{error}");
    }

    #[test]
    fn a_model_of_another_kind_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"qwen9_vl\"}").unwrap();
        let error = Known::of(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`qwen9_vl`") && error.contains("llava, instructblip"), "{error}");
    }
}
