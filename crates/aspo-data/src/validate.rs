//! An account of a file of pairs: what is in it, what is wrong with it.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use aspo_segment::SplitOptions;
use sha2::{Digest, Sha256};

use crate::encode::{EncodedPair, Encoder};
use crate::error::{Error, FileFault, OnFault, PairFault, Result, RowFault};
use crate::files::resolve;
use crate::image::{ImageLoader, decode};
use crate::pair::{ImageSource, Pair};
use crate::read::{Dropped, Source, read_source};

/// What is checked.
#[derive(Debug, Default)]
pub struct ValidateOptions<'a> {
    /// Folder of the images: their files are looked for. Without it only references are checked.
    pub image_root: Option<PathBuf>,
    /// Decode every image instead of only looking for its file.
    pub decode_images: bool,
    /// Encode every pair, for token lengths and truncation.
    pub encoder: Option<&'a Encoder>,
    /// How answers are split into sentences.
    pub split: SplitOptions,
    /// Stop with the first fault as an error, or go on and count. Duplicates and equal answers are no fault.
    pub on_fault: OnFault,
    /// Sound pairs to keep in [`Report::samples`]: the first ones.
    pub samples: usize,
}

/// A pair as it was read, and as a model sees it where an encoder was given.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The file.
    pub path: PathBuf,
    /// The row in it.
    pub row: usize,
    /// The pair.
    pub pair: Pair,
    /// The pair in tokens.
    pub encoded: Option<EncodedPair>,
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
    /// Rows read: sound, dropped and faulty ones.
    pub rows: usize,
    /// Pairs that can be used.
    pub sound: usize,
    /// Rows that hold no preference, which training drops and counts too.
    pub dropped: Dropped,
    /// Pairs whose prompt leaves no room for an answer within `max_length`, which training drops and counts too.
    pub no_room: usize,
    /// Columns that hold something which no pair takes in.
    pub unread: Vec<String>,
    /// Why the file could not be read to its end, if it could not: this account is of the rows before.
    pub broken: Option<String>,
    /// Rows lost to that, where the file tells.
    pub lost: Option<usize>,
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
    /// Width of the images in pixels, where they were decoded.
    pub image_width: Option<Spread>,
    /// Height of the images in pixels, where they were decoded.
    pub image_height: Option<Spread>,
    /// Tokens of a pair's images, where an encoder was given.
    pub image_tokens: Option<Spread>,
    /// The first sound pairs, as many as were asked for.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Report {
    /// Rows with a fault.
    pub fn faulty(&self) -> usize {
        self.faults.values().map(|fault| fault.count).sum()
    }

    /// Whether the whole file was read and no row is faulty.
    pub fn is_sound(&self) -> bool {
        self.broken.is_none() && self.faulty() == 0
    }
}

