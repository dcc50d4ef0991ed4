//! Whether a sentence ends: decided from the sentence so far and the next word, never from the sentences before, so that
//! a sentence split again is one sentence.

use crate::abbreviation;
use crate::look::{Closer, First, Mark, Next, Run, Space, word_before};
use crate::options::Language;
use crate::words::Kind;

/// The sentence from its first byte to the place that is judged, and what the judgement may look at besides.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sentence<'t> {
    pub(crate) text: &'t str,
    /// Its first byte that is not white space.
    pub(crate) first: usize,
    /// The byte behind its marker.
    pub(crate) body: usize,
    pub(crate) language: Language,
}

impl<'t> Sentence<'t> {
    /// The sentence before `at`.
    pub(crate) fn before(&self, at: usize) -> &'t str {
        &self.text[self.first..at]
    }

    /// Whether the sentence ends at `run`, with the white space `space` and `next` behind it.
    pub(crate) fn ends_at(&self, run: Run, space: Space, next: Next) -> bool {
        let new_line = space.lines > 0;
        match (run.mark, next.first) {
            (Mark::Ellipsis { .. }, First::Tail) => false,
            (_, First::Tail) => new_line,
            (Mark::Wide, _) => true,
            (Mark::Ellipsis { .. }, First::Lower | First::Digit) => false,
            // "I" has a capital anywhere.
            (Mark::Ellipsis { dots }, _) if matches!(next.word, "I" | "I'm" | "I’m") => dots > 3,
            (_, First::Lower) if run.closer != Closer::None => new_line,
            _ if run.closer == Closer::Quote => !self.is_citation(space.end),
            (Mark::Ellipsis { .. }, _) => true,
            (Mark::Strong, First::Dash) => new_line,
            (Mark::Strong, First::Lower) => new_line || !(self.is_name(run.at) || says(next)),
            (Mark::Strong, _) => true,
            (Mark::Period, _) => self.ends_at_period(run.at, new_line, next),
        }
    }

    /// Whether a sentence ends at `run` with no white space behind it: `waves.There`, `。`.
    pub(crate) fn ends_glued(&self, run: Run, next: Next) -> bool {
        if run.mark == Mark::Wide {
            return next.first != First::Tail
                && !(run.closer == Closer::Quote && quotation_goes_on(&self.text[run.end..]));
        }
        let mut letters = next.word.chars();
        let (Some(capital), second) = (letters.next(), letters.next()) else { return false };
        if next.first != First::Upper {
            return false;
        }
        if !capital.is_uppercase() {
            // A script without capitals, such as Chinese behind an ASCII full stop.
            return true;
        }
        let before = self.before(run.at);
        let word = word_before(before);
        let ended = before
            .chars()
            .next_back()
            .is_some_and(|c| c.is_lowercase() || c.is_numeric() || ")\"”%'".contains(c));
        let starts = match second {
            Some(c) => (c.is_lowercase() || matches!(c, '\'' | '’')) && !is_domain(next.word),
            None => matches!(next.word, "A" | "I") && next.behind.starts_with(' '),
        };
        let starts = starts
            && (next.word.len() > 2 || self.starts_sentence(next.word) || self.is_abbreviation(next.word));
        // Code and names of files: `System.Out.println`, `Foo.Bar_baz`.
        let code = next.behind.starts_with(['_', '(', '/', '=', '@', '.', ':'])
            && !next.behind.starts_with(". ")
            && !next.behind.starts_with(": ")
            && !self.is_abbreviation(next.word);
        let initial =
            word.len() == 1 && !word.starts_with(|c: char| c.is_ascii_digit()) && !self.is_pronoun(run.at);
        let abbreviated =
            word.contains('.') && word.contains(char::is_alphabetic) || self.is_abbreviation(word);
        (ended || self.is_pronoun(run.at))
            && starts
            && !code
            && !initial
            && !abbreviated
            && !self.is_address(run.at)
    }

    fn ends_at_period(&self, at: usize, new_line: bool, next: Next) -> bool {
        let before = self.before(at);
        let word = word_before(before);
        let upper = matches!(next.first, First::Upper | First::Sign) && !next.bracket;
        // Not a starter, but an initial: "J. A. Smith".
        let starts = upper
            && (next.first == First::Sign
                || self.starts_sentence(next.word) && !next.behind.starts_with('.'));
        let kind = self.kind(word);
        match kind {
            Some(Kind::Title | Kind::Always) => return false,
            Some(Kind::Number | Kind::Label | Kind::LabelOrWord) if next.first == First::Digit => {
                return false;
            }
            Some(Kind::Number | Kind::Label | Kind::LabelOrWord) if next.first == First::Lower => {
                return new_line || word.eq_ignore_ascii_case("no");
            }
            Some(Kind::Label) if self.is_counted(next, false) => return false,
            Some(Kind::LabelOrWord) if self.is_counted(next, self.may_be_a_word(at, word)) => return false,
            Some(Kind::Number | Kind::Label | Kind::LabelOrWord | Kind::Last) => return new_line || upper,
            Some(Kind::Inner) => return new_line || starts,
            Some(Kind::Time) => {
                let hour = before.len() - word.len();
                return new_line || upper && !abbreviation::dates(next.word) && !self.opens_with_time(hour);
            }
            None => {}
        }
        if is_initials(word) {
            let named = before[..before.len() - word.len()].trim_end().ends_with(':');
            return new_line || starts && !named || upper && self.is_pronoun(at);
        }
        let number = !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit());
        match next.first {
            // "as payment for 1. above".
            First::Lower if number && word.len() < 4 => new_line,
            // Without a vowel it is an abbreviation nobody listed.
            First::Lower => new_line || word.is_empty() || word.len() > 5 || word.contains(is_vowel_or_other),
            // German ordinals: "am 3. Mai".
            First::Upper if number && word.len() <= 2 && self.language == Language::German => {
                new_line || starts
            }
            _ => true,
        }
    }

    /// Whether `next` counts what the abbreviation before it names: `A12`, `IX`, `B-4`, and one capital, unless that may
    /// as well open a sentence.
    fn is_counted(&self, next: Next, letter_may_start: bool) -> bool {
        let mut letters = next.word.chars();
        let letter = letters.next().is_some_and(|c| c.is_ascii_uppercase()) && letters.next().is_none();
        let joined = || {
            let behind = next.behind.strip_prefix(['-', '–', '.', '/']);
            behind.is_some_and(|behind| behind.starts_with(|c: char| c.is_ascii_digit()))
        };
        !next.bracket && (abbreviation::counts(next.word) || letter && (!letter_may_start || joined()))
    }

    /// Whether `word`, which ends at `at` and is an abbreviation too, may be meant as a word: not where a capital within
    /// the sentence says otherwise (`reads No. B`). Behind "no", the words "A" and "I" are no letters.
    fn may_be_a_word(&self, at: usize, word: &str) -> bool {
        let within = at - word.len() > self.body && word.starts_with(char::is_uppercase);
        let article = word == "No"
            && ["A ", "I "].iter().any(|next| self.text[at + 1..].trim_start().starts_with(next));
        !within || article
    }

    pub(crate) fn is_abbreviation(&self, word: &str) -> bool {
        self.kind(word).is_some()
    }

    fn kind(&self, word: &str) -> Option<Kind> {
        abbreviation::kind(word, self.language)
    }

    fn starts_sentence(&self, word: &str) -> bool {
        abbreviation::starts_sentence(word, self.language)
    }

    /// Whether the word before `at` is the pronoun: `you and I.`, but not `Albert I.`.
    fn is_pronoun(&self, at: usize) -> bool {
        let Some(before) = self.before(at).strip_suffix('I') else { return false };
        let Some(before) = before.strip_suffix(' ') else { return false };
        let word = word_before(before);
        word.starts_with(char::is_lowercase)
    }

    /// Whether the word before `at` is a name inside the sentence: `works at Yahoo! in`.
    fn is_name(&self, at: usize) -> bool {
        let word = word_before(self.before(at));
        at - word.len() > self.body && word.starts_with(char::is_uppercase)
    }

    /// Whether a source in brackets follows, with the full stop behind it: `"… stairways" (Smith 55).`
    fn is_citation(&self, at: usize) -> bool {
        let rest = &self.text.as_bytes()[at..];
        let inside =
            rest.iter().take(80).take_while(|b| !matches!(b, b')' | b'.' | b'!' | b'?' | b'\n')).count();
        rest.starts_with(b"(") && rest[inside..].starts_with(b").")
    }

    /// `At 5 a.m. Mr. Smith …`: the time, whose hour ends at `hour` of the sentence, opens it.
    fn opens_with_time(&self, hour: usize) -> bool {
        let before = &self.text[self.body..self.first + hour];
        if before.len() > 20 {
            return false;
        }
        let mut words = before.split_whitespace();
        let preposition = words.next().is_some_and(abbreviation::leads_to_time);
        let number = words.next().is_some_and(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        preposition && number && words.next().is_none()
    }

    /// Whether the word that ends at `at` is an address or a path.
    fn is_address(&self, at: usize) -> bool {
        let from = self.text.floor_char_boundary(at.saturating_sub(100)).max(self.first);
        let word = self.text[from..at].rsplit(char::is_whitespace).next().unwrap_or_default();
        word.contains(['/', '@', '\\', '_', '=']) || word.starts_with("www.")
    }
}

