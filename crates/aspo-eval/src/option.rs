//! Which option an answer in free words means: MMBench's published rule, and the letters that people write.
//!
//! Published: VLMEvalKit's `can_infer` (`vlmeval/utils/matching_util.py` at commit e8e78f0 of 2026-08-18). Its first
//! stage takes the marks `.()[],:;!*#{}` for spaces and reads a letter that is the only one among the words and one of the
//! last four, or follows "answer is"; its second takes the one option whose text is in the answer, if the answer is at
//! most twice as long as all options together. What neither reads it gives to a chat model; here it is wrong and counted.
//!
//! Chosen here (C), because the published rule loses or mistakes what a reader would not: any mark around a letter, full
//! width and Chinese words beside it (`选项B`, `B。`, `\boxed{B}`, `<answer>B</answer>`); a single letter anywhere, if it
//! opens the answer or is called its choice; of several letters the one that is called the answer, stands on a line of its
//! own, or opens the text; "A" before a word in lower case is an article; "answer is" wants a whole word behind it (the
//! published expression reads "the answer is blue" as B); an answer that is one option's text is that option; a longer
//! text hides the shorter one in it ("woman", "man"); a long answer may name one option in whole words.

use crate::reply::after_thinking;

/// The letters of options, in their order.
pub const LETTERS: [char; 5] = ['A', 'B', 'C', 'D', 'E'];

/// Words before "is B" or ": B" that make it the answer.
const ANSWER: [&str; 8] = ["answer", "answers", "ans", "option", "choice", "selection", "response", "one"];
/// Words right before a letter that make it an option of the question.
const OPTION: [&str; 3] = ["option", "choice", "letter"];
/// Verbs right before a letter that make it the answer.
const CHOOSE: [&str; 5] = ["choose", "select", "pick", "choosing", "boxed"];
/// Words in lower case that may follow the letter A; before any other it is an article.
const AFTER_LETTER: [&str; 16] = [
    "is", "was", "and", "or", "nor", "but", "because", "since", "as", "seems", "fits", "matches", "shows",
    "would", "could", "can",
];

/// The letter of the option that an answer means; `options` are the texts of A, B, … in their order. `None` cannot be
/// read. Thinking (`<think>…</think>`) is no part of the answer.
pub fn option_letter(answer: &str, options: &[impl AsRef<str>]) -> Option<char> {
    let text: String = after_thinking(answer).chars().map(half_width).collect();
    let known = &LETTERS[..options.len().min(LETTERS.len())];
    let words = words(&text);
    let is_option = |letter: &char| known.contains(letter);
    if let [word] = words.as_slice()
        && let Some(letter) = word.letter().map(|letter| letter.to_ascii_uppercase()).filter(is_option)
    {
        return Some(letter);
    }
    let options: Vec<String> = options.iter().map(|option| option.as_ref().trim().to_lowercase()).collect();
    let lower = text.to_lowercase();
    whole(&lower, &options).or_else(|| by_letter(&text, &words, known)).or_else(|| by_text(&lower, &options))
}

/// One option's text and nothing else.
fn whole(answer: &str, options: &[String]) -> Option<char> {
    let bare = |text: &str| text.trim_matches(|c: char| !c.is_alphanumeric()).to_owned();
    let answer = bare(answer);
    let same = |option: &&String| option.chars().count() > 1 && bare(option) == answer;
    let mut found = LETTERS.into_iter().zip(options).filter(|(_, option)| same(option));
    found.next().filter(|_| !answer.is_empty() && found.next().is_none()).map(|(letter, _)| letter)
}

