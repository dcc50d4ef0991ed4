//! A `tokenizer.json` with the special tokens that preference data needs.

use std::path::Path;

use crate::error::{Error, Result};

/// Token ids of a text, with the bytes that each covers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tokens {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Bytes `(start, end)` of the text under each token; `(0, 0)` for tokens that the tokenizer added.
    pub offsets: Vec<(usize, usize)>,
}

/// Names of the tokens with a meaning of their own. The defaults are those of LLaVA-1.5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Starts a text. Default `<s>`; required by a template that writes it between turns (`llava_llama2`).
    pub bos: String,
    /// Ends an answer. Default `</s>`; required.
    pub eos: String,
    /// Fills short rows (its positions are masked). Default `<pad>`; a tokenizer without it pads with `eos`.
    pub pad: String,
    /// Stands for an image in the prompt. Default `<image>`; required once a pair has an image.
    pub image: String,
}

impl Default for SpecialTokens {
    fn default() -> Self {
        Self {
            bos: "<s>".to_owned(),
            eos: "</s>".to_owned(),
            pad: "<pad>".to_owned(),
            image: "<image>".to_owned(),
        }
    }
}

impl SpecialTokens {
    /// The names in a folder's `tokenizer_config.json`; LLaVA's for those that it does not give, or without the file.
    ///
    /// # Errors
    /// [`Error::Stored`] for a file that is no JSON object.
    pub fn of_checkpoint(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let mut names = Self::default();
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(names),
            Err(source) => return Err(Error::io(path, source)),
        };
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| Error::Stored { path, why: format!("not a JSON object: {error}") })?;
        // A text, or an object that holds it.
        let token = |key: &str| {
            let value = json.get(key)?;
            value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
        };
        let set = |name: &mut String, key: &str| *name = token(key).unwrap_or_else(|| std::mem::take(name));
        set(&mut names.bos, "bos_token");
        set(&mut names.eos, "eos_token");
        set(&mut names.pad, "pad_token");
        Ok(names)
    }
}

/// A tokenizer loaded from Hugging Face's `tokenizer.json`.
///
/// Truncation and padding that the file may carry are switched off: both are this crate's own to do.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    names: SpecialTokens,
    name: String,
    hash: [u8; 32],
    eos: u32,
    pad: u32,
    image: Option<u32>,
    /// All special tokens of the file, which texts of users may not contain.
    special: Vec<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` with LLaVA's names of special tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the file is none or lacks `</s>`.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        Self::from_bytes(&bytes, &path.display().to_string(), SpecialTokens::default())
    }

    /// Reads a `tokenizer.json` for the model of a checkpoint folder: names of special tokens are those of the folder's
    /// `tokenizer_config.json`, where it has them, else LLaVA's; the image token is the one with the id `image`.
    ///
    /// # Errors
    /// As [`Tokenizer::from_file`], and [`Error::Stored`] for a `tokenizer_config.json` that is no JSON.
    pub fn for_checkpoint(path: &Path, folder: &Path, image: u32) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::io(path, source))?;
        let mut names = SpecialTokens::of_checkpoint(folder)?;
        let name = path.display().to_string();
        let plain =
            std::str::from_utf8(&bytes).ok().and_then(|text| text.parse::<tokenizers::Tokenizer>().ok());
        // A word of the text is no image token: the tokenizer is another model's then.
        if let Some(token) = plain.and_then(|plain| plain.get_added_tokens_decoder().remove(&image)) {
            names.image = token.content;
        }
        Self::from_bytes(&bytes, &name, names)
    }

    /// The same from the file's content; `name` is used in messages.
    pub fn from_bytes(bytes: &[u8], name: &str, names: SpecialTokens) -> Result<Self> {
        let fail = |why: String| Error::Tokenizer { name: name.to_owned(), why };
        let text = std::str::from_utf8(bytes).map_err(|_| fail("it is not UTF-8".to_owned()))?;
        let mut inner: tokenizers::Tokenizer =
            text.parse().map_err(|error| fail(format!("not a tokenizer.json: {error}")))?;
        inner.with_truncation(None).map_err(|error| fail(error.to_string()))?;
        inner.with_padding(None);
        let eos = inner
            .token_to_id(&names.eos)
            .ok_or_else(|| fail(format!("it has no token {:?} to end an answer: name its own", names.eos)))?;
        let pad = inner.token_to_id(&names.pad).unwrap_or(eos);
        let image = inner.token_to_id(&names.image);
        // Those with a name here too, whatever the file calls special.
        let named = [&names.bos, &names.eos, &names.pad, &names.image];
        let mut special: Vec<String> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special || named.contains(&&token.content))
            .map(|token| token.content)
            .collect();
        special.sort_unstable();
        let hash = <sha2::Sha256 as sha2::Digest>::digest(bytes).into();
        Ok(Self { inner, names, name: name.to_owned(), hash, eos, pad, image, special })
    }

    /// Id of the token that starts a text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer has none.
    pub fn bos(&self) -> Result<u32> {
        self.inner.token_to_id(&self.names.bos).ok_or_else(|| Error::Tokenizer {
            name: self.name.clone(),
            why: format!("it has no token {:?} to start a text: name its own", self.names.bos),
        })
    }

    /// Id of the token that ends an answer.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Id that fills short rows.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// Id of the token that stands for an image.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer has none.
    pub fn image(&self) -> Result<u32> {
        self.image.ok_or_else(|| Error::Tokenizer {
            name: self.name.clone(),
            why: format!("it has no token {:?} to stand for an image: add it", self.names.image),
        })
    }

    /// The names of the special tokens.
    pub fn names(&self) -> &SpecialTokens {
        &self.names
    }

    /// Number of ids, added tokens included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// SHA-256 of the file.
    pub fn content_hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Tokens of a text with byte offsets; `special` adds what the post-processor adds (`<s>` in front).
    pub fn encode(&self, text: &str, special: bool) -> Result<Tokens> {
        let encoding = self.inner.encode(text, special).map_err(|error| self.fail(&error))?;
        Ok(Tokens { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// The text of token ids; `skip_special` leaves special tokens out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| self.fail(&error))
    }

    /// The first special token that the text spells out, if any: it would be read as that token.
    pub fn special_in(&self, text: &str) -> Option<&str> {
        self.special.iter().map(String::as_str).find(|token| !token.is_empty() && text.contains(token))
    }

    /// The wrapped tokenizer.
    pub fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    fn fail(&self, error: &tokenizers::Error) -> Error {
        Error::Tokenizer { name: self.name.clone(), why: error.to_string() }
    }
}