/// One letter, or letters with full stops between them: `J`, `U.S.A`.
fn is_initials(word: &str) -> bool {
    let mut parts = word.split('.').map(|part| {
        let mut letters = part.chars();
        letters.next().is_some_and(char::is_alphabetic) && letters.next().is_none()
    });
    !word.is_empty() && parts.all(|single| single)
}

fn is_vowel_or_other(c: char) -> bool {
    !c.is_ascii_alphabetic() || "aeiouyAEIOUY".contains(c)
}

/// The end of a domain name: `Example.Com`.
fn is_domain(word: &str) -> bool {
    ["com", "net", "org", "edu", "gov"].iter().any(|end| end.eq_ignore_ascii_case(word))
}

/// Whether `next` names who said what ended in `!` or `?`: `Leave me alone! he cried.`
fn says(next: Next) -> bool {
    let verb = next.behind.trim_start();
    let verb = &verb[..verb.bytes().take(24).take_while(u8::is_ascii_alphabetic).count()];
    matches!(next.word, "he" | "she" | "they" | "we" | "it" | "you") && abbreviation::reports(verb)
}

/// Japanese particles right behind a quotation, which make it a part of the sentence.
fn quotation_goes_on(behind: &str) -> bool {
    behind.starts_with(['と', 'っ', 'て', 'は', 'が', 'を', 'に', 'の', 'も', 'な', 'で'])
}
