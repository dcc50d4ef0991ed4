//! GQA, ScienceQA, SEED-Bench and MMBench on made-up files.

use aspo_eval::choice::Letters;
use aspo_eval::mmbench::MmBench;
use aspo_eval::science_qa::ScienceQa;
use aspo_eval::seed_bench::SeedBench;
use aspo_eval::{Answers, Benchmark, Error, Image, gqa::Gqa};
use serde_json::{Value, json};

use crate::common::Folder;

#[test]
fn gqa_strips_the_period_and_the_case() {
    let folder = Folder::new();
    let types = |s: &str| json!({"structural": s, "semantic": "attr"});
    folder.json(
        "data/testdev_balanced_questions.json",
        &json!({
            "20": {"question": "Is it red?", "imageId": "n1", "answer": "yes", "types": types("verify")},
            "10": {"question": "What is it?", "imageId": "n2", "answer": "bus", "types": types("query")},
            "30": {"question": "Whose?", "imageId": "n3", "answer": "his", "types": types("query")},
        }),
    );
    let question = |id: &str, text: &str| {
        json!({
            "question_id": id, "image": format!("{id}.jpg"), "category": "default",
            "text": format!("{text}\nAnswer the question using a single word or phrase."),
        })
    };
    folder.lines(
        "llava_gqa_testdev_balanced.jsonl",
        &[question("20", "Is it red?"), question("10", "What is it?"), question("30", "Whose?")],
    );
    let answer = |id: &str, text: &str| json!({"question_id": id, "text": text});
    let answers =
        folder.lines("answers.jsonl", &[answer("10", "Bus."), answer("20", "Yes"), answer("30", "his one")]);
    let gqa = Gqa::open(folder.path()).unwrap();
    let scores = gqa.score(&Answers::read(&answers).unwrap()).unwrap();
    assert_eq!((scores.correct, scores.total), (2, 3));
    assert_eq!((scores.binary, scores.open), (Some(100.0), Some(50.0)));
    assert_eq!(scores.by_semantic["attr"].correct, 2);

    // GQA's own prediction file, and GQA's file alone.
    let upload = folder.json(
        "predictions.json",
        &json!([{"questionId": "20", "prediction": "yes"}, {"questionId": "10", "prediction": "car"},
                {"questionId": "30", "prediction": "his"}]),
    );
    std::fs::remove_file(folder.at("llava_gqa_testdev_balanced.jsonl")).unwrap();
    let gqa = Gqa::open(folder.path()).unwrap();
    assert_eq!(gqa.score(&Answers::read(&upload).unwrap()).unwrap().correct, 2);
    let question = &gqa.questions(None)[0];
    assert_eq!(question.prompt, "What is it?\nAnswer the question using a single word or phrase.");
    assert_eq!(question.image, Some(Image::Path(folder.at("data/images/n2.jpg"))));
}

#[test]
fn gqa_labels_may_stand_in_the_question_file() {
    let folder = Folder::new();
    folder.lines(
        "llava_gqa_testdev_balanced.jsonl",
        &[json!({"question_id": 1, "image": "a.jpg", "text": "What?", "answer": "cat"})],
    );
    let answers =
        Answers::read(folder.lines("a.jsonl", &[json!({"question_id": "1", "text": "Cat."})])).unwrap();
    assert_eq!(Gqa::open(folder.path()).unwrap().score(&answers).unwrap().accuracy, Some(100.0));
}

fn science_qa() -> Folder {
    let folder = Folder::new();
    let question = |id: &str, image: bool, text: &str, letter: &str| {
        let mut row = json!({"id": id, "conversations": [
            {"from": "human", "value": if image { format!("<image>\n{text}") } else { text.to_owned() }},
            {"from": "gpt", "value": letter}]});
        if image {
            row["image"] = json!(format!("{id}/image.png"));
        }
        row
    };
    folder.json(
        "llava_test_CQM-A.json",
        &json!([
            question("4", false, "Context: N/A\nWhich?\nA. one\nB. two", "B"),
            question("5", true, "A. Smith asks.\nWhich?\nA. one\nB. two\nC. three", "C"),
            question("7", true, "Which?\nA. one\nB. two", "A"),
        ]),
    );
    folder.json("pid_splits.json", &json!({"train": ["1"], "test": ["4", "5", "7"]}));
    folder
}

