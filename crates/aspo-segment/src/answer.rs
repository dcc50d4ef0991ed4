//! The rules made for model answers: one pass over the bytes that stops where a sentence may end.

use crate::abbreviation;
use crate::chars::{is_bullet, is_newline, is_tick, is_wide_stop, leading_space};
use crate::judge::Sentence;
use crate::look::{self, First, Mark, Run, word_before};
use crate::marker::{self, Marker, Number};
use crate::options::Language;

/// What the scan does at a place it stopped at.
enum Step {
    /// Go on from this byte.
    Go(usize),
    /// The sentence ends at this byte.
    End(usize),
}
use Step::{End, Go};

/// The end of the sentence that starts at `start`, its white space included. What ends it is looked for before `limit`.
pub(crate) fn sentence_end(text: &str, start: usize, limit: usize, language: Language) -> usize {
    let first = start + leading_space(&text[start..]);
    if let Some(end) = marker::code_end(text, first, limit) {
        return end;
    }
    let marker = marker::read(text, first);
    let sentence = Sentence { text, first, body: marker.end, language };
    let mut scan = Scan { text, marker, sentence, brackets: Brackets::default() };
    let in_table = text[first..].starts_with('|');
    let mut at = marker.end;
    while at < limit {
        let step = match CLASS[usize::from(text.as_bytes()[at])] {
            Class::Plain => Go(at + 1),
            Class::Line => scan.line_break(at),
            // A row of a table ends with its line.
            _ if in_table => Go(at + 1),
            Class::Stop => scan.stop(at),
            Class::Bracket => scan.bracket(at),
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
    Bracket,
    Tick,
    Rule,
    /// A character outside ASCII that `wide` may know.
    Lead,
}

static CLASS: [Class; 256] = {
    let classes: [(&[u8], Class); 6] = [
        (b".!?", Class::Stop),
        (b"\n\r", Class::Line),
        (b")", Class::Bracket),
        (b"`", Class::Tick),
        (b"=*_-~", Class::Rule),
        (&[0xc2, 0xd6, 0xd8, 0xdb, 0xe0, 0xe1, 0xe2, 0xe3, 0xef, 0xf0], Class::Lead),
    ];
    let mut table = [Class::Plain; 256];
    let mut class = 0;
    while class < classes.len() {
        let mut i = 0;
        while i < classes[class].0.len() {
            table[classes[class].0[i] as usize] = classes[class].1;
            i += 1;
        }
        class += 1;
    }
    table
};

struct Scan<'t> {
    text: &'t str,
    marker: Marker,
    sentence: Sentence<'t>,
    brackets: Brackets,
}

/// Chinese and Japanese brackets that are open, inside which no full stop ends a sentence.
#[derive(Default)]
struct Brackets {
    open: usize,
    /// Where the last one opened.
    at: usize,
}

impl Brackets {
    fn read(&mut self, c: char, at: usize) {
        match c {
            '「' | '『' | '（' | '《' => (self.open, self.at) = (self.open + 1, at),
            '」' | '』' | '）' | '》' => self.open = self.open.saturating_sub(1),
            _ => {}
        }
    }

    /// Whether the full stops of `run` are inside brackets and no quotation closes with them. A bracket that is not
    /// closed for long is none: it must not swallow the text.
    fn hold(&self, run: Run, text: &str) -> bool {
        if self.open == 0 {
            return false;
        }
        let closed = text[run.at..run.end].matches(['」', '』']).count();
        self.open > closed && run.at - self.at < 240
    }
}

impl Scan<'_> {
    /// A run of full stops.
    fn stop(&mut self, at: usize) -> Step {
        let text = self.text;
        if let Some(item) = self.item_before(at) {
            return End(item);
        }
        let mut run = look::run(text, at);
        let held = run.mark == Mark::Wide && self.brackets.hold(run, text);
        if run.mark == Mark::Wide {
            text[at..run.end].char_indices().for_each(|(n, c)| self.brackets.read(c, at + n));
        }
        // An ellipsis that opens the sentence ends none, nor does a full stop inside brackets.
        let opens = at == self.marker.end && run.mark != Mark::Strong;
        if opens || held {
            return if run.end == text.len() { End(run.end) } else { Go(run.end) };
        }
        run.end += self.reference(run);
        let mut space = look::space(text, run.end);
        if let Some(split) = self.omission(run, space.end) {
            return End(split);
        }
        // Emoji, emoticons and references behind the full stop belong to its sentence.
        while space.lines == 0 && space.end < text.len() && !self.starts_item(space.end) {
            let tail = look::tail(&text[space.end..]);
            if tail == 0 {
                break;
            }
            run.end = space.end + tail;
            space = look::space(text, run.end);
        }
        if space.end == text.len() || space.lines > 1 {
            return End(space.end);
        }
        let next = look::next(text, space.end);
        if next.first == First::Sign && next.ends_text() {
            return End(text.len());
        }
        let glued = space.end == run.end;
        let ends =
            if glued { self.sentence.ends_glued(run, next) } else { self.sentence.ends_at(run, space, next) };
        if ends { End(space.end) } else { Go(space.end) }
    }

    /// Whether a tick at `at` is the next item of a list of them: `✅ Fast. ❌ Heavy.`
    fn starts_item(&self, at: usize) -> bool {
        self.marker.bullet.is_some_and(is_tick) && self.text[at..].starts_with(is_tick)
    }

    /// The length of raised numbers printed flat: `consultation.11 12 Take`, `(type 2).10 This`.
    fn reference(&self, run: Run) -> usize {
        let rest = &self.text[run.end..];
        let numbers = rest.bytes().take(12).take_while(|b| b.is_ascii_digit() || b", -".contains(b)).count();
        let reference = rest[..numbers].trim_end();
        let raised = run.mark == Mark::Period && rest.starts_with(|c: char| c.is_ascii_digit());
        if !raised
            || reference.len() == numbers
            || look::next(self.text, run.end + numbers).first != First::Upper
        {
            return 0;
        }
        let before = self.sentence.before(run.at);
        let word = word_before(before);
        let plain =
            word.len() > 2 && word.ends_with(char::is_lowercase) && word.chars().all(char::is_alphabetic);
        if before.ends_with(')') || plain && !self.sentence.is_abbreviation(word) {
            reference.len()
        } else {
            0
        }
    }

    /// `compounds. . . . The`: the full stop ends the sentence, the three spaced ones stand for what was left out at the
    /// start of the next. Gives where that one starts.
    fn omission(&self, run: Run, next: usize) -> Option<usize> {
        let spaced = self.text[run.at..run.end] == *". . . .";
        let attached = spaced && self.sentence.before(run.at).ends_with(char::is_alphanumeric);
        (attached && look::next(self.text, next).first == First::Upper).then_some(run.at + 2)
    }

    /// A line break with no full stop in front of it.
    fn line_break(&self, at: usize) -> Step {
        let space = look::space(self.text, at);
        let before = self.sentence.before(at);
        let before = before.trim_end();
        // A number alone on its line belongs to the item below; a letter alone is an answer.
        let alone = self.sentence.first + before.len() <= self.marker.end;
        if alone && space.end < self.text.len() && !matches!(self.marker.number, Some(Number::Letter(_))) {
            return Go(space.end);
        }
        if space.end == self.text.len() || space.lines > 1 || marker::opens_line(self.text, space.end) {
            return End(space.end);
        }
        let head = before.chars().next().unwrap_or_default();
        if before.ends_with(':') || matches!(head, '#' | '|') {
            return End(space.end);
        }
        // No further back than asked for, so that a thousand lines are not read a thousand times.
        let line = before.bytes().rev().take(101).take_while(|b| *b != b'\n').count();
        let leads_on = before.ends_with('-') || abbreviation::leads_on(word_before(before));
        // The sentence runs over a line already, and this one is as long as wrapped lines are.
        let wrapped = line < before.len() && (41..=100).contains(&line);
        let goes_on = match look::next(self.text, space.end).first {
            First::Lower => head.is_uppercase() || line > 40 || leads_on,
            First::Upper | First::Digit => leads_on || wrapped,
            _ => false,
        };
        if goes_on { Go(space.end) } else { End(space.end) }
    }

    /// A closing bracket: the number of the next item, or an emoticon that stands for a full stop.
    fn bracket(&self, at: usize) -> Step {
        if let Some(item) = self.item_before(at) {
            return End(item);
        }
        let smiles = [" :", " ;", " :-", " ;-"].iter().any(|eyes| self.sentence.before(at).ends_with(eyes));
        let space = look::space(self.text, at + 1);
        if smiles && space.end > at + 1 && look::next(self.text, space.end).first == First::Upper {
            return End(space.end);
        }
        Go(at + 1)
    }

    /// Where the item starts whose number ends at `at`, if it is the one after the sentence's own.
    fn item_before(&self, at: usize) -> Option<usize> {
        let number = self.marker.number?;
        if !matches!(self.text.as_bytes().get(at + 1), Some(b' ' | b')')) {
            return None;
        }
        let word = word_before(self.sentence.before(at));
        let start = at - word.len();
        if !number.is_followed_by(word) || start <= self.marker.end {
            return None;
        }
        let before = self.sentence.before(start);
        let sign = before.trim_end().chars().next_back().filter(|c| is_bullet(*c) || *c == '(');
        let item = sign.map_or(before, |c| before.trim_end().trim_end_matches(c));
        item.ends_with(char::is_whitespace).then_some(self.sentence.first + item.len())
    }

    /// Code between ticks on one line, which is skipped.
    fn code(&self, at: usize) -> Step {
        let rest = &self.text.as_bytes()[at + 1..];
        let close = rest.iter().take(200).take_while(|b| **b != b'\n').position(|b| *b == b'`');
        Go(close.map_or(at + 1, |n| at + n + 2))
    }

    /// A line drawn with signs, which is a sentence of its own.
    fn rule(&self, at: usize) -> Step {
        let sign = self.text.as_bytes()[at];
        let end = at + self.text.as_bytes()[at..].iter().take_while(|b| **b == sign).count();
        if end - at < 5 {
            return Go(end);
        }
        let space = look::space(self.text, end);
        if space.end == self.text.len() || space.end == end {
            return Go(end);
        }
        match () {
            () if at == self.sentence.first => End(space.end),
            // "____" may be a gap to fill in.
            () if sign != b'_' && self.sentence.before(at).ends_with(char::is_whitespace) => End(at),
            () => Go(end),
        }
    }

    /// Full stops, bullets, emoji and line breaks outside ASCII.
    fn wide(&mut self, at: usize) -> Step {
        let Some(c) = self.text[at..].chars().next() else { return Go(self.text.len()) };
        self.brackets.read(c, at);
        match c {
            '…' => self.stop(at),
            _ if is_wide_stop(c) => self.stop(at),
            _ if is_newline(c) => self.line_break(at),
            _ if self.marker.bullet == Some(c) && self.sentence.before(at).ends_with(char::is_whitespace) => {
                End(at)
            }
            _ => match look::emoji(&self.text[at..]) {
                0 => Go(at + c.len_utf8()),
                emoji => self.emoji(at, at + emoji),
            },
        }
    }

    /// Emoji in place of a full stop: `a great day 😀 Let's go`.
    fn emoji(&self, at: usize, end: usize) -> Step {
        let space = look::space(self.text, end);
        let before = &self.text[self.marker.end..at];
        let ended = before.len() > 8 && before.trim_end().ends_with(char::is_lowercase);
        if !ended || space.end == end || space.end == self.text.len() {
            return Go(end);
        }
        let next = look::next(self.text, space.end);
        let starts = abbreviation::starts_sentence(next.word, self.sentence.language);
        if next.first == First::Upper && starts { End(space.end) } else { Go(end) }
    }
}
