//! Sentences and tokens of a real tokenizer: prompts and answers with the offsets that it gives, in characters.

use std::path::PathBuf;

use aspo_segment::{SplitOptions, align, byte_offsets, split, within};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    answer: String,
    prompt: String,
    offsets: Vec<(usize, usize)>,
    response_start: usize,
}

/// LLaVA-1.5's offsets from the folder that `ASPO_ORACLE` names, `None` where it has no `tokenizer`; unset, those of a small
/// tokenizer of its kind, committed with the crate.
fn expected() -> Option<PathBuf> {
    match std::env::var_os("ASPO_ORACLE") {
        Some(root) => Some(PathBuf::from(root).join("tokenizer")).filter(|folder| folder.is_dir()),
        None => Some(PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tokenizer"))),
    }
}

#[test]
fn oracle_every_response_token_gets_the_sentence_of_its_first_visible_character() {
    let Some(folder) = expected() else { return };
    let file = std::fs::read_to_string(folder.join("expected.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&file).unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let document = format!("{} {}</s>", case.prompt, case.answer);
        let start = case.prompt.len() + 1;
        let response = start..start + case.answer.len();
        let mut offsets = byte_offsets(&document, &case.offsets[case.response_start..]).unwrap();
        // The closing token is the literal `</s>` behind the answer: special, thus of no width.
        *offsets.last_mut().unwrap() = (0, 0);
        // A first token of white space alone is the space between prompt and answer.
        offsets.iter_mut().filter(|token| token.1 <= start).for_each(|token| *token = (0, 0));
        let offsets = within(response, &offsets).unwrap_or_else(|e| panic!("{:?}: {e}", case.answer));

        let spans: Vec<_> = split(&case.answer, &SplitOptions::default()).collect();
        let ids = align(&case.answer, &spans, &offsets).unwrap_or_else(|e| panic!("{:?}: {e}", case.answer));

        assert_eq!(ids.len(), case.offsets.len() - case.response_start);
        assert!(ids.is_sorted());
        assert_eq!(
            ids.last(),
            Some(&(spans.len() - 1)),
            "{:?}: `</s>` belongs to the last sentence",
            case.answer
        );
        for (&id, &(start, end)) in ids.iter().zip(&offsets) {
            if let Some(visible) = case.answer[start..end].find(|c: char| !c.is_whitespace()) {
                assert!(spans[id].contains(&(start + visible)), "{:?}", case.answer);
            }
        }
    }
}