#[test]
fn science_qa_counts_letters_within_the_choices_and_images_apart() {
    let folder = science_qa();
    let answer = |id: &str, text: &str| json!({"question_id": id, "text": text});
    let answers =
        folder.lines("a.jsonl", &[answer("4", "B. two"), answer("5", "The answer is C."), answer("7", "C")]);
    let bench = ScienceQa::open(folder.path()).unwrap();
    let scores = bench.score(&Answers::read(&answers).unwrap()).unwrap();
    assert_eq!((scores.correct, scores.total, scores.image_correct, scores.image_total), (2, 3, 1, 2));
    assert_eq!((scores.image_accuracy, scores.unparsable), (Some(50.0), 0));
    let questions = bench.questions(None);
    assert_eq!(questions[0].image, None);
    assert!(questions[1].recorded_prompt.starts_with("<image>\nA. Smith asks."));
    assert!(
        questions[1]
            .prompt
            .ends_with("C. three\nAnswer with the option's letter from the given choices directly.")
    );

    // The same as a result file, whose verdicts (here all wrong) do not count.
    let row = |id: &str, pred: &str, truth: &str, image: bool| {
        json!({
        "question_id": id, "parsed_ans": "A", "ground_truth": truth, "pred": pred, "is_multimodal": image})
    };
    let mut result = json!({"correct": [], "incorrect": [
        row("7", "C", "A", true), row("4", "B. two", "B", false), row("5", "The answer is C.", "C", true)]});
    let read = |value: &Value| Answers::read(folder.json("result.json", value)).unwrap();
    assert_eq!(bench.score(&read(&result)).unwrap(), scores);
    result["incorrect"][0]["ground_truth"] = json!("B");
    assert!(matches!(bench.score(&read(&result)), Err(Error::OtherOrder { row: 1, .. })));
}

#[test]
fn seed_bench_scores_images_only_and_exact_letters() {
    let folder = Folder::new();
    let question = |id: Value, kind: u64, data: &str, answer: &str| {
        json!({
        "question_id": id, "question_type_id": kind, "data_type": data, "data_id": "1_2", "question": "How many?",
        "choice_a": "one", "choice_b": "two", "choice_c": "three", "choice_d": "four", "answer": answer})
    };
    let mut video = question(json!("v1_3"), 10, "video", "A");
    video["data_id"] = json!("clip.mp4");
    video["segment"] = json!([0.5, 1.5]);
    let file = json!({
        "questions": [question(json!("101"), 1, "image", "A"), question(json!(102), 5, "image", "B"), video],
        "question_type": {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}});
    folder.json("SEED-Bench.json", &file);
    let bench = SeedBench::open(folder.path()).unwrap();
    let answers = |rows: &[Value]| Answers::read(folder.lines("a.jsonl", rows)).unwrap();
    let rows = [
        json!({"question_id": 101, "text": "A"}),
        json!({"question_id": 102, "prediction": "B."}),
        json!({"question_id": "v1_3", "text": "A"}),
    ];
    let scores = bench.score(&answers(&rows)).unwrap();
    assert_eq!((scores.correct, scores.total, scores.unparsable), (1, 2, 1));
    assert_eq!(scores.by_category["Instances Counting"].percent(), Some(0.0));
    // What LLaVA's rule does not read is read beside it.
    assert_eq!((scores.by_mmbench_rule.correct, scores.by_mmbench_rule.total), (2, 2));
    assert_eq!(bench.score(&answers(&rows[..2])).unwrap(), scores);
    assert!(matches!(bench.score(&answers(&rows[..1])), Err(Error::Missing { missing: 1, .. })));
    let prompt = &bench.questions(None)[0].prompt;
    assert_eq!(
        prompt,
        "How many?\nA. one\nB. two\nC. three\nD. four\nAnswer with the option's letter from the given choices directly."
    );
}

const HEADER: &str =
    "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\tsource\tl2-category\tcomment\tsplit";

