//! The rules made for model answers: one pass over the bytes that stops where a sentence may end.
//!
//! A decision looks at the sentence so far and at the next word, never at the sentences before: a sentence split again
//! is one sentence.

use crate::Language;
use crate::abbreviation::{self, Kind};
use crate::chars::{is_bullet, is_closer, is_closing_quote, is_emoji, is_newline, is_opener, is_wide_stop};
use crate::marker::{self, Marker};
use crate::splitter::leading_space;

/// What the scan does at a place it stopped at.
enum Step {
    /// Go on from this byte.
    Go(usize),
    /// The sentence ends at this byte.
    End(usize),
}
use Step::{End, Go};

/// The end of the sentence that starts at `start`, its white space included.
pub(crate) fn sentence_end(text: &str, start: usize, limit: usize, language: Language) -> usize {
    let first = start + leading_space(&text[start..]);
    if let Some(end) = marker::code_end(text, first, limit) {
        return end;
    }
    let scan = Scan { text, first, marker: marker::read(text, first), language };
    let mut at = scan.marker.end;
    while at < limit {
        let step = match CLASS[usize::from(text.as_bytes()[at])] {
            Class::Plain => Go(at + 1),
            Class::Stop => scan.stop(at),
            Class::Line => scan.newline(at),
            Class::Close => scan.next_item(at),
            Class::Tick => scan.code(at),
            Class::Rule => scan.rule(at),
            Class::Lead => scan.wide(at),
        };
        match step {
            Go(next) => at = next,
            End(end) => return end,
        }
    }
    text.len()
}

/// What a byte may be the start of.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Plain,
    Stop,
    Line,
    Close,
    Tick,
    Rule,
    Lead,
}

static CLASS: [Class; 256] = {
    let mut table = [Class::Plain; 256];
    table[b'.' as usize] = Class::Stop;
    table[b'!' as usize] = Class::Stop;
    table[b'?' as usize] = Class::Stop;
    table[b'\n' as usize] = Class::Line;
    table[b'\r' as usize] = Class::Line;
    table[b')' as usize] = Class::Close;
    table[b'`' as usize] = Class::Tick;
    table[b'=' as usize] = Class::Rule;
    table[b'*' as usize] = Class::Rule;
    table[b'_' as usize] = Class::Rule;
    table[b'-' as usize] = Class::Rule;
    table[b'~' as usize] = Class::Rule;
    // First bytes of characters that `wide` knows.
    let leads = [0xc2, 0xd6, 0xd8, 0xdb, 0xe0, 0xe1, 0xe2, 0xe3, 0xef];
    let mut i = 0;
    while i < leads.len() {
        table[leads[i]] = Class::Lead;
        i += 1;
    }
    table
};

/// What ended the sentence, if it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
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
enum Closer {
    None,
    Bracket,
    Quote,
}

/// A run of full stops, quotation marks and brackets.
#[derive(Debug, Clone, Copy)]
struct Run {
    at: usize,
    mark: Mark,
    /// The byte behind it.
    end: usize,
    closer: Closer,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next<'t> {
    Lower(&'t str),
    Upper(&'t str),
    Digit,
    /// A sign that starts something of its own: a bullet, a dash with space behind, a currency.
    Sign,
    /// A sign that goes on.
    Tail,
}

struct Scan<'t> {
    text: &'t str,
    /// The sentence's first byte that is not white space.
    first: usize,
    marker: Marker,
    language: Language,
}

impl<'t> Scan<'t> {
    fn char_at(&self, at: usize) -> Option<char> {
        self.text[at..].chars().next()
    }

    fn char_before(&self, at: usize) -> Option<char> {
        self.text[self.first..at].chars().next_back()
    }

