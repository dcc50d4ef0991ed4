//! The images of a folder, decoded and preprocessed several at a time within a memory budget.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock};

use sha2::{Digest, Sha256};

use super::decode::{MAX_FILE_BYTES, RgbImage, decode_with, decoded_bytes};
use super::layout::ImageShape;
use super::place::Places;
use super::process::{ImageProcessor, Pixels};
use crate::error::{Error, ImageFault, Result};
use crate::files::resolve;
use crate::pair::ImageSource;

/// Encoded and decoded bytes that [`ImageLoader::load_all`] holds at a time (finished tensors not counted).
pub const MAX_BYTES_IN_FLIGHT: u64 = 768 << 20;

/// Loads images from a folder or from bytes and preprocesses them.
#[derive(Debug)]
pub struct ImageLoader {
    root: PathBuf,
    processor: ImageProcessor,
    places: Places,
}

impl ImageLoader {
    /// A loader for the images under `root`.
    ///
    /// # Errors
    /// [`Error::Option`] if the processor's settings cannot be honoured.
    pub fn new(root: impl Into<PathBuf>, processor: ImageProcessor) -> Result<Self> {
        processor.check()?;
        Ok(Self { root: root.into(), processor, places: Places::default() })
    }

    /// How images are preprocessed.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// The folder that paths are relative to.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One image: `[3, size, size]` normalised values.
    ///
    /// # Errors
    /// [`Error::ImagePath`] for a path that leaves the folder, [`Error::Image`] for a file that is missing or unusable.
    pub fn load(&self, source: &ImageSource) -> Result<Vec<f32>> {
        self.processor.preprocess(&self.decoded(source, &self.bytes(source)?)?)
    }

    /// One image by its checkpoint's processor, whatever its shape; `alone` is as in [`ImageProcessor::shape`].
    ///
    /// # Errors
    /// As [`ImageLoader::load`], and [`Error::Image`] for one that the processor does not take.
    pub fn pixels(&self, source: &ImageSource, alone: bool) -> Result<Pixels> {
        self.processed(source, &self.decoded(source, &self.bytes(source)?)?, alone)
    }

    fn processed(&self, source: &ImageSource, image: &RgbImage, alone: bool) -> Result<Pixels> {
        let fail =
            |error: Error| Error::Image { name: source.key(), fault: ImageFault::Refused(error.to_string()) };
        self.processor.pixels(image, alone).map_err(fail)
    }

    /// What becomes of an image, by the head of its file.
    ///
    /// # Errors
    /// As [`ImageLoader::pixels`], as far as the head tells.
    pub fn shape(&self, source: &ImageSource, alone: bool) -> Result<ImageShape> {
        let fail = |fault| Error::Image { name: source.key(), fault };
        let bytes = self.bytes(source)?;
        let size = super::decode::size(&bytes, self.processor.decode).map_err(fail)?;
        self.processor.shape(size, alone).map_err(|error| fail(ImageFault::Refused(error.to_string())))
    }

    fn decoded(&self, source: &ImageSource, bytes: &[u8]) -> Result<RgbImage> {
        decode_with(bytes, self.processor.decode).map_err(|fault| Error::Image { name: source.key(), fault })
    }

    /// Decodes one image to see whether it can be, and gives the [hash](Self::content_hash) of its bytes.
    ///
    /// # Errors
    /// As [`ImageLoader::load`].
    pub fn check(&self, source: &ImageSource) -> Result<[u8; 32]> {
        let bytes = self.bytes(source)?;
        self.decoded(source, &bytes)?;
        Ok(Sha256::digest(&bytes).into())
    }

    /// Hash of the image's encoded bytes: what caches of anything made from it are keyed by.
    ///
    /// # Errors
    /// As [`ImageLoader::load`].
    pub fn content_hash(&self, source: &ImageSource) -> Result<[u8; 32]> {
        match source {
            ImageSource::Bytes(bytes) => Ok(*bytes.digest()),
            ImageSource::Place(place) => Ok(place.digest),
            ImageSource::Path(path) => Ok(Sha256::digest(self.read(path)?).into()),
        }
    }

