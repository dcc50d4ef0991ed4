//! Tokens to sentences, and what is refused.

use aspo_segment::{Error, SplitOptions, align, byte_offsets, split, within};

/// The ids of `tokens`, which are written with the white space in front of them and joined are the text; an empty one is
/// special.
fn ids(tokens: &[&str]) -> Vec<usize> {
    let text = tokens.concat();
    let spans: Vec<_> = split(&text, &SplitOptions::default()).collect();
    let mut end = 0;
    let offsets = tokens.iter().map(|token| {
        let start = end;
        end += token.len();
        if token.is_empty() { (0, 0) } else { (start, end) }
    });
    align(&text, &spans, &offsets.collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_word_with_the_space_in_front_of_it_belongs_to_its_own_sentence() {
    assert_eq!(ids(&["A", " dog", " runs", ".", " It", " barks", "."]), [0, 0, 0, 0, 1, 1, 1]);
}

#[test]
fn white_space_alone_belongs_to_the_sentence_before() {
    assert_eq!(ids(&["One", ".", "\n", "\n", "Two", "."]), [0, 0, 0, 0, 1, 1]);
}

#[test]
fn a_token_across_a_border_belongs_where_it_starts() {
    assert_eq!(ids(&["The end", ".There", " is more"]), [0, 0, 1]);
    assert_eq!(ids(&["The end", ".\n\n", "More"]), [0, 0, 1]);
}

#[test]
fn special_tokens_belong_to_the_sentence_before() {
    assert_eq!(ids(&["", "A dog.", "", " A cat.", "", ""]), [0, 0, 0, 1, 1, 1]);
}

#[test]
fn tokens_of_one_character_share_its_sentence() {
    // Byte fallback gives every byte of 🐶 the offsets of the whole character; a byte-level tokenizer may give each its
    // own byte.
    let text = "Hi! 🐶 Yes.";
    let spans: Vec<_> = split(text, &SplitOptions::default()).collect();
    assert_eq!(spans, [0..9, 9..13]);
    let whole = [(0, 3), (3, 8), (4, 8), (4, 8), (4, 8), (8, 12), (12, 13), (0, 0)];
    assert_eq!(align(text, &spans, &whole).unwrap(), [0, 0, 0, 0, 0, 1, 1, 1]);
    let bytes = [(0, 3), (3, 5), (5, 6), (6, 7), (7, 8), (8, 12), (12, 13)];
    assert_eq!(align(text, &spans, &bytes).unwrap(), [0, 0, 0, 0, 0, 1, 1]);
}

#[test]
fn white_space_and_invisible_characters_may_be_without_a_token() {
    let text = "\u{feff}Go.  No\u{200b}. ";
    let spans: Vec<_> = split(text, &SplitOptions::default()).collect();
    assert_eq!(align(text, &spans, &[(3, 5), (5, 6), (8, 10), (13, 14)]).unwrap(), [0, 0, 1, 1]);
}

#[test]
fn an_empty_text_has_no_sentence_for_a_token() {
    assert_eq!(align("", &[], &[]), Ok(vec![]));
    assert_eq!(align("", &[], &[(0, 0)]), Err(Error::NoSentence { tokens: 1 }));
}

#[test]
fn offsets_in_characters_are_refused_as_bytes_and_right_once_converted() {
    let text = "图中有一只猫。它在睡觉！";
    let spans: Vec<_> = split(text, &SplitOptions::default()).collect();
    let characters: Vec<(usize, usize)> = (0..12).map(|n| (n, n + 1)).collect();
    assert!(matches!(align(text, &spans, &characters), Err(Error::Uncovered { at: 12, token: 12, .. })));
    let ids = align(text, &spans, &byte_offsets(text, &characters).unwrap()).unwrap();
    assert_eq!(ids, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
}

#[test]
fn offsets_that_do_not_fit_are_errors_that_name_the_token() {
    let text = "A dog. A cat.";
    let spans: Vec<_> = split(text, &SplitOptions::default()).collect();
    let refused = |offsets: &[(usize, usize)]| align(text, &spans, offsets).unwrap_err();
    assert_eq!(
        refused(&[(0, 14)]),
        Error::Outside { token: 0, start: 0, end: 14, length: 13, unit: "bytes" }
    );
    assert_eq!(
        refused(&[(0, 5), (6, 5)]),
        Error::Outside { token: 1, start: 6, end: 5, length: 13, unit: "bytes" }
    );
    assert_eq!(refused(&[(0, 5), (5, 13), (4, 6)]), Error::Order { token: 2, start: 4, previous: 5 });
    assert_eq!(refused(&[(0, 5), (7, 13)]), Error::Uncovered { token: 1, at: 5, missed: ". ".into() });
    assert_eq!(refused(&[(0, 6)]), Error::Uncovered { token: 1, at: 6, missed: " A cat.".into() });
    assert!(refused(&[(0, 6)]).to_string().contains("no token covers \" A cat.\" at byte 6"));
    assert_eq!(
        byte_offsets("é", &[(0, 1), (1, 2)]),
        Err(Error::Outside { token: 1, start: 1, end: 2, length: 1, unit: "characters" })
    );
}

#[test]
fn spans_that_do_not_tile_the_text_are_refused() {
    let refused = |spans: &[(usize, usize)]| {
        let spans: Vec<_> = spans.iter().map(|&(start, end)| start..end).collect();
        match align("A dog.", &spans, &[(0, 6)]) {
            Err(Error::Spans { sentence, expected, .. }) => (sentence, expected),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&[]), (0, 0));
    assert_eq!(refused(&[(0, 2), (3, 6)]), (1, 2));
    assert_eq!(refused(&[(0, 2), (2, 2), (2, 6)]), (1, 2));
    assert_eq!(refused(&[(0, 5)]), (1, 5));
    assert_eq!(refused(&[(0, 7)]), (0, 0));
}

#[test]
fn offsets_in_a_document_are_moved_into_its_response() {
    assert_eq!(
        within(10..20, &[(9, 14), (14, 22), (0, 0), (30, 30)]).unwrap(),
        [(0, 4), (4, 10), (0, 0), (0, 0)]
    );
    let refused = |offsets: &[(usize, usize)]| match within(10..20, offsets) {
        Err(Error::NotInResponse { token, .. }) => token,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[(2, 10)]), 0);
    assert_eq!(refused(&[(10, 20), (20, 24)]), 1);
    assert_eq!(refused(&[(15, 12)]), 0);
}