    /// A run of full stops and what closes behind it.
    fn stop(&self, at: usize) -> Step {
        if let Some(item) = self.item_before(at) {
            return End(item);
        }
        let mut run = self.run(at);
        if run.end == self.text.len() {
            return End(run.end);
        }
        // An ellipsis that opens the sentence ends none.
        if at == self.marker.end && run.mark != Mark::Strong {
            return Go(run.end);
        }
        if let Some(split) = self.omission(run) {
            return End(split);
        }
        let mut space = self.space(run.end);
        // Emoji, emoticons and references behind the full stop belong to its sentence.
        while space.lines == 0 {
            let tail = self.tail(space.end);
            if tail == 0 {
                break;
            }
            run.end = space.end + tail;
            space = self.space(run.end);
        }
        if space.end == self.text.len() || space.lines > 1 {
            return End(space.end);
        }
        let next = self.next(space.end);
        let ends = if space.end == run.end { self.glued(run, next) } else { self.breaks(run, &space, next) };
        if ends { End(space.end) } else { Go(space.end) }
    }

    /// Reads the run of full stops at `at` and the closers behind it.
    fn run(&self, at: usize) -> Run {
        let (mut end, mut dots, mut strong, mut wide, mut closer) = (at, 0, false, false, Closer::None);
        while let Some(c) = self.char_at(end) {
            match c {
                '.' => dots += 1,
                '…' => dots += 3,
                '!' | '?' => strong = true,
                _ if is_wide_stop(c) => wide = true,
                '"' | '\'' => closer = Closer::Quote,
                '“' if !wide && dots == 0 => break,
                _ if is_closing_quote(c) => closer = Closer::Quote,
                _ if is_closer(c) => closer = closer.max(Closer::Bracket),
                // ". . ." is one ellipsis.
                ' ' | '\u{a0}' if dots > 0 && !strong && self.text[end + c.len_utf8()..].starts_with('.') => {
                }
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
        Run { at, mark, end, closer }
    }

    /// `compounds. . . . The`: the full stop ends the sentence, the three spaced ones stand for what was left out at the
    /// start of the next. Gives where that one starts.
    fn omission(&self, run: Run) -> Option<usize> {
        let attached = self.char_before(run.at).is_some_and(char::is_alphanumeric);
        let spaced = self.text[run.at..run.end] == *". . . .";
        (attached && spaced && matches!(self.next(self.space(run.end).end), Next::Upper(_)))
            .then_some(run.at + 2)
    }

    fn space(&self, at: usize) -> Space {
        let end = at + leading_space(&self.text[at..]);
        let gap = &self.text[at..end];
        Space { end, lines: gap.matches('\n').count().max(usize::from(gap.contains(is_newline))) }
    }

    /// The length of an emoji, an emoticon or a reference in brackets at `at`.
    fn tail(&self, at: usize) -> usize {
        let rest = &self.text[at..];
        let emoji: usize =
            rest.chars().take_while(|&c| is_emoji(c) && !is_bullet(c)).map(char::len_utf8).sum();
        if emoji > 0 {
            return emoji;
        }
        let b = rest.as_bytes();
        match b {
            [b':' | b';' | b'=', b'-', b')' | b'(' | b'D' | b'P' | b'/' | b'p', ..] => 3,
            [b':' | b';' | b'=', b')' | b'(' | b'D' | b'P' | b'p', ..] => 2,
            [b'<', b'3', ..] => 2,
            [b'[', b'0'..=b'9', ..] => {
                let digits = b[1..].iter().take(5).take_while(|c| c.is_ascii_digit()).count();
                if b.get(digits + 1) == Some(&b']') { digits + 2 } else { 0 }
            }
            _ => 0,
        }
    }

    /// What stands at `at`, which is not white space.
    fn next(&self, at: usize) -> Next<'t> {
        let mut word = at;
        for _ in 0..8 {
            match self.char_at(word) {
                Some(c) if is_opener(c) => word += c.len_utf8(),
                _ => break,
            }
        }
        let Some(c) = self.char_at(word) else { return Next::Tail };
        match c {
            _ if c.is_numeric() => Next::Digit,
            _ if c.is_lowercase() => Next::Lower(self.word_at(word)),
            _ if c.is_alphabetic() => Next::Upper(self.word_at(word)),
            _ if is_bullet(c) || is_emoji(c) => Next::Sign,
            '#' | '@' | '$' | '€' | '£' | '<' | '§' => Next::Sign,
            '-' | '–' | '—' | '·' | '>' | '=' | '~' | '*' | '_' | '+' => {
                if self.text[word..].trim_start_matches(c).starts_with(char::is_whitespace) {
                    Next::Sign
                } else {
                    Next::Tail
                }
            }
            _ => Next::Tail,
        }
    }

    fn word_at(&self, at: usize) -> &'t str {
        let rest = &self.text[at..];
        let length = rest
            .chars()
            .take(24)
            .take_while(|&c| c.is_alphanumeric() || c == '\'' || c == '’')
            .map(char::len_utf8);
        &rest[..length.sum()]
    }