fn by_letter(text: &str, words: &[Word], known: &[char]) -> Option<char> {
    let at = |index: usize| {
        let letter = words[index].letter().filter(|letter| known.contains(letter))?;
        (!is_article(words, index)).then_some(letter)
    };
    let places: Vec<(usize, char)> = (0..words.len()).filter_map(|index| Some((index, at(index)?))).collect();
    let claims = (0..words.len()).filter(|&index| is_claim(words, index)).filter_map(|index| {
        let letter = words[index].letter()?.to_ascii_uppercase();
        (known.contains(&letter) && !is_article(words, index)).then_some(letter)
    });
    if let Some(letter) = only(places.iter().map(|(_, letter)| *letter)) {
        // Published: among the last four words.
        let near = |index: usize| index + 5 > words.len() || index == 0;
        if places.iter().any(|(index, _)| near(*index) || is_called(words, *index)) {
            return Some(letter);
        }
    }
    only(claims).or_else(|| line_of_its_own(text, known)).or_else(|| opening(words, &places))
}

/// The first line that is a letter, or the last.
fn line_of_its_own(text: &str, known: &[char]) -> Option<char> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let alone = |line: &&str| match words(line).as_slice() {
        [word] => word.letter().filter(|letter| known.contains(letter)),
        _ => None,
    };
    only([lines.first(), lines.last()].into_iter().flatten().filter_map(alone))
}

/// The letter that opens the text with a mark behind it, as in "B. Because …", unless others are listed the same way.
fn opening(words: &[Word], places: &[(usize, char)]) -> Option<char> {
    let (index, letter) = *places.first().filter(|(index, _)| *index == 0)?;
    let mark = words[index].mark.filter(|mark| ".):,、*]".contains(*mark))?;
    let listed = |&(at, other): &(usize, char)| {
        other != letter && words[at].mark == Some(mark) && at + 1 < words.len()
    };
    (!places.iter().any(listed)).then_some(letter)
}

/// The one option whose text is in the answer; both in lower case.
fn by_text(answer: &str, options: &[String]) -> Option<char> {
    let length: usize = options.iter().map(|option| option.chars().count()).sum();
    let whole_words = answer.chars().count() > 2 * length;
    let mut longest_first: Vec<(char, &String)> = LETTERS.into_iter().zip(options).collect();
    longest_first.sort_by_key(|(_, option)| std::cmp::Reverse(option.len()));
    let mut left = answer.to_owned();
    let mut found = Vec::new();
    for (letter, option) in longest_first {
        let there = match whole_words {
            true => has_words(&left, option),
            false => left.contains(option.as_str()),
        };
        // Two options of one text leave it open which is meant.
        let twin = options.iter().filter(|other| *other == option).count() > 1;
        if !option.is_empty() && (there || twin && answer.contains(option.as_str())) {
            left = left.replace(option.as_str(), "\n");
            found.push(letter);
        }
    }
    match found.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

/// Whether `part` is in `text` and no word goes on beside it. Chinese has no spaces to go by.
fn has_words(text: &str, part: &str) -> bool {
    let goes_on = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && !is_cjk(c));
    text.match_indices(part).any(|(at, _)| {
        !goes_on(text[..at].chars().next_back()) && !goes_on(text[at + part.len()..].chars().next())
    })
}

/// The letter, if they are all the same.
fn only(mut letters: impl Iterator<Item = char>) -> Option<char> {
    let first = letters.next()?;
    letters.all(|letter| letter == first).then_some(first)
}

/// A run of letters and digits, of Chinese or of anything else.
#[derive(Debug)]
struct Word<'a> {
    text: &'a str,
    /// A mark that says what the word is stands between it and the one before: `:`, `=`, `>` or `{`.
    linked: bool,
    /// Only spaces stand between it and the one before.
    spaced: bool,
    /// The first mark behind it, if no space comes first.
    mark: Option<char>,
}

impl Word<'_> {
    fn letter(&self) -> Option<char> {
        let mut chars = self.text.chars();
        chars.next().filter(|c| c.is_ascii_alphabetic() && chars.next().is_none())
    }
}