/// Two questions: one with three options in all rotations, one with two.
pub fn mmbench(name: &str) -> Folder {
    let folder = Folder::new();
    // base64 of "image bytes, longer than an index can be, so that it is not one"
    let image = "aW1hZ2UgYnl0ZXMsIGxvbmdlciB0aGFuIGFuIGluZGV4IGNhbiBiZSwgc28gdGhhdCBpdCBpcyBub3Qgb25l";
    let rows = [
        format!("1\tWhich?\t\"Two\nlines, \"\"quoted\"\".\"\tred\tblue\tgreen\tnan\tC\tcolor\t{image}\ts\tperception\t\tdev"),
        "1000001\tWhich?\t\"Two\nlines, \"\"quoted\"\".\"\tblue\tgreen\tred\t\tB\tcolor\t1\ts\tperception\t\tdev".into(),
        "2000001\tWhich?\t\"Two\nlines, \"\"quoted\"\".\"\tgreen\tred\tblue\t\tA\tcolor\t1\ts\tperception\t\tdev".into(),
        format!("2\tIs it?\tnan\tyes\tno\t\tmore\tA\texist\t{image}\ts\treasoning\t\tdev"),
        format!("1000002\tIs it?\tnan\tno\tyes\t\t\tB\texist\t{image}\ts\treasoning\t\tdev"),
    ];
    folder.put(name, &format!("{HEADER}\n{}\n", rows.join("\n")));
    folder
}

pub fn mmbench_answers(texts: [&str; 5]) -> Vec<Value> {
    let ids = [1, 1_000_001, 2_000_001, 2, 1_000_002];
    ids.iter().zip(texts).map(|(id, text)| json!({"question_id": id, "round_id": 0, "text": text})).collect()
}

#[test]
fn a_question_of_mmbench_is_right_only_in_every_rotation() {
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let bench = MmBench::open(folder.path()).unwrap();
    let score_by = |texts, letters| {
        let answers = Answers::read(folder.lines("a.jsonl", &mmbench_answers(texts))).unwrap();
        bench.score(&answers, letters).unwrap()["dev"].clone()
    };
    let score = |texts| score_by(texts, Letters::Published);
    let all = score(["C", "B", "A", "A", "B"]);
    assert_eq!((all.accuracy, all.correct, all.total, all.rows, all.correct_rows), (Some(100.0), 2, 2, 5, 5));
    let one = score(["C", "B", "C", "A. yes", "(B)"]);
    assert_eq!((one.accuracy, one.correct_rows, one.unparsable), (Some(50.0), 4, 0));
    assert_eq!(
        (one.by_category["color"].percent(), one.by_category["exist"].percent()),
        (Some(0.0), Some(100.0))
    );
    assert_eq!(one.by_l2_category["reasoning"].correct, 1);
    // The text of an option means it in every rotation; by letters alone it cannot be read.
    let texts = ["green", "Green.", "**A**", "选项A", "It is: yes"];
    let text = score(texts);
    assert_eq!((text.accuracy, text.unparsable), (Some(100.0), 0));
    let strict = score_by(texts, Letters::Strict);
    assert_eq!((strict.accuracy, strict.unparsable), (None, 5));
    let wrong = score(["red", "B", "A", "A", "B"]);
    assert_eq!((wrong.accuracy, wrong.unparsable), (Some(50.0), 0));
}

#[test]
fn questions_of_mmbench_read_as_llava_writes_them() {
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let questions = MmBench::questions(folder.path()).unwrap();
    let expected = "Two\nlines, \"quoted\".\nWhich?\nA. red\nB. blue\nC. green";
    assert_eq!(questions[0].recorded_prompt, expected);
    let suffix = "\nAnswer with the option's letter from the given choices directly.";
    assert_eq!(questions[0].prompt, format!("{expected}{suffix}"));
    // Options end at the first empty one, and "nan" is no hint.
    assert_eq!(questions[3].recorded_prompt, "Is it?\nA. yes\nB. no");
    // A rotation may name the row that has the image.
    let image = Image::Bytes(b"image bytes, longer than an index can be, so that it is not one".to_vec());
    assert!(questions.iter().all(|q| q.image == Some(image.clone())));

    let chinese = mmbench("mmbench_dev_cn_20231003.tsv");
    let questions = MmBench::questions(chinese.path()).unwrap();
    assert!(questions[0].prompt.ends_with("\n请直接回答选项字母。"));
}

