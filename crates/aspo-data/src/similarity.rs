//! How well each sentence of an answer fits the image: CLIP's cosine, the paper's `S_i` before min-max.
//!
//! CLIP's text tower ends at 77 tokens. A longer sentence is cut into as few windows as possible of nearly equal length,
//! each closed by the tower's own start and end tokens, and scored by the mean of their cosines (C); such sentences are
//! counted, never silently cut. About several images, a sentence has the largest of its scores: it may be about any one of
//! them (C). Scores of a whole set are kept in a file of records, by the set, its pictures, the model, and how either is
//! brought before it.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::encode::EncodedPair;
use crate::error::{Error, Result};
use crate::image::ImageLoader;
use crate::pair::ImageSource;
use crate::records::{Records, key_of};
use crate::set::{PairSet, Scores, from_bytes, to_bytes};
use crate::tokenizer::Tokenizer;

/// Positions of CLIP's text tower.
pub const CLIP_WINDOW: usize = 77;

/// What scoring needs beside the pairs and the two embeddings.
#[derive(Debug)]
pub struct Scorer<'a> {
    /// Loads images for CLIP: its own processor, not the trained model's.
    pub images: &'a ImageLoader,
    /// CLIP's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Hash of the CLIP checkpoint: scores of another are not taken from the cache.
    pub model: String,
    /// Longest input of the text tower, start and end tokens included. [`CLIP_WINDOW`].
    pub window: usize,
    /// Images, or windows, embedded at a time.
    pub batch: usize,
    /// Score rejected answers too (ASPO weights chosen sentences only).
    pub rejected: bool,
}

/// What scoring did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SimilarityReport {
    /// Sentences scored; one about several images counts for each.
    pub sentences: usize,
    /// Of these, taken from the file (or the same sentence about the same image).
    pub cached: usize,
    /// Sentences longer than one window.
    pub windowed: usize,
    /// Images embedded.
    pub images: usize,
}

impl SimilarityReport {
    /// Adds what was done for other pairs.
    pub fn add(&mut self, other: Self) {
        self.sentences += other.sentences;
        self.cached += other.cached;
        self.windowed += other.windowed;
        self.images += other.images;
    }
}

/// Embeds a batch: one vector for each input.
pub type Embed<'f, T> = dyn FnMut(&[T]) -> std::result::Result<Vec<Vec<f32>>, String> + 'f;

/// Vectors of images that were embedded, by content: pairs about one image need not stand together.
#[derive(Debug, Default)]
pub struct ImageVectors(HashMap<[u8; 32], Vec<f32>>);

/// Most vectors that are kept.
const KEPT_VECTORS: usize = 4096;

/// A sentence of a pair that waits for its score.
struct Slot {
    pair: usize,
    rejected: bool,
    sentence: usize,
    image: usize,
    text: String,
}

/// The sentences of some pairs, the images that they are about, and a hash of each.
struct Slots {
    slots: Vec<Slot>,
    images: Vec<ImageSource>,
    hashes: Vec<[u8; 32]>,
}

impl Slot {
    fn key(&self) -> (usize, &str) {
        (self.image, &self.text)
    }
}

