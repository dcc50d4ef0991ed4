//! From a question to the text that the model was trained to see.
//!
//! Sources: LLaVA `llava/conversation.py` (`vicuna_v1`, `llava_llama_2`, `plain`), the chat template of
//! `llava-hf/llava-1.5-7b-hf`, LAVIS' InstructBLIP. Images go where the questions have their tags; without tags, in front
//! of the first question, as LLaVA's `preprocess_multimodal` and the chat template set them.

use crate::error::{Error, Result};
use crate::pair::{IMAGE_TAG, Pair};
use crate::tokenizer::SpecialTokens;

/// LLaVA's system sentence.
pub const VICUNA_V1_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
     The assistant gives helpful, detailed, and polite answers to the user's questions.";
/// The wording of vicuna's own first version, found in Hugging Face's examples for llava-1.5 (`curious human`).
pub const VICUNA_HUMAN_SYSTEM: &str = "A chat between a curious human and an artificial intelligence assistant. \
     The assistant gives helpful, detailed, and polite answers to the human's questions.";
/// `llava_llama_2`'s system message.
pub const LLAVA_LLAMA_2_SYSTEM: &str = "You are a helpful language and vision assistant. \
     You are able to understand the visual content that the user provides, \
     and assist the user with a variety of tasks using natural language.";

/// How a conversation is written out.
///
/// | template | prompt for one image and the question `Q` | answer `A` |
/// |---|---|---|
/// | `VicunaV1` | `{system} USER: <image>\nQ ASSISTANT:` | ` A</s>` |
/// | `LlavaHf` | `USER: <image>\nQ ASSISTANT:` | ` A</s>` |
/// | `LlavaLlama2` | `[INST] <<SYS>>\n{system}\n<</SYS>>\n\n<image>\nQ [/INST]` | ` A </s>` |
/// | `Plain` | `<image>\nQ\n` (without a question `<image>\n`) | `A</s>` |
/// | `InstructBlip` | `Q`, the image tokens before `<s>` | ` A</s>` |
/// | `Chat` | as the checkpoint's chat template has it | and what it writes after an answer |
///
/// The end token closes the answer in every template, also where the source leaves it open (`LlavaHf`, `Plain`): a
/// model that never learns to stop cannot be compared by its answers (C). `<s>`, `</s>` and `<image>` stand for the tokens
/// that the tokenizer has for them ([`SpecialTokens`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Template {
    /// LLaVA-1.5's `vicuna_v1`.
    #[default]
    VicunaV1,
    /// The chat template of `llava-hf/llava-1.5-*-hf`: no system message of its own.
    LlavaHf,
    /// `llava_llama_2`.
    LlavaLlama2,
    /// `plain`: no roles at all.
    Plain,
    /// InstructBLIP (vicuna): the bare question; the query tokens come before everything.
    InstructBlip,
    /// The checkpoint's own chat template, in Jinja ([`ChatTemplate`](crate::ChatTemplate)).
    Chat,
}

/// A prompt ready for the tokenizer, and what goes around the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text up to the answer.
    pub prompt: String,
    /// Between prompt and answer.
    pub before: String,
    /// Between answer and end token, or, where the template is a checkpoint's own, all that it writes after an answer.
    pub after: String,
    /// Image tokens go before the whole prompt, the start token included, instead of at tags in the text.
    pub images_before: bool,
    /// The checkpoint's own template: it writes start and end tokens itself, and the tokenizer adds none.
    pub own: bool,
}

impl Rendered {
    /// The whole text with an answer, closed by `eos` unless the template is a checkpoint's own, and the bytes of it that are the
    /// answer proper.
    pub fn with_answer(&self, answer: &str, eos: &str) -> (String, std::ops::Range<usize>) {
        let start = self.prompt.len() + self.before.len();
        let eos = if self.own { "" } else { eos };
        let text = [&self.prompt, &self.before, answer, &self.after, eos].concat();
        (text, start..start + answer.len())
    }
}

