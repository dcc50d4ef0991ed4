//! Words that end in a full stop without ending the sentence, and words that start one all the same.

use crate::options::Language;
use crate::words::{self, Kind, List};

/// The kind of `word`, which is given without its last full stop.
pub(crate) fn kind(word: &str, language: Language) -> Option<Kind> {
    let lists: [&[List]; 2] = match language {
        Language::English => [words::ENGLISH, &[]],
        Language::German => [words::GERMAN, words::COMMON],
        Language::French => [words::FRENCH, words::COMMON],
        Language::Spanish => [words::SPANISH, words::COMMON],
    };
    // Longer than any of them.
    if word.is_empty() || word.len() > 8 {
        return None;
    }
    let capital = word.starts_with(char::is_uppercase);
    let is = |entry: &&str| match entry.len() == word.len() {
        // One letter may be an initial, or not: "p. 5", but "P. Smith".
        true if word.len() == 1 => *entry == word,
        // An entry with a capital is another word without: "Ill.", "ill.".
        true => entry.eq_ignore_ascii_case(word) && (capital || !entry.starts_with(char::is_uppercase)),
        false => false,
    };
    lists.into_iter().flatten().find(|(_, entries)| entries.iter().any(is)).map(|&(kind, _)| kind)
}

/// Whether `word` counts something, with a letter and digits or in roman numbers: `A12`, `IX`.
pub(crate) fn counts(word: &str) -> bool {
    let lettered = word.starts_with(|c: char| c.is_ascii_uppercase())
        && word.bytes().all(|b| b.is_ascii_alphanumeric())
        && word.bytes().any(|b| b.is_ascii_digit());
    lettered || word.len() > 1 && is_roman(word)
}

/// A roman number in capitals, up to 399.
fn is_roman(word: &str) -> bool {
    let rest = word.trim_start_matches('C');
    let digit = |rest: &'_ str, [one, five, ten]: [char; 3]| -> usize {
        let pairs = [[one, ten], [one, five]];
        if pairs.iter().any(|[a, b]| rest.starts_with(*a) && rest[1..].starts_with(*b)) {
            return 2;
        }
        let fives = usize::from(rest.starts_with(five));
        fives + rest[fives..].bytes().take(3).take_while(|b| char::from(*b) == one).count()
    };
    if !word.is_ascii() || word.len() - rest.len() > 3 {
        return false;
    }
    let rest = &rest[digit(rest, ['X', 'L', 'C'])..];
    let rest = &rest[digit(rest, ['I', 'V', 'X'])..];
    rest.is_empty()
}

/// Whether `word`, capitalised, is one that starts sentences and not names.
pub(crate) fn starts_sentence(word: &str, language: Language) -> bool {
    let starters = match language {
        Language::English => words::ENGLISH_STARTERS,
        Language::German => words::GERMAN_STARTERS,
        Language::French => words::FRENCH_STARTERS,
        Language::Spanish => words::SPANISH_STARTERS,
    };
    let stem = word.split_once(['\'', '’']).map_or(word, |(stem, _)| stem);
    starters.iter().any(|starter| starter.len() == stem.len() && starter.eq_ignore_ascii_case(stem))
}

/// Whether a line that ends in `word` goes on in the next one.
pub(crate) fn leads_on(word: &str) -> bool {
    words::LEADING_ON.contains(&word) || word.ends_with('の')
}

/// Whether `word` says more about a time of day: `5 p.m. Monday`, `9 a.m. EST`.
pub(crate) fn dates(word: &str) -> bool {
    words::DATES.contains(&word)
}

/// Whether `word` may stand in front of a time of day that opens a sentence.
pub(crate) fn leads_to_time(word: &str) -> bool {
    words::LEADING_TO_TIME.iter().any(|leading| leading.eq_ignore_ascii_case(word))
}

/// Whether `word` is a verb of saying: `cried`.
pub(crate) fn reports(word: &str) -> bool {
    words::REPORTING.contains(&word)
}
