//! Making pairs as SeVa does: the answer to the clean picture is preferred to the answer to the noised one.
//!
//! [`generate`] knows no model: a function answers a batch of questions about preprocessed pictures. Answers are kept in a
//! journal beside the result (`<result>.partial`), one line a question, so that a run that was interrupted goes on where
//! it was. Questions whose two answers are equal are dropped and counted, nothing else is (F), save answers without any
//! text, which no format can hold (C).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::corpus::OnFault;
use crate::error::{Error, Result};
use crate::files::{self, write_atomic};
use crate::image::ImageLoader;
use crate::noise::{add_noise, schedule};
use crate::pair::{ImageSource, Pair};
use crate::prompt::Template;
use crate::write::{seva_row, write_seva};

/// What becomes of line breaks in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Newlines {
    /// They stay (C, the default: sentences keep their borders).
    #[default]
    Keep,
    /// A run of them becomes one space.
    Space,
    /// They are deleted without a space, as SeVa does: sentences are glued ("waves.There are").
    Delete,
}

impl Newlines {
    fn apply(self, text: &str) -> String {
        match self {
            Self::Keep => text.to_owned(),
            Self::Delete => text.replace('\n', ""),
            Self::Space => {
                let parts: Vec<&str> =
                    text.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect();
                parts.join(" ")
            }
        }
    }
}

/// How pairs are made, and by which model: stored with the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name and version of the answering model, decoding included ("llava-1.5-7b-hf, greedy, 512 new tokens").
    pub model: String,
    /// Template of the prompts.
    pub template: Template,
    /// Step of the noise, 0 to 999. ASPO uses 500.
    pub noise_step: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// What becomes of line breaks.
    pub newlines: Newlines,
}

/// How the work is done; does not change the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Questions answered at a time. Default 8.
    pub batch: usize,
    /// Pictures that cannot be used: stop, or leave the question out and count it. Default stop.
    pub on_fault: OnFault,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { batch: 8, on_fault: OnFault::Stop }
    }
}

/// One question for the model.
#[derive(Debug)]
pub struct Request<'a> {
    /// The question; its answers are empty.
    pub pair: &'a Pair,
    /// Its pictures, preprocessed, clean or noised.
    pub pixels: Vec<Vec<f32>>,
}

/// Answers a batch: one text for each request.
pub type Answer<'f> = dyn FnMut(&[Request<'_>]) -> std::result::Result<Vec<String>, String> + 'f;

/// How far the work is; also the account at its end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// Questions in all.
    pub questions: usize,
    /// Questions done, those of earlier runs included.
    pub done: usize,
    /// Of these, found in the journal.
    pub resumed: usize,
    /// Pairs so far.
    pub pairs: usize,
    /// Dropped: both answers equal.
    pub equal: usize,
    /// Dropped: an answer without text.
    pub empty: usize,
    /// Left out: their picture cannot be used.
    pub faulty: usize,
    /// The first such faults.
    pub faults: Vec<String>,
}

/// First line of the journal: what it belongs to.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Head {
    provenance: Provenance,
    questions: usize,
    fingerprint: String,
}

/// A line of the journal: the raw answers to one question, or why there are none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Answers { index: usize, chosen: String, rejected: String },
    Fault { index: usize, fault: String },
}

/// Answers every question twice and writes the pairs as SeVa's JSON list to `output`, their account and provenance to
/// `output` + `.provenance.json`.
///
/// `answer` gives one text for each request; white space and a closing `</s>` around it are removed. It is called with
/// clean pictures, then with the same questions and noised ones. The noise follows from the seed, the image's
/// [key](ImageSource::key) and the step alone.
///
/// # Errors
/// [`Error::Stored`] when a journal of other questions or another provenance lies at `output`; [`Error::Callback`] when
/// `answer` fails; [`Error::Image`] for a picture that cannot be used, unless these are left out; [`Error::Option`] for a
/// noise step past the schedule or a batch of 0; [`Error::File`] for a question that SeVa's format cannot hold (earlier
/// turns, several images, image bytes); errors of writing. Whatever was answered before an error is kept.
pub fn generate(
    questions: &[Pair],
    output: &Path,
    images: &ImageLoader,
    provenance: &Provenance,
    options: &GenerateOptions,
    answer: &mut Answer<'_>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<Progress> {
    schedule(provenance.noise_step)?;
    if options.batch == 0 {
        return Err(Error::Option { name: "batch", found: "0".to_owned(), remedy: "use 1 or more" });
    }
    // What the result cannot hold is refused now, not after a day of answers.
    for question in questions {
        seva_row(output, question)?;
    }
    let head = Head {
        provenance: provenance.clone(),
        questions: questions.len(),
        fingerprint: fingerprint(questions, images),
    };
    let (mut journal, mut lines) = Journal::open(&beside(output, ".partial"), &head)?;
    let mut state = Progress { questions: questions.len(), resumed: lines.len(), ..Progress::default() };
    lines.values().for_each(|line| state.count(line, provenance.newlines));
    progress(&state);
    let open: Vec<usize> = (0..questions.len()).filter(|index| !lines.contains_key(index)).collect();
    for batch in open.chunks(options.batch) {
        for line in answer_batch(questions, batch, images, provenance, options.on_fault, answer)? {
            journal.add(&line)?;
            state.count(&line, provenance.newlines);
            lines.insert(line.index(), line);
        }
        journal.sync()?;
        progress(&state);
    }
    let pairs = lines.values().filter_map(|line| line.pair(&questions[line.index()], provenance.newlines));
    write_seva(output, pairs)?;
    let record = serde_json::json!({
        "provenance": head.provenance, "questions_fingerprint": head.fingerprint, "counts": state,
        "version": env!("CARGO_PKG_VERSION"),
    });
    let record_path = beside(output, ".provenance.json");
    write_atomic(&record_path, |out| {
        serde_json::to_writer_pretty(out, &record).map_err(|error| Error::io(&record_path, error.into()))
    })?;
    journal.remove()?;
    Ok(state)
}

