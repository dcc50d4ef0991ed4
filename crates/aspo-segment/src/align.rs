//! From sentence spans and token offsets to one sentence id per token.

use std::ops::Range;

use crate::error::Error;

/// Gives each token the index of the sentence it belongs to.
///
/// `spans` tile `text` as [`split`](crate::split) makes them; `offsets` are each token's `(start, end)` in bytes of
/// `text`, as the `tokenizers` crate's `Tokenizer::encode` gives them ([`byte_offsets`] converts offsets in
/// characters, [`within`] those of a longer document). The rules:
///
/// - a token belongs to the sentence it starts in, also when it runs across the border. It starts at its first visible
///   character: LLaMA's `▁It` carries the space in front of it, which ends the sentence before, yet says `It`;
/// - a token of white space alone belongs where that white space does, to the sentence before;
/// - a token of no width (special tokens, marked `(0, 0)` or `(n, n)`) belongs to the sentence of the token before it,
///   the closing `</s>` thus to the last sentence, and to sentence 0 where it comes first;
/// - tokens that share a character (byte fallback) share its sentence.
///
/// The ids never decrease. A sentence that starts and ends within one token gets no token.
///
/// ```
/// use aspo_segment::{SplitOptions, align, split};
///
/// let text = "A dog runs. It barks.";
/// let spans: Vec<_> = split(text, &SplitOptions::default()).collect();
/// // A  ▁dog  ▁runs  .  ▁It  ▁barks  .  </s>
/// let offsets = [(0, 1), (1, 5), (5, 10), (10, 11), (11, 14), (14, 20), (20, 21), (0, 0)];
/// assert_eq!(align(text, &spans, &offsets)?, [0, 0, 0, 0, 1, 1, 1, 1]);
/// # Ok::<(), aspo_segment::Error>(())
/// ```
///
/// # Errors
/// [`Error::Spans`] when the spans do not tile the text; [`Error::NoSentence`] when there are tokens but no text;
/// [`Error::Outside`], [`Error::Order`] and [`Error::Uncovered`] when the offsets do not fit the text: every character
/// must be under a token, save white space and invisible characters, which some tokenizers drop. Truncate after
/// aligning, not before.
pub fn align(text: &str, spans: &[Range<usize>], offsets: &[(usize, usize)]) -> Result<Vec<usize>, Error> {
    check_tiling(text, spans)?;
    if spans.is_empty() && !offsets.is_empty() {
        return Err(Error::NoSentence { tokens: offsets.len() });
    }
    let mut ids = Vec::with_capacity(offsets.len());
    let (mut sentence, mut previous, mut covered) = (0, 0, 0);
    for (token, &(start, end)) in offsets.iter().enumerate() {
        if start > end || end > text.len() {
            return Err(Error::Outside { token, start, end, length: text.len(), unit: "bytes" });
        }
        if start < end {
            if start < previous {
                return Err(Error::Order { token, start, previous });
            }
            check_covered(text, covered, start, token)?;
            let visible = first_visible(text, start, end);
            while visible >= spans[sentence].end {
                sentence += 1;
            }
            (previous, covered) = (start, covered.max(end));
        }
        ids.push(sentence);
    }
    if !offsets.is_empty() {
        check_covered(text, covered, text.len(), offsets.len())?;
    }
    Ok(ids)
}

/// Offsets in characters to offsets in bytes, in linear time.
///
/// Python's `tokenizers` and the crate's `encode_char_offsets` count characters. An offset is where the character
/// starts; one past the last character is the text's length.
///
/// ```
/// # use aspo_segment::byte_offsets;
/// assert_eq!(byte_offsets("图。Hi", &[(0, 1), (1, 2), (2, 4), (0, 0)])?, [(0, 3), (3, 6), (6, 8), (0, 0)]);
/// # Ok::<(), aspo_segment::Error>(())
/// ```
///
/// # Errors
/// [`Error::Outside`] for an offset past the text's end, or a token that ends before it starts.
pub fn byte_offsets(text: &str, offsets: &[(usize, usize)]) -> Result<Vec<(usize, usize)>, Error> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let convert =
        |(token, &(start, end)): (usize, &(usize, usize))| match (starts.get(start), starts.get(end)) {
            (Some(&from), Some(&to)) if from <= to => Ok((from, to)),
            _ => Err(Error::Outside { token, start, end, length: starts.len() - 1, unit: "characters" }),
        };
    offsets.iter().enumerate().map(convert).collect()
}

/// Offsets in a document (prompt and response) to offsets in the response that spans `response` of it, in either unit.
///
/// A token that hangs over an edge is cut to it (the first often carries the space between prompt and response); a
/// token of no width stays `(0, 0)`.
///
/// ```
/// # use aspo_segment::within;
/// // "ASSISTANT: Yes.</s>" with the response at 11..15: ▁Yes, the full stop, and </s> marked as special.
/// assert_eq!(within(11..15, &[(10, 14), (14, 15), (0, 0)])?, [(0, 3), (3, 4), (0, 0)]);
/// # Ok::<(), aspo_segment::Error>(())
/// ```
///
/// # Errors
/// [`Error::NotInResponse`] for a token that lies wholly outside the response, or ends before it starts.
pub fn within(response: Range<usize>, offsets: &[(usize, usize)]) -> Result<Vec<(usize, usize)>, Error> {
    let shift = |(token, &(start, end)): (usize, &(usize, usize))| {
        let (from, to) = (start.max(response.start), end.min(response.end));
        match () {
            () if start == end => Ok((0, 0)),
            () if from < to => Ok((from - response.start, to - response.start)),
            () => Err(Error::NotInResponse { token, start, end, from: response.start, to: response.end }),
        }
    };
    offsets.iter().enumerate().map(shift).collect()
}

fn check_tiling(text: &str, spans: &[Range<usize>]) -> Result<(), Error> {
    let length = text.len();
    let mut expected = 0;
    for (sentence, &Range { start, end }) in spans.iter().enumerate() {
        if start != expected || end <= start || end > length {
            return Err(Error::Spans { sentence, expected, start, end, length });
        }
        expected = end;
    }
    if expected != length {
        let start = expected;
        return Err(Error::Spans { sentence: spans.len(), expected, start, end: length, length });
    }
    Ok(())
}

/// Where a token's first character that is not white space lies; its start where there is none.
fn first_visible(text: &str, start: usize, end: usize) -> usize {
    let token = text.get(start..end).unwrap_or_default();
    let word = token.trim_start();
    if word.is_empty() { start } else { end - word.len() }
}

/// Refuses a hole `from..to` in the tokens that holds anything visible. Offsets may fall inside a character (raw
/// bytes), so the hole is widened to whole characters where it starts and ends within one.
fn check_covered(text: &str, from: usize, to: usize, token: usize) -> Result<(), Error> {
    if from >= to {
        return Ok(());
    }
    let at = text.floor_char_boundary(from);
    let hole = &text[at..text.ceil_char_boundary(to)];
    if hole.chars().all(is_invisible) {
        return Ok(());
    }
    Err(Error::Uncovered { token, at, missed: hole.chars().take(20).collect() })
}

/// White space, controls and the format characters that normalisers drop.
fn is_invisible(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2064}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
}