fn words(text: &str) -> Vec<Word<'_>> {
    let kind = |c: char| match c {
        c if is_cjk(c) && c.is_alphanumeric() => 2,
        c if c.is_alphanumeric() || "'’-".contains(c) => 1,
        _ => 0,
    };
    let mut words: Vec<Word> = Vec::new();
    let mut end = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((start, c)) = chars.next() {
        if kind(c) == 0 {
            continue;
        }
        let mut stop = start + c.len_utf8();
        while let Some((at, next)) = chars.next_if(|(_, next)| kind(*next) == kind(c)) {
            stop = at + next.len_utf8();
        }
        let between = &text[end..start];
        words.push(Word {
            text: &text[start..stop],
            linked: between.contains([':', '=', '>', '{']),
            spaced: !between.is_empty() && between.chars().all(char::is_whitespace),
            mark: text[stop..].chars().next().filter(|c| !c.is_whitespace() && kind(*c) == 0),
        });
        end = stop;
    }
    words
}

fn is_article(words: &[Word], index: usize) -> bool {
    let Some(next) = words.get(index + 1).filter(|_| words[index].text.eq_ignore_ascii_case("a")) else {
        return false;
    };
    let called = index.checked_sub(1).map(|at| words[at].text.to_lowercase());
    if words[index].linked || called.is_some_and(|word| OPTION.contains(&word.as_str())) {
        return false;
    }
    let lower = next.text.chars().all(|c| c.is_lowercase() || "'’-".contains(c));
    next.spaced && lower && !AFTER_LETTER.contains(&next.text)
}

/// Whether the word before, or the letter's place, makes it an option at all.
fn is_called(words: &[Word], index: usize) -> bool {
    let before = index.checked_sub(1).map(|at| words[at].text.to_lowercase());
    is_claim(words, index)
        || before.is_some_and(|word| OPTION.contains(&word.as_str()) || word.ends_with("选项"))
        || words.get(index + 1).is_some_and(|word| word.text.starts_with("选项"))
}

/// Whether the text says that this letter is the answer.
fn is_claim(words: &[Word], index: usize) -> bool {
    let lower = |at: usize| words[at].text.to_lowercase();
    let after: Vec<String> = words[index + 1..].iter().take(4).map(|word| word.text.to_lowercase()).collect();
    if let Some(first) = after.first() {
        // "A or B" names no answer.
        let another = words.get(index + 2).is_some_and(|word| word.letter().is_some());
        if another && ["or", "and", "或", "和"].contains(&first.as_str()) {
            return false;
        }
        let verdict = ["correct", "right", "best", "answer"];
        let said = first == "is" && after[1..].iter().any(|word| verdict.contains(&word.as_str()));
        let said_so =
            ["正确", "是正确", "为正确", "是对的", "最符合"].iter().any(|start| first.starts_with(start));
        if said && !after.iter().any(|word| word == "not") || said_so {
            return true;
        }
    }
    // "the answer is option B": the words before "option".
    let mut at = index;
    while at > 0 && OPTION.contains(&lower(at - 1).as_str()) && !words[at].linked {
        at -= 1;
    }
    let Some(before) = at.checked_sub(1).map(lower) else { return false };
    let linked = words[at].linked;
    if linked && ANSWER.contains(&before.as_str()) || CHOOSE.contains(&before.as_str()) {
        return true;
    }
    if let Some(earlier) = at.checked_sub(2).map(lower) {
        let boxed = earlier == "boxed" && before.starts_with("text");
        let is = ["is", "be", "was"].contains(&before.as_str()) && ANSWER.contains(&earlier.as_str());
        let would_be = before == "be" && at > 2 && ANSWER.contains(&lower(at - 3).as_str());
        if boxed || is || would_be {
            return true;
        }
    }
    // 答案是B, 正确选项为B, 应选B, 故选B.
    let stem = before.trim_end_matches(['是', '为', '為', '应', '應', '该', '該', '就']);
    let linked = linked || stem.len() < before.len();
    let chosen = ["选", "選", "选择", "選擇"].iter().find_map(|end| stem.strip_suffix(end));
    stem.ends_with("答案")
        || linked && (stem.ends_with("选项") || stem.ends_with("選項"))
        || chosen.is_some_and(|start| !start.ends_with(['不', '非']))
}

