//! Shared by the tests: where the oracle lies, and a small tokenizer of LLaVA's kind.

use std::path::PathBuf;

use aspo_data::{SpecialTokens, Tokenizer};
use serde_json::{Value, json};

/// A folder of the oracle: from `ASPO_ORACLE`, else beside the workspace, else `None` with a printed line.
pub fn oracle(folder: &str) -> Option<PathBuf> {
    let root = std::env::var_os("ASPO_ORACLE")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/oracle")), PathBuf::from);
    let folder = root.join(folder);
    if folder.is_dir() {
        return Some(folder);
    }
    println!("skipped: no oracle at {}", folder.display());
    None
}

/// A LLaMA-style `tokenizer.json` in miniature: BPE with byte fallback, `▁` prepended and replaced, `<s>` in front.
pub fn tiny_tokenizer_json() -> Value {
    let words = ["the", "dog", "cat", "runs", "there", "are", "two", "image", "ing"];
    let mut vocab: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    vocab.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    vocab.push("▁".to_owned());
    vocab.extend((' '..='~').skip(1).map(String::from));
    let mut merges: Vec<String> = Vec::new();
    for word in words {
        let mut left = String::new();
        for letter in word.chars() {
            if !left.is_empty() {
                let merge = format!("{left} {letter}");
                if !merges.contains(&merge) {
                    merges.push(merge);
                }
            }
            left.push(letter);
            if !vocab.contains(&left) {
                vocab.push(left.clone());
            }
        }
        let merge = format!("▁ {word}");
        merges.push(merge);
        vocab.push(format!("▁{word}"));
    }
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let special = |id: usize, token: &str| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>"),
                         special(vocab.len(), "<image>"), special(vocab.len() + 1, "<pad>")],
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
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": ids, "merges": merges},
    })
}

pub fn tiny_tokenizer() -> Tokenizer {
    let json = serde_json::to_vec(&tiny_tokenizer_json()).unwrap();
    Tokenizer::from_bytes(&json, "tiny", SpecialTokens::default()).unwrap()
}
