//! Shared by the tests: where the oracle lies, and a small tokenizer of LLaVA's kind.

use std::path::PathBuf;

use aspo_data::{SpecialTokens, Tokenizer};
use serde_json::Value;

/// A folder of the oracle: in the one that `ASPO_ORACLE` names, `None` where it has no such; unset, the copy committed with
/// the crate.
pub fn oracle(folder: &str) -> Option<PathBuf> {
    match std::env::var_os("ASPO_ORACLE") {
        Some(root) => Some(PathBuf::from(root).join(folder)).filter(|folder| folder.is_dir()),
        None => Some(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(folder)),
    }
}

/// A LLaMA-style `tokenizer.json` in miniature: BPE with byte fallback, `▁` prepended and replaced, `<s>` in front. The
/// `expected.json` beside it was made with Hugging Face's `tokenizers` from Python.
pub fn tiny_tokenizer_json() -> Value {
    serde_json::from_str(include_str!("../fixtures/tokenizer/tokenizer.json")).unwrap()
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