/// A full-width letter, digit or mark as its ASCII twin.
fn half_width(c: char) -> char {
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        c => c,
    }
}

fn is_cjk(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLOURS: [&str; 4] = ["blue", "red", "green", "white"];

    #[test]
    fn letters_are_read_as_people_write_them() {
        for text in [
            "B",
            "b",
            "(b)",
            "**B**",
            "The answer is **B**",
            "选项B",
            "B。",
            "答案：B",
            "答案是B。",
            "答案为选项 B",
            "正确选项是B",
            "我认为应该选B，因为图中是红色的。",
            "A错误，B正确，故选B。",
            "B选项",
            "（B）",
            "【B】红色",
            "Ｂ",
            "B、红色",
            "\\boxed{B}",
            "$\\boxed{\\text{B}}$",
            "<answer>B</answer>",
            "<think>Is it A or C?</think>\n\nB",
            "`B`",
            "\"B\"",
            "__B__",
            "B) red",
            "B: red",
            "Option B",
            "option b is the best match",
            "Answer: B",
            "ANSWER: b",
            "The answer is B.",
            "(B) red",
            "B. It is a small square of one colour on white.",
            "B is correct because the picture shows a small square of one colour.",
            "B\n\nA is wrong because nothing in the picture is of that colour.",
            "A would be wrong, and C too.\n\n**B**",
            "Option A does not fit. The correct answer is option B.",
            "The correct answer is **B**. Here's why: option A shows another colour than C and D.",
            "I would choose B over A.",
            "B. Because A and C are not in the picture at all.",
            "It cannot be A, so the answer must be B",
        ] {
            assert_eq!(option_letter(text, &COLOURS), Some('B'), "{text:?}");
        }
    }

    #[test]
    fn the_text_of_one_option_is_that_option() {
        for text in ["red", "Red.", "The square is red.", "It is reddish", "**red**", "The answer is red"] {
            assert_eq!(option_letter(text, &COLOURS), Some('B'), "{text:?}");
        }
        // The published expression would read a B here.
        assert_eq!(option_letter("The answer is blue.", &COLOURS), Some('A'));
        // A long answer counts if it names the option in whole words.
        let long = "In this picture, as far as can be told from its few pixels, the square is clearly red.";
        assert_eq!(option_letter(long, &COLOURS), Some('B'));
        assert_eq!(option_letter(&long.replace("red", "coloured"), &COLOURS), None);
        // Articles are no letters, and a text that opens with one is read whole.
        assert_eq!(option_letter("A red one", &COLOURS), Some('B'));
        let people = ["A man.", "A woman.", "A dog.", "A cat."];
        assert_eq!(option_letter("A woman", &people), Some('B'));
        assert_eq!(option_letter("a woman", &people), Some('B'));
        assert_eq!(option_letter("It shows a woman.", &["man", "woman"]), Some('B'));
        assert_eq!(option_letter("图中是红色的", &["蓝色", "红色"]), Some('B'));
    }

    #[test]
    fn what_could_be_two_options_or_none_is_not_read() {
        for text in [
            "",
            " \n",
            "A or B",
            "A and C",
            "red or blue",
            "A. blue B. red C. green D. white",
            "The answer is A. The answer is B.",
            "E",
            "I cannot tell.",
            "A square on a table",
            "It is rich in vitamin C, as most people who eat fruit know.",
            "<think>It is B",
            "选A或B",
            "Answer: A or B",
        ] {
            assert_eq!(option_letter(text, &COLOURS), None, "{text:?}");
        }
        assert_eq!(option_letter("same", &["same", "same"]), None);
    }

    #[test]
    fn letters_that_are_texts_of_options_are_letters() {
        assert_eq!(option_letter("B", &["B", "A", "C"]), Some('B'));
    }
}
