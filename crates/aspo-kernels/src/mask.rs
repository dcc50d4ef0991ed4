//! Who sees whom in attention, as bounds of loops.

use core::ops::Range;

/// Values of a block's scores: what fits the second-level cache beside the keys.
const BLOCK_SCORES: usize = 48 << 10;

/// Rows of a block at most; a multiple of the six rows that are multiplied at once.
const BLOCK_ROWS: usize = 48;

/// Which tokens of a row each token sees: of its own row, or ([`across`](Self::across)) of another sequence beside it.
///
/// Queries are cut into blocks, and every block lists the ranges of keys that any of its queries sees. A kernel walks the
/// ranges, so that hidden scores cost nothing and no mask exists; [`hidden`](Self::hidden) writes one out for operations
/// that need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMask {
    batch: usize,
    tokens: usize,
    keys: usize,
    blocks: Vec<Vec<Block>>,
}

/// Queries next to each other, and the keys that any of them sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub queries: Range<usize>,
    /// In order, apart from each other.
    pub keys: Vec<Keys>,
}

/// A range of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    pub range: Range<usize>,
    /// A query sees those up to itself only, not all.
    pub causal: bool,
}

impl BlockMask {
    /// Tokens see earlier tokens, and themselves, of their own segment and of segment 0.
    ///
    /// `segments` is `[batch, tokens]`, row by row; a token of a negative segment is padding, which nobody sees. What
    /// padding itself sees means nothing.
    ///
    /// # Panics
    /// If `segments` has another length.
    pub fn causal(batch: usize, tokens: usize, segments: &[i64]) -> Self {
        assert_eq!(segments.len(), batch * tokens, "one segment a token");
        let row = |row: usize| {
            let row = &segments[row * tokens..][..tokens];
            let (mut blocks, mut from) = (Vec::new(), 0);
            while from < tokens {
                // A block stays within a segment: then all of it sees the same earlier keys.
                let own = row[from];
                let run = row[from..].iter().take(block_rows(tokens)).take_while(|s| **s == own).count();
                let to = from + run;
                let seen = |at: &usize| row[*at] >= 0 && (row[*at] == 0 || row[*at] == own);
                let mut keys = ranges((0..from).filter(seen), false);
                keys.extend(ranges((from..to).filter(seen), true));
                blocks.push(Block { queries: from..to, keys });
                from = to;
            }
            blocks
        };
        Self { batch, tokens, keys: tokens, blocks: (0..batch).map(row).collect() }
    }

    /// Every token sees every real token of its row. `real` is `[batch, tokens]`, row by row.
    ///
    /// # Panics
    /// If `real` has another length.
    pub fn full(batch: usize, tokens: usize, real: &[bool]) -> Self {
        Self::across(batch, tokens, tokens, real)
    }

    /// Every token of a row sees every real key of another sequence, as [`cross_attention`](crate::cross_attention) has it.
    /// `real` is `[batch, keys]`, row by row.
    ///
    /// # Panics
    /// If `real` has another length.
    pub fn across(batch: usize, tokens: usize, keys: usize, real: &[bool]) -> Self {
        assert_eq!(real.len(), batch * keys, "one flag a key");
        let row = |row: usize| {
            let seen = ranges((0..keys).filter(|at| real[row * keys + at]), false);
            let rows = block_rows(keys);
            let block = |from| Block { queries: from..(from + rows).min(tokens), keys: seen.clone() };
            (0..tokens).step_by(rows).map(block).collect()
        };
        Self { batch, tokens, keys, blocks: (0..batch).map(row).collect() }
    }

    /// Every token sees every token of its own group, and no other: windows, or pictures side by side.
    ///
    /// `groups` is `[batch, tokens]`, row by row; the tokens of a group stand together, and a group below zero is padding.
    ///
    /// # Panics
    /// If `groups` has another length.
    pub fn within(batch: usize, tokens: usize, groups: &[i64]) -> Self {
        assert_eq!(groups.len(), batch * tokens, "one group a token");
        let row = |row: usize| {
            let row = &groups[row * tokens..][..tokens];
            let (mut blocks, mut from) = (Vec::new(), 0);
            for group in row.chunk_by(|a, b| a == b) {
                let end = from + group.len();
                let keys = ranges((from..end).filter(|_| group[0] >= 0), false);
                while from < end {
                    let to = (from + block_rows(tokens)).min(end);
                    blocks.push(Block { queries: from..to, keys: keys.clone() });
                    from = to;
                }
            }
            blocks
        };
        Self { batch, tokens, keys: tokens, blocks: (0..batch).map(row).collect() }
    }

    /// The same for some queries: a block without a `wanted` place (`row · tokens + column`) sees nothing and costs nothing.
    /// What queries that are not wanted see means nothing.
    #[must_use]
    pub fn only(&self, wanted: &[usize]) -> Self {
        let mut asked = vec![false; self.batch * self.tokens];
        for &place in wanted {
            asked[place] = true;
        }
        let mut out = self.clone();
        for (row, blocks) in out.blocks.iter_mut().enumerate() {
            for block in blocks {
                if !asked[row * self.tokens..][block.queries.clone()].contains(&true) {
                    block.keys.clear();
                }
            }
        }
        out
    }

    /// Rows of the batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of a row that see, padding included.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of a row that are seen or not: as many as [`tokens`](Self::tokens) but for [`across`](Self::across).
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Whether every token sees all keys of its row.
    pub fn hides_nothing(&self) -> bool {
        let all = [Keys { range: 0..self.keys, causal: false }];
        self.blocks.iter().flatten().all(|block| block.keys == all)
    }

