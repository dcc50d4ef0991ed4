//! Making pairs as SeVa does: the answer to the clean picture is preferred to the answer to the noised one.
//!
//! [`generate`] knows no model: a function answers a batch of questions about preprocessed pictures. Answers are kept in a
//! journal beside the result (`<result>.journal`), one line a question, by what they follow from: question, picture,
//! model, template, noise and picture processing. It stays there, so that a run that was stopped goes on where it was,
//! another list of questions keeps the answers that it shares, and a finished run is not answered again.
//!
//! Pairs whose two answers are equal are dropped and counted (F), and so are answers without any text, which no format can
//! hold (C).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{Error, MAX_FAULTS_TOLD, OnFault, Result};
use crate::files::{self, write_atomic};
use crate::image::{ImageLoader, Pixels};
use crate::noise::{add_noise, schedule};
use crate::pair::Pair;
use crate::prompt::Template;
use crate::write::{seva_row, unsupported};

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
    /// Name of the answering model, for people.
    pub model: String,
    /// Hash of what answers: weights, tokenizer, config. Answers of others are not taken from the journal.
    pub weights: String,
    /// How it decodes: search, longest answer, precision ("greedy, 512 new tokens, bf16").
    pub decoding: String,
    /// Template of the prompts.
    pub template: Template,
    /// Step of the noise, 0 to 999. ASPO uses 500.
    pub noise_step: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// What becomes of line breaks.
    pub newlines: Newlines,
}

/// What becomes of a pair with an answer that was cut at its longest, so that it ends in mid-sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnCut {
    /// It is written with `"cut": "chosen"`, `"rejected"` or `"both"`, and counted. The default.
    #[default]
    Mark,
    /// It is left out and counted.
    Drop,
}

/// How the work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Questions answered at a time. Default 8.
    pub batch: usize,
    /// Pictures and questions that cannot be used: leave them out and count them, or stop. Default skip: one bad picture
    /// should not end a day's work.
    pub on_fault: OnFault,
    /// Answers that were cut. Default mark.
    pub on_cut: OnCut,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { batch: 8, on_fault: OnFault::Skip, on_cut: OnCut::Mark }
    }
}

/// One question for the model.
#[derive(Debug)]
pub struct Request<'a> {
    /// The question; its answers are empty.
    pub pair: &'a Pair,
    /// Its pictures, preprocessed, clean or noised.
    pub pixels: Vec<Pixels>,
}

/// An answer of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Its text.
    pub text: String,
    /// It did not end by itself: the longest answer was reached.
    pub cut: bool,
}

/// Answers a batch: one reply for each request.
pub type Answer<'f> = dyn FnMut(&[Request<'_>]) -> std::result::Result<Vec<Reply>, String> + 'f;

/// How far the work is; also the account at its end.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// Questions in all.
    pub questions: usize,
    /// Questions done, the faulty ones included.
    pub done: usize,
    /// Of these, found in the journal.
    pub resumed: usize,
    /// Pairs so far.
    pub pairs: usize,
    /// Dropped: both answers equal.
    pub equal: usize,
    /// Dropped: an answer without text.
    pub empty: usize,
    /// Pairs with an answer that was cut: marked, or dropped.
    pub cut: usize,
    /// Left out: the question or its picture cannot be used.
    pub faulty: usize,
    /// The first such faults.
    pub faults: Vec<String>,
    /// The result is written.
    pub finished: bool,
}

/// First line of a journal.
const HEAD: &str = r#"{"journal":"aspo-data seva 2"}"#;

/// The raw answers to one question; with its key, a line of the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answers {
    key: String,
    chosen: String,
    rejected: String,
    /// Which of the two were cut.
    cut: [bool; 2],
}

