//! POPE on made-up files.

use aspo_eval::pope::{Pope, Split, says_yes};
use aspo_eval::{Answers, Error};
use serde_json::json;

use crate::common::{Folder, digits};

#[test]
fn a_yes_is_read_as_published() {
    for (text, yes) in [
        ("Yes", true),
        ("No", false),
        ("No, there is not. Yes", false),
        ("Yes. No", true),
        ("There is not a dog", false),
        ("NO", true),
        ("none", true),
        ("Not", true),
        ("yes,no", true),
        ("\nNo", true),
        ("", true),
    ] {
        assert_eq!(says_yes(text), yes, "{text:?}");
    }
}

/// Four questions a split; `answers[n]` to question n of each.
pub fn folder(splits: &[&str]) -> Folder {
    let folder = Folder::new();
    let mut questions = Vec::new();
    for (at, split) in splits.iter().enumerate() {
        let mut labels = Vec::new();
        for (n, (object, label)) in
            [("dog", "yes"), ("cat", "no"), ("cup", "yes"), ("bus", "no")].iter().enumerate()
        {
            let text = format!("Is there a {object} in the image?");
            let image = format!("COCO_{n}.jpg");
            questions.push(json!({
                "question_id": 10_000_000 * at + n + 1, "image": image, "category": split,
                "text": format!("{text}\nAnswer the question using a single word or phrase."),
            }));
            labels.push(json!({"question_id": n + 1, "image": image, "text": text, "label": label}));
        }
        folder.lines(&format!("coco_pope_{split}.json"), &labels);
    }
    folder.lines("llava_pope_test.jsonl", &questions);
    folder
}

#[test]
fn figures_are_those_worked_by_hand() {
    let folder = folder(&["adversarial"]);
    // True positive, false positive, false negative, true negative.
    let rows: Vec<_> = [(1, "Yes"), (2, "Yes"), (3, "No"), (4, "no")]
        .map(|(id, text)| json!({"question_id": id, "text": text}))
        .into();
    let answers = Answers::read(folder.lines("answers.jsonl", &rows)).unwrap();
    let scores = Pope::open(folder.path()).unwrap().score(&answers).unwrap();
    let s = &scores.splits[&Split::Adversarial];
    assert_eq!((s.true_positive, s.false_positive, s.false_negative, s.true_negative), (1, 1, 1, 1));
    assert_eq!([s.accuracy, s.precision, s.recall, s.f1, s.yes_ratio], [Some(0.5); 5]);
    assert_eq!(scores.mean_f1, Some(0.5));
}

#[test]
fn a_model_that_never_says_yes_has_f1_zero_and_not_nan() {
    let folder = folder(&["adversarial"]);
    let rows: Vec<_> = (1..=4).map(|id| json!({"question_id": id, "text": "No"})).collect();
    let answers = Answers::read(folder.lines("answers.jsonl", &rows)).unwrap();
    let scores = Pope::open(folder.path()).unwrap().score(&answers).unwrap();
    assert_eq!((scores.mean_f1, scores.splits[&Split::Adversarial].accuracy), (Some(0.0), Some(0.5)));
}

#[test]
fn labels_lie_where_llava_or_pope_put_them() {
    for place in ["", "coco/", "output/coco/"] {
        let folder = folder(&["adversarial", "random"]);
        for split in ["adversarial", "random"] {
            let name = format!("coco_pope_{split}.json");
            let text = std::fs::read_to_string(folder.at(&name)).unwrap();
            std::fs::remove_file(folder.at(&name)).unwrap();
            folder.put(&format!("{place}{name}"), &text);
        }
        let ids = [1, 2, 3, 4, 10_000_001, 10_000_002, 10_000_003, 10_000_004];
        let rows: Vec<_> = ids.iter().map(|id| json!({"question_id": id, "text": "Yes"})).collect();
        let answers = Answers::read(folder.lines("answers.jsonl", &rows)).unwrap();
        let scores = Pope::open(folder.path()).unwrap().score(&answers).unwrap();
        assert_eq!(digits(scores.mean_f1.unwrap(), 4), "0.6667", "{place}");
        assert_eq!((scores.total, scores.correct), (8, 4));
    }
}

#[test]
fn popes_own_answer_format_is_matched_in_order_and_checked() {
    let folder = folder(&["adversarial"]);
    let row = |object: &str, answer: &str| json!({"question": format!("Is there a {object} in the image?"), "answer": answer});
    let rows = [row("dog", "yes"), row("cat", "no"), row("cup", "yes"), row("bus", "no")];
    let pope = Pope::open(folder.path()).unwrap();
    let scores = pope.score(&Answers::read(folder.lines("a.jsonl", &rows)).unwrap()).unwrap();
    assert_eq!(scores.correct, 4);

    let swapped = [row("cat", "no"), row("dog", "yes"), row("cup", "yes"), row("bus", "no")];
    let error = pope.score(&Answers::read(folder.lines("b.jsonl", &swapped)).unwrap()).unwrap_err();
    assert!(matches!(error, Error::OtherOrder { row: 1, .. }), "{error}");
    let error = pope.score(&Answers::read(folder.lines("c.jsonl", &rows[..3])).unwrap()).unwrap_err();
    assert!(matches!(error, Error::Count { found: 3, expected: 4, .. }), "{error}");
}

#[test]
fn labels_in_another_order_are_refused() {
    let folder = folder(&["adversarial"]);
    let name = "coco_pope_adversarial.json";
    let text = std::fs::read_to_string(folder.at(name)).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(0, 1);
    folder.put(name, &lines.join("\n"));
    let error = Pope::open(folder.path()).unwrap_err();
    assert!(matches!(error, Error::OtherOrder { row: 1, .. }), "{error}");

    // The published misprint is the same question.
    let questions = std::fs::read_to_string(folder.at("llava_pope_test.jsonl")).unwrap();
    folder.put("llava_pope_test.jsonl", &questions.replacen("in the image?", "in the imange?", 1));
    folder.put(name, &text);
    Pope::open(folder.path()).unwrap();
}