    /// The word that ends at `at`, with full stops inside (`U.S`), within the sentence.
    fn word_before(&self, at: usize) -> &'t str {
        let before = &self.text[self.first..at];
        let length = before
            .chars()
            .rev()
            .take(24)
            .take_while(|&c| c.is_alphanumeric() || matches!(c, '.' | '°' | '\''));
        &before[before.len() - length.map(char::len_utf8).sum::<usize>()..]
    }

    /// Whether the sentence ends at `run`, with white space behind it.
    fn breaks(&self, run: Run, space: &Space, next: Next) -> bool {
        let new_line = space.lines > 0;
        match (run.mark, next) {
            (Mark::Ellipsis { .. }, Next::Tail) => false,
            (_, Next::Tail) => new_line,
            (Mark::Wide, _) => true,
            (Mark::Ellipsis { .. }, Next::Lower(_) | Next::Digit) => false,
            // "I" has a capital anywhere.
            (Mark::Ellipsis { dots }, Next::Upper("I" | "I'm" | "I’m")) => dots > 3,
            (_, Next::Lower(_)) if run.closer != Closer::None => new_line,
            _ if run.closer == Closer::Quote => !self.is_citation(space.end),
            (Mark::Ellipsis { .. }, _) => true,
            (Mark::Strong, Next::Lower(_)) => new_line || !self.is_name(run.at),
            (Mark::Strong, _) => true,
            (Mark::Period, _) => self.period_breaks(run.at, new_line, next, space.end),
        }
    }

    /// Whether a source in brackets follows, with the full stop behind it: `"… stairways" (Smith 55).`
    fn is_citation(&self, at: usize) -> bool {
        let rest = &self.text.as_bytes()[at..];
        let inside =
            rest.iter().take(80).take_while(|b| !matches!(b, b')' | b'.' | b'!' | b'?' | b'\n')).count();
        rest.starts_with(b"(") && rest[inside..].starts_with(b").")
    }

    /// Whether the word before `at` is a name inside the sentence: `works at Yahoo! in`.
    fn is_name(&self, at: usize) -> bool {
        let word = self.word_before(at);
        at - word.len() > self.marker.end && word.starts_with(char::is_uppercase)
    }

