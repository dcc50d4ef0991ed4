//! What every format must give: texts that are there and are bare, tags that agree with the images, references that stay
//! inside.

use super::{MAX_IMAGES, count_tags};
use crate::error::{Error, RowFault};
use crate::files::check_reference;
use crate::pair::{IMAGE_TAG, ImageSource, Pair};

/// Checks the prompt of a pair; tags that all lead the first question are taken out, as LLaVA does, since the templates
/// set images there.
pub(super) fn prompt(pair: &mut Pair) -> Result<(), RowFault> {
    let (tags, images) = (pair.tags(), pair.images.len());
    if tags > 0 && tags != images {
        return Err(RowFault::ImageCount { tags, images });
    }
    if images > MAX_IMAGES {
        let found = format!("{images} images");
        return Err(RowFault::Type { key: "images".to_owned(), expected: "at most 64 images", found });
    }
    for image in &pair.images {
        if let ImageSource::Path(path) = image {
            check_reference(path).map_err(|error| match error {
                Error::ImagePath { reference, why } => RowFault::ImagePath { reference, why },
                other => RowFault::Json(other.to_string()),
            })?;
        }
    }
    if tags > 0 {
        take_leading_tags(pair, tags);
    }
    if pair.prompt.trim().is_empty() && images == 0 {
        return Err(RowFault::Empty { key: "prompt" });
    }
    for text in pair.history.iter().map(|turn| &turn.user).chain([&pair.prompt]) {
        for what in ["<video>", "<audio>"] {
            if text.contains(what) {
                return Err(RowFault::Media { key: "prompt".to_owned(), what: what.to_owned() });
            }
        }
        bare("prompt", mark_of_question(text))?;
    }
    if let Some(system) = &pair.system {
        bare("system", tag_in(system).or_else(|| mark(system)))?;
    }
    pair.history.iter().try_for_each(|turn| answer("prompt", &turn.assistant))
}

/// Checks an answer, also one of an earlier turn.
pub(super) fn answer(key: &'static str, text: &str) -> Result<(), RowFault> {
    bare(key, tag_in(text).or_else(|| mark_of_answer(text)))
}

fn take_leading_tags(pair: &mut Pair, tags: usize) {
    let first = pair.history.first_mut().map_or(&mut pair.prompt, |turn| &mut turn.user);
    let (mut rest, mut leading) = (first.trim_start(), 0);
    while let Some(behind) = rest.strip_prefix(IMAGE_TAG) {
        (rest, leading) = (behind.trim_start(), leading + 1);
    }
    if leading == tags {
        *first = rest.trim().to_owned();
    }
}

fn bare(key: &'static str, mark: Option<&str>) -> Result<(), RowFault> {
    match mark {
        Some(found) => Err(RowFault::Templated { key, found: found.to_owned() }),
        None => Ok(()),
    }
}

fn tag_in(text: &str) -> Option<&'static str> {
    (count_tags(text) > 0).then_some(IMAGE_TAG)
}

/// What templates set in front of a whole text.
const STARTS: [&str; 13] = [
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<<SYS>>",
    "<|user|>",
    "<|system|>",
    "<|assistant|>",
];
/// What they set behind one.
const ENDS: [&str; 11] = [
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "[/INST]",
    "<|assistant|>",
    "<|user|>",
];
/// What they set before a role's name, wherever it stands.
const ROLES: [(&str, [&str; 4]); 3] = [
    ("<|im_start|>", ["system", "user", "assistant", "human"]),
    ("<|start_header_id|>", ["system", "user", "assistant", "ipython"]),
    ("<start_of_turn>", ["system", "user", "model", "assistant"]),
];

/// A mark of a known template in any text. Words of ordinary texts are none: a token of a template counts where
/// templates set it, a role's name where it opens a turn.
fn mark(text: &str) -> Option<&str> {
    let text = text.trim();
    let start = STARTS.into_iter().find(|start| text.starts_with(start));
    let end = || ENDS.into_iter().find(|end| text.ends_with(end));
    let role = || {
        ROLES.into_iter().find_map(|(token, roles)| {
            let follows = |at: usize| {
                let behind = text[at + token.len()..].trim_start();
                roles.iter().any(|role| behind.starts_with(role))
            };
            text.match_indices(token).any(|(at, _)| follows(at)).then_some(token)
        })
    };
    let both = |a: &'static str, b: &str| (text.contains(a) && text.contains(b)).then_some(a);
    start.or_else(end).or_else(role).or_else(|| both("[INST]", "[/INST]")).or_else(|| turns(text))
}

