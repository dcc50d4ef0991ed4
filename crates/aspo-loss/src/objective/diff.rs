//! Which tokens a correction changed, as RLHF-V's code marks them: `difflib.SequenceMatcher` of Python over the rejected and
//! the chosen sequence, and of its matching blocks those of three tokens and more.

use std::collections::HashMap;
use std::hash::Hash;

/// Matching blocks of fewer tokens are no matches.
const SHORTEST: usize = 3;

/// difflib's `autojunk`: in a second sequence of 200 elements and more, those that make up more than 1% of it start no match.
const JUNK_FROM: usize = 200;

/// Which tokens of two sequences were replaced by others: spans between matches of three tokens or more that are not empty
/// on either side. Tokens merely inserted or deleted are not marked (RLHF-V's code, `utils/diff_lib.py`).
///
/// RLHF-V compares whole sequences, prompt included, from the second token on; of the marks only those of response tokens
/// count ([`PreferenceBatch::with_changed`](crate::PreferenceBatch::with_changed)). Memory is linear in the lengths.
///
/// ```
/// let (chosen, rejected) = aspo_loss::objective::changed_tokens(&[1, 2, 3, 4, 5, 6, 7], &[1, 2, 3, 9, 8, 5, 6, 7]);
/// assert_eq!(chosen, [false, false, false, true, false, false, false]);
/// assert_eq!(rejected, [false, false, false, true, true, false, false, false]);
/// ```
pub fn changed_tokens<T: Eq + Hash>(chosen: &[T], rejected: &[T]) -> (Vec<bool>, Vec<bool>) {
    let (mut chosen_marks, mut rejected_marks) = (vec![false; chosen.len()], vec![false; rejected.len()]);
    let mut blocks = matching_blocks(rejected, chosen);
    blocks.retain(|block| block.size >= SHORTEST);
    blocks.push(Block { a: rejected.len(), b: chosen.len(), size: 0 });
    let (mut a, mut b) = (0, 0);
    for block in blocks {
        if a < block.a && b < block.b {
            rejected_marks[a..block.a].fill(true);
            chosen_marks[b..block.b].fill(true);
        }
        (a, b) = (block.a + block.size, block.b + block.size);
    }
    (chosen_marks, rejected_marks)
}

/// `a[self.a..][..size] == b[self.b..][..size]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    a: usize,
    b: usize,
    size: usize,
}

/// difflib's `get_matching_blocks` without its closing empty block: the longest match, then those to its left and right.
/// In rising order; neighbours that touch are one.
fn matching_blocks<T: Eq + Hash>(a: &[T], b: &[T]) -> Vec<Block> {
    let mut places: HashMap<&T, Vec<usize>> = HashMap::new();
    for (j, token) in b.iter().enumerate() {
        places.entry(token).or_default().push(j);
    }
    if b.len() >= JUNK_FROM {
        places.retain(|_, places| places.len() <= b.len() / 100 + 1);
    }
    let mut open = vec![(0, a.len(), 0, b.len())];
    let mut blocks = vec![];
    while let Some((a_low, a_high, b_low, b_high)) = open.pop() {
        let found = longest(a, b, &places, (a_low, a_high), (b_low, b_high));
        if found.size == 0 {
            continue;
        }
        blocks.push(found);
        if a_low < found.a && b_low < found.b {
            open.push((a_low, found.a, b_low, found.b));
        }
        let (a_end, b_end) = (found.a + found.size, found.b + found.size);
        if a_end < a_high && b_end < b_high {
            open.push((a_end, a_high, b_end, b_high));
        }
    }
    blocks.sort();
    let mut joined: Vec<Block> = vec![];
    for block in blocks {
        match joined.last_mut() {
            Some(last) if last.a + last.size == block.a && last.b + last.size == block.b => {
                last.size += block.size
            }
            _ => joined.push(block),
        }
    }
    joined
}

/// The longest match within both ranges, of several the first in `a` and then in `b`, grown over popular tokens on both
/// sides: difflib's `find_longest_match`.
fn longest<T: Eq + Hash>(
    a: &[T],
    b: &[T],
    places: &HashMap<&T, Vec<usize>>,
    (a_low, a_high): (usize, usize),
    (b_low, b_high): (usize, usize),
) -> Block {
    let mut best = Block { a: a_low, b: b_low, size: 0 };
    // Length of the match that ends before this token of `a` and with each token of `b`.
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for (i, token) in a.iter().enumerate().take(a_high).skip(a_low) {
        let mut next = HashMap::new();
        let at = places.get(token).map_or(&[][..], Vec::as_slice);
        for &j in at.iter().skip_while(|&&j| j < b_low).take_while(|&&j| j < b_high) {
            let length = 1 + j.checked_sub(1).and_then(|before| lengths.get(&before)).copied().unwrap_or(0);
            next.insert(j, length);
            if length > best.size {
                best = Block { a: i + 1 - length, b: j + 1 - length, size: length };
            }
        }
        lengths = next;
    }
    while best.a > a_low && best.b > b_low && a[best.a - 1] == b[best.b - 1] {
        best = Block { a: best.a - 1, b: best.b - 1, size: best.size + 1 };
    }
    while best.a + best.size < a_high
        && best.b + best.size < b_high
        && a[best.a + best.size] == b[best.b + best.size]
    {
        best.size += 1;
    }
    best
}