    /// The encoded bytes of an image.
    ///
    /// # Errors
    /// As [`ImageLoader::load`].
    pub fn bytes<'a>(&self, source: &'a ImageSource) -> Result<Cow<'a, [u8]>> {
        match source {
            ImageSource::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            ImageSource::Place(place) => self.places.read(place).map(Cow::Owned),
            ImageSource::Path(path) => self.read(path).map(Cow::Owned),
        }
    }

    /// Many images on all cores, in order, by a processor whose pictures all become one square; an image that occurs several times
    /// is decoded once.
    ///
    /// At most [`MAX_BYTES_IN_FLIGHT`] bytes of pictures are held beside the results.
    pub fn load_all(&self, sources: &[ImageSource]) -> Vec<Result<Vec<f32>>> {
        if !self.processor.is_square() {
            return sources.iter().map(|source| self.load(source)).collect();
        }
        let sources: Vec<_> = sources.iter().map(|source| (source, true)).collect();
        self.pixels_of_all(&sources).into_iter().map(|pixels| pixels.map(|pixels| pixels.values)).collect()
    }

    /// The same by any processor: images, and whether each is the only one of its conversation.
    pub fn pixels_of_all(&self, sources: &[(&ImageSource, bool)]) -> Vec<Result<Pixels>> {
        let mut first = HashMap::new();
        let mut distinct = Vec::new();
        let index: Vec<usize> = sources
            .iter()
            .map(|source| {
                *first.entry(source).or_insert_with(|| {
                    distinct.push(*source);
                    distinct.len() - 1
                })
            })
            .collect();
        let mut loaded = self.load_distinct(&distinct);
        let mut left = vec![0_usize; distinct.len()];
        index.iter().for_each(|i| left[*i] += 1);
        index
            .into_iter()
            .map(|i| {
                left[i] -= 1;
                match (&loaded[i], left[i]) {
                    (_, 0) => loaded[i].take().expect("taken at its last use only"),
                    (Some(Ok(pixels)), _) => Ok(pixels.clone()),
                    // Errors hold no copy of themselves; the message is made again by looking again.
                    _ => self.pixels(distinct[i].0, distinct[i].1),
                }
            })
            .collect()
    }

    /// Threads of its own and not rayon's: one that waits for memory must not hold up work that a decoder spreads.
    fn load_distinct(&self, sources: &[(&ImageSource, bool)]) -> Vec<Option<Result<Pixels>>> {
        let loaded: Vec<OnceLock<Result<Pixels>>> = sources.iter().map(|_| OnceLock::new()).collect();
        let (next, budget) = (AtomicUsize::new(0), Budget::new(MAX_BYTES_IN_FLIGHT));
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&(source, alone)) = sources.get(index) else { break };
                loaded[index].get_or_init(|| {
                    let bytes = self.bytes(source)?;
                    let fail = |fault| Error::Image { name: source.key(), fault };
                    // RGBA and its RGB copy may be held at once, beside the file.
                    let needed = 2 * decoded_bytes(&bytes).map_err(fail)? + bytes.len() as u64;
                    let _permit = budget.take(needed);
                    self.processed(source, &self.decoded(source, &bytes)?, alone)
                });
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(sources.len());
        std::thread::scope(|scope| {
            (1..threads).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        loaded.into_iter().map(OnceLock::into_inner).collect()
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let fail = |fault| Error::Image { name: path.to_owned(), fault };
        let real = resolve(&self.root, path).map_err(|error| match error {
            Error::Io { source, .. } => fail(ImageFault::Io(source.to_string())),
            other => other,
        })?;
        let file = std::fs::File::open(&real).map_err(|error| fail(ImageFault::Io(error.to_string())))?;
        let bytes = file.metadata().map_err(|error| fail(ImageFault::Io(error.to_string())))?.len();
        if bytes > MAX_FILE_BYTES {
            return Err(fail(ImageFault::FileTooLarge { bytes, limit: MAX_FILE_BYTES }));
        }
        let mut content = Vec::with_capacity(bytes as usize);
        // The limit again, for files that are no plain files and have no length of their own.
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut content)
            .map_err(|error| fail(ImageFault::Io(error.to_string())))?;
        Ok(content)
    }
}

/// Bytes that may be used at the same time.
#[derive(Debug)]
struct Budget {
    limit: u64,
    used: Mutex<u64>,
    freed: Condvar,
}

struct Permit<'a> {
    budget: &'a Budget,
    bytes: u64,
}

impl Budget {
    fn new(limit: u64) -> Self {
        Self { limit, used: Mutex::new(0), freed: Condvar::new() }
    }

    /// Waits until `bytes` are free. More than the limit is granted to one who is alone.
    fn take(&self, bytes: u64) -> Permit<'_> {
        let bytes = bytes.min(self.limit);
        let mut used = self.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while *used > 0 && *used + bytes > self.limit {
            used = self.freed.wait(used).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *used += bytes;
        Permit { budget: self, bytes }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        *self.budget.used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) -= self.bytes;
        self.budget.freed.notify_all();
    }
}
