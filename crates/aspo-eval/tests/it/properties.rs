//! What holds for any answers: order does not matter, scoring twice is the same, one wrong answer costs its share.

use aspo_eval::choice::Letters;
use aspo_eval::llava_bench::LlavaBench;
use aspo_eval::mmbench::MmBench;
use aspo_eval::pope::{Pope, Split};
use aspo_eval::{Answers, Benchmark};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::choices::mmbench;
use crate::common::{Folder, bench_data};
use crate::judged::{grade, llava_bench, mm_vet, review};

/// Sixty questions of three kinds, all about the same thing.
const COUNT: usize = 60;

fn seed_bench() -> Folder {
    let folder = Folder::new();
    let questions: Vec<Value> = (0..COUNT)
        .map(|n| json!({"question_id": n, "question_type_id": n % 3, "data_type": "image", "data_id": format!("{n}"),
            "question": format!("Question {n}?"), "choice_a": "1", "choice_b": "2", "choice_c": "3", "choice_d": "4",
            "answer": (["A", "B", "C", "D"][n % 4])}))
        .collect();
    folder
        .json("SEED-Bench.json", &json!({"questions": questions, "question_type": {"x": 0, "y": 1, "z": 2}}));
    folder
}

fn pope() -> Folder {
    let folder = Folder::new();
    let text = |n: usize| format!("Is there a thing{n} in the image?");
    let labels: Vec<Value> = (0..COUNT)
        .map(|n| json!({"question_id": n, "image": "a.jpg", "text": text(n), "label": if n % 2 == 0 { "yes" } else { "no" }}))
        .collect();
    folder.lines("coco_pope_adversarial.json", &labels);
    folder
}