#[test]
fn a_test_split_without_labels_gives_the_upload_table_or_names_its_feature() {
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let text = std::fs::read_to_string(folder.at("mmbench_dev_20230712.tsv")).unwrap();
    let without: Vec<String> = text
        .replace("\tdev\n", "\ttest\n")
        .replace("Two\nlines", "Two lines")
        .lines()
        .map(|line| {
            let mut cells: Vec<&str> = line.split('\t').collect();
            cells.remove(7);
            cells.join("\t")
        })
        .collect();
    let folder = Folder::new();
    folder.put("mmbench_test_en_20231003.tsv", &without.join("\n"));
    let answers =
        Answers::read(folder.lines("a.jsonl", &mmbench_answers(["C", "B", "=1+1", "A", ""]))).unwrap();
    let bench = MmBench::open(folder.path()).unwrap();
    let scores = &bench.score(&answers, Letters::Published).unwrap()["test"];
    assert_eq!((scores.accuracy, scores.rows, scores.total), (None, 5, 0));
    let written = bench.write_upload(&answers, &folder.at("out/upload.xlsx"));
    match cfg!(feature = "upload") {
        true => {
            written.unwrap();
            let bytes = std::fs::read(folder.at("out/upload.xlsx")).unwrap();
            assert_eq!(&bytes[..2], b"PK");
        }
        false => assert!(written.unwrap_err().to_string().contains("--features upload")),
    }

    // The same file under a name that does not tell, and a column that does not: the labels are missing.
    folder.put("mmbench_new.tsv", &without.join("\n").replace("\ttest", "\tdev"));
    let error = MmBench::open(folder.at("mmbench_new.tsv")).unwrap_err();
    assert!(matches!(&error, Error::MissingColumn { column, .. } if column == "answer"), "{error}");
}

#[test]
fn of_several_mmbench_files_those_that_were_answered_are_scored() {
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let text = std::fs::read_to_string(folder.at("mmbench_dev_20230712.tsv")).unwrap();
    folder.put("mmbench_dev_cn_20231003.tsv", &text.replace("Which?", "哪个？").replace("Is it?", "是吗？"));
    let bench = MmBench::open(folder.path()).unwrap();
    let mut rows = mmbench_answers(["C", "B", "A", "A", "B"]);
    let answers = |rows: &[Value]| Answers::read(folder.lines("a.jsonl", rows)).unwrap();
    // Without prompts the answers could be of either language.
    assert!(matches!(bench.score(&answers(&rows), Letters::Published), Err(Error::Ambiguous { .. })));
    for row in &mut rows {
        let first = row["question_id"].as_u64().unwrap() % 1_000_000 == 1;
        row["prompt"] = json!(if first { "哪个？" } else { "是吗？\nA." });
    }
    let scores = bench.score(&answers(&rows), Letters::Published).unwrap();
    assert_eq!(scores.keys().collect::<Vec<_>>(), ["dev_cn"]);
    assert!(matches!(MmBench::questions(folder.path()), Err(Error::Ambiguous { .. })));
}

#[test]
fn answers_that_cannot_be_read_give_no_figure() {
    let report = |benchmark: Benchmark, folder: &Folder, rows: &[Value]| {
        let answers = Answers::read(folder.lines("a.jsonl", rows)).unwrap();
        benchmark.score(folder.path(), &answers).unwrap()
    };
    let none = |benchmark: Benchmark, folder: &Folder, rows: &[Value]| {
        let report = report(benchmark, folder, rows);
        assert_eq!(report.headlines[0].percent, None, "{}", benchmark.name());
        report
    };
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let figures = none(Benchmark::MmBench, &folder, &mmbench_answers(["I see."; 5])).figures;
    assert_eq!((&figures["dev"]["accuracy"], &figures["dev"]["unparsable"]), (&json!(null), &json!(5)));
    // One that can be read is enough for a figure, which may be 0.
    let one = report(Benchmark::MmBench, &folder, &mmbench_answers(["A", "", "", "", ""]));
    assert_eq!(one.headlines[0].percent, Some(0.0));

    let folder = science_qa();
    let says = |text: &str| ["4", "5", "7"].map(|id| json!({"question_id": id, "text": text}));
    none(Benchmark::ScienceQa, &folder, &says("I see."));
    // A letter for the question without an image is none for those with one.
    let mut rows = says("I see.");
    rows[0]["text"] = json!("B");
    none(Benchmark::ScienceQa, &folder, &rows);

    let folder = Folder::new();
    folder.lines(
        "llava_gqa_testdev_balanced.jsonl",
        &[json!({"question_id": 1, "image": "a.jpg", "text": "What?", "answer": "cat"})],
    );
    none(Benchmark::Gqa, &folder, &[json!({"question_id": 1, "text": " "})]);

    let folder = crate::pope::folder(&["random"]);
    let rows: Vec<Value> = (1..=4).map(|id| json!({"question_id": id, "text": "I cannot tell."})).collect();
    let figures = none(Benchmark::Pope, &folder, &rows).figures;
    assert_eq!((&figures["random"]["f1"], &figures["unparsable"]), (&json!(null), &json!(4)));
}