    fn period_breaks(&self, at: usize, line: bool, next: Next, next_at: usize) -> bool {
        let word = self.word_before(at);
        let word_start = at - word.len();
        let starter = |w: &str| abbreviation::starts_sentence(w, self.language);
        let upper_starts = || match next {
            Next::Upper(w) => {
                starter(w) && !self.text[next_at..].strip_prefix(w).is_some_and(|r| r.starts_with('.'))
            }
            Next::Sign => true,
            _ => false,
        };
        let upper = matches!(next, Next::Upper(_) | Next::Sign);
        let opener = self.char_at(next_at).is_some_and(|c| matches!(c, '(' | '['));
        let mut letters = word.chars();
        if let (Some(c), None) = (letters.next(), letters.next())
            && c.is_alphabetic()
            && !(c.is_lowercase() && upper)
        {
            let before = self.text[self.first..word_start].trim_end();
            let pronoun =
                c == 'I' && before.ends_with(char::is_lowercase) && before.len() < word_start - self.first;
            return if pronoun { upper } else { upper_starts() };
        }
        match abbreviation::kind(word, self.language) {
            Some(Kind::Title | Kind::Always) => return false,
            Some(Kind::Number) => {
                let answer = word.eq_ignore_ascii_case("no") && matches!(next, Next::Lower(_));
                return answer || (upper && !opener) || (line && next != Next::Digit);
            }
            Some(Kind::Inner) => return upper_starts() && !opener,
            Some(Kind::Last) => return upper && !opener,
            Some(Kind::Time) => return (upper && !opener) && !self.opens_with_time(word_start),
            None => {}
        }
        if word.contains('.')
            && word.split('.').all(|part| part.chars().count() == 1 && part.starts_with(char::is_alphabetic))
        {
            return upper_starts();
        }
        if matches!(next, Next::Lower(_)) && !line {
            // Without a vowel it is an abbreviation nobody listed.
            let vowel = |c: char| !c.is_ascii_alphabetic() || "aeiouyAEIOUY".contains(c);
            return word.is_empty() || word.contains(vowel) || word.len() > 5;
        }
        if self.language == Language::German
            && word.len() <= 2
            && word.bytes().all(|b| b.is_ascii_digit())
            && !word.is_empty()
        {
            return upper_starts();
        }
        true
    }

    /// `At 5 a.m. Mr. Smith …`: the time opens the sentence.
    fn opens_with_time(&self, word_start: usize) -> bool {
        let before = &self.text[self.marker.end..word_start];
        if before.len() > 20 {
            return false;
        }
        let mut words = before.split_whitespace();
        let preposition = words.next().is_some_and(|w| {
            ["at", "by", "around", "about", "after", "before", "until", "from", "since"]
                .iter()
                .any(|p| p.eq_ignore_ascii_case(w))
        });
        let hour = words.next().is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        preposition && hour && words.next().is_none()
    }

    /// Whether a sentence ends at a full stop with a letter right behind it: `waves.There`.
    fn glued(&self, run: Run, next: Next) -> bool {
        let Run { at, mark, end, .. } = run;
        let Next::Upper(next) = next else {
            return mark == Mark::Wide && next != Next::Tail;
        };
        if mark == Mark::Wide || !next.starts_with(|c: char| c.is_ascii() || c.is_uppercase()) {
            return true;
        }
        let word = self.word_before(at);
        let before = word.chars().next_back().or_else(|| self.char_before(at));
        let whole =
            before.is_some_and(|c| c.is_lowercase() || c.is_numeric() || matches!(c, ')' | '"' | '”' | '%'));
        let mut letters = next.chars();
        let capital = letters.next().is_some_and(char::is_uppercase);
        let second = letters.next();
        let behind = self.text[end..].find(next).map_or("", |n| &self.text[end + n + next.len()..]);
        let word_follows = match second {
            Some(c) => c.is_lowercase() || c == '\'' || c == '’',
            None => matches!(next, "A" | "I") && behind.starts_with(' '),
        };
        let ends_well = !behind.starts_with(['_', '(', '/', '=', '@', '.', ':']);
        let ends_well = ends_well || behind.starts_with(". ") || behind.starts_with(": ");
        let known = abbreviation::kind(word, self.language).is_some()
            || word.contains('.')
            || word.chars().count() < 2;
        whole && capital && word_follows && ends_well && !known && !self.is_address(at)
    }

    /// Whether the word around `at` is an address or a path.
    fn is_address(&self, at: usize) -> bool {
        let before = &self.text[self.text.floor_char_boundary(at.saturating_sub(100)).max(self.first)..at];
        let word = before.rsplit(char::is_whitespace).next().unwrap_or_default();
        word.contains(['/', '@', '\\', '_', '=']) || word.starts_with("www.")
    }

