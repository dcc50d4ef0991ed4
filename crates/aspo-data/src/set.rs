//! Encoded pairs by number: in memory, or in files of records from which each is read when it is wanted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::encode::EncodedPair;
use crate::error::{Error, Result};
use crate::records::{RecordWriter, Records};

/// What is known of all pairs of a set without reading each: what a run's memory and checks follow from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Pairs.
    pub pairs: usize,
    /// Tokens of the longest pair: prompt and longer answer.
    pub longest: usize,
    /// Tokens of the longest prompt with both answers.
    pub longest_packed: usize,
    /// Sum of all [`EncodedPair::length`]s.
    pub tokens: usize,
    /// Sum of all prompts and both answers.
    pub tokens_packed: usize,
    /// Most tokens of both answers of a pair.
    pub longest_answers: usize,
    /// Chosen answers that lose their end.
    pub cut_chosen: usize,
    /// Rejected answers that do.
    pub cut_rejected: usize,
    /// The highest token ids but one (that of pictures may be), each with a pair that has it.
    pub highest: Vec<(u32, String)>,
}

impl Summary {
    /// Counts one more pair.
    pub fn add(&mut self, pair: &EncodedPair) {
        let answers = pair.chosen.ids.len() + pair.rejected.ids.len();
        let packed = pair.prompt_ids.len() + answers;
        self.pairs += 1;
        self.longest = self.longest.max(pair.length());
        self.longest_packed = self.longest_packed.max(packed);
        self.tokens += pair.length();
        self.tokens_packed += packed;
        self.longest_answers = self.longest_answers.max(answers);
        self.cut_chosen += usize::from(pair.chosen.truncated);
        self.cut_rejected += usize::from(pair.rejected.truncated);
        for &id in pair.prompt_ids.iter().chain(&pair.chosen.ids).chain(&pair.rejected.ids) {
            let lowest = self.highest.last().map_or(0, |(id, _)| *id);
            if (self.highest.len() < 2 || id > lowest) && !self.highest.iter().any(|(known, _)| *known == id)
            {
                self.highest.push((id, pair.id.clone()));
                self.highest.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
                self.highest.truncate(2);
            }
        }
    }

    fn merge(mut self, other: &Self) -> Self {
        self.pairs += other.pairs;
        self.longest = self.longest.max(other.longest);
        self.longest_packed = self.longest_packed.max(other.longest_packed);
        self.tokens += other.tokens;
        self.tokens_packed += other.tokens_packed;
        self.longest_answers = self.longest_answers.max(other.longest_answers);
        self.cut_chosen += other.cut_chosen;
        self.cut_rejected += other.cut_rejected;
        self.highest.extend(other.highest.iter().cloned());
        self.highest.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        self.highest.dedup_by_key(|(id, _)| *id);
        self.highest.truncate(2);
        self
    }
}

/// Encoded pairs, by number.
///
/// Those of a file are read from it one by one; in memory are some 20 bytes of each. Clones share everything.
#[derive(Debug, Clone, Default)]
pub struct PairSet {
    parts: Vec<Part>,
    /// Which pairs of all parts these are, in order; none: all.
    chosen: Option<Arc<[u32]>>,
    /// Scores of sentences, in the order of the pairs.
    scores: Option<Arc<Records>>,
    hash: String,
}

#[derive(Debug, Clone)]
struct Part {
    stock: Stock,
    /// Number of the first pair.
    start: usize,
}

#[derive(Debug, Clone)]
enum Stock {
    Memory(Arc<[EncodedPair]>, Arc<[u32]>),
    File(Arc<Records>, Arc<PairNote>),
}

/// What is kept with the pairs of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PairNote {
    /// Of all pairs.
    pub summary: Summary,
    /// Hash of tokens and sentences of all pairs, in order.
    pub hash: String,
    /// What whoever made the file keeps with it.
    pub account: String,
}

/// Summary and hash of pairs that come one by one.
#[derive(Debug, Default)]
pub struct PairHash {
    summary: Summary,
    hash: Sha256,
}

