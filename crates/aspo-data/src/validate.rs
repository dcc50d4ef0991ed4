//! An account of a file of pairs: what is in it, what is wrong with it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use aspo_segment::SplitOptions;
use sha2::{Digest, Sha256};

use crate::corpus::OnFault;
use crate::encode::Encoder;
use crate::error::{Error, PairFault, Result, RowFault};
use crate::files::resolve;
use crate::image::{ImageLoader, decode};
use crate::pair::{ImageSource, Pair};
use crate::read::{Format, read_pairs, read_pairs_as};

/// What is checked.
#[derive(Debug, Default)]
pub struct ValidateOptions<'a> {
    /// The format; recognised where not given.
    pub format: Option<Format>,
    /// Folder of the images: their files are looked for. Without it only references are checked.
    pub image_root: Option<PathBuf>,
    /// Decode every image instead of only looking for its file.
    pub decode_images: bool,
    /// Encode every pair, for token lengths and truncation.
    pub encoder: Option<&'a Encoder>,
    /// How answers are split into sentences.
    pub split: SplitOptions,
    /// Stop with the first fault as an error, or go on and count. Duplicates are no fault.
    pub on_fault: OnFault,
}

/// Least, mean, median, 95th percentile and largest of some lengths.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: u32,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: u32,
    /// 95 of 100 are at most this.
    pub p95: u32,
    /// Largest.
    pub max: u32,
}

impl Spread {
    fn of(mut values: Vec<u32>) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_unstable();
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64;
        Self { min: at(0.0), mean, median: at(0.5), p95: at(0.95), max: at(1.0) }
    }
}

/// A kind of fault: how often, and the first few in words.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct FaultCount {
    /// Rows with it.
    pub count: usize,
    /// The first rows.
    pub examples: Vec<String>,
}

/// Examples told of each kind of fault.
const EXAMPLES: usize = 3;

/// The account.
#[derive(Debug, Clone, PartialEq, Default, serde::Serialize)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: String,
    /// Rows read.
    pub rows: usize,
    /// Rows without a fault.
    pub sound: usize,
    /// Faults by kind.
    pub faults: BTreeMap<String, FaultCount>,
    /// Characters of the prompt.
    pub prompt_chars: Spread,
    /// Characters of the chosen answer.
    pub chosen_chars: Spread,
    /// Characters of the rejected answer.
    pub rejected_chars: Spread,
    /// Sentences of the chosen answer.
    pub chosen_sentences: Spread,
    /// Sentences of the rejected answer.
    pub rejected_sentences: Spread,
    /// Tokens of prompt and longer answer, where an encoder was given.
    pub tokens: Option<Spread>,
    /// Answers that lose their end, where an encoder was given.
    pub truncated: usize,
    /// Sound rows that repeat an earlier one in everything but the id.
    pub duplicates: usize,
    /// Sound rows that repeat an earlier question about the same image, with other answers.
    pub repeated_questions: usize,
    /// Rows without an image.
    pub without_image: usize,
    /// Distinct images.
    pub images: usize,
}

impl Report {
    /// Rows with a fault.
    pub fn faulty(&self) -> usize {
        self.rows - self.sound
    }
}

