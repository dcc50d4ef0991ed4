//! Every malformed file is a named error, in one line.

use aspo_eval::gqa::Gqa;
use aspo_eval::mmbench::MmBench;
use aspo_eval::pope::Pope;
use aspo_eval::science_qa::ScienceQa;
use aspo_eval::seed_bench::SeedBench;
use aspo_eval::{Answers, Benchmark, Error};
use serde_json::json;

use crate::choices::mmbench;
use crate::common::Folder;
use crate::pope::folder as pope;

/// The error of reading `text` as answers, checked to be one line that names the file.
fn answers_error(text: &str) -> Error {
    let folder = Folder::new();
    one_line(Answers::read(folder.put("answers.jsonl", text)).unwrap_err(), "answers.jsonl")
}

fn one_line(error: Error, file: &str) -> Error {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.contains(file), "{text}");
    error
}

#[test]
fn broken_answers_are_named() {
    assert!(matches!(answers_error(""), Error::Empty { .. }));
    assert!(matches!(answers_error("[]"), Error::Empty { .. }));
    assert!(matches!(
        answers_error("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": 2, \"te"),
        Error::Truncated { row: 2, .. }
    ));
    assert!(matches!(
        answers_error("{\"question_id\": 1, \"text\": \"a\"\n{\"question_id\": 2}"),
        Error::Malformed { row: 1, .. }
    ));
    let error = answers_error("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": 2}");
    assert!(matches!(&error, Error::MissingColumn { row: 2, column, .. } if column == "text"), "{error}");
    let error = answers_error("{\"id\": 1, \"text\": \"a\"}\n{\"question_id\": 2, \"text\": \"b\"}");
    assert!(
        matches!(&error, Error::MissingColumn { row: 1, column, .. } if column == "question_id"),
        "{error}"
    );
    let error =
        answers_error("{\"question_id\": 1, \"text\": \"a\"}\n{\"question_id\": \"1\", \"text\": \"b\"}");
    assert!(matches!(error, Error::DuplicateId { row: 2, .. }), "{error}");
    assert!(matches!(answers_error("{\"7\": \"a\", \"7\": \"b\"}"), Error::DuplicateId { row: 2, .. }));
    assert!(matches!(answers_error("{\"question_id\": 1, \"text\": [2]}"), Error::Malformed { row: 1, .. }));
    assert!(matches!(
        answers_error("{\"question_id\": -1.5, \"text\": \"a\"}"),
        Error::Malformed { row: 1, .. }
    ));
    assert!(matches!(answers_error("3 4"), Error::Value { row: 1, .. }));
    assert!(matches!(answers_error("not json"), Error::Malformed { row: 1, .. }));
    assert!(matches!(Answers::read("/nowhere/answers.jsonl"), Err(Error::Io { .. })));
    let folder = Folder::new();
    std::fs::write(folder.at("a.jsonl"), [0xff, 0xfe, 0x00]).unwrap();
    assert!(matches!(Answers::read(folder.at("a.jsonl")), Err(Error::Io { .. })));
}

#[test]
fn answers_that_do_not_fit_the_questions_are_named() {
    let folder = pope(&["adversarial"]);
    let bench = Pope::open(folder.path()).unwrap();
    let score = |rows: &[serde_json::Value]| {
        one_line(
            bench.score(&Answers::read(folder.lines("answers.jsonl", rows)).unwrap()).unwrap_err(),
            "answers.jsonl",
        )
    };
    let row = |id: u64, object: &str| json!({"question_id": id, "prompt": format!("Is there a {object} in the image?"), "text": "yes"});
    let good = [row(1, "dog"), row(2, "cat"), row(3, "cup"), row(4, "bus")];
    let error = score(&good[..3]);
    assert!(matches!(&error, Error::Missing { missing: 1, total: 4, first, .. } if first == "4"), "{error}");
    let error = score(&[good.as_slice(), &[row(5, "tie")]].concat());
    assert!(matches!(&error, Error::UnknownId { row: 5, id, .. } if id == "5"), "{error}");
    let error = score(&[good.as_slice(), &[row(10_000_001, "tie")]].concat());
    assert!(matches!(&error, Error::UnknownId { row: 5, .. }), "{error}");
    // Ids in their order, answers in another.
    let error = score(&[row(1, "cat"), row(2, "dog"), row(3, "cup"), row(4, "bus")]);
    assert!(matches!(error, Error::OtherOrder { row: 1, .. }), "{error}");
}