impl Template {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::VicunaV1, Self::LlavaHf, Self::LlavaLlama2, Self::Plain, Self::InstructBlip, Self::Chat];

    /// Its name in configs and on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::VicunaV1 => "vicuna_v1",
            Self::LlavaHf => "llava_hf",
            Self::LlavaLlama2 => "llava_llama2",
            Self::Plain => "plain",
            Self::InstructBlip => "instruct_blip",
            Self::Chat => "chat",
        }
    }

    /// Writes out the prompt of a pair, one image token for each of its images.
    pub fn render(self, pair: &Pair, tokens: &SpecialTokens) -> Rendered {
        let SpecialTokens { bos, eos, image, .. } = tokens;
        let system = pair.system.as_deref();
        let placed = pair.tags() > 0;
        let front = match placed || self == Self::InstructBlip {
            true => String::new(),
            false => format!("{image}\n").repeat(pair.images.len()),
        };
        let users: Vec<String> = pair
            .questions()
            .enumerate()
            .map(|(turn, text)| {
                let text = text.replace(IMAGE_TAG, image);
                if turn == 0 { format!("{front}{text}") } else { text }
            })
            .collect();
        let question = &pair.prompt;
        let answers = pair.history.iter().map(|turn| turn.assistant.as_str());
        let (last, earlier) = users.split_last().expect("there is always the question");
        let mut prompt = String::new();
        let (before, after) = match self {
            Self::VicunaV1 | Self::LlavaHf => {
                let default = if self == Self::VicunaV1 { VICUNA_V1_SYSTEM } else { "" };
                let system = system.unwrap_or(default);
                if !system.is_empty() {
                    prompt += system;
                    prompt += " ";
                }
                // The chat template puts a space after an earlier answer where vicuna_v1 ends it.
                let end = if self == Self::VicunaV1 { eos } else { " " };
                for (user, answer) in earlier.iter().zip(answers) {
                    prompt += &format!("USER: {user} ASSISTANT: {answer}{end}");
                }
                prompt += &format!("USER: {last} ASSISTANT:");
                (" ", "")
            }
            Self::LlavaLlama2 => {
                let system = system.unwrap_or(LLAVA_LLAMA_2_SYSTEM);
                let mut wrapped = if system.is_empty() {
                    String::new()
                } else {
                    format!("<<SYS>>\n{system}\n<</SYS>>\n\n")
                };
                for (user, answer) in earlier.iter().zip(answers) {
                    prompt += &format!("[INST] {wrapped}{user} [/INST] {answer} {eos}{bos}");
                    wrapped.clear();
                }
                prompt += &format!("[INST] {wrapped}{last} [/INST]");
                (" ", " ")
            }
            // What `Chat` stands for is the encoder's `chat`; bare texts are all that can be said without it.
            Self::Plain | Self::Chat => {
                prompt += system.unwrap_or_default();
                for (user, answer) in earlier.iter().zip(answers) {
                    prompt += &format!("{user}\n{answer}\n");
                }
                prompt += last;
                if !question.is_empty() {
                    prompt += "\n";
                }
                ("", "")
            }
            Self::InstructBlip => {
                for text in system
                    .into_iter()
                    .chain(earlier.iter().zip(answers).flat_map(|(user, answer)| [user, answer]))
                {
                    prompt += text;
                    prompt += " ";
                }
                prompt += last;
                (" ", "")
            }
        };
        let (before, after) = (String::from(before), String::from(after));
        Rendered { prompt, before, after, images_before: self == Self::InstructBlip, own: false }
    }
}

impl std::fmt::Display for Template {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Template {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|template| template.name() == name).ok_or_else(|| Error::Option {
            name: "template",
            found: format!("{name:?}"),
            remedy: "use vicuna_v1, llava_hf, llava_llama2, plain, instruct_blip or chat",
        })
    }
}
