//! One preference pair as people's files give it: texts and image references, nothing tokenised.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Marks the place of a picture in a question.
pub const IMAGE_TAG: &str = "<image>";

/// Where the picture of a pair is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageSource {
    /// A path relative to the image folder, or one inside it ([`crate::files::resolve`] refuses any that leaves it).
    Path(String),
    /// The encoded file itself (PNG, JPEG, …), as parquet tables carry it.
    Bytes(ImageBytes),
    /// A place within a file, from which the encoded picture is read when it is looked at.
    Place(ImagePlace),
}

/// An encoded picture within a file, and the hash by which it is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImagePlace {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub at: PlaceInFile,
    /// SHA-256 of the picture's bytes.
    pub digest: [u8; 32],
}

/// Where in a file an encoded picture is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlaceInFile {
    /// In a column of a parquet table.
    Table {
        /// The column.
        column: String,
        /// The row, from 0.
        row: u64,
        /// Which of the row's pictures with bytes, from 0.
        nth: u32,
    },
    /// A record of [`Records`](crate::records::Records).
    Record(u64),
}

impl PartialEq for ImagePlace {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ImagePlace {}

impl Hash for ImagePlace {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// An encoded picture in memory, and the hash by which it is known.
#[derive(Clone)]
pub struct ImageBytes {
    bytes: Arc<[u8]>,
    digest: [u8; 32],
    /// Where they were read from, if they can be read from there again.
    place: Option<Box<(PathBuf, PlaceInFile)>>,
}

impl ImageBytes {
    /// SHA-256 of the bytes.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The same, known to be in a file.
    pub fn at(mut self, file: PathBuf, at: PlaceInFile) -> Self {
        self.place = Some(Box::new((file, at)));
        self
    }

    /// Where they were read from, if they can be read from there again.
    pub fn place(&self) -> Option<ImagePlace> {
        let (file, at) = (**self.place.as_ref()?).clone();
        Some(ImagePlace { file, at, digest: self.digest })
    }
}

impl From<Vec<u8>> for ImageBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { digest: Sha256::digest(&bytes).into(), bytes: bytes.into(), place: None }
    }
}

impl Serialize for ImageBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.bytes)
    }
}

impl<'de> Deserialize<'de> for ImageBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(Self::from)
    }
}

impl Deref for ImageBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl std::fmt::Debug for ImageBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl PartialEq for ImageBytes {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ImageBytes {}

impl Hash for ImageBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

impl ImageSource {
    /// A name that tells this image from others: the path, or `sha256:` and the hash of the bytes.
    pub fn key(&self) -> String {
        match self {
            Self::Path(path) => path.clone(),
            Self::Bytes(ImageBytes { digest, .. }) | Self::Place(ImagePlace { digest, .. }) => {
                let hex = |byte: &u8| format!("{byte:02x}");
                format!("sha256:{}", digest.iter().map(hex).collect::<String>())
            }
        }
    }
}

impl From<&str> for ImageSource {
    fn from(path: &str) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<Vec<u8>> for ImageSource {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

/// An earlier exchange of the conversation, part of the prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Turn {
    /// What the user said.
    pub user: String,
    /// What the assistant answered.
    pub assistant: String,
}

/// A prompt about an image with a preferred and a dispreferred answer.
///
/// `prompt` is the bare question without template. Where questions, earlier ones included, hold `<image>` tags, each is the
/// place of one image, in order; where none does, the templates set the images in front of the first question (readers
/// take out tags that all stand there).
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Identifies the pair in messages and caches; the row number where the file gives none.
    pub id: String,
    /// A system message that replaces the template's own.
    pub system: Option<String>,
    /// Earlier exchanges, oldest first. Usually empty.
    pub history: Vec<Turn>,
    /// The question.
    pub prompt: String,
    /// The images, in order. One for nearly all data.
    pub images: Vec<ImageSource>,
    /// Other images, as many, that the chosen answer fits less well (`rejected_images`): what mDPO compares with. Usually empty.
    pub rejected_images: Vec<ImageSource>,
    /// The preferred answer.
    pub chosen: String,
    /// The dispreferred answer.
    pub rejected: String,
    /// What a reference model makes of both answers, where the file says ([`Source::logps`](crate::Source::logps)).
    pub logps: Option<PairLogps>,
}

/// Log-probabilities of a pair's answers under a reference model, as RLAIF-V keeps them.
#[derive(Debug, Clone, PartialEq)]
pub struct PairLogps {
    /// Of the chosen answer.
    pub chosen: AnswerLogps,
    /// Of the rejected answer.
    pub rejected: AnswerLogps,
}

/// Log-probabilities (natural logarithms) of an answer's tokens, those of the end token included.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerLogps {
    /// Tokens that count: RLAIF-V's sum divided by its mean.
    pub tokens: usize,
    /// Of every position; the last `tokens` of them are the answer's.
    pub values: Vec<f32>,
}

impl Pair {
    /// A pair without images, system message or history.
    pub fn new(
        id: impl Into<String>,
        prompt: impl Into<String>,
        chosen: impl Into<String>,
        rejected: impl Into<String>,
    ) -> Self {
        Self {
            id: id.into(),
            system: None,
            history: Vec::new(),
            prompt: prompt.into(),
            images: Vec::new(),
            rejected_images: Vec::new(),
            chosen: chosen.into(),
            rejected: rejected.into(),
            logps: None,
        }
    }

    /// The same pair with one more image.
    pub fn with_image(mut self, image: impl Into<ImageSource>) -> Self {
        self.images.push(image.into());
        self
    }

    /// Whether the answers are the same text, white space around them not counted: such a pair prefers nothing, and every
    /// path drops and counts it.
    pub fn has_equal_answers(&self) -> bool {
        self.chosen.trim() == self.rejected.trim()
    }

    /// The questions, oldest first.
    pub fn questions(&self) -> impl Iterator<Item = &str> {
        self.history.iter().map(|turn| turn.user.as_str()).chain([self.prompt.as_str()])
    }

    /// Number of `<image>` tags in the questions: that of the images, or none.
    pub fn tags(&self) -> usize {
        self.questions().map(|text| text.matches(IMAGE_TAG).count()).sum()
    }

    /// Hash of the texts and images; the id is not part of it.
    pub fn content_hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(if self.system.is_some() { "1" } else { "0" });
        add(self.system.as_deref().unwrap_or_default());
        add(&self.history.len().to_string());
        for turn in &self.history {
            add(&turn.user);
            add(&turn.assistant);
        }
        add(&self.prompt);
        add(&self.chosen);
        add(&self.rejected);
        add(&self.images.len().to_string());
        for image in self.images.iter().chain(&self.rejected_images) {
            add(&image.key());
        }
        hash.finalize().into()
    }
}