/// Changes one published file and opens the folder again.
fn changed(
    folder: &Folder,
    name: &str,
    from: &str,
    to: &str,
    open: impl Fn(&std::path::Path) -> Option<Error>,
) -> Error {
    let text = std::fs::read_to_string(folder.at(name)).unwrap();
    assert!(text.contains(from), "{from}");
    folder.put(name, &text.replacen(from, to, 1));
    let error = open(folder.path()).expect("a named error");
    folder.put(name, &text);
    one_line(error, name)
}

#[test]
fn broken_pope_files_are_named() {
    let folder = pope(&["random"]);
    let (questions, labels) = ("llava_pope_test.jsonl", "coco_pope_random.json");
    let change =
        |name: &str, from: &str, to: &str| changed(&folder, name, from, to, |path| Pope::open(path).err());
    assert!(matches!(change(questions, "\"random\"", "\"rare\""), Error::UnknownCategory { row: 1, .. }));
    assert!(matches!(
        change(questions, "\"question_id\":2", "\"question_id\":1"),
        Error::DuplicateId { row: 2, .. }
    ));
    assert!(matches!(change(questions, "\"category\"", "\"kind\""), Error::MissingColumn { row: 1, .. }));
    assert!(matches!(change(questions, "COCO_0.jpg", "../../secret"), Error::UnsafePath { .. }));
    assert!(matches!(change(questions, "COCO_0.jpg", "/etc/passwd"), Error::UnsafePath { .. }));
    assert!(matches!(change(labels, "\"label\":\"no\"", "\"label\":\"maybe\""), Error::Value { row: 2, .. }));
    assert!(matches!(
        change(labels, "\"label\":\"no\"", "\"lable\":\"no\""),
        Error::MissingColumn { row: 2, .. }
    ));
    assert!(matches!(change(labels, "a dog", "a wolf"), Error::OtherOrder { row: 1, .. }));
    assert!(matches!(change(labels, "COCO_0.jpg", "COCO_9.jpg"), Error::OtherOrder { row: 1, .. }));
    assert!(matches!(
        change(labels, "\"question_id\":2", "\"question_id\":1"),
        Error::DuplicateId { row: 2, .. }
    ));
    let first = std::fs::read_to_string(folder.at(labels)).unwrap().lines().next().unwrap().to_owned() + "\n";
    assert!(matches!(change(labels, &first, ""), Error::Count { found: 3, expected: 4, .. }));
    folder.put("coco_pope_odd.json", &first);
    assert!(matches!(Pope::open(folder.path()), Err(Error::UnknownCategory { .. })));
}