/// Reads a whole source and gives an account of it. Memory grows by some 100 bytes a row, not with what rows hold. `progress` is
/// told the rows read so far.
///
/// # Errors
/// [`Error::File`] and [`Error::Io`] when the file cannot be read at all; with [`OnFault::Stop`] the first fault.
pub fn validate(
    source: &Source,
    options: &ValidateOptions<'_>,
    mut progress: impl FnMut(usize),
) -> Result<Report> {
    let mut pairs = read_source(source)?;
    let loader = match &options.image_root {
        Some(root) => Some(ImageLoader::new(root, crate::ImageProcessor::default())?),
        None => None,
    };
    let mut report =
        Report { path: source.path.clone(), format: pairs.format().to_string(), ..Report::default() };
    let mut lengths: [Vec<u32>; 7] = Default::default();
    let mut equal_once_cut = 0;
    let mut known = Images::default();
    let (mut seen, mut questions, mut images) = (HashSet::new(), HashSet::new(), HashSet::new());
    let mut read = 0;
    while let Some(pair) = pairs.next() {
        read += 1;
        progress(read);
        let (path, row) = (pairs.path().clone(), pairs.row());
        let path = &*path;
        let checked = pair.and_then(|pair| {
            let encoded = check(path, row, &pair, options, loader.as_ref(), &mut known, &mut report)?;
            Ok((pair, encoded))
        });
        let (pair, encoded) = match checked {
            Ok(found) => found,
            Err(Error::Pair { fault: PairFault::NoRoom { .. }, .. }) => {
                report.no_room += 1;
                continue;
            }
            Err(Error::Pair { fault: PairFault::Equal, .. }) => {
                equal_once_cut += 1;
                continue;
            }
            Err(Error::File { fault: FileFault::Broken { row, lost, fault }, path })
                if options.on_fault == OnFault::Skip =>
            {
                report.lost = lost;
                report.broken = Some(Error::file(path, FileFault::Broken { row, lost, fault }).to_string());
                break;
            }
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
        lengths[5].extend(encoded.as_ref().map(|encoded| encoded.length() as u32));
        let of_images =
            |encoded: &EncodedPair| encoded.image_spans.iter().map(|span| span.len() as u32).sum::<u32>();
        lengths[6].extend(encoded.as_ref().filter(|encoded| !encoded.images.is_empty()).map(of_images));
        report.without_image += usize::from(pair.images.is_empty());
        images.extend(pair.images.iter().map(|image| short(&Sha256::digest(image.key()))));
        if report.samples.len() < options.samples {
            report.samples.push(Sample { path: path.to_owned(), row, pair: pair.clone(), encoded });
        }
        let new_question = questions.insert(short(&question_hash(&pair)));
        if !seen.insert(short(&pair.content_hash())) {
            report.duplicates += 1;
        } else if !new_question {
            report.repeated_questions += 1;
        }
    }
    report.dropped = pairs.dropped();
    report.dropped.equal += equal_once_cut;
    report.unread = pairs.unread().map(str::to_owned).collect();
    report.rows = report.sound
        + report.dropped.equal
        + report.dropped.correct
        + report.dropped.tied
        + report.no_room
        + report.faulty();
    report.images = images.len();
    let [prompt, chosen, rejected, chosen_sentences, rejected_sentences, tokens, image_tokens] =
        lengths.map(Spread::of);
    report.prompt_chars = prompt;
    report.chosen_chars = chosen;
    report.rejected_chars = rejected;
    report.chosen_sentences = chosen_sentences;
    report.rejected_sentences = rejected_sentences;
    report.tokens = options.encoder.map(|_| tokens);
    report.image_tokens = options.encoder.map(|_| image_tokens).filter(|tokens| tokens.max > 0);
    let [width, height] = known.sizes.map(Spread::of);
    report.image_width = Some(width).filter(|width| width.max > 0);
    report.image_height = Some(height).filter(|height| height.max > 0);
    Ok(report)
}

/// The images that were looked at.
#[derive(Default)]
struct Images {
    known: HashSet<[u8; 16]>,
    /// Widths and heights of those that were decoded.
    sizes: [Vec<u32>; 2],
}

/// The checks beyond reading; the pair in tokens where an encoder is given.
fn check(
    path: &Path,
    row: usize,
    pair: &Pair,
    options: &ValidateOptions<'_>,
    loader: Option<&ImageLoader>,
    known: &mut Images,
    report: &mut Report,
) -> Result<Option<EncodedPair>> {
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
    let encoded = encoder.encode(pair).map_err(|error| in_row(error, row))?;
    report.truncated += usize::from(encoded.chosen.truncated) + usize::from(encoded.rejected.truncated);
    Ok(Some(encoded))
}

fn check_image(
    image: &ImageSource,
    options: &ValidateOptions<'_>,
    loader: Option<&ImageLoader>,
    Images { known, sizes }: &mut Images,
) -> Result<()> {
    let key = image.key();
    let hash = short(&Sha256::digest(&key));
    if known.contains(&hash) {
        return Ok(());
    }
    let fail = |fault| Error::Image { name: key.clone(), fault };
    let mut decoded = |bytes: &[u8]| {
        let image = decode(bytes).map_err(fail)?;
        sizes[0].push(image.width);
        sizes[1].push(image.height);
        Ok::<_, Error>(())
    };
    match (image, loader) {
        (ImageSource::Bytes(bytes), _) if options.decode_images => decoded(bytes)?,
        (ImageSource::Path(_), Some(loader)) if options.decode_images => decoded(&loader.bytes(image)?)?,
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

/// The error of a pair, with the row that it stands in.
fn in_row(error: Error, row: usize) -> Error {
    match error {
        Error::Pair { id, fault } if id != row.to_string() => {
            Error::Pair { id: format!("{id} (row {row})"), fault }
        }
        other => other,
    }
}

fn kind(error: &Error) -> &'static str {
    match error {
        Error::Row { fault, .. } => fault.kind(),
        Error::Pair { fault, .. } => match fault {
            PairFault::NoRoom { .. } => "no-room",
            PairFault::Empty { .. } => "empty",
            PairFault::Equal => "equal",
            PairFault::SpecialToken { .. } => "special-token",
            PairFault::ImageCount { .. } => "image-count",
            PairFault::Placed { .. } => "placed",
            PairFault::Template(_) => "template",
            PairFault::Logps { .. } => "logps",
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
        if let Some(broken) = &self.broken {
            writeln!(f, "  NOT READ TO ITS END: {broken}")?;
        }
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
        for (name, spread) in [
            ("image width", &self.image_width),
            ("image height", &self.image_height),
            ("image tokens", &self.image_tokens),
        ] {
            if let Some(spread) = spread {
                line(name, spread)?;
            }
        }
        if let Some(tokens) = &self.tokens {
            line("tokens", tokens)?;
            writeln!(f, "  truncated answers    {}", self.truncated)?;
        }
        writeln!(f, "  equal answers        {} dropped", self.dropped.equal)?;
        if self.dropped.correct > 0 {
            writeln!(f, "  marked correct       {} dropped, as HA-DPO does", self.dropped.correct)?;
        }
        if self.dropped.tied > 0 {
            writeln!(f, "  no score is higher   {} dropped", self.dropped.tied)?;
        }
        if self.no_room > 0 {
            writeln!(f, "  no room for answers  {} dropped", self.no_room)?;
        }
        if !self.unread.is_empty() {
            writeln!(f, "  columns not read     {}", self.unread.join(", "))?;
        }
        writeln!(f, "  duplicates           {}", self.duplicates)?;
        writeln!(f, "  repeated questions   {}", self.repeated_questions)?;
        write!(f, "  images               {} distinct, {} rows without", self.images, self.without_image)
    }
}