impl Scorer<'_> {
    /// A set with the scores of its sentences, which are read from, or made in, a file of this folder; `pictures` is a hash of
    /// what is in the set's images. Without a folder the pairs are held in memory.
    ///
    /// # Errors
    /// As [`score`](Self::score); [`Error::Io`].
    pub fn score_set(
        &self,
        set: &PairSet,
        kept: Option<(&Path, &str)>,
        embed_images: &mut Embed<'_, Vec<f32>>,
        embed_texts: &mut Embed<'_, Vec<u32>>,
    ) -> Result<(PairSet, SimilarityReport)> {
        let mut vectors = ImageVectors::default();
        let Some((folder, pictures)) = kept else {
            let mut pairs = set.iter().collect::<Result<Vec<_>>>()?;
            let report = self.score(&mut pairs, &mut vectors, embed_images, embed_texts)?;
            return Ok((pairs.into(), report));
        };
        let key = key_of(&format!(
            "similarity 3 {} {:x?} {} {} {} {} {pictures}",
            self.model,
            self.tokenizer.content_hash(),
            self.images.processor().rules(),
            self.window,
            self.rejected,
            set.hash()
        ));
        let path = folder.join(format!("similarity-{key:.16}.records"));
        let mut made = None;
        let records = Records::open_or(&path, &key, |writer| {
            let mut report = SimilarityReport::default();
            // A few hundred pairs at a time: memory does not grow with the data.
            while writer.len() < set.len() {
                let next = writer.len()..set.len().min(writer.len() + 4 * self.batch);
                let mut pairs = set.get_all(next)?;
                let part = self.score(&mut pairs, &mut vectors, embed_images, embed_texts)?;
                report.add(part);
                for pair in pairs {
                    let scores =
                        Scores { chosen: pair.chosen.similarity, rejected: pair.rejected.similarity };
                    writer.push(0, &to_bytes(&scores))?;
                }
                writer.sync()?;
            }
            made = Some(report);
            Ok::<_, Error>(to_bytes(&report))
        })?;
        let report = match made {
            Some(report) => report,
            None => {
                let report: SimilarityReport = from_bytes(&records, records.note())?;
                SimilarityReport { cached: report.sentences, images: 0, ..report }
            }
        };
        Ok((set.clone().with_scores(records), report))
    }

    /// Fills `similarity` of the answers of every pair that has an image; of several images the best-fitting one counts.
    ///
    /// `embed_images` gets preprocessed pixels, `embed_texts` token ids with start and end token; their vectors need not
    /// be normalised. Images that are in `vectors` are not embedded again.
    ///
    /// # Errors
    /// [`Error::Image`] for an image that cannot be loaded; [`Error::Callback`] when an embedding fails, has the wrong
    /// number or length of vectors, or is not finite; [`Error::Option`] for a window without room.
    pub fn score(
        &self,
        pairs: &mut [EncodedPair],
        vectors: &mut ImageVectors,
        embed_images: &mut Embed<'_, Vec<f32>>,
        embed_texts: &mut Embed<'_, Vec<u32>>,
    ) -> Result<SimilarityReport> {
        if self.batch == 0 {
            return Err(Error::Option { name: "batch", found: "0".to_owned(), remedy: "use 1 or more" });
        }
        let mut report = SimilarityReport::default();
        for chunk in pairs.chunks_mut(4 * self.batch) {
            self.score_chunk(chunk, vectors, embed_images, embed_texts, &mut report)?;
        }
        Ok(report)
    }

    fn score_chunk(
        &self,
        pairs: &mut [EncodedPair],
        vectors: &mut ImageVectors,
        embed_images: &mut Embed<'_, Vec<f32>>,
        embed_texts: &mut Embed<'_, Vec<u32>>,
        report: &mut SimilarityReport,
    ) -> Result<()> {
        let Slots { slots, images, hashes } = self.slots(pairs)?;
        report.sentences += slots.len();
        let mut scores: HashMap<(usize, &str), f32> = HashMap::new();
        let mut missing: Vec<&Slot> = Vec::new();
        for slot in &slots {
            // The same sentence about the same image may come twice.
            match scores.insert(slot.key(), f32::NAN) {
                Some(_) => report.cached += 1,
                None => missing.push(slot),
            }
        }
        self.embed_images(&images, &hashes, vectors, embed_images, report)?;
        let (windows, counts) = self.windows(pairs, &missing, report)?;
        let mut text_vectors = Vec::with_capacity(windows.len());
        for batch in windows.chunks(self.batch) {
            text_vectors.extend(checked("text embedding", embed_texts(batch), batch.len())?);
        }
        let mut texts = text_vectors.iter();
        for (slot, count) in missing.iter().zip(counts) {
            let image = &vectors.0[&hashes[slot.image]];
            let sum = texts.by_ref().take(count).map(|text| cosine(text, image)).sum::<Result<f64>>()?;
            let score = (sum / count as f64) as f32;
            scores.insert(slot.key(), score);
        }
        for pair in pairs.iter_mut().filter(|pair| !pair.images.is_empty()) {
            pair.chosen.similarity.clear();
            pair.rejected.similarity.clear();
        }
        for slot in &slots {
            let pair = &mut pairs[slot.pair];
            let answer = if slot.rejected { &mut pair.rejected } else { &mut pair.chosen };
            let score = scores[&slot.key()];
            match answer.similarity.get_mut(slot.sentence) {
                Some(best) => *best = best.max(score),
                None => answer.similarity.push(score),
            }
        }
        Ok(())
    }

    fn slots(&self, pairs: &[EncodedPair]) -> Result<Slots> {
        let mut images: Vec<ImageSource> = Vec::new();
        let mut hashes = Vec::new();
        let mut known: HashMap<&ImageSource, usize> = HashMap::new();
        let mut slots = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            for source in &pair.images {
                let image = match known.get(source) {
                    Some(image) => *image,
                    None => {
                        // The same picture under two names is one.
                        let hash = self.images.content_hash(source)?;
                        let image = hashes.iter().position(|known| *known == hash).unwrap_or(images.len());
                        if image == images.len() {
                            hashes.push(hash);
                            images.push(source.clone());
                        }
                        known.insert(source, image);
                        image
                    }
                };
                for (rejected, answer) in [(false, &pair.chosen), (true, &pair.rejected)] {
                    if rejected && !self.rejected {
                        continue;
                    }
                    for (sentence, text) in answer.sentence_texts().enumerate() {
                        let text = text.trim().to_owned();
                        slots.push(Slot { pair: index, rejected, sentence, image, text });
                    }
                }
            }
        }
        Ok(Slots { slots, images, hashes })
    }

    fn embed_images(
        &self,
        images: &[ImageSource],
        hashes: &[[u8; 32]],
        ImageVectors(vectors): &mut ImageVectors,
        embed: &mut Embed<'_, Vec<f32>>,
        report: &mut SimilarityReport,
    ) -> Result<()> {
        if vectors.len() > KEPT_VECTORS {
            vectors.retain(|hash, _| hashes.contains(hash));
        }
        let wanted: Vec<usize> = (0..images.len()).filter(|&at| !vectors.contains_key(&hashes[at])).collect();
        for batch in wanted.chunks(self.batch) {
            let sources: Vec<ImageSource> = batch.iter().map(|image| images[*image].clone()).collect();
            let pixels = self.images.load_all(&sources).into_iter().collect::<Result<Vec<_>>>()?;
            let embedded = checked("image embedding", embed(&pixels), batch.len())?;
            vectors.extend(batch.iter().map(|&image| hashes[image]).zip(embedded));
        }
        report.images += wanted.len();
        Ok(())
    }

    /// The windows of all sentences one after another, and how many each has.
    fn windows(
        &self,
        pairs: &[EncodedPair],
        missing: &[&Slot],
        report: &mut SimilarityReport,
    ) -> Result<(Vec<Vec<u32>>, Vec<usize>)> {
        let mut windows = Vec::new();
        let mut counts = Vec::with_capacity(missing.len());
        for slot in missing {
            let pair = &pairs[slot.pair];
            let answer = if slot.rejected { &pair.rejected } else { &pair.chosen };
            let text = answer.text[answer.spans[slot.sentence].clone()].trim();
            let found = text_windows(self.tokenizer, text, self.window)?;
            report.windowed += usize::from(found.len() > 1);
            counts.push(found.len());
            windows.extend(found);
        }
        Ok((windows, counts))
    }
}