#[test]
fn broken_files_of_the_choice_benchmarks_are_named() {
    let folder = Folder::new();
    let seed = json!({"question_type": {"Scene": 1}, "questions": [{"question_id": "1", "question_type_id": 1, "data_type": "image",
        "data_id": "a", "question": "?", "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4", "answer": "A"}]});
    folder.json("SEED-Bench.json", &seed);
    let change = |from: &str, to: &str| {
        changed(&folder, "SEED-Bench.json", from, to, |path| SeedBench::open(path).err())
    };
    assert!(matches!(change("\"answer\":\"A\"", "\"answer\":\"E\""), Error::Value { column: "answer", .. }));
    assert!(matches!(
        change("\"question_type_id\":1", "\"question_type_id\":2"),
        Error::UnknownCategory { .. }
    ));
    assert!(matches!(
        change("\"data_type\":\"image\"", "\"data_type\":\"sound\""),
        Error::UnknownCategory { .. }
    ));
    assert!(matches!(change("\"choice_c\"", "\"choice_x\""), Error::MissingColumn { .. }));
    assert!(matches!(change("]", ""), Error::Malformed { .. } | Error::Truncated { .. }));

    let folder = Folder::new();
    let name = "llava_gqa_testdev_balanced.jsonl";
    folder.lines(
        name,
        &[
            json!({"question_id": "1", "image": "a", "text": "?"}),
            json!({"question_id": "2", "image": "b", "text": "?"}),
        ],
    );
    folder.json("testdev_balanced_questions.json", &json!({"1": {"answer": "a"}, "2": {"answer": "b"}}));
    let open = |path: &std::path::Path| Gqa::open(path).err();
    assert!(matches!(changed(&folder, name, "\"2\"", "\"1\"", open), Error::DuplicateId { row: 2, .. }));
    assert!(matches!(changed(&folder, name, "\"2\"", "\"3\"", open), Error::UnknownId { row: 2, .. }));
    let labels = "testdev_balanced_questions.json";
    assert!(matches!(
        changed(&folder, labels, "}}", "},\"3\":{\"answer\":\"c\"}}", open),
        Error::Count { found: 3, .. }
    ));
    assert!(matches!(changed(&folder, labels, "\"2\"", "\"1\"", open), Error::DuplicateId { row: 2, .. }));
    assert!(matches!(changed(&folder, labels, "\"answer\"", "\"anser\"", open), Error::MissingColumn { .. }));

    let folder = Folder::new();
    let row = |id: &str| json!({"id": id, "conversations": [{"value": "?\nA. x\nB. y"}, {"value": "B"}]});
    folder.json("llava_test_CQM-A.json", &json!([row("1"), row("2")]));
    folder.json("pid_splits.json", &json!({"test": ["1", "2"]}));
    let open = |path: &std::path::Path| ScienceQa::open(path).err();
    let name = "llava_test_CQM-A.json";
    assert!(matches!(changed(&folder, name, "\"B\"", "\"C\"", open), Error::Value { .. }));
    assert!(matches!(changed(&folder, name, "A. x", "x", open), Error::Value { .. }));
    assert!(matches!(changed(&folder, name, "\"2\"", "\"1\"", open), Error::DuplicateId { row: 2, .. }));
    assert!(matches!(
        changed(&folder, name, "\"conversations\"", "\"turns\"", open),
        Error::MissingColumn { .. }
    ));
    assert!(matches!(
        changed(&folder, "pid_splits.json", "\"1\",", "", open),
        Error::Count { found: 1, expected: 2, .. }
    ));
    assert!(matches!(changed(&folder, "pid_splits.json", "\"1\"", "\"7\"", open), Error::UnknownId { .. }));
    assert!(matches!(
        changed(&folder, "pid_splits.json", "\"test\"", "\"tset\"", open),
        Error::MissingColumn { .. }
    ));
}

#[test]
fn broken_mmbench_files_are_named() {
    let name = "mmbench_dev_20230712.tsv";
    let folder = mmbench(name);
    let change = |from: &str, to: &str| changed(&folder, name, from, to, |path| MmBench::open(path).err());
    for column in ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"] {
        let text = std::fs::read_to_string(folder.at(name)).unwrap();
        let header = text.lines().next().unwrap().to_owned();
        let renamed: Vec<_> = header.split('\t').map(|c| if c == column { "other" } else { c }).collect();
        let error = change(&header, &renamed.join("\t"));
        assert!(matches!(&error, Error::MissingColumn { column: c, .. } if c == column), "{error}");
    }
    assert!(matches!(change("\n1000002\t", "\n2\t"), Error::DuplicateId { row: 5, .. }));
    assert!(matches!(change("\n1000002\t", "\nx\t"), Error::Value { column: "index", row: 5, .. }));
    assert!(matches!(change("more\tA", "more\tC"), Error::Value { column: "answer", row: 4, .. }));
    assert!(matches!(change("more\tA", "more\t"), Error::Value { column: "answer", row: 4, .. }));
    assert!(matches!(change("exist", ""), Error::UnknownCategory { row: 4, .. }));
    assert!(matches!(change("yes\tno\t\tmore\t", "yes\tno\t"), Error::Malformed { row: 4, .. }));
    let text = std::fs::read_to_string(folder.at(name)).unwrap();
    folder.put(name, text.lines().next().unwrap());
    assert!(matches!(MmBench::open(folder.path()), Err(Error::Empty { .. })));
}

#[test]
fn an_empty_folder_says_what_was_looked_for() {
    let folder = Folder::new();
    let answers = Answers::read(folder.put("a.json", "{\"1\": \"x\"}")).unwrap();
    for benchmark in Benchmark::ALL {
        let error = match benchmark.is_judged() {
            false => benchmark.score(folder.path(), &answers).unwrap_err(),
            // SHR's judgements can be scored without its list of images, so it is the questions that are missing.
            true => benchmark.questions(folder.path(), None).unwrap_err(),
        };
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        let nowhere = folder.at("nowhere");
        assert!(matches!(benchmark.questions(&nowhere, None), Err(Error::NotFound { .. })));
        assert_eq!(benchmark.name().parse::<Benchmark>().unwrap(), benchmark);
    }
    assert!("vqa".parse::<Benchmark>().is_err());
}