    /// A line break with no full stop in front of it.
    fn newline(&self, at: usize) -> Step {
        let space = self.space(at);
        if space.end == self.text.len() {
            return End(space.end);
        }
        let before = self.text[self.first..at].trim_end();
        if self.first + before.len() <= self.marker.end {
            return Go(space.end);
        }
        if space.lines > 1 || marker::opens_line(self.text, space.end) {
            return End(space.end);
        }
        let head = before.chars().next().unwrap_or_default();
        // No further back than asked for, so that a thousand lines are not read a thousand times.
        let recent = before.as_bytes().iter().rev().take(41);
        let is_long = recent.take_while(|b| **b != b'\n').count() > 40;
        let leads_on =
            before.ends_with('-') || abbreviation::leads_on(self.word_before(self.first + before.len()));
        let goes_on = match self.next(space.end) {
            Next::Lower(_) => head.is_uppercase() || is_long || leads_on,
            Next::Upper(_) | Next::Digit => leads_on,
            _ => false,
        };
        if goes_on && !before.ends_with(':') && !matches!(head, '#' | '|') {
            Go(space.end)
        } else {
            End(space.end)
        }
    }

    /// A closing parenthesis that may number the next item of the list the sentence stands in.
    fn next_item(&self, at: usize) -> Step {
        self.item_before(at).map_or(Go(at + 1), End)
    }

    /// Where the item starts whose number ends at `at`, if it is the one after the sentence's own.
    fn item_before(&self, at: usize) -> Option<usize> {
        let number = self.marker.number?;
        if !self.text[at + 1..].starts_with([' ', ')']) {
            return None;
        }
        let word = self.word_before(at);
        let start = at - word.len();
        if !number.is_followed_by(word) || start <= self.marker.end {
            return None;
        }
        let before = &self.text[self.first..start];
        let bullet = before.trim_end().chars().next_back().filter(|c| is_bullet(*c) || *c == '(');
        let head = bullet.map_or(before, |c| before.trim_end().strip_suffix(c).unwrap_or(before));
        (head.ends_with(char::is_whitespace)).then_some(self.first + head.len())
    }

    /// Code between ticks on one line, which is skipped.
    fn code(&self, at: usize) -> Step {
        let rest = &self.text.as_bytes()[at + 1..];
        let close = rest.iter().take(200).take_while(|b| **b != b'\n').position(|b| *b == b'`');
        Go(close.map_or(at + 1, |n| at + n + 2))
    }

    /// A line drawn with signs is a sentence of its own.
    fn rule(&self, at: usize) -> Step {
        let sign = self.text.as_bytes()[at];
        let width = self.text.as_bytes()[at..].iter().take_while(|b| **b == sign).count();
        let end = at + width;
        let space = self.space(end);
        if width < 5 || space.end == self.text.len() || (space.end == end) {
            return Go(end);
        }
        match () {
            () if at == self.first => End(space.end),
            () if self.char_before(at).is_some_and(char::is_whitespace) && sign != b'_' => End(at),
            () => Go(end),
        }
    }

    /// Full stops, bullets and line breaks outside ASCII.
    fn wide(&self, at: usize) -> Step {
        let Some(c) = self.char_at(at) else { return Go(self.text.len()) };
        let behind = at + c.len_utf8();
        match c {
            '…' => self.stop(at),
            _ if is_wide_stop(c) => self.stop(at),
            _ if is_newline(c) => self.newline(at),
            _ if is_bullet(c) && at > self.first && self.marker.bullet == Some(c) => {
                if self.char_before(at).is_some_and(char::is_whitespace) { End(at) } else { Go(behind) }
            }
            _ => Go(behind),
        }
    }
}

/// White space: the byte behind it, and how many line breaks are in it.
struct Space {
    end: usize,
    lines: usize,
}
