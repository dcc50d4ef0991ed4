//! Small `tokenizer.json` files of the same structure as LLaVA-1.5's and CLIP's.

use std::error::Error;

use serde_json::{Value, json};
use tokenizers::Tokenizer;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::tokenizer::Trainer;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// LLaMA's: BPE with byte fallback over text in which `▁` stands for a space, `<s>` put in front; then LLaVA's
/// `<image>` and `<pad>`. Learned on `corpus` until every word that occurs twice is one token.
pub fn llava(corpus: &[String]) -> Result<Tokenizer> {
    let words = |text: &str| {
        Ok(pieces(text).map(|(space, word)| format!("{}{word}", if space { "▁" } else { "" })).collect())
    };
    let (alphabet, merges) = learn(corpus, words, None)?;
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    vocab.extend((0..=255u8).map(|byte| format!("<0x{byte:02X}>")));
    vocab.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    vocab.extend(alphabet);
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let added = [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (vocab.len(), "<image>"), (vocab.len() + 1, "<pad>")];
    from_json(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.map(|(id, content)| special(id, content)),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": bpe(&vocab, &merges, json!({"unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true})),
    }))
}

/// CLIP's: lower-cased byte-level BPE whose words end in `</w>`, between `<|startoftext|>` and `<|endoftext|>`.
pub fn clip(corpus: &[String]) -> Result<Tokenizer> {
    let words = |text: &str| Ok(pieces(&text.to_lowercase()).map(|(_, word)| word.to_owned()).collect());
    let suffix = "</w>";
    let (_, merges) = learn(corpus, words, Some(suffix))?;
    let mut bytes: Vec<String> =
        tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet().into_iter().map(String::from).collect();
    bytes.sort();
    let mut vocab = bytes.clone();
    vocab.extend(bytes.iter().map(|byte| format!("{byte}{suffix}")));
    vocab.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let (start, end) = (vocab.len(), vocab.len() + 1);
    vocab.extend(["<|startoftext|>", "<|endoftext|>"].map(String::from));
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    from_json(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(start, "<|startoftext|>"), special(end, "<|endoftext|>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "behavior": "Removed", "invert": true, "pattern": {"Regex":
                r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"}},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
        "post_processor": {"type": "RobertaProcessing", "sep": ["<|endoftext|>", end],
            "cls": ["<|startoftext|>", start], "trim_offsets": false, "add_prefix_space": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": bpe(&vocab, &merges, json!({"unk_token": "<|endoftext|>", "end_of_word_suffix": suffix,
                                              "fuse_unk": false, "byte_fallback": false})),
    }))
}

/// Words and single marks, each with whether a space stood before it (the start of a text counts as one).
fn pieces(text: &str) -> impl Iterator<Item = (bool, &str)> {
    text.split(' ').flat_map(|chunk| {
        let mut first = true;
        let mut rest = chunk;
        std::iter::from_fn(move || {
            let letters = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
            let end = if letters == 0 { rest.chars().next()?.len_utf8() } else { letters };
            let (piece, after) = rest.split_at(end);
            rest = after;
            Some((std::mem::take(&mut first), piece))
        })
    })
}

type Merges = Vec<(String, String)>;

/// Alphabet (sorted) and merges in order.
fn learn(
    corpus: &[String],
    words: impl Fn(&str) -> Result<Vec<String>> + Sync,
    suffix: Option<&str>,
) -> Result<(Vec<String>, Merges)> {
    let mut builder = BpeTrainer::builder().show_progress(false).vocab_size(4096).min_frequency(2);
    if let Some(suffix) = suffix {
        builder = builder.end_of_word_suffix(suffix.into());
    }
    let mut trainer = builder.build();
    trainer.feed(corpus.iter(), words)?;
    let mut model = BPE::default();
    trainer.train(&mut model)?;
    let json = serde_json::to_value(&model)?;
    let merges: Merges = serde_json::from_value(json["merges"].clone())?;
    let made: std::collections::HashSet<String> = merges.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let mut alphabet: Vec<String> =
        model.get_vocab().into_keys().filter(|token| !made.contains(token)).collect();
    alphabet.sort();
    Ok((alphabet, merges))
}

fn bpe(vocab: &[String], merges: &Merges, options: Value) -> Value {
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let mut model = json!({"type": "BPE", "dropout": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "ignore_merges": false, "vocab": ids, "merges": merges});
    if let (Some(model), Value::Object(options)) = (model.as_object_mut(), options) {
        model.extend(options);
    }
    model
}

fn from_json(json: Value) -> Result<Tokenizer> {
    serde_json::to_string(&json)?.parse::<Tokenizer>()
}