/// The token windows of a text: one where it fits, else as few as possible, their lengths differing by at most one,
/// each with the tokens that the tokenizer sets around a text.
///
/// # Errors
/// [`Error::Option`] when `window` leaves no room for a token between those; [`Error::Tokenizer`] for a tokenizer that
/// reads a text otherwise without them, so that there is no telling which they are.
pub fn text_windows(tokenizer: &Tokenizer, text: &str, window: usize) -> Result<Vec<Vec<u32>>> {
    let whole = tokenizer.encode(text, true)?.ids;
    if whole.len() <= window {
        return Ok(vec![whole]);
    }
    let bare = tokenizer.encode(text, false)?.ids;
    let Some(start) = whole.windows(bare.len().max(1)).position(|part| part == bare) else {
        return Err(Error::Tokenizer {
            name: "of the similarity model".to_owned(),
            why: format!(
                "with start and end token it reads {text:?} otherwise than without: use CLIP's own tokenizer"
            ),
        });
    };
    let (before, after) = (&whole[..start], &whole[start + bare.len()..]);
    let Some(room) = window.checked_sub(before.len() + after.len()).filter(|room| *room > 0) else {
        return Err(Error::Option { name: "window", found: window.to_string(), remedy: "use CLIP's 77" });
    };
    let count = bare.len().div_ceil(room);
    Ok((0..count)
        .map(|index| {
            let part = &bare[index * bare.len() / count..(index + 1) * bare.len() / count];
            [before, part, after].concat()
        })
        .collect())
}

fn checked(
    what: &'static str,
    vectors: std::result::Result<Vec<Vec<f32>>, String>,
    count: usize,
) -> Result<Vec<Vec<f32>>> {
    let vectors = vectors.map_err(|why| Error::Callback { what, why })?;
    if vectors.len() != count {
        let why = format!("{} vectors for {count} inputs", vectors.len());
        return Err(Error::Callback { what, why });
    }
    Ok(vectors)
}

fn cosine(a: &[f32], b: &[f32]) -> Result<f64> {
    let fail = |why: String| Err(Error::Callback { what: "embedding", why });
    if a.len() != b.len() {
        return fail(format!("a text vector of {} numbers, an image vector of {}", a.len(), b.len()));
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    if !cosine.is_finite() {
        return fail("a vector is zero or not finite".to_owned());
    }
    Ok(cosine.clamp(-1.0, 1.0))
}
