//! The iterator over sentences: rules propose, lengths dispose.

use std::iter::FusedIterator;
use std::ops::Range;

use unicode_segmentation::GraphemeCursor;

use crate::chars::leading_space;
use crate::options::SplitOptions;
use crate::rules;

/// How many bytes behind the longest sentence a rule may look at.
const LOOK_AHEAD: usize = 512;

/// Splits a text into sentences: byte spans that tile it exactly.
///
/// Every byte is in one span, no span is empty, and white space between two sentences belongs to the one before it. The
/// spans are made one by one in a single pass, without allocation.
///
/// ```
/// use aspo_segment::{SplitOptions, split};
///
/// let text = "A dog runs. It barks!";
/// let sentences: Vec<&str> = split(text, &SplitOptions::default()).map(|span| &text[span]).collect();
/// assert_eq!(sentences, ["A dog runs. ", "It barks!"]);
/// ```
pub fn split<'t>(text: &'t str, options: &SplitOptions) -> Sentences<'t> {
    Sentences { text, options: *options, at: 0, pending: None }
}

/// The sentences of a text, as [`split`] makes them.
#[derive(Debug, Clone)]
pub struct Sentences<'t> {
    text: &'t str,
    options: SplitOptions,
    /// Where the next candidate starts.
    at: usize,
    /// A candidate already made but not given out.
    pending: Option<Range<usize>>,
}

impl Iterator for Sentences<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let span = self.pending.take().or_else(|| self.long_enough())?;
        if self.options.min_length > 1
            && let Some(next) = self.long_enough()
        {
            // Only the last one can still be too short.
            let joined = span.start..next.end;
            if self.is_short(&next) && self.fits(&joined) {
                return Some(joined);
            }
            self.pending = Some(next);
        }
        Some(span)
    }
}

impl FusedIterator for Sentences<'_> {}

impl Sentences<'_> {
    /// The next sentence, joined with those behind it while it is too short.
    fn long_enough(&mut self) -> Option<Range<usize>> {
        let mut span = self.candidate()?;
        // Characters from the first that is no white space up to the end, without and with the white space there. They
        // are carried along, since a sentence may be joined from any number of short ones.
        let (mut length, mut whole) = self.lengths(&span);
        while length < self.options.min_length
            && let Some(next) = self.candidate()
        {
            let (more, more_whole) = self.lengths(&next);
            if whole + more > self.options.max_length.max(1) {
                self.at = span.end;
                break;
            }
            span.end = next.end;
            (length, whole) = (whole + more, whole + more_whole);
        }
        Some(span)
    }

    /// The next sentence before joining: up to where the rules end it, or cut where it would be too long.
    fn candidate(&mut self) -> Option<Range<usize>> {
        let (text, start) = (self.text, self.at);
        if start == text.len() {
            return None;
        }
        let first = start + leading_space(&text[start..]);
        let max = self.options.max_length.max(1);
        // Where the sentence will be cut anyway, no rule reads on to the end of the text. A character has four bytes at
        // most, so that characters are counted in the sentence alone.
        let limit = text.floor_char_boundary(first.saturating_add(max.saturating_mul(4)));
        let near = text.floor_char_boundary(limit.saturating_add(LOOK_AHEAD));
        let natural = rules::sentence_end(&text[..near], start, limit, &self.options);
        let content = &text[first..first.max(start + text[start..natural].trim_end().len())];
        let too_long = if content.len() > max { content.char_indices().nth(max) } else { None };
        self.at = match too_long {
            None => natural + leading_space(&text[natural..]),
            Some((at, _)) => cut(text, first, first + at),
        };
        Some(start..self.at)
    }

    /// Characters of a sentence, white space in front left out: without and with the white space behind.
    fn lengths(&self, span: &Range<usize>) -> (usize, usize) {
        if self.options.min_length < 2 {
            return (usize::MAX, usize::MAX);
        }
        let text = self.text[span.clone()].trim_start();
        let content = text.trim_end().chars().count();
        (content, content + text[text.trim_end().len()..].chars().count())
    }

    fn is_short(&self, span: &Range<usize>) -> bool {
        self.text[span.clone()].trim().chars().take(self.options.min_length).count() < self.options.min_length
    }

    fn fits(&self, span: &Range<usize>) -> bool {
        let max = self.options.max_length.max(1);
        max == usize::MAX || self.text[span.clone()].trim().chars().nth(max).is_none()
    }
}

/// Where to cut a sentence whose content starts at `first` and is longer than `limit`: behind white space, so that what
/// is left starts with a word.
fn cut(text: &str, first: usize, limit: usize) -> usize {
    let window = &text[first..limit];
    let middle = window.floor_char_boundary(window.len() / 2);
    let clause =
        window.rmatch_indices([',', ';', ':', '，', '；', '：', '、']).map(|(at, mark)| at + mark.len());
    let clause = clause.take_while(|&at| at > middle).find(|&at| !window[at..].starts_with(is_word));
    let next_is_space = text[limit..].starts_with(char::is_whitespace);
    let word = if next_is_space { Some(window.len()) } else { window.rfind(char::is_whitespace) };
    let at = match clause.or(word).filter(|&at| at > 0) {
        Some(at) => first + at,
        None => whole_cluster(text, first, limit),
    };
    at + leading_space(&text[at..])
}

/// The last place up to `limit` that cuts no grapheme cluster (an emoji, a flag, an accent from its letter); `limit`,
/// where there is none.
fn whole_cluster(text: &str, first: usize, limit: usize) -> usize {
    // No further on than a cluster that a reader would see as one.
    let near = &text[first..text.floor_char_boundary(limit + 64)];
    let mut cursor = GraphemeCursor::new(limit - first, near.len(), true);
    match cursor.is_boundary(near, 0) {
        Ok(false) => match cursor.prev_boundary(near, 0) {
            Ok(Some(at)) if at > 0 => first + at,
            _ => limit,
        },
        _ => limit,
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric()
}