fn answer_batch(
    questions: &[Pair],
    batch: &[usize],
    images: &ImageLoader,
    provenance: &Provenance,
    on_fault: OnFault,
    answer: &mut Answer<'_>,
) -> Result<Vec<Line>> {
    let sources: Vec<ImageSource> =
        batch.iter().flat_map(|index| questions[*index].images.iter().cloned()).collect();
    let mut loaded = images.load_all(&sources).into_iter();
    let (mut lines, mut sound, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    for &index in batch {
        let pair = &questions[index];
        let pixels: Vec<Result<Vec<f32>>> = loaded.by_ref().take(pair.images.len()).collect();
        match pixels.into_iter().collect::<Result<Vec<_>>>() {
            Ok(pixels) => {
                sound.push(index);
                requests.push(Request { pair, pixels });
            }
            Err(error) if on_fault == OnFault::Skip && error.is_one_row() => {
                lines.push(Line::Fault { index, fault: error.to_string() });
            }
            Err(error) => return Err(error),
        }
    }
    if requests.is_empty() {
        return Ok(lines);
    }
    let mut ask = |requests: &[Request<'_>]| {
        let fail = |why| Error::Callback { what: "answering model", why };
        let answers = answer(requests).map_err(fail)?;
        if answers.len() != requests.len() {
            return Err(fail(format!("{} answers to {} questions", answers.len(), requests.len())));
        }
        Ok(answers.iter().map(|text| clean(text)).collect::<Vec<String>>())
    };
    let chosen = ask(&requests)?;
    for request in &mut requests {
        for (pixels, source) in request.pixels.iter_mut().zip(&request.pair.images) {
            add_noise(pixels, provenance.seed, &source.key(), provenance.noise_step)?;
        }
    }
    let rejected = ask(&requests)?;
    lines.extend(
        sound
            .into_iter()
            .zip(chosen.into_iter().zip(rejected))
            .map(|(index, (chosen, rejected))| Line::Answers { index, chosen, rejected }),
    );
    Ok(lines)
}

fn clean(text: &str) -> String {
    text.replace("</s>", "").trim().to_owned()
}

impl Line {
    fn index(&self) -> usize {
        match self {
            Self::Answers { index, .. } | Self::Fault { index, .. } => *index,
        }
    }

    /// The pair, unless it is dropped. SeVa compares the answers as the model gave them.
    fn pair(&self, question: &Pair, newlines: Newlines) -> Option<Pair> {
        match self {
            Self::Answers { chosen, rejected, .. } if chosen != rejected => {
                let (chosen, rejected) = (newlines.apply(chosen), newlines.apply(rejected));
                let kept = !chosen.trim().is_empty() && !rejected.trim().is_empty();
                kept.then(|| Pair { chosen, rejected, ..question.clone() })
            }
            _ => None,
        }
    }
}

impl Progress {
    fn count(&mut self, line: &Line, newlines: Newlines) {
        self.done += 1;
        match line {
            Line::Answers { chosen, rejected, .. } if chosen == rejected => self.equal += 1,
            Line::Answers { .. } => match line.pair(&Pair::new("", "", "", ""), newlines) {
                Some(_) => self.pairs += 1,
                None => self.empty += 1,
            },
            Line::Fault { fault, .. } => {
                self.faulty += 1;
                if self.faults.len() < crate::corpus::MAX_FAULTS_TOLD {
                    self.faults.push(fault.clone());
                }
            }
        }
    }
}

fn fingerprint(questions: &[Pair], images: &ImageLoader) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{:?}", images.processor()));
    for question in questions {
        hash.update(question.content_hash());
    }
    format!("{:x}", hash.finalize())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens or starts the journal; the lines that are whole. A torn last line is cut off.
    fn open(path: &Path, head: &Head) -> Result<(Self, BTreeMap<usize, Line>)> {
        let fail = |source| Error::io(path, source);
        let stored = |why: String| Error::Stored { path: path.to_owned(), why };
        let mut file = files::open(path)?;
        let mut lines = BTreeMap::new();
        let mut end = 0;
        let mut reader = BufReader::new(file.try_clone().map_err(fail)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            // A line holds two answers at most; whatever is longer is none of ours.
            reader.by_ref().take(4 << 20).read_until(b'\n', &mut line).map_err(fail)?;
            if !line.ends_with(b"\n") {
                break;
            }
            if end == 0 {
                let found: Head = serde_json::from_slice(&line).map_err(|error| {
                    stored(format!("it is no journal of a generation ({error}): move it away"))
                })?;
                if found != *head {
                    let why = "it belongs to other questions, pictures or options: finish it with those, or delete it";
                    return Err(stored(why.to_owned()));
                }
            } else {
                match serde_json::from_slice::<Line>(&line) {
                    Ok(line) if line.index() < head.questions => lines.insert(line.index(), line),
                    _ => break,
                };
            }
            end += line.len() as u64;
        }
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(fail)?;
        let mut journal = Self { path: path.to_owned(), file };
        if end == 0 {
            journal.add(head)?;
            journal.sync()?;
        }
        Ok((journal, lines))
    }

    fn add<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).expect("plain data");
        bytes.push(b'\n');
        self.file.write_all(&bytes).map_err(|source| Error::io(&self.path, source))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|source| Error::io(&self.path, source))
    }

    fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|source| Error::io(&self.path, source))
    }
}