impl PairHash {
    /// Counts one more pair.
    pub fn add(&mut self, pair: &EncodedPair) {
        self.summary.add(pair);
        let mut add =
            |numbers: &[u32]| numbers.iter().for_each(|number| self.hash.update(number.to_le_bytes()));
        add(&[pair.prompt_ids.len() as u32]);
        add(&pair.instruction_ids);
        for side in [&pair.chosen, &pair.rejected] {
            add(&[side.ids.len() as u32]);
            add(&pair.prompt_ids);
            add(&side.ids);
            add(&side.sentences);
        }
    }

    /// The note of the pairs that were counted.
    pub fn note(self, account: String) -> PairNote {
        PairNote { summary: self.summary, hash: format!("{:x}", self.hash.finalize()), account }
    }
}

/// Adds a pair to a file.
///
/// # Errors
/// As [`RecordWriter::push`].
pub fn push_pair(writer: &mut RecordWriter, pair: &EncodedPair) -> Result<()> {
    writer.push(tag(pair), &to_bytes(pair))
}

/// The length of a pair, and a hash of its first picture (of its prompt where it has none): pairs about one picture have the same.
fn tag(pair: &EncodedPair) -> u64 {
    let digest = match pair.images.first() {
        Some(image) => Sha256::digest(image.key()),
        None => Sha256::digest(pair.prompt_ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()),
    };
    let hash = u32::from_le_bytes(digest[..4].try_into().expect("four bytes"));
    u64::from(hash) << 32 | pair.length() as u64 & 0xFFFF_FFFF
}

/// Bytes of a value in a record.
pub fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("plain values have bytes")
}

/// A value from the bytes of a record of `records`.
///
/// # Errors
/// [`Error::Stored`] for bytes of something else.
pub fn from_bytes<T: for<'de> Deserialize<'de>>(records: &Records, bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|error| {
        let why = format!("{error}: delete the file, it is made again");
        Error::Stored { path: records.path().to_owned(), why }
    })
}

impl From<Vec<EncodedPair>> for PairSet {
    fn from(pairs: Vec<EncodedPair>) -> Self {
        let mut hash = PairHash::default();
        pairs.iter().for_each(|pair| hash.add(pair));
        let hash = hash.note(String::new()).hash;
        let shares = pairs.iter().map(|pair| (tag(pair) >> 32) as u32).collect();
        let parts = vec![Part { stock: Stock::Memory(pairs.into(), shares), start: 0 }];
        Self { parts, chosen: None, scores: None, hash }
    }
}

impl PairSet {
    /// The pairs of a file, and the account that was kept with them.
    ///
    /// # Errors
    /// [`Error::Stored`] for records of something else.
    pub fn from_records(records: Records) -> Result<(Self, String)> {
        let note: PairNote = from_bytes(&records, records.note())?;
        let (hash, account) = (note.hash.clone(), note.account.clone());
        let parts = vec![Part { stock: Stock::File(Arc::new(records), Arc::new(note)), start: 0 }];
        Ok((Self { parts, chosen: None, scores: None, hash }, account))
    }

    /// All pairs of several sets, one after another.
    pub fn concat(sets: Vec<Self>) -> Self {
        let mut all = Self::default();
        let (mut chosen, mut start) = (Vec::new(), 0);
        let mut hash = Sha256::new();
        let (only, picked) = (sets.len() == 1, sets.iter().any(|set| set.chosen.is_some()));
        for set in sets {
            if only {
                return set;
            }
            hash.update(&set.hash);
            let count = set.stock_len();
            match &set.chosen {
                Some(list) => chosen.extend(list.iter().map(|index| index + start as u32)),
                None => chosen.extend(start as u32..(start + count) as u32),
            }
            all.parts.extend(set.parts.into_iter().map(|part| Part { start: start + part.start, ..part }));
            start += count;
        }
        all.chosen = picked.then(|| chosen.into());
        all.hash = format!("{:x}", hash.finalize());
        all
    }

    /// These pairs of the set, in this order; a number may come twice. Scores are not taken along.
    pub fn select(&self, numbers: &[usize]) -> Self {
        let chosen: Arc<[u32]> = numbers.iter().map(|&number| self.at(number) as u32).collect();
        let mut hash = Sha256::new();
        hash.update(&self.hash);
        chosen.iter().for_each(|number| hash.update(number.to_le_bytes()));
        let hash = format!("{:x}", hash.finalize());
        Self { parts: self.parts.clone(), chosen: Some(chosen), scores: None, hash }
    }