    /// The mask written out, `[batch, queries, keys]`, true where a key is hidden.
    pub fn hidden(&self) -> Vec<bool> {
        let mut out = vec![true; self.batch * self.tokens * self.keys];
        for (row, blocks) in self.blocks.iter().enumerate() {
            for block in blocks {
                for query in block.queries.clone() {
                    let line = &mut out[(row * self.tokens + query) * self.keys..][..self.keys];
                    for keys in &block.keys {
                        let end = if keys.causal { keys.range.end.min(query + 1) } else { keys.range.end };
                        line[keys.range.start..end.max(keys.range.start)].fill(false);
                    }
                }
            }
        }
        out
    }

    /// Pairs of query and key whose score is computed, those hidden in a block's own triangle included: what the cost of
    /// attention is counted in.
    pub fn pairs(&self) -> usize {
        self.blocks.iter().flatten().map(|block| block.queries.len() * block.width()).sum()
    }

    #[cfg(feature = "flex")]
    pub(crate) fn blocks(&self, row: usize) -> &[Block] {
        &self.blocks[row]
    }

    #[cfg(feature = "flex")]
    pub(crate) fn all_blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().flatten()
    }
}

impl Block {
    /// Keys seen.
    pub fn width(&self) -> usize {
        self.keys.iter().map(|keys| keys.range.len()).sum()
    }
}

fn block_rows(keys: usize) -> usize {
    (BLOCK_SCORES / keys.max(1)).clamp(6, BLOCK_ROWS) / 6 * 6
}

/// Places in rising order, as ranges.
fn ranges(places: impl Iterator<Item = usize>, causal: bool) -> Vec<Keys> {
    let mut out: Vec<Keys> = Vec::new();
    for at in places {
        match out.last_mut() {
            Some(keys) if keys.range.end == at => keys.range.end += 1,
            _ => out.push(Keys { range: at..at + 1, causal }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The rule itself.
    fn sees(segments: &[i64], query: usize, key: usize) -> bool {
        key <= query && segments[key] >= 0 && (segments[key] == 0 || segments[key] == segments[query])
    }

    proptest! {
        #[test]
        fn ranges_say_what_the_rule_says(segments in prop::collection::vec(-1i64..4, 1..90)) {
            let tokens = segments.len();
            let both = [segments.clone(), segments.iter().rev().copied().collect()].concat();
            let hidden = BlockMask::causal(2, tokens, &both).hidden();
            for (row, segments) in both.chunks(tokens).enumerate() {
                for query in 0..tokens {
                    for key in 0..tokens {
                        let found = !hidden[(row * tokens + query) * tokens + key];
                        prop_assert_eq!(found, sees(segments, query, key), "row {} query {} key {}", row, query, key);
                    }
                }
            }
        }
    }

    #[test]
    fn a_token_sees_its_own_group_alone() {
        let groups = [0, 0, 0, 1, -1, 7, 7, 7, 7, 8];
        let hidden = BlockMask::within(1, 10, &groups).hidden();
        for query in 0..10 {
            for key in 0..10 {
                let sees = groups[query] == groups[key] && groups[key] >= 0;
                assert_eq!(!hidden[10 * query + key], sees, "query {query}, key {key}");
            }
        }
    }

    #[test]
    fn every_token_sees_every_real_one() {
        let real = [true, false, true, true, true, true];
        let hidden = BlockMask::full(2, 3, &real).hidden();
        let row = |row: usize| [!real[3 * row], !real[3 * row + 1], !real[3 * row + 2]];
        assert_eq!(hidden, [row(0), row(0), row(0), row(1), row(1), row(1)].concat());
        assert!(
            !BlockMask::full(2, 3, &real).hides_nothing()
                && BlockMask::full(2, 3, &[true; 6]).hides_nothing()
        );
    }

    #[test]
    fn every_token_sees_every_real_key_of_another_sequence() {
        // Two blocks of queries, one key hidden in each row, in another place.
        let real: Vec<bool> = (0..10).map(|i| i != 2 && i != 5).collect();
        let mask = BlockMask::across(2, 60, 5, &real);
        let hidden: Vec<bool> = real
            .chunks(5)
            .flat_map(|row| row.iter().map(|real| !real).collect::<Vec<_>>().repeat(60))
            .collect();
        assert_eq!(mask.hidden(), hidden);
        assert_eq!((mask.tokens(), mask.keys(), mask.pairs()), (60, 5, 2 * 60 * 4));
        assert!(!mask.hides_nothing() && BlockMask::across(2, 60, 5, &[true; 10]).hides_nothing());
    }

    #[test]
    fn blocks_without_a_wanted_query_cost_nothing() {
        let mask = BlockMask::causal(2, 200, &[0; 400]);
        let some = mask.only(&[3, 399]);
        assert_eq!(some.blocks(0).iter().filter(|b| b.width() > 0).count(), 1);
        assert_eq!(some.blocks(1).last(), mask.blocks(1).last());
        assert!(some.pairs() * 5 < mask.pairs());
        assert_eq!(mask.only(&[]).pairs(), 0);
    }

    #[test]
    fn a_packed_pair_costs_less_than_its_triangle() {
        let segments = [vec![0i64; 96], vec![1; 96], vec![2; 96]].concat();
        let pairs = BlockMask::causal(1, 288, &segments).pairs();
        assert!(pairs < 288 * 288 / 2, "{pairs}");
    }
}