fn rows(texts: &[String]) -> Vec<Value> {
    texts.iter().enumerate().map(|(n, text)| json!({"question_id": n, "text": text})).collect()
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    let text =
        prop_oneof![Just("A".into()), Just("B".into()), Just("yes".into()), Just("No.".into()), "\\PC{0,12}"];
    proptest::collection::vec(text, COUNT)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn shuffling_answers_with_their_ids_changes_nothing(texts in texts(), order in Just((0..COUNT).collect::<Vec<_>>()).prop_shuffle()) {
        for (benchmark, folder) in [(Benchmark::SeedBench, seed_bench()), (Benchmark::Pope, pope())] {
            let rows = rows(&texts);
            let shuffled: Vec<Value> = order.iter().map(|&n| rows[n].clone()).collect();
            let score = |name: &str, rows: &[Value]| {
                benchmark.score(folder.path(), &Answers::read(folder.lines(name, rows)).unwrap()).unwrap()
            };
            let once = score("a.jsonl", &rows);
            prop_assert_eq!(&once, &score("b.jsonl", &shuffled));
            prop_assert_eq!(&once, &score("a.jsonl", &rows));
        }
    }

    #[test]
    fn one_wrong_answer_costs_its_share(texts in texts(), at in 0..COUNT) {
        let folder = seed_bench();
        let share = 100.0 / COUNT as f64;
        let score = |texts: &[String]| {
            let answers = Answers::read(folder.lines("a.jsonl", &rows(texts))).unwrap();
            Benchmark::SeedBench.score(folder.path(), &answers).unwrap().headlines[0].percent.unwrap_or_default()
        };
        let mut right = texts.clone();
        right[at] = ["A", "B", "C", "D"][at % 4].into();
        let mut wrong = texts;
        wrong[at] = "E".into();
        // Two counts divided by the same total: only rounding is left.
        prop_assert!((score(&right) - score(&wrong) - share).abs() < 1e-9);

        let folder = pope();
        let score = |text: &str| {
            right[at] = text.into();
            let answers = Answers::read(folder.lines("a.jsonl", &rows(&right))).unwrap();
            Pope::open(folder.path()).unwrap().score(&answers).unwrap().splits[&Split::Adversarial].accuracy.unwrap()
        };
        let mut score = score;
        let (yes, no) = (score("Yes"), score("No"));
        prop_assert!(((yes - no).abs() - 1.0 / COUNT as f64).abs() < 1e-12);
    }

    #[test]
    fn no_answer_makes_a_scorer_panic_or_leave_its_range(texts in texts()) {
        for (benchmark, folder) in [(Benchmark::SeedBench, seed_bench()), (Benchmark::Pope, pope())] {
            let answers = Answers::read(folder.lines("a.jsonl", &rows(&texts))).unwrap();
            let report = benchmark.score(folder.path(), &answers).unwrap();
            prop_assert!(report.headlines[0].percent.is_none_or(|percent| (0.0..=100.0).contains(&percent)));
        }
        for text in texts {
            let _ = (aspo_eval::choice::strict_letter(&text), aspo_eval::choice::science_qa_letter(&text));
            let _ = aspo_eval::option::option_letter(&text, &["a cat", "是", ""]);
            let _ = (aspo_eval::llava_bench::parse_scores(&text), aspo_eval::mm_vet::parse_grade(&text));
            let _ = aspo_eval::shr::classify(&text, &text);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(text in "(\\{|\\}|\\[|\\]|\"|:|,|1|question_id|text|\\PC|\n){0,40}") {
        let folder = Folder::new();
        let _ = Answers::read(folder.put("a.jsonl", &text));
        folder.put("mmbench_dev_x.tsv", &text);
        let _ = MmBench::open(folder.path());
        folder.put("coco_pope_random.json", &text);
        let _ = Pope::open(folder.path());
    }
}

#[test]
fn one_rotation_wrong_costs_mmbench_the_whole_question_and_no_more() {
    let folder = mmbench("mmbench_dev_20230712.tsv");
    let right = ["C", "B", "A", "A", "B"];
    for wrong in 0..5 {
        let mut texts = right;
        texts[wrong] = "D";
        let mut rows = crate::choices::mmbench_answers(texts);
        rows.rotate_left(wrong);
        let answers = Answers::read(folder.lines("a.jsonl", &rows)).unwrap();
        let scores =
            &MmBench::open(folder.path()).unwrap().score(&answers, Letters::Published).unwrap()["dev"];
        assert_eq!((scores.accuracy, scores.correct_rows), (Some(50.0), 4));
    }
}

#[test]
fn judgements_in_any_order_score_the_same_and_one_costs_its_share() {
    let folder = llava_bench();
    let bench = LlavaBench::open(folder.path()).unwrap();
    let mut rows = vec![
        review(0, "conv", "8 4", None),
        review(1, "detail", "8 6", None),
        review(2, "complex", "8 8", None),
    ];
    let score = |rows: &[Value]| bench.score(&[folder.lines("r.jsonl", rows)], None).unwrap();
    let before = score(&rows);
    rows.reverse();
    assert_eq!(score(&rows), before);
    rows[0]["content"] = json!("8 5");
    // Three points fewer of 24.
    assert!((before.score.unwrap() - score(&rows).score.unwrap() - 100.0 * 3.0 / 24.0).abs() < 1e-9);

    let folder = mm_vet();
    let grades = |first: f64| json!({"v1_2": grade(&[0.5]), "v1_0": grade(&[first]), "v1_1": grade(&[0.1])});
    let score = |grades: &Value| {
        Benchmark::MmVet
            .score_judgements(folder.path(), &[folder.json("g.json", grades)], None)
            .unwrap()
            .headlines[0]
            .percent
            .unwrap()
    };
    assert!((score(&grades(1.0)) - score(&grades(0.0)) - 100.0 / 3.0).abs() < 1e-9);
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn real_pope_answers_in_reverse_score_the_same() {
    let data = bench_data("pope");
    let folder = Folder::new();
    let text = std::fs::read_to_string(data.join("answers_llava-v1.5-13b.jsonl")).unwrap();
    let reversed: Vec<&str> = text.lines().rev().collect();
    let reversed = Answers::read(folder.put("r.jsonl", &reversed.join("\n"))).unwrap();
    let answers = Answers::read(data.join("answers_llava-v1.5-13b.jsonl")).unwrap();
    let pope = Pope::open(&data).unwrap();
    assert_eq!(pope.score(&reversed).unwrap(), pope.score(&answers).unwrap());
}