    /// The same pairs with the scores of their sentences: a record of [`Scores`] for each.
    pub fn with_scores(mut self, scores: Records) -> Self {
        self.scores = Some(Arc::new(scores));
        self
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.chosen.as_ref().map_or_else(|| self.stock_len(), |chosen| chosen.len())
    }

    /// No pairs.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hash of tokens and sentences of all pairs, in order. Pictures have a hash of their own; scores have none: they follow
    /// from pairs, pictures and CLIP, and their last bits from the device.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// A pair.
    ///
    /// # Errors
    /// [`Error::Stored`] for a number that is not there or a damaged file; [`Error::Io`].
    pub fn get(&self, number: usize) -> Result<EncodedPair> {
        if number >= self.len() {
            let found = format!("pair {number} of {}", self.len());
            return Err(Error::Option { name: "pair", found, remedy: "ask for one that is there" });
        }
        let at = self.at(number);
        let part = self.part(at);
        let mut pair = match &part.stock {
            Stock::Memory(pairs, _) => pairs[at - part.start].clone(),
            Stock::File(records, _) => from_bytes(records, &records.get(at - part.start)?)?,
        };
        if let Some(records) = &self.scores {
            let scores: Scores = from_bytes(records, &records.get(number)?)?;
            (pair.chosen.similarity, pair.rejected.similarity) = (scores.chosen, scores.rejected);
        }
        Ok(pair)
    }

    /// All pairs, one after another.
    pub fn iter(&self) -> impl Iterator<Item = Result<EncodedPair>> + '_ {
        (0..self.len()).map(|number| self.get(number))
    }

    /// Some of the pairs.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_all(&self, numbers: impl IntoIterator<Item = usize>) -> Result<Vec<EncodedPair>> {
        numbers.into_iter().map(|number| self.get(number)).collect()
    }

    /// [`EncodedPair::length`] of a pair, without reading it.
    pub fn length(&self, number: usize) -> usize {
        let at = self.at(number);
        let part = self.part(at);
        match &part.stock {
            Stock::Memory(pairs, _) => pairs[at - part.start].length(),
            Stock::File(records, _) => (records.tags()[at - part.start] & 0xFFFF_FFFF) as usize,
        }
    }

    /// A number from 0 to 1 that follows from the pair's first picture alone, of its prompt where it has none: what a share is held
    /// out by.
    pub fn share(&self, number: usize) -> f64 {
        let at = self.at(number);
        let part = self.part(at);
        let hash = match &part.stock {
            Stock::Memory(_, shares) => shares[at - part.start],
            Stock::File(records, _) => (records.tags()[at - part.start] >> 32) as u32,
        };
        f64::from(hash) / (f64::from(u32::MAX) + 1.0)
    }

    /// What is known of the set: of all pairs that it was chosen from, but for their number.
    pub fn summary(&self) -> Summary {
        let parts = self.parts.iter().map(|part| match &part.stock {
            Stock::Memory(pairs, _) => {
                let mut summary = Summary::default();
                pairs.iter().for_each(|pair| summary.add(pair));
                summary
            }
            Stock::File(_, note) => note.summary.clone(),
        });
        parts.fold(Summary::default(), |all, part| all.merge(&part))
    }

    fn stock_len(&self) -> usize {
        self.parts.last().map_or(0, |part| {
            part.start
                + match &part.stock {
                    Stock::Memory(pairs, _) => pairs.len(),
                    Stock::File(records, _) => records.len(),
                }
        })
    }

    /// The number of a pair among those of all parts.
    fn at(&self, number: usize) -> usize {
        self.chosen.as_ref().map_or(number, |chosen| chosen[number] as usize)
    }

    fn part(&self, at: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.start <= at);
        &self.parts[after - 1]
    }
}

/// The scores of a pair's sentences, as a record.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores {
    /// Of the chosen answer's sentences.
    pub chosen: Vec<f32>,
    /// Of the rejected answer's; empty where they were not asked for.
    pub rejected: Vec<f32>,
}