/// Refuses a result that [`generate`] did not write, or that was changed since: it is somebody's own.
///
/// # Errors
/// [`Error::Stored`], [`Error::Io`].
pub fn check_output(output: &Path) -> Result<()> {
    let hash = match std::fs::read(output) {
        Ok(bytes) => hex(&Sha256::digest(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(Error::io(output, source)),
    };
    let record = std::fs::read(record_path(output)).unwrap_or_default();
    let record: Value = serde_json::from_slice(&record).unwrap_or_default();
    // A run that ends between writing record and result leaves the result before it.
    if [&record["output_sha256"], &record["replaces"]].iter().any(|known| **known == hash.as_str()) {
        return Ok(());
    }
    Err(Error::Stored {
        path: output.to_owned(),
        why: "it was not made here, or was changed since, and is not overwritten: move it away, or write to another folder"
            .to_owned(),
    })
}

/// Answers every question twice and writes the pairs as SeVa's JSON list to `output`, their account and provenance to
/// `output` + `.provenance.json`.
///
/// `answer` gives one reply for each request; white space and a closing `</s>` around it are removed. It is called with
/// clean pictures, then with the same questions and noised ones. The noise follows from the seed, the image's
/// [key](crate::ImageSource::key) and the step alone. `progress` is called after each batch, when its answers are on disk; by
/// [`ControlFlow::Break`] the work ends there, and [`Progress::finished`] is false.
///
/// # Errors
/// [`Error::Option`] for no questions, a noise step past the schedule or a batch of 0; [`Error::Stored`] for a result that
/// was [not made here](check_output), a journal that is none or that another process writes; [`Error::Callback`] when
/// `answer` fails; errors of writing. With [`OnFault::Stop`] also [`Error::Image`] for a picture that cannot be used and
/// [`Error::File`] for a question that SeVa's format cannot hold (earlier turns, several images, image bytes, none).
/// Whatever was answered before an error is kept.
pub fn generate(
    questions: &[Pair],
    output: &Path,
    images: &ImageLoader,
    provenance: &Provenance,
    options: &GenerateOptions,
    answer: &mut Answer<'_>,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Progress> {
    schedule(provenance.noise_step)?;
    if options.batch == 0 {
        return Err(Error::Option { name: "batch", found: "0".to_owned(), remedy: "use 1 or more" });
    }
    if questions.is_empty() {
        let remedy = "give a file with questions, and a count of 1 or more";
        return Err(Error::Option { name: "questions", found: "there is none".to_owned(), remedy });
    }
    check_output(output)?;
    let (mut journal, answers) = Journal::open(&beside(output, ".journal"))?;
    let mut work = Work {
        questions,
        images,
        provenance,
        options,
        answers,
        keys: vec![None; questions.len()],
        state: Progress { questions: questions.len(), ..Progress::default() },
    };
    let mut open: Vec<usize> = Vec::new();
    let mut asked: HashSet<String> = HashSet::new();
    // Questions that come again while their first is open.
    let mut again: Vec<usize> = Vec::new();
    if progress(&work.state).is_break() {
        return Ok(work.state);
    }
    let indices: Vec<usize> = (0..questions.len()).collect();
    for stretch in indices.chunks(LOOKAHEAD) {
        let keys: Vec<Result<String>> = stretch.par_iter().map(|index| work.key(output, *index)).collect();
        for (&index, key) in stretch.iter().zip(keys) {
            match key {
                Ok(key) if work.answers.contains_key(&key) => {
                    work.keys[index] = Some(key);
                    work.state.resumed += 1;
                    work.count(index);
                }
                Ok(key) => {
                    if asked.insert(key.clone()) {
                        open.push(index)
                    } else {
                        again.push(index)
                    }
                    work.keys[index] = Some(key);
                }
                Err(error) => work.fault(index, error)?,
            }
        }
        let last = stretch.last().is_some_and(|index| index + 1 == questions.len());
        while open.len() >= options.batch || last && !open.is_empty() {
            let batch: Vec<usize> = open.drain(..options.batch.min(open.len())).collect();
            work.answer(&batch, &mut journal, answer)?;
            if progress(&work.state).is_break() {
                return Ok(work.state);
            }
        }
    }
    for index in again {
        work.count(index);
    }
    work.write(output)?;
    work.state.finished = true;
    // Whether it is a break no longer matters.
    let _ = progress(&work.state);
    Ok(work.state)
}

/// Questions whose pictures are looked at before the next batch is answered.
const LOOKAHEAD: usize = 256;

struct Work<'a> {
    questions: &'a [Pair],
    images: &'a ImageLoader,
    provenance: &'a Provenance,
    options: &'a GenerateOptions,
    /// By key.
    answers: HashMap<String, Answers>,
    /// Of each question; `None` for faulty ones.
    keys: Vec<Option<String>>,
    state: Progress,
}

impl Work<'_> {
    /// Hash of everything that the answers to a question follow from.
    fn key(&self, output: &Path, index: usize) -> Result<String> {
        let question = &self.questions[index];
        // What the result cannot hold is refused now, not after its answers.
        seva_row(output, question)?;
        if question.images.is_empty() {
            return Err(unsupported(output, &question.id, "no image, so that noise changes nothing"));
        }
        let Provenance { weights, decoding, template, noise_step, seed, .. } = self.provenance;
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        for text in
            ["aspo-data seva 2", weights, decoding, &template.to_string(), &self.images.processor().rules()]
        {
            add(text);
        }
        add(&format!("{noise_step} {seed}"));
        // The question with the name of its picture, from which the noise follows; its answers are not part of it.
        let bare = Pair { chosen: String::new(), rejected: String::new(), ..question.clone() };
        add(&hex(&bare.content_hash()));
        for image in &question.images {
            add(&hex(&self.images.content_hash(image)?));
        }
        Ok(hex(&hash.finalize()))
    }

    /// Counts a question that cannot be used, or gives its fault back.
    fn fault(&mut self, index: usize, error: Error) -> Result<()> {
        let unsupported = matches!(error, Error::File { .. });
        if self.options.on_fault == OnFault::Stop || !(error.is_one_row() || unsupported) {
            return Err(error);
        }
        self.keys[index] = None;
        self.state.done += 1;
        self.state.faulty += 1;
        if self.state.faults.len() < MAX_FAULTS_TOLD {
            self.state.faults.push(format!("question {:?}: {error}", self.questions[index].id));
        }
        Ok(())
    }

    /// Counts a question that is answered.
    fn count(&mut self, index: usize) {
        let state = &mut self.state;
        state.done += 1;
        // A question whose first occurrence proved faulty is so too.
        let Some(answers) = self.keys[index].as_ref().and_then(|key| self.answers.get(key)) else {
            state.faulty += 1;
            return;
        };
        if answers.written(self.provenance.newlines).has_equal_answers() {
            state.equal += 1;
        } else if answers.pair(&self.questions[index], self.provenance.newlines).is_none() {
            state.empty += 1;
        } else {
            let cut = answers.cut != [false; 2];
            state.cut += usize::from(cut);
            state.pairs += usize::from(!cut || self.options.on_cut == OnCut::Mark);
        }
    }

    fn answer(&mut self, batch: &[usize], journal: &mut Journal, answer: &mut Answer<'_>) -> Result<()> {
        let questions = self.questions;
        let shown = |index: &usize| {
            let images = &questions[*index].images;
            images.iter().map(|image| (image, images.len() == 1))
        };
        let sources: Vec<_> = batch.iter().flat_map(shown).collect();
        let mut loaded = self.images.pixels_of_all(&sources).into_iter();
        let (mut sound, mut requests) = (Vec::new(), Vec::new());
        for &index in batch {
            let pair = &questions[index];
            let pixels: Vec<Result<Pixels>> = loaded.by_ref().take(pair.images.len()).collect();
            match pixels.into_iter().collect::<Result<Vec<_>>>() {
                Ok(pixels) => {
                    sound.push(index);
                    requests.push(Request { pair, pixels });
                }
                Err(error) => self.fault(index, error)?,
            }
        }
        if requests.is_empty() {
            return Ok(());
        }
        let mut ask = |requests: &[Request<'_>]| {
            let fail = |why| Error::Callback { what: "answering model", why };
            let replies = answer(requests).map_err(fail)?;
            if replies.len() != requests.len() {
                return Err(fail(format!("{} answers to {} questions", replies.len(), requests.len())));
            }
            Ok(replies)
        };
        let chosen = ask(&requests)?;
        let Provenance { seed, noise_step, .. } = *self.provenance;
        for request in &mut requests {
            for (pixels, source) in request.pixels.iter_mut().zip(&request.pair.images) {
                add_noise(&mut pixels.values, seed, &source.key(), noise_step)?;
            }
        }
        let rejected = ask(&requests)?;
        for (index, (chosen, rejected)) in sound.into_iter().zip(chosen.into_iter().zip(rejected)) {
            let key = self.keys[index].clone().expect("a question that is asked has a key");
            let answers = Answers {
                key: key.clone(),
                chosen: clean(&chosen.text),
                rejected: clean(&rejected.text),
                cut: [chosen.cut, rejected.cut],
            };
            journal.add(&answers)?;
            self.answers.insert(key, answers);
            self.count(index);
        }
        journal.sync()
    }

    /// Writes the record, then the result. What is there and the same already is left alone.
    fn write(&self, output: &Path) -> Result<()> {
        let mut content = String::from("[");
        for (question, key) in self.questions.iter().zip(&self.keys) {
            let Some(answers) = key.as_ref().and_then(|key| self.answers.get(key)) else { continue };
            let Some(pair) = answers.pair(question, self.provenance.newlines) else { continue };
            let mut row = seva_row(output, &pair)?;
            let cut = match answers.cut {
                [false, false] => None,
                [true, false] => Some("chosen"),
                [false, true] => Some("rejected"),
                [true, true] => Some("both"),
            };
            match (cut, self.options.on_cut) {
                (Some(_), OnCut::Drop) => continue,
                (Some(cut), OnCut::Mark) => row["cut"] = cut.into(),
                (None, _) => {}
            }
            content += if content.len() == 1 { "\n" } else { ",\n" };
            content += &row.to_string();
        }
        content += "\n]\n";
        let before = std::fs::read(output).ok();
        let path = record_path(output);
        if before.as_deref() == Some(content.as_bytes()) && path.exists() {
            return Ok(());
        }
        let record = serde_json::json!({
            "provenance": self.provenance,
            "processor": self.images.processor().rules(),
            "counts": self.state,
            "output_sha256": hex(&Sha256::digest(&content)),
            "replaces": before.map(|before| hex(&Sha256::digest(before))),
            "version": env!("CARGO_PKG_VERSION"),
        });
        write_atomic(&path, |out| {
            serde_json::to_writer_pretty(out, &record).map_err(|error| Error::io(&path, error.into()))
        })?;
        write_atomic(output, |out| {
            out.write_all(content.as_bytes()).map_err(|source| Error::io(output, source))
        })
    }
}

