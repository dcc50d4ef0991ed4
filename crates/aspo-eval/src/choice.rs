//! Option letters, by the rules that benchmarks publish.

use crate::option::{LETTERS, option_letter};

/// By which rule MMBench's answers are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Letters {
    /// As MMBench's evaluation reads them today, the option's text included, and as people write them:
    /// [`option_letter`].
    #[default]
    Published,
    /// Letters alone, with a few marks: [`strict_letter`].
    Strict,
}

impl Letters {
    /// The letter of an answer to a question with these options; `None` cannot be read.
    pub fn read(self, answer: &str, options: &[impl AsRef<str>]) -> Option<char> {
        match self {
            Self::Published => option_letter(answer, options),
            Self::Strict => strict_letter(answer),
        }
    }
}

/// The letter of a ScienceQA answer, as LLaVA's `eval_science_qa.py` reads it: a lone letter A–E; else the prefix `"B. "`;
/// else the one letter in `The answer is B.`, if that is there exactly once. `None` is its "FAILED".
pub fn science_qa_letter(text: &str) -> Option<char> {
    let option = |c: char| LETTERS.contains(&c).then_some(c);
    let mut chars = text.chars();
    match (chars.next(), chars.as_str()) {
        (Some(c), "") if option(c).is_some() => return Some(c),
        (Some(c), rest) if option(c).is_some() && rest.starts_with(". ") => return Some(c),
        _ => {}
    }
    // The expression `The answer is ([A-Z]).`, in which the dot is any character of the line.
    let mut letters = text.split("The answer is ").skip(1).filter_map(|rest| {
        let mut chars = rest.chars();
        let letter = chars.next().filter(char::is_ascii_uppercase)?;
        // The next character may be where the text was split.
        let next = chars.next().or_else(|| (!text.ends_with(rest)).then_some('T'));
        next.filter(|&c| c != '\n').map(|_| letter)
    });
    match (letters.next(), letters.next()) {
        (Some(letter), None) => Some(letter),
        _ => None,
    }
}

/// The letter of an MMBench answer by the first stage (`can_infer_option`) of MMBench's evaluation as it was in 2023: a
/// letter that stands alone between spaces, else with one kind of punctuation, and is the only such letter. A lone "A" in
/// more than three words may be an article and does not count.
pub fn strict_letter(text: &str) -> Option<char> {
    const MARKS: [(&str, &str); 12] = [
        ("", "."),
        ("", ","),
        ("", ":"),
        ("", ")"),
        ("", ")."),
        ("(", ")"),
        ("(", ")."),
        (":", ""),
        (":", ","),
        (":", "."),
        (":", ")"),
        (":", ")."),
    ];
    let words: Vec<&str> = text.split_whitespace().collect();
    let only = |before: &str, after: &str| {
        let mut found =
            LETTERS.into_iter().filter(|c| words.contains(&format!("{before}{c}{after}").as_str()));
        found.next().filter(|_| found.next().is_none())
    };
    if let Some(letter) = only("", "")
        && !(words.contains(&"A") && words.len() > 3)
    {
        return Some(letter);
    }
    MARKS.into_iter().find_map(|(before, after)| only(before, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn science_qa_letters_are_read_as_published() {
        for (text, letter) in [
            ("B", Some('B')),
            ("B. clatter", Some('B')),
            ("B.", None),
            ("b", None),
            ("F", None),
            ("B is the run-on sentence.", None),
            ("The answer is C.", Some('C')),
            ("I think. The answer is C because", Some('C')),
            ("The answer is C", None),
            ("The answer is C\n", None),
            ("The answer is C. The answer is D.", None),
            ("The answer is CThe answer is", Some('C')),
            ("", None),
            ("é. ", None),
        ] {
            assert_eq!(science_qa_letter(text), letter, "{text:?}");
        }
    }

    #[test]
    fn the_strict_rule_reads_letters_alone() {
        for (text, letter) in [
            ("A", Some('A')),
            ("B. cat", Some('B')),
            ("(C)", Some('C')),
            ("The answer is D.", Some('D')),
            ("Answer:B", None),
            ("Answer :B", Some('B')),
            ("A or B", None),
            ("A cat on the mat", None),
            ("A cat is shown, so D.", Some('D')),
            ("**B**", None),
            ("cat", None),
            ("", None),
        ] {
            assert_eq!(strict_letter(text), letter, "{text:?}");
        }
    }
}
