//! `aspo report`: runs side by side.

use std::path::Path;

use aspo_train::{Counts, MarkedSentence, Picture, Report, WeighedSentence};

use crate::{aspo, complaint, said};

fn sentence(text: &str, weight: f64) -> MarkedSentence {
    let sentence = WeighedSentence { text: text.into(), similarity: None, perplexity: 2.0, weight };
    MarkedSentence { sentence, hallucinated: false }
}

/// A run's folder: two lines of metrics, and a report where there is one.
fn folder(at: &Path, loss: f64, report: Option<&Report>) {
    std::fs::create_dir_all(at).unwrap();
    let line =
        |step: usize| serde_json::json!({ "step": step, "loss": loss / step as f64 }).to_string() + "\n";
    std::fs::write(at.join("metrics.jsonl"), line(1) + &line(2)).unwrap();
    report.into_iter().for_each(|report| report.keep(at).unwrap());
}

/// A run on two scenes, whose model says this of a picture.
fn report(seed: &str, false_ones: [[usize; 2]; 2], trained: Vec<MarkedSentence>) -> Report {
    let base = vec![sentence("A red dot.", 0.5), sentence("It rains.", 0.25)];
    let picture = Picture {
        images: vec![b"GIF89a".to_vec()],
        question: "What?".into(),
        answers: vec![("base".into(), base), ("trained".into(), trained)],
    };
    let table = [["", "base", "trained"], ["false, %", "40.0", seed]];
    Report {
        facts: vec![("pairs".into(), "12".into()), ("seed".into(), seed.into())],
        tables: vec![("Scenes".into(), table.map(|row| row.map(String::from).to_vec()).to_vec())],
        pictures: vec![("Held out".into(), vec![picture])],
        counts: vec![Counts {
            name: "false sentences".into(),
            items: "2 scenes".into(),
            counts: false_ones.into(),
        }],
        ..Report::default()
    }
}

#[test]
fn runs_are_compared_on_the_same_items_and_what_training_changed_is_marked() {
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name);
    let said_again = vec![sentence("A red dot.", 0.55), sentence("It rains.", 0.9)];
    folder(&at("dpo"), 0.7, Some(&report("1", [[3, 0], [1, 0]], said_again)));
    let other = vec![sentence("A <blue> dot.", 0.5)];
    folder(&at("aspo"), 0.6, Some(&report("2", [[3, 3], [1, 0]], other)));
    folder(&at("old"), 0.5, None);
    said(&aspo(here.path(), &["report", "dpo", "aspo", "old", "--out", "page.html"]));
    let page = std::fs::read_to_string(at("page.html")).unwrap();
    // From none of four to three of four.
    assert!(page.contains("<th>dpo") && page.contains("<td>+75.0 ["), "{page}");
    assert!(page.contains("No paired differences with old:") && page.contains("Curves alone of old:"));
    // What the runs have alike is there once.
    assert_eq!((page.matches("<th>base").count(), page.matches("<b>base</b>").count()), (1, 1));
    assert!(page.contains("<th>dpo: trained<th>aspo: trained"), "{page}");
    assert_eq!(page.matches("<img ").count(), 1, "one picture, asked about by both");
    assert!(page.contains("<tr class=other><td>seed<td>1<td>2"), "what differs is told apart: {page}");
    // A weight of 0.25 that is 0.9 now, and a sentence that the base did not write.
    assert_eq!(page.matches("class=\"s changed\"").count(), 2);
    assert!(page.contains("A &lt;blue&gt; dot.") && !page.contains("A <blue>"));
    assert_eq!(page.matches("<polyline").count(), 3, "a curve of each run's loss");
    assert!(
        !page.contains("src=\"http") && !page.contains("href=\"http"),
        "nothing is loaded from elsewhere"
    );
}

#[test]
fn a_base_that_is_weighed_otherwise_is_told_apart_and_each_run_is_held_to_its_own() {
    let here = tempfile::tempdir().unwrap();
    let counts = [[3, 0], [1, 0]];
    folder(&here.path().join("a"), 0.7, Some(&report("1", counts, vec![sentence("A red dot.", 0.5)])));
    let mut other = report("1", counts, vec![sentence("A red dot.", 0.9)]);
    other.pictures[0].1[0].answers[0].1 = vec![sentence("A red dot.", 0.9)];
    folder(&here.path().join("b"), 0.7, Some(&other));
    // Weighed as its own base, and unlike the other's.
    let like_a = report("1", counts, vec![sentence("A red dot.", 0.5)]).pictures;
    other.pictures[0].1[0].answers[1].1 = like_a[0].1[0].answers[1].1.clone();
    folder(&here.path().join("c"), 0.7, Some(&other));
    said(&aspo(here.path(), &["report", "a", "b", "c"]));
    let page = std::fs::read_to_string(here.path().join("runs.html")).unwrap();
    assert!(page.contains("<b>base</b>") && page.contains("<b>base, b</b>"), "{page}");
    assert_eq!(page.matches("class=\"s changed\"").count(), 1, "that of c alone: {page}");
}

#[test]
fn what_was_counted_on_other_items_is_not_compared() {
    let here = tempfile::tempdir().unwrap();
    folder(&here.path().join("a"), 0.7, Some(&report("1", [[3, 0], [1, 0]], Vec::new())));
    let mut other = report("2", [[3, 3], [1, 0]], Vec::new());
    other.counts[0].items = "2 other scenes".into();
    folder(&here.path().join("b"), 0.7, Some(&other));
    said(&aspo(here.path(), &["report", "a", "b"]));
    let page = std::fs::read_to_string(here.path().join("runs.html")).unwrap();
    assert!(page.contains("<td>not on the same items") && !page.contains("+75.0"), "{page}");
}

#[test]
fn a_folder_without_a_run_is_named_with_what_is_missing() {
    let here = tempfile::tempdir().unwrap();
    folder(&here.path().join("run"), 0.7, None);
    for (words, told) in [
        (["report", "run", "nowhere"], "error: nowhere: no metrics.jsonl;"),
        (["report", "run", "run"], "error: run is named twice"),
    ] {
        let complaint = complaint(&aspo(here.path(), &words), 1);
        assert!(complaint.starts_with(told), "{complaint}");
        assert!(!here.path().join("runs.html").exists());
    }
    std::fs::write(here.path().join("run/report.json"), "{").unwrap();
    assert!(complaint(&aspo(here.path(), &["report", "run"]), 1).contains("report.json"));
}
