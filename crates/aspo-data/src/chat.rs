//! A checkpoint's own chat template, in Jinja, as transformers' `apply_chat_template` renders it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;

use crate::error::{Error, PairFault, Result};
use crate::pair::{IMAGE_TAG, Pair};
use crate::prompt::Rendered;
use crate::tokenizer::SpecialTokens;

/// A chat template, compiled.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: String,
    path: PathBuf,
    /// Messages are given as lists of parts; else as texts, in which pictures are the image token.
    parts: bool,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("path", &self.path).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Content,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Image,
    Text { text: String },
}

const NAME: &str = "chat_template";
/// Stands for an answer while what is around it is looked for.
const ANSWER: &str = "\u{e000}answer\u{e000}";

impl ChatTemplate {
    /// The template of a checkpoint folder, wherever transformers keeps it: `chat_template.jinja`, `chat_template.json`,
    /// `processor_config.json`, `tokenizer_config.json` (of several by name, `default`); `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Stored`] for a template that is no Jinja, or that renders neither parts nor plain texts.
    pub fn of_checkpoint(folder: &Path) -> Result<Option<Self>> {
        find(folder).map(|(path, source)| Self::new(source, path)).transpose()
    }

    /// A template from its source; `path` is used in messages.
    ///
    /// # Errors
    /// As [`ChatTemplate::of_checkpoint`].
    pub fn new(source: String, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let stored = |why: String| Error::Stored { path: path.clone(), why };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |why: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
        });
        // minijinja's own writes `<` as an escape.
        environment.add_filter("tojson", |value: Value| {
            serde_json::to_string(&value)
                .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))
        });
        environment
            .add_template_owned(NAME, without_generation(&source))
            .map_err(|error| stored(told(&error)))?;
        let mut template =
            Self { environment: Arc::new(environment), source, path: path.clone(), parts: true };
        // A template for texts writes a list of parts out as a list, or takes it for none.
        let probe = Pair::new("", "probe", "", "");
        let renders = |template: &Self| -> Result<bool, String> {
            let text = template.text(&probe, &SpecialTokens::default(), None)?;
            Ok(text.contains("probe") && !text.contains("\"text\"") && !text.contains("'text'"))
        };
        if renders(&template) != Ok(true) {
            template.parts = false;
            match renders(&template) {
                Ok(true) => {}
                Ok(false) => return Err(stored("it leaves out what a user says".into())),
                Err(why) => return Err(stored(format!("it renders no conversation: {why}"))),
            }
        }
        Ok(template)
    }

    /// The Jinja itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The file that it is from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes out the prompt of a pair, generation prompt included, one image token for each of its images, and finds what the
    /// template writes around an answer.
    ///
    /// # Errors
    /// [`PairFault::Template`] for a conversation that the template refuses, or does not write out whole.
    pub fn render(&self, pair: &Pair, tokens: &SpecialTokens) -> Result<Rendered> {
        let fail = |why: String| {
            let why =
                format!("{why}; mend the conversation, or give another `template` ({})", self.path.display());
            Error::pair(&pair.id, PairFault::Template(why))
        };
        let prompt = self.text(pair, tokens, None).map_err(fail)?;
        let whole = self.text(pair, tokens, Some(ANSWER)).map_err(fail)?;
        let Some((front, after)) = whole.split_once(ANSWER) else {
            return Err(fail("it leaves out what the assistant says".into()));
        };
        let before = front.strip_prefix(&prompt).unwrap_or_default().to_owned();
        let found = prompt.matches(&tokens.image).count();
        if found != pair.images.len() {
            return Err(fail(format!(
                "it writes {found} of {} image tokens {:?}",
                pair.images.len(),
                tokens.image
            )));
        }
        let after = after.to_owned();
        Ok(Rendered { prompt, before, after, images_before: false, own: true })
    }

    /// The conversation of a pair, with an answer or up to it.
    fn text(&self, pair: &Pair, tokens: &SpecialTokens, answer: Option<&str>) -> Result<String, String> {
        let mut messages = Vec::new();
        let mut say = |role, content| messages.push(Message { role, content });
        if let Some(system) = &pair.system {
            say("system", self.content(system, 0, tokens));
        }
        let front = if pair.tags() == 0 { pair.images.len() } else { 0 };
        for (turn, question) in pair.questions().enumerate() {
            say("user", self.content(question, if turn == 0 { front } else { 0 }, tokens));
            if let Some(turn) = pair.history.get(turn) {
                say("assistant", self.content(&turn.assistant, 0, tokens));
            }
        }
        if let Some(answer) = answer {
            say("assistant", self.content(answer, 0, tokens));
        }
        let context = minijinja::context! {
            messages,
            add_generation_prompt => answer.is_none(),
            bos_token => tokens.bos,
            eos_token => tokens.eos,
            pad_token => tokens.pad,
            image_token => tokens.image,
        };
        let template = self.environment.get_template(NAME).map_err(|error| told(&error))?;
        template.render(context).map_err(|error| told(&error))
    }

    /// What is said, its `<image>` tags as parts or image tokens, with some pictures in front.
    fn content(&self, text: &str, front: usize, tokens: &SpecialTokens) -> Content {
        if !self.parts {
            let front = format!("{}\n", tokens.image).repeat(front);
            return Content::Text(front + &text.replace(IMAGE_TAG, &tokens.image));
        }
        let mut parts: Vec<Part> = (0..front).map(|_| Part::Image).collect();
        for (index, text) in text.split(IMAGE_TAG).enumerate() {
            parts.extend((index > 0).then_some(Part::Image));
            parts.extend((!text.is_empty()).then(|| Part::Text { text: text.to_owned() }));
        }
        Content::Parts(parts)
    }
}

/// The template of a folder and the file it is in.
fn find(folder: &Path) -> Option<(PathBuf, String)> {
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let jinja = "chat_template.jinja";
    if let Some(text) = read(jinja) {
        return Some((folder.join(jinja), text));
    }
    ["chat_template.json", "processor_config.json", "tokenizer_config.json"].into_iter().find_map(|file| {
        let json: serde_json::Value = serde_json::from_str(&read(file)?).ok()?;
        let text = match json.get("chat_template")? {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Array(named) => {
                let default = named.iter().find(|one| one["name"] == "default").or_else(|| named.first())?;
                default["template"].as_str()?.to_owned()
            }
            _ => return None,
        };
        Some((folder.join(file), text))
    })
}

/// The source without `{% generation %}` and `{% endgeneration %}`, which mark what an assistant says and write nothing: they are
/// transformers' own.
fn without_generation(source: &str) -> String {
    let mut rest = source;
    let mut kept = String::with_capacity(source.len());
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        kept += &rest[..start];
        if !["generation", "endgeneration"].contains(&word) {
            kept += tag;
        }
        rest = &rest[start + length + 2..];
    }
    kept + rest
}

/// The error and what it comes from, on one line.
fn told(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text.replace('\n', " ")
}