impl Answers {
    /// The answers as they are written, without a question.
    fn written(&self, newlines: Newlines) -> Pair {
        Pair::new("", "", newlines.apply(&self.chosen), newlines.apply(&self.rejected))
    }

    /// The pair, unless it is dropped: by the rule of the readers, so that every pair written is read.
    fn pair(&self, question: &Pair, newlines: Newlines) -> Option<Pair> {
        let Pair { chosen, rejected, .. } = self.written(newlines);
        let pair = Pair { chosen, rejected, ..question.clone() };
        let empty = pair.chosen.trim().is_empty() || pair.rejected.trim().is_empty();
        (!empty && !pair.has_equal_answers()).then_some(pair)
    }
}

/// White space around an answer and its end token, which some decoders spell out.
fn clean(text: &str) -> String {
    text.trim().trim_end_matches("</s>").trim().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn record_path(output: &Path) -> PathBuf {
    beside(output, ".provenance.json")
}

struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens or starts the journal, and reads the answers in it. A torn last line is cut off; a line that is damaged
    /// otherwise counts as not answered and stays.
    fn open(path: &Path) -> Result<(Self, HashMap<String, Answers>)> {
        let fail = |source| Error::io(path, source);
        let stored = |why: &str| Error::Stored { path: path.to_owned(), why: why.to_owned() };
        let mut file = files::open(path)?;
        file.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => {
                stored("another process is writing it: wait for it, or write to another folder")
            }
            std::fs::TryLockError::Error(source) => fail(source),
        })?;
        let mut answers = HashMap::new();
        let mut end = 0;
        let mut reader = BufReader::new(file.try_clone().map_err(fail)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            reader.read_until(b'\n', &mut line).map_err(fail)?;
            let Some(content) = line.strip_suffix(b"\n") else { break };
            if end == 0 && content != HEAD.as_bytes() {
                return Err(stored("it is no journal of pair making: move it away"));
            }
            if let Ok(found) = serde_json::from_slice::<Answers>(content) {
                answers.insert(found.key.clone(), found);
            }
            end += line.len() as u64;
        }
        if end == 0 && !HEAD.as_bytes().starts_with(&line) {
            return Err(stored("it is no journal of pair making: move it away"));
        }
        if !line.is_empty() {
            file.set_len(end).map_err(fail)?;
        }
        file.seek(SeekFrom::Start(end)).map_err(fail)?;
        let mut journal = Self { path: path.to_owned(), file };
        if end == 0 {
            journal.write(HEAD.as_bytes().to_vec())?;
            journal.sync()?;
        }
        Ok((journal, answers))
    }

    fn add(&mut self, answers: &Answers) -> Result<()> {
        self.write(serde_json::to_vec(answers).expect("plain data"))
    }

    fn write(&mut self, mut line: Vec<u8>) -> Result<()> {
        line.push(b'\n');
        self.file.write_all(&line).map_err(|source| Error::io(&self.path, source))
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_data().map_err(|source| Error::io(&self.path, source))
    }
}