/// The user's name, where both speakers open a turn with theirs: in capitals anywhere (`USER: … ASSISTANT:`, all in one
/// line as vicuna has it), else each at the start of a line.
fn turns(text: &str) -> Option<&str> {
    let opens = |name: &str, line: bool| {
        text.match_indices(name).any(|(at, _)| match text[..at].chars().next_back() {
            None | Some('\n') => true,
            Some(before) => !line && before.is_whitespace(),
        })
    };
    let pairs = [
        ("USER:", "ASSISTANT:", false),
        ("HUMAN:", "ASSISTANT:", false),
        ("User:", "Assistant:", true),
        ("Human:", "Assistant:", true),
        ("### Human:", "### Assistant:", true),
        ("### Instruction:", "### Response:", true),
    ];
    let found = pairs.iter().find(|(user, other, line)| opens(user, *line) && opens(other, *line));
    found.map(|(user, ..)| *user)
}

fn mark_of_question(text: &str) -> Option<&str> {
    let text = text.trim();
    let starts = ["### Human:", "### User:", "### Instruction:", "A chat between a curious"];
    let opens = || {
        let word = text
            .split_once(':')
            .filter(|(word, _)| word.eq_ignore_ascii_case("user") || word.eq_ignore_ascii_case("human"));
        starts.into_iter().find(|start| text.starts_with(start)).or(word.map(|(word, _)| word))
    };
    let asks = || {
        let names =
            [("ASSISTANT:", false), ("Assistant:", true), ("### Response:", true), ("### Assistant:", true)];
        names.into_iter().find_map(|(name, line)| {
            let before = text.strip_suffix(name)?.chars().next_back();
            let opens = before.is_none_or(|c| c == '\n' || (!line && c.is_whitespace()));
            opens.then_some(name)
        })
    };
    mark(text).or_else(opens).or_else(asks)
}

fn mark_of_answer(text: &str) -> Option<&str> {
    let start = text.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '*' | '#'));
    let name = || {
        let (word, _) = start.split_once([':', '：'])?;
        let name = word.trim_end_matches(|c: char| c.is_whitespace() || c == '*');
        (name.eq_ignore_ascii_case("assistant") || matches!(name, "GPT" | "ChatGPT" | "gpt" | "助手"))
            .then_some(name)
    };
    // What is left of ChatML once its tokens are taken out.
    let line = || start.starts_with("assistant\n").then_some("assistant");
    mark(text).or_else(name).or_else(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_in_a_template_are_known() {
        for text in [
            "USER: <image>\nDescribe this. ASSISTANT:",
            "<s>USER: <image>\nDescribe this.\nASSISTANT:",
            "Describe this. ASSISTANT:",
            "USER: Describe this.",
            "\n\nHuman: What is it?\n\nAssistant:",
            "User:<image>What is it?<end_of_utterance>\nAssistant:",
            "### Human: What is it?\n### Assistant:",
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n",
            "Look.<|im_start|>user\nWhat?",
            "[INST] <image>\nWhat? [/INST]",
            "[INST] What?",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat?",
            "<start_of_turn>user\nWhat?<end_of_turn>",
            "A chat between a curious user and an artificial intelligence assistant. USER: What?",
            "What?</s>",
        ] {
            assert!(mark_of_question(text).is_some(), "{text}");
        }
        for text in [
            "ASSISTANT: A dog.",
            " Assistant: A dog.",
            "assistant: A dog.",
            "**Assistant:** A dog.",
            "### Assistant: A dog.",
            "GPT: A dog.",
            "<|assistant|>\nA dog.",
            "assistant\nA dog.",
            "A dog.</s>",
            "A dog.<|im_end|>",
            "A dog.\nUSER: And?\nASSISTANT: A cat.",
            "A dog.\n\nHuman: And?\n\nAssistant: A cat.",
        ] {
            assert!(mark_of_answer(text).is_some(), "{text}");
        }
    }

    #[test]
    fn ordinary_texts_are_no_templates() {
        for text in [
            "Is this for the user: yes or no?",
            "What does the assistant: the man in white, hold?",
            "The user: a man. The assistant: a woman. Who is taller?",
            "Who is the shop assistant?",
            "Users: how many are shown?",
            "What does <b>this</b> <s>old</s> text say?",
            "Is [INST] a word on the sign?",
            "What does the token <|im_start|> on the screen mean?",
            "What follows USER: on the screen?",
            "Human beings: how many?",
            "Is it 10:30 there?",
        ] {
            assert_eq!(mark_of_question(text), None, "{text}");
        }
        for text in [
            "Assistant managers stand at the door.",
            "The assistant: a man in white. The user: a woman.",
            "An assistant: she holds a cup.",
            "A sign reads USER: admin.",
            "Model: EOS 5D. System: macOS.",
            "It reads <s>old</s> and new.",
            "The time is 10:30.",
        ] {
            assert_eq!(mark_of_answer(text), None, "{text}");
        }
    }
}
