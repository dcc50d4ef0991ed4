//! What stands at the head of a line or of an item: bullets, list numbers, headings, fences of code.

use crate::chars::{is_bullet, leading_space};

/// The number of a list item, as far as the next item's can be told from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    /// `1.`, `2)`, `(3)`, `4.)`.
    Digits(u32),
    /// `a.`, `b)`.
    Letter(char),
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let mut chars = text.chars();
        match (chars.next(), chars.next()) {
            (Some(c), None) if c.is_ascii_alphabetic() => Some(Self::Letter(c)),
            _ if text.len() <= 3 => text.parse().ok().map(Self::Digits),
            _ => None,
        }
    }

    /// Whether `text` numbers the item after this one.
    pub(crate) fn is_followed_by(self, text: &str) -> bool {
        match (self, Self::parse(text)) {
            (Self::Digits(n), Some(Self::Digits(next))) => next == n + 1,
            (Self::Letter(c), Some(Self::Letter(next))) => u32::from(next) == u32::from(c) + 1,
            _ => false,
        }
    }
}

/// What a sentence opens with, before its first word.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Marker {
    /// The byte behind it; the sentence's start, where there is none.
    pub(crate) end: usize,
    /// The number of a list item.
    pub(crate) number: Option<Number>,
    /// The bullet of a list item.
    pub(crate) bullet: Option<char>,
}

/// Reads the marker of the sentence at `start`: bullets, quote and heading signs, emphasis, then one number.
pub(crate) fn read(text: &str, start: usize) -> Marker {
    let mut marker = Marker { end: start, number: None, bullet: None };
    let mut at = start;
    // Bounded: a line of thousands of signs is no marker.
    for _ in 0..12 {
        let Some(c) = text[at..].chars().next() else { break };
        match c {
            _ if is_bullet(c) => marker.bullet = marker.bullet.or(Some(c)),
            '-' | '+' | '*' | '–' | '—' | '·' | '#' | '>' | '_' | '(' | '[' | '"' | '\'' | '“' | '‘' =>
                {}
            ' ' | '\t' => {}
            _ => break,
        }
        at += c.len_utf8();
    }
    if let Some((end, number)) = number(text, at) {
        marker.end = end;
        marker.number = number;
    }
    marker
}

/// A list number at `at` (`1.`, `2)`, `3.)`, `1.2.`, `a.`, `iv.`, `1、`), and the byte behind it.
fn number(text: &str, at: usize) -> Option<(usize, Option<Number>)> {
    let rest = &text.as_bytes()[at..];
    let parts = rest.iter().take(12).take_while(|b| b.is_ascii_alphanumeric() || **b == b'.').count();
    let sign = rest[..parts].ends_with(b".");
    let end = at + parts;
    let body = text[at..end].trim_end_matches('.');
    if body.is_empty() || parts == 12 {
        return None;
    }
    let after = &text[end..];
    let sign = sign || after.starts_with([')', '、', '）', '．', ']', '：']);
    let digits =
        body.split('.').all(|part| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit()));
    let letter = body.len() == 1 && body.as_bytes()[0].is_ascii_alphabetic();
    let roman = body.len() <= 5 && body.bytes().all(|b| b"ivxIVX".contains(&b));
    if !sign || !(digits || letter || roman) {
        return None;
    }
    let close = after
        .chars()
        .take_while(|c| matches!(c, ')' | '、' | '）' | '．' | ']' | '*' | '_'))
        .map(char::len_utf8);
    Some((end + close.sum::<usize>(), Number::parse(body)))
}

/// Whether a line that starts at `at` is set off by its first sign: an item, a heading, a quotation, a row of a table,
/// a fence.
pub(crate) fn opens_line(text: &str, at: usize) -> bool {
    let rest = &text[at..];
    let Some(c) = rest.chars().next() else { return false };
    let spaced = rest[c.len_utf8()..].starts_with([' ', '\t']);
    is_bullet(c)
        || matches!(c, '#' | '|' | '>')
        || (spaced && matches!(c, '-' | '+' | '*' | '–' | '—' | '·'))
        || rest.starts_with("```")
        || rest.starts_with("~~~")
        || rest.starts_with("**")
        || numbers_item(text, at)
}

/// Whether a marker with a number stands at `at`, and an item behind it.
fn numbers_item(text: &str, at: usize) -> bool {
    let end = read(text, at).end;
    end > at && text[end..].starts_with(char::is_whitespace) && !text[end..].trim_start().is_empty()
}

/// Longest line behind the sign that opens a block of code.
const MAX_CODE_NAME: usize = 200;

/// The end of the fenced block of code that opens at `start`, white space behind it included; the text's end for a
/// fence that is never closed.
pub(crate) fn code_end(text: &str, start: usize, limit: usize) -> Option<usize> {
    let sign = *text.as_bytes().get(start).filter(|b| matches!(b, b'`' | b'~'))?;
    let width = text.as_bytes()[start..].iter().take_while(|b| **b == sign).count();
    if width < 3 {
        return None;
    }
    let fence = &text[start..start + width];
    // What stands behind the fence names the language: it is short, and without ticks behind ticks.
    let name = text.as_bytes()[start + width..].iter().take(MAX_CODE_NAME);
    let name = name.take_while(|&&b| b != b'\n' && !(sign == b'`' && b == sign)).count();
    if text.as_bytes().get(start + width + name) != Some(&b'\n') {
        return None;
    }
    let mut at = start + width + name + 1;
    while at < limit {
        let line = text[at..].find('\n').map_or(text.len(), |n| at + n + 1);
        let body = text[at..line].trim();
        if body.starts_with(fence) && body.trim_start_matches(char::from(sign)).is_empty() {
            return Some(line + leading_space(&text[line..]));
        }
        at = line;
    }
    Some(text.len())
}
