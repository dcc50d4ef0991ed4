//! What a decision is made from: the run of full stops, the word before it, and what follows.

use crate::chars::{
    is_bullet, is_closer, is_closing_quote, is_emoji, is_newline, is_opener, is_tick, is_wide_stop,
    leading_space,
};

/// What ended the sentence, if it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Period,
    /// Two full stops or more, with or without spaces between them.
    Ellipsis {
        dots: usize,
    },
    /// With `!` or `?`.
    Strong,
    /// A full stop that needs no white space behind it.
    Wide,
}

/// What closed behind the full stop; a quotation says more than a bracket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closer {
    None,
    Bracket,
    Quote,
}

/// A run of full stops, quotation marks and brackets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) at: usize,
    /// The byte behind it.
    pub(crate) end: usize,
    pub(crate) mark: Mark,
    pub(crate) closer: Closer,
}

/// Reads the run of full stops at `at`, and the closers behind it.
pub(crate) fn run(text: &str, at: usize) -> Run {
    let (mut end, mut dots, mut strong, mut wide, mut closer) = (at, 0, false, false, Closer::None);
    for c in text[at..].chars() {
        match c {
            '.' => dots += 1,
            '…' => dots += 3,
            '!' | '?' => strong = true,
            _ if is_wide_stop(c) => wide = true,
            // Opens a quotation, but in German closes one.
            '“' if wide => break,
            '"' | '\'' => closer = Closer::Quote,
            _ if is_closing_quote(c) => closer = Closer::Quote,
            _ if is_closer(c) => closer = closer.max(Closer::Bracket),
            // ". . ." is one ellipsis.
            ' ' | '\u{a0}' if dots > 0 && !strong && text[end + c.len_utf8()..].starts_with('.') => {}
            _ => break,
        }
        end += c.len_utf8();
    }
    let mark = match () {
        () if wide => Mark::Wide,
        () if strong => Mark::Strong,
        () if dots > 1 => Mark::Ellipsis { dots },
        () => Mark::Period,
    };
    Run { at, end, mark, closer }
}

/// White space: the byte behind it, and how many line breaks are in it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space {
    pub(crate) end: usize,
    pub(crate) lines: usize,
}

/// Reads the white space at `at`.
pub(crate) fn space(text: &str, at: usize) -> Space {
    let end = at + leading_space(&text[at..]);
    let gap = &text[at..end];
    if gap.len() <= 1 {
        return Space { end, lines: usize::from(gap == "\n" || gap == "\r") };
    }
    Space { end, lines: gap.matches('\n').count().max(usize::from(gap.contains(is_newline))) }
}

/// The kind of what follows white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// A word with a small letter.
    Lower,
    /// A word with a capital, or of a script that has none.
    Upper,
    Digit,
    /// A sign that starts something of its own: a bullet, a currency, a line drawn with signs.
    Sign,
    /// A dash with white space behind it.
    Dash,
    /// A sign that goes on.
    Tail,
}

/// What follows: the first word behind quotation marks and brackets that open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Next<'t> {
    pub(crate) first: First,
    /// The word; empty where none follows.
    pub(crate) word: &'t str,
    /// The text behind the word.
    pub(crate) behind: &'t str,
    /// Whether a round or square bracket opens in front of the word.
    pub(crate) bracket: bool,
}

impl Next<'_> {
    /// Whether it is one sign with nothing behind it: `∎`.
    pub(crate) fn ends_text(&self) -> bool {
        let mut behind = self.behind.chars();
        behind.next();
        self.word.is_empty() && behind.as_str().trim_start().is_empty()
    }
}

/// Reads what stands at `at`, which is not white space.
pub(crate) fn next(text: &str, at: usize) -> Next<'_> {
    // Bounded: a line of openers opens nothing.
    let openers: usize = text[at..].chars().take(8).take_while(|&c| is_opener(c)).map(char::len_utf8).sum();
    let rest = &text[at + openers..];
    let c = rest.chars().next().unwrap_or_default();
    let first = match c {
        'a'..='z' => First::Lower,
        'A'..='Z' => First::Upper,
        '#' | '@' | '$' | '€' | '£' | '<' | '§' => First::Sign,
        '-' | '–' | '—' | '·' | '>' | '=' | '~' | '*' | '_' | '+' => match rest.trim_start_matches(c) {
            behind if !behind.starts_with(char::is_whitespace) => First::Tail,
            behind if rest.len() - behind.len() > 3 => First::Sign,
            _ => First::Dash,
        },
        _ if c.is_numeric() => First::Digit,
        _ if c.is_lowercase() => First::Lower,
        _ if c.is_alphabetic() => First::Upper,
        _ if is_bullet(c) || is_emoji(c) => First::Sign,
        _ => First::Tail,
    };
    let word: usize = rest.chars().take(24).take_while(|&c| is_inner(c)).map(char::len_utf8).sum();
    let (word, behind) = rest.split_at(word);
    Next { first, word, behind, bracket: text[at..].starts_with(['(', '[']) }
}

/// Letters, digits, and the apostrophe of "don't".
fn is_inner(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '\'' | '’')
}

/// The word that ends `text`, with full stops inside (`U.S`).
pub(crate) fn word_before(text: &str) -> &str {
    let length =
        text.chars().rev().take(24).take_while(|&c| c.is_alphanumeric() || matches!(c, '.' | '°' | '\''));
    &text[text.len() - length.map(char::len_utf8).sum::<usize>()..]
}

/// The length of emoji, an emoticon or a reference in brackets at the start of `text`.
pub(crate) fn tail(text: &str) -> usize {
    match text.as_bytes() {
        [b'a'..=b'z' | b'A'..=b'Z' | b'"', ..] => 0,
        [b':' | b';' | b'=', b'-', b')' | b'(' | b'D' | b'P' | b'/' | b'p', ..] => 3,
        [b':' | b';' | b'=', b')' | b'(' | b'D' | b'P' | b'p', ..] => 2,
        [b'<', b'3', ..] => 2,
        [b'[', rest @ ..] => match rest.iter().take(5).take_while(|c| c.is_ascii_digit()).count() {
            digits if digits > 0 && rest.get(digits) == Some(&b']') => digits + 2,
            _ => 0,
        },
        _ => emoji(text),
    }
}

/// The length of the emoji at the start of `text`.
pub(crate) fn emoji(text: &str) -> usize {
    text.chars().take_while(|&c| is_emoji(c) && (!is_bullet(c) || is_tick(c))).map(char::len_utf8).sum()
}
