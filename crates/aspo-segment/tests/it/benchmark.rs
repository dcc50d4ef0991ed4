//! Sentence ends against those that people marked.

use std::path::PathBuf;

use aspo_segment::{SplitOptions, split};
use serde::Deserialize;

use crate::sentences;

/// A file of the benchmark data: in the folder that `ASPO_BENCH_DATA` names, else in the one beside the workspace.
fn data(name: &str) -> String {
    let beside = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/eval"));
    let path = std::env::var_os("ASPO_BENCH_DATA").map_or_else(beside, PathBuf::from).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Where sentences end, in characters, without the white space behind them.
fn ends(text: &str) -> Vec<usize> {
    let end = |span: std::ops::Range<usize>| {
        text[..span.start].chars().count() + text[span].trim_end().chars().count()
    };
    split(text, &SplitOptions::default()).map(end).collect()
}

#[test]
#[ignore = "reads benchmark data that may not be committed, from the folder ASPO_BENCH_DATA"]
fn boundary_f1_on_english_web_text_is_at_least_929_per_mille() {
    #[derive(Deserialize)]
    struct Row {
        text: String,
        ends: Vec<usize>,
    }
    let file = data("segmentation/ud_english_ewt_test.jsonl");
    let (mut found, mut right, mut both) = (0, 0, 0);
    for line in file.lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let ours = ends(&row.text);
        found += ours.len();
        right += row.ends.len();
        both += ours.iter().filter(|end| row.ends.contains(end)).count();
    }
    let f1 = 2.0 * both as f64 / (found + right) as f64;
    // What the README says; pySBD reaches .911, blingfire .896.
    assert!(f1 >= 0.9285, "F1 {f1:.4}: {both} of {found} found and {right} right");
}

#[test]
#[ignore = "reads benchmark data that may not be committed, from the folder ASPO_BENCH_DATA"]
fn all_48_golden_rules_hold() {
    #[derive(Deserialize)]
    struct Rule {
        text: String,
        sentences: Vec<String>,
    }
    let file = data("segmentation/golden_rules_en.json");
    let rules: Vec<Rule> = serde_json::from_str(&file).unwrap();
    let broken: Vec<&str> = rules
        .iter()
        .filter(|rule| sentences(&rule.text) != rule.sentences)
        .map(|rule| rule.text.as_str())
        .collect();
    assert_eq!(rules.len(), 48);
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
#[ignore = "reads benchmark data that may not be committed, from the folder ASPO_BENCH_DATA"]
fn real_answers_are_tiled_and_none_of_their_sentences_is_a_fragment() {
    #[derive(Deserialize)]
    struct Answer {
        text: String,
    }
    let file = data("captions/coco_captions_llava.json");
    let (mut answers, mut count) = (0, 0);
    for answer in serde_json::Deserializer::from_str(&file).into_iter::<Answer>() {
        let text = answer.unwrap().text;
        let spans: Vec<_> = split(&text, &SplitOptions::default()).collect();
        assert_eq!(spans.iter().map(|span| &text[span.clone()]).collect::<String>(), text);
        answers += 1;
        count += spans.len();
    }
    // "About five sentences each".
    let mean = count as f64 / f64::from(answers);
    assert!((4.0..6.0).contains(&mean), "{mean} sentences an answer");
}