/// Reads a whole file and gives an account of it. Memory grows by some 100 bytes a row, not with what rows hold.
///
/// # Errors
/// [`Error::File`] and [`Error::Io`] when the file as a whole cannot be read; with [`OnFault::Stop`] the first fault.
pub fn validate(path: &Path, options: &ValidateOptions<'_>) -> Result<Report> {
    let mut pairs = match options.format {
        Some(format) => read_pairs_as(path, format)?,
        None => read_pairs(path)?,
    };
    let loader = match (&options.image_root, options.encoder) {
        (Some(root), _) => Some(ImageLoader::new(root, crate::ImageProcessor::default())?),
        _ => None,
    };
    let mut report =
        Report { path: path.to_owned(), format: pairs.format().to_string(), ..Report::default() };
    let mut lengths: [Vec<u32>; 6] = Default::default();
    let (mut seen, mut questions, mut images, mut checked_images) =
        (HashSet::new(), HashSet::new(), HashSet::new(), HashSet::new());
    while let Some(pair) = pairs.next() {
        report.rows += 1;
        let row = pairs.row();
        let checked = pair.and_then(|pair| {
            let length = check(path, row, &pair, options, loader.as_ref(), &mut checked_images, &mut report)?;
            Ok((pair, length))
        });
        let (pair, length) = match checked {
            Ok(found) => found,
            Err(error) if options.on_fault == OnFault::Skip && error.is_one_row() => {
                let count = report.faults.entry(kind(&error).to_owned()).or_default();
                count.count += 1;
                if count.examples.len() < EXAMPLES {
                    count.examples.push(error.to_string());
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        report.sound += 1;
        let chars = |text: &str| text.chars().count() as u32;
        let sentences = |text: &str| aspo_segment::split(text, &options.split).count() as u32;
        for (list, length) in lengths.iter_mut().zip([
            chars(&pair.prompt),
            chars(&pair.chosen),
            chars(&pair.rejected),
            sentences(&pair.chosen),
            sentences(&pair.rejected),
        ]) {
            list.push(length);
        }
        lengths[5].extend(length);
        report.without_image += usize::from(pair.images.is_empty());
        images.extend(pair.images.iter().map(|image| short(&Sha256::digest(image.key()))));
        let new_question = questions.insert(short(&question_hash(&pair)));
        if !seen.insert(short(&pair.content_hash())) {
            report.duplicates += 1;
        } else if !new_question {
            report.repeated_questions += 1;
        }
    }
    report.images = images.len();
    let [prompt, chosen, rejected, chosen_sentences, rejected_sentences, tokens] = lengths.map(Spread::of);
    report.prompt_chars = prompt;
    report.chosen_chars = chosen;
    report.rejected_chars = rejected;
    report.chosen_sentences = chosen_sentences;
    report.rejected_sentences = rejected_sentences;
    report.tokens = options.encoder.map(|_| tokens);
    Ok(report)
}

/// The checks beyond reading; the token length where an encoder is given.
fn check(
    path: &Path,
    row: usize,
    pair: &Pair,
    options: &ValidateOptions<'_>,
    loader: Option<&ImageLoader>,
    known: &mut HashSet<[u8; 16]>,
    report: &mut Report,
) -> Result<Option<u32>> {
    if pair.chosen == pair.rejected {
        return Err(Error::row(path, row, RowFault::Equal));
    }
    for image in &pair.images {
        check_image(image, options, loader, known).map_err(|error| match error {
            Error::Image { name, fault } => Error::row(path, row, RowFault::Image { name, fault }),
            Error::ImagePath { reference, why } => {
                Error::row(path, row, RowFault::ImagePath { reference, why })
            }
            other => other,
        })?;
    }
    let Some(encoder) = options.encoder else { return Ok(None) };
    let encoded = encoder.encode(pair)?;
    report.truncated += usize::from(encoded.chosen.truncated) + usize::from(encoded.rejected.truncated);
    Ok(Some(encoded.length() as u32))
}

fn check_image(
    image: &ImageSource,
    options: &ValidateOptions<'_>,
    loader: Option<&ImageLoader>,
    known: &mut HashSet<[u8; 16]>,
) -> Result<()> {
    let key = image.key();
    let hash = short(&Sha256::digest(&key));
    if known.contains(&hash) {
        return Ok(());
    }
    let fail = |fault| Error::Image { name: key.clone(), fault };
    match (image, loader) {
        (ImageSource::Bytes(bytes), _) if options.decode_images => drop(decode(bytes).map_err(fail)?),
        (ImageSource::Path(_), Some(loader)) if options.decode_images => {
            drop(decode(&loader.bytes(image)?).map_err(fail)?);
        }
        (ImageSource::Path(path), Some(loader)) => {
            resolve(loader.root(), path).map_err(|error| match error {
                Error::Io { source, .. } => fail(crate::ImageFault::Io(source.to_string())),
                other => other,
            })?;
        }
        _ => {}
    }
    known.insert(hash);
    Ok(())
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Row { fault, .. } => fault.kind(),
        Error::Pair { fault, .. } => match fault {
            PairFault::NoRoom { .. } => "no-room",
            PairFault::Empty { .. } => "empty",
            PairFault::SpecialToken { .. } => "special-token",
            PairFault::ImageCount { .. } => "image-count",
            PairFault::Sentences(_) => "sentences",
            PairFault::Tokenizer(_) => "tokenizer",
        },
        _ => "other",
    }
}

fn question_hash(pair: &Pair) -> [u8; 32] {
    Pair { chosen: String::new(), rejected: String::new(), ..pair.clone() }.content_hash()
}

fn short(hash: &[u8]) -> [u8; 16] {
    hash[..16].try_into().expect("a hash has 32 bytes")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {}, {} rows, {} sound, {} faulty",
            self.path.display(),
            self.format,
            self.rows,
            self.sound,
            self.faulty()
        )?;
        for (kind, fault) in &self.faults {
            writeln!(f, "  {kind}: {}", fault.count)?;
            for example in &fault.examples {
                writeln!(f, "    {example}")?;
            }
        }
        let mut line = |name: &str, spread: &Spread| {
            let Spread { min, mean, median, p95, max } = spread;
            writeln!(
                f,
                "  {name:<20} min {min:>5}  mean {mean:>8.1}  median {median:>5}  p95 {p95:>5}  max {max:>6}"
            )
        };
        line("prompt chars", &self.prompt_chars)?;
        line("chosen chars", &self.chosen_chars)?;
        line("rejected chars", &self.rejected_chars)?;
        line("chosen sentences", &self.chosen_sentences)?;
        line("rejected sentences", &self.rejected_sentences)?;
        if let Some(tokens) = &self.tokens {
            line("tokens", tokens)?;
            writeln!(f, "  truncated answers    {}", self.truncated)?;
        }
        writeln!(f, "  duplicates           {}", self.duplicates)?;
        writeln!(f, "  repeated questions   {}", self.repeated_questions)?;
        write!(f, "  images               {} distinct, {} rows without", self.images, self.without_image)
    }
}
