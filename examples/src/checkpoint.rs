//! What a checkpoint folder says of the model in it, for the examples that take any.

use std::path::Path;

use aspo_data::{ImageProcessor, Template};
use aspo_models::config::model_type;
use aspo_models::{
    Architecture, ClipConfig, InstructBlipConfig, ModelConfig, OnArchitecture, on_architecture,
};
use serde_json::Value;

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

/// How the model was taught to be asked, and how that is known.
///
/// # Errors
/// A chat template that is none of ours: which one is meant must be said.
pub fn template(folder: &Path) -> Result<(Template, String), Failure> {
    if is_instruct_blip(folder)? {
        return Ok((Template::InstructBlip, "by the model".into()));
    }
    let Some((file, chat)) = chat_template(folder) else {
        return Ok((Template::LlavaHf, "assumed: the folder has no chat template".into()));
    };
    let has = |part: &str| chat.contains(part);
    let known = match () {
        () if has("A chat between a curious user") => Some(Template::VicunaV1),
        () if has("[INST]") && has("<<SYS>>") => Some(Template::LlavaLlama2),
        // `USER: … ASSISTANT:`, written out or as `message['role'].upper()`.
        () if has("ASSISTANT:") && (has("USER:") || has(".upper()")) && !has("A chat between") => {
            Some(Template::LlavaHf)
        }
        () => None,
    };
    let unknown = || {
        let names: Vec<&str> = Template::ALL.iter().map(|template| template.name()).collect();
        format!(
            "option `template`: the chat template in {} is none of {}; say which one is meant",
            folder.join(&file).display(),
            names.join(", ")
        )
    };
    Ok((known.ok_or_else(unknown)?, format!("by {file}")))
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

/// The chat template of a folder, wherever transformers keeps it, and the file's name.
fn chat_template(folder: &Path) -> Option<(String, String)> {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    if let Some(text) = read("chat_template.jinja") {
        return Some(("chat_template.jinja".into(), text));
    }
    ["chat_template.json", "processor_config.json", "tokenizer_config.json"].into_iter().find_map(|file| {
        let json: Value = serde_json::from_str(&read(file)?).ok()?;
        let text = match json.get("chat_template")? {
            Value::String(text) => text.clone(),
            // Several by name.
            Value::Array(named) => {
                let default = named.iter().find(|one| one["name"] == "default").or_else(|| named.first())?;
                default["template"].as_str()?.to_owned()
            }
            _ => return None,
        };
        Some((file.to_owned(), text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As llava-hf/llava-1.5-7b-hf has it, shortened.
    const LLAVA_HF: &str = "{% for message in messages %}{% if message['role'] != 'system' %}\
        {{ message['role'].upper() + ': '}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";

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
        let vicuna = "A chat between a curious user and an artificial intelligence assistant. USER: {{ q }} ASSISTANT:";
        let vicuna = serde_json::json!({ "chat_template": vicuna });
        // A file without one is passed over.
        let none = ("processor_config.json", serde_json::json!({ "image_processor": {} }));
        assert_eq!(told(&[none, ("tokenizer_config.json", vicuna)]).unwrap().0, Template::VicunaV1);
    }

    #[test]
    fn no_chat_template_is_told_as_an_assumption_and_a_strange_one_refused() {
        assert!(told(&[]).unwrap().1.starts_with("assumed"));
        let strange = serde_json::json!({ "chat_template": "<|im_start|>user" });
        let error = told(&[("chat_template.json", strange)]).unwrap_err();
        assert!(error.contains("chat_template.json") && error.contains("vicuna_v1, llava_hf"), "{error}");
    }

    #[test]
    fn a_model_of_another_kind_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), "{\"model_type\": \"qwen9_vl\"}").unwrap();
        let error = Known::of(folder.path()).unwrap_err().to_string();
        assert!(error.contains("`qwen9_vl`") && error.contains("llava, instructblip"), "{error}");
    }
}
