//! The order in which pairs are visited: batches of like length, shuffled from a seed, with a cursor to store.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A place in the order, for checkpoints. It names the data that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Next batch within the epoch, from 0.
    pub batch: usize,
    /// Hash of lengths, batch size, bucket and seed: a cursor fits only the order it was taken from.
    pub fingerprint: String,
}

/// Batches of pair indices, epoch after epoch, without end.
///
/// Each epoch is a permutation of all pairs that follows from `(seed, epoch)` alone. The permutation is cut into stretches
/// of `bucket` batches; within one, pairs are sorted by length, so that rows of a batch need little padding; then the
/// batches are shuffled. `bucket` 1 does not sort at all. The last batch of an epoch may be smaller; none is dropped.
///
/// ```
/// use aspo_data::order::Order;
///
/// let mut order = Order::new(&[5, 9, 4, 8, 5], 2, 8, 42)?;
/// let first = order.next_batch();
/// let cursor = order.cursor();
/// let second = order.next_batch();
/// order.seek(&cursor)?;
/// assert_eq!(order.next_batch(), second);
/// # Ok::<(), aspo_data::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Order {
    lengths: Vec<u32>,
    batch: usize,
    bucket: usize,
    seed: u64,
    fingerprint: String,
    epoch: u64,
    next: usize,
    /// The present epoch's pairs.
    indices: Vec<u32>,
    /// The order of its batches, each a stretch of `indices`.
    batches: Vec<u32>,
}

impl Order {
    /// An order over pairs of the given lengths ([`EncodedPair::length`](crate::EncodedPair::length)).
    ///
    /// # Errors
    /// [`Error::Option`] for no pairs, a batch of 0 or a bucket of 0.
    pub fn new(lengths: &[usize], batch: usize, bucket: usize, seed: u64) -> Result<Self> {
        for (name, value) in
            [("pairs", lengths.len()), ("per_device_train_batch_size", batch), ("bucket", bucket)]
        {
            if value == 0 {
                return Err(Error::Option { name, found: "0".to_owned(), remedy: "use 1 or more" });
            }
        }
        let mut hash = Sha256::new();
        for number in [lengths.len(), batch, bucket].iter().chain(lengths) {
            hash.update((*number as u64).to_le_bytes());
        }
        hash.update(seed.to_le_bytes());
        let fingerprint = format!("{:.32}", format!("{:x}", hash.finalize()));
        let mut order = Self {
            lengths: lengths.iter().map(|length| u32::try_from(*length).unwrap_or(u32::MAX)).collect(),
            batch,
            bucket,
            seed,
            fingerprint,
            epoch: 0,
            next: 0,
            indices: Vec::new(),
            batches: Vec::new(),
        };
        order.begin(0);
        Ok(order)
    }

    /// Batches of one epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.batches.len()
    }

    /// The epoch that the next batch belongs to.
    pub fn epoch(&self) -> u64 {
        self.cursor().epoch
    }

    /// Indices of the next batch's pairs.
    pub fn next_batch(&mut self) -> Vec<usize> {
        if self.next == self.batches.len() {
            self.next = 0;
            self.begin(self.epoch + 1);
        }
        self.next += 1;
        let start = self.batches[self.next - 1] as usize * self.batch;
        let end = self.indices.len().min(start + self.batch);
        self.indices[start..end].iter().map(|index| *index as usize).collect()
    }

    /// Where the next batch lies.
    pub fn cursor(&self) -> Cursor {
        let over = self.next == self.batches.len();
        Cursor {
            epoch: self.epoch + u64::from(over),
            batch: if over { 0 } else { self.next },
            fingerprint: self.fingerprint.clone(),
        }
    }

    /// Goes on at a stored cursor.
    ///
    /// # Errors
    /// [`Error::Option`] when it was taken from other data, another batch size, bucket or seed.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if cursor.fingerprint != self.fingerprint || cursor.batch >= self.batches.len() {
            let found =
                format!("epoch {}, batch {}, order {}", cursor.epoch, cursor.batch, cursor.fingerprint);
            let remedy =
                "resume with the same data, max_length, batch size, bucket and seed as the stored run";
            return Err(Error::Option { name: "cursor", found, remedy });
        }
        self.begin(cursor.epoch);
        self.next = cursor.batch;
        Ok(())
    }

    /// Lays out an epoch.
    fn begin(&mut self, epoch: u64) {
        let mut random = random(self.seed, epoch);
        self.indices = (0..self.lengths.len() as u32).collect();
        shuffle(&mut self.indices, &mut random);
        if self.bucket > 1 {
            for stretch in self.indices.chunks_mut(self.bucket.saturating_mul(self.batch)) {
                stretch.sort_by_key(|index| self.lengths[*index as usize]);
            }
        }
        self.batches = (0..self.indices.len().div_ceil(self.batch) as u32).collect();
        shuffle(&mut self.batches, &mut random);
        self.epoch = epoch;
    }
}

/// The numbers below `count` in an order that follows from the seed.
pub fn permutation(count: usize, seed: u64) -> Vec<usize> {
    let mut numbers: Vec<usize> = (0..count).collect();
    shuffle(&mut numbers, &mut random(seed, u64::MAX));
    numbers
}

fn random(seed: u64, epoch: u64) -> ChaCha8Rng {
    let mut key = Sha256::new();
    key.update(seed.to_le_bytes());
    key.update(epoch.to_le_bytes());
    ChaCha8Rng::from_seed(key.finalize().into())
}

/// Fisher and Yates from the front: each value changes places with one of those up to it.
///
/// Which follows from the stream alone, and it is spelled out here because a library's shuffle may change with its
/// version, and a resumed run would then visit other pairs. Several places are read from one draw below the product of
/// their numbers of choices, as long as it fits 32 bits (as in rand 0.9, whose orders these are).
fn shuffle<T>(values: &mut [T], random: &mut impl RngCore) {
    let (mut draw, mut left) = (0_u32, 0);
    // The first has one choice.
    for index in 1..values.len() {
        let choices = index as u32 + 1;
        if left == 0 {
            let mut product = choices;
            left = 1;
            while let Some(more) = product.checked_mul(choices + left) {
                product = more;
                left += 1;
            }
            draw = below(product, random);
        }
        left -= 1;
        let place = if left == 0 { draw } else { draw % choices };
        draw /= choices;
        values.swap(index, place as usize);
    }
}

/// A number below `limit`, biased by less than 2⁻³² (Canon's method: the upper half of a product, corrected by a second).
fn below(limit: u32, random: &mut impl RngCore) -> u32 {
    let product = u64::from(random.next_u32()) * u64::from(limit);
    let (high, low) = ((product >> 32) as u32, product as u32);
    if low <= limit.wrapping_neg() {
        return high;
    }
    let more = ((u64::from(random.next_u32()) * u64::from(limit)) >> 32) as u32;
    high + u32::from(low.checked_add(more).is_none())
}
