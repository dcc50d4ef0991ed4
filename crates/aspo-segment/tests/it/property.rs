//! What holds for every text.

use aspo_segment::{Language, Rules, SplitOptions, align, byte_offsets, split};
use proptest::collection::vec;
use proptest::prelude::*;

/// Pieces that the rules look at, so that random texts meet them often.
const PIECES: &[&str] = &[
    "word",
    "Word",
    "The",
    "the",
    "I",
    "A",
    "a",
    "B",
    "iv",
    "x",
    "dr",
    "Dr",
    "e.g",
    "U.S",
    "a.m",
    "etc",
    "No",
    "no",
    "At",
    "5",
    "12",
    "1",
    "2",
    "3",
    "1999",
    "3.14",
    ".",
    ".",
    ".",
    ".",
    "..",
    "...",
    "…",
    "!",
    "?",
    "?!",
    ". . .",
    "。",
    "！",
    "？",
    "।",
    ":",
    ";",
    ",",
    " ",
    " ",
    " ",
    " ",
    " ",
    "  ",
    "\n",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "\u{a0}",
    "\u{2028}",
    "\"",
    "'",
    "“",
    "”",
    "’",
    "(",
    ")",
    "[",
    "]",
    "「",
    "」",
    "（",
    "）",
    "*",
    "**",
    "_",
    "`",
    "```",
    "~~~",
    "#",
    "-",
    "—",
    "--",
    "-----",
    "=====",
    "|",
    "•",
    ">",
    ":)",
    ":-)",
    "😀",
    "👨\u{200d}👩\u{200d}👧",
    "✅",
    "❌",
    "Fig",
    "vol",
    "IX",
    "A12",
    "🇩🇪",
    "e\u{301}",
    "图",
    "猫",
    "と",
    "@",
    "/",
    "www.",
    "[1]",
    "1.",
    "2.",
    "1)",
    "2)",
    "a.",
    "b.",
    "\u{feff}",
    "\0",
    "ß",
    "É",
    "क",
    "$",
    "%",
    "中文",
];

fn pieces() -> impl Strategy<Value = String> {
    vec(prop::sample::select(PIECES), 0..60).prop_map(|pieces| pieces.concat())
}

/// Any bytes, read as UTF-8 with what is broken replaced.
fn bytes() -> impl Strategy<Value = String> {
    vec(any::<u8>(), 0..200).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![4 => pieces(), 1 => any::<String>(), 1 => bytes()]
}

fn options() -> impl Strategy<Value = SplitOptions> {
    let rules = prop::sample::select(&[Rules::Answer, Rules::Answer, Rules::Period, Rules::Newline][..]);
    let language =
        prop::sample::select(&[Language::English, Language::German, Language::French, Language::Spanish][..]);
    let min = prop_oneof![Just(0), 1..40_usize];
    let max = prop_oneof![Just(usize::MAX), 0..60_usize];
    (rules, language, min, max).prop_map(|(rules, language, min_length, max_length)| SplitOptions {
        rules,
        language,
        min_length,
        max_length,
    })
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(5),
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn spans_tile_any_text_by_any_rules(text in texts(), options in options()) {
        let mut end = 0;
        for span in split(&text, &options) {
            prop_assert_eq!(span.start, end);
            prop_assert!(span.end > span.start);
            prop_assert!(text.is_char_boundary(span.end));
            end = span.end;
        }
        prop_assert_eq!(end, text.len());
    }

    #[test]
    fn white_space_belongs_to_the_sentence_before(text in texts(), options in options()) {
        for span in split(&text, &options).skip(1) {
            prop_assert!(!text[span].starts_with(char::is_whitespace));
        }
    }

    #[test]
    fn a_sentence_split_again_is_one_sentence(text in texts(), options in options()) {
        let options = SplitOptions { max_length: usize::MAX, ..options };
        for span in split(&text, &options) {
            let sentence = &text[span];
            let again: Vec<_> = split(sentence, &options).map(|part| &sentence[part]).collect();
            prop_assert_eq!(again, [sentence]);
        }
    }

    #[test]
    fn no_sentence_is_longer_than_the_maximum(text in texts(), options in options()) {
        for span in split(&text, &options) {
            prop_assert!(text[span].trim().chars().count() <= options.max_length.max(1));
        }
    }

    #[test]
    fn no_sentence_is_shorter_than_the_minimum_unless_it_is_the_only_one(text in texts(), options in options()) {
        let options = SplitOptions { max_length: usize::MAX, ..options };
        let spans: Vec<_> = split(&text, &options).collect();
        if spans.len() > 1 {
            for span in spans {
                prop_assert!(text[span].trim().chars().count() >= options.min_length);
            }
        }
    }

    #[test]
    fn token_ids_are_stable_in_order_and_name_the_sentence_of_the_first_visible_character(
        text in texts(), widths in vec(0..6_usize, 0..400), options in options(),
    ) {
        let spans: Vec<_> = split(&text, &options).collect();
        let offsets = tokens(&text, &widths);
        let Ok(ids) = align(&text, &spans, &offsets) else {
            prop_assert!(text.is_empty());
            return Ok(());
        };
        prop_assert_eq!(ids.len(), offsets.len());
        prop_assert!(ids.is_sorted());
        for (&id, &(start, end)) in ids.iter().zip(&offsets) {
            let token = &text[start..end];
            if let Some(visible) = token.find(|c: char| !c.is_whitespace()) {
                prop_assert!(spans[id].contains(&(start + visible)));
            }
        }
    }

    #[test]
    fn alignment_never_panics_on_any_offsets(
        text in texts(), offsets in vec((0..90_usize, 0..90_usize), 0..20), spans in vec(0..90_usize, 0..6),
    ) {
        let split_spans: Vec<_> = split(&text, &SplitOptions::default()).collect();
        let wild: Vec<_> = spans.windows(2).map(|pair| pair[0]..pair[1]).collect();
        let _ = align(&text, &split_spans, &offsets);
        let _ = align(&text, &wild, &offsets);
        let _ = byte_offsets(&text, &offsets);
        let _ = aspo_segment::within(3..40, &offsets);
    }
}

/// Tokens of `widths` characters each that cover the text, the last one taking what is left.
fn tokens(text: &str, widths: &[usize]) -> Vec<(usize, usize)> {
    let starts: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    let last = starts.len() - 1;
    let mut offsets = Vec::new();
    let mut from = 0;
    for &width in widths {
        let to = (from + width).min(last);
        offsets.push((starts[from], starts[to]));
        from = to;
    }
    offsets.push((starts[from], text.len()));
    offsets
}
