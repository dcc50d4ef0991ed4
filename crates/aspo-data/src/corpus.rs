//! All pairs of a file, encoded on all cores, with a cache and an account of what was left out.

use std::collections::BTreeMap;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::encode::{EncodedPair, Encoder};
use crate::error::{Error, PairFault, Result};
use crate::pair::Pair;
use crate::store::{Key, Store};

/// Raised when the same pair would be encoded otherwise than before, so that caches of older versions are not read.
const ENCODING: &str = "aspo-data encoding 1";
/// Pairs held between reading and encoding.
const CHUNK: usize = 512;

/// What to do with a faulty row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// Stop at the first.
    #[default]
    Stop,
    /// Leave it out and count it.
    Skip,
}

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct EncodeReport {
    /// Rows read.
    pub rows: usize,
    /// Pairs encoded.
    pub encoded: usize,
    /// Of these, taken from the cache.
    pub cached: usize,
    /// Chosen answers that lost their end.
    pub truncated_chosen: usize,
    /// Rejected answers that lost their end.
    pub truncated_rejected: usize,
    /// Pairs dropped because the prompt left no room for an answer.
    pub dropped_no_room: usize,
    /// Rows left out for faults (with [`OnFault::Skip`]).
    pub faulty: usize,
    /// The first faults, as text.
    pub faults: Vec<String>,
}

/// Most faults that a report spells out.
pub const MAX_FAULTS_TOLD: usize = 20;

impl Encoder {
    /// Encodes all pairs in order. Pairs without room for an answer are dropped and counted; other faults stop the work
    /// or are counted too, as `on_fault` says.
    ///
    /// # Errors
    /// The first fault with [`OnFault::Stop`]; errors of files and of the tokenizer always.
    pub fn encode_all(
        &self,
        pairs: impl IntoIterator<Item = Result<Pair>>,
        on_fault: OnFault,
        mut cache: Option<&mut Store>,
    ) -> Result<(Vec<EncodedPair>, EncodeReport)> {
        let mut report = EncodeReport::default();
        let mut result = Vec::new();
        let fingerprint = self.fingerprint();
        let mut pairs = pairs.into_iter();
        loop {
            let chunk: Vec<Result<Pair>> = pairs.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                break;
            }
            report.rows += chunk.len();
            let keys: Vec<Option<Key>> = chunk
                .iter()
                .map(|pair| pair.as_ref().ok().map(|pair| self.key(&fingerprint, pair)))
                .collect();
            let mut known = BTreeMap::new();
            if let Some(cache) = cache.as_deref_mut() {
                for (index, key) in keys.iter().enumerate() {
                    let value = key.as_ref().map(|key| cache.get(key)).transpose()?.flatten();
                    if let Some(pair) =
                        value.and_then(|value| serde_json::from_slice::<EncodedPair>(&value).ok())
                    {
                        known.insert(index, pair);
                    }
                }
            }
            report.cached += known.len();
            let encoded: Vec<Result<EncodedPair>> = chunk
                .into_par_iter()
                .enumerate()
                .map(|(index, pair)| {
                    let pair = pair?;
                    match known.get(&index) {
                        // Neither the id nor the images are part of what is stored.
                        Some(stored) => {
                            Ok(EncodedPair { id: pair.id, images: pair.images, ..stored.clone() })
                        }
                        None => self.encode(&pair),
                    }
                })
                .collect();
            for (index, (pair, key)) in encoded.into_iter().zip(keys).enumerate() {
                match pair {
                    Ok(pair) => {
                        if let (Some(cache), Some(key), false) =
                            (cache.as_deref_mut(), &key, known.contains_key(&index))
                        {
                            let value = serde_json::to_vec(&pair).expect("plain data");
                            cache.put(key, &value)?;
                        }
                        report.encoded += 1;
                        report.truncated_chosen += usize::from(pair.chosen.truncated);
                        report.truncated_rejected += usize::from(pair.rejected.truncated);
                        result.push(pair);
                    }
                    Err(Error::Pair { fault: PairFault::NoRoom { .. }, .. }) => report.dropped_no_room += 1,
                    Err(error) if on_fault == OnFault::Skip && error.is_one_row() => {
                        report.faulty += 1;
                        if report.faults.len() < MAX_FAULTS_TOLD {
                            report.faults.push(error.to_string());
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        if let Some(cache) = cache {
            cache.sync()?;
        }
        Ok((result, report))
    }

    /// Hash of everything beside the pair that decides how it is encoded.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(ENCODING);
        hash.update(self.tokenizer.content_hash());
        hash.update(format!(
            "{:?} {:?} {} {:?} {:?}",
            self.tokenizer.names(),
            self.template,
            self.image_tokens,
            self.max_length,
            self.split
        ));
        if let Some(tokenizer) = &self.instruction {
            hash.update(tokenizer.content_hash());
        }
        hash.finalize().into()
    }

    fn key(&self, fingerprint: &[u8; 32], pair: &Pair) -> Key {
        Sha256::new().chain_update(fingerprint).chain_update(pair.content_hash()).finalize().into()
    }
}
