//! Shared by the tests: where the oracle lies, and a small tokenizer of LLaVA's kind.

use std::path::PathBuf;

use aspo_data::{SpecialTokens, Tokenizer};
use serde_json::{Value, json};

/// A folder of the oracle: from `ASPO_ORACLE`; unset, the copy committed with the crate, else the one beside the
/// workspace, else `None` with a printed line.
pub fn oracle(folder: &str) -> Option<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let roots = match std::env::var_os("ASPO_ORACLE") {
        Some(root) => vec![PathBuf::from(root)],
        None => vec![here.join("tests/fixtures"), here.join("../../../shared/oracle")],
    };
    let found = roots.iter().map(|root| root.join(folder)).find(|folder| folder.is_dir());
    if found.is_none() {
        println!("skipped: no {folder} in {roots:?}");
    }
    found
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

/// A PNG of one colour.
pub fn png(width: u32, height: u32, colour: [u8; 3]) -> Vec<u8> {
    let image = image::RgbImage::from_pixel(width, height, image::Rgb(colour));
    encode(image::DynamicImage::ImageRgb8(image), image::ImageFormat::Png)
}

/// An encoded picture.
pub fn encode(image: image::DynamicImage, format: image::ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}
