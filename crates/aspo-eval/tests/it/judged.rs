//! LLaVA-Bench, MM-Vet and SHR on made-up files.

use aspo_eval::llava_bench::{LlavaBench, parse_scores};
use aspo_eval::mm_vet::{MmVet, parse_grade};
use aspo_eval::shr::{Shr, classify, sentences};
use aspo_eval::{Answers, Benchmark, Error};
use serde_json::{Value, json};

use crate::common::{Folder, digits};

/// Three questions, one a category.
pub fn llava_bench() -> Folder {
    let folder = Folder::new();
    let question = |id: u64, category: &str| json!({"question_id": id, "image": "001.jpg", "text": format!("Question {id}?"), "category": category});
    folder.lines("questions.jsonl", &[question(0, "conv"), question(1, "detail"), question(2, "complex")]);
    folder.lines(
        "context.jsonl",
        &[json!({"id": "001", "image": "001.jpg", "caption": ["A hill.", "A sea."]})],
    );
    let answer = |id: u64, who: &str| json!({"question_id": id, "text": format!("{who} {id}"), "answer_id": format!("{who}{id}")});
    folder.lines("answers_gpt4.jsonl", &[answer(0, "gpt"), answer(1, "gpt"), answer(2, "gpt")]);
    folder.lines("answers.jsonl", &[answer(2, "own"), answer(0, "own"), answer(1, "own")]);
    folder
}

pub fn review(id: u64, category: &str, content: &str, tuple: Option<[f64; 2]>) -> Value {
    let mut row = json!({"id": id + 1, "question_id": id, "answer1_id": format!("gpt{id}"), "answer2_id": format!("own{id}"),
        "category": format!("llava_bench_{category}"), "content": content});
    if let Some(tuple) = tuple {
        row["tuple"] = json!(tuple);
    }
    row
}

#[test]
fn two_scores_are_read_as_published_and_as_judges_write_them() {
    for (reply, scores) in [
        ("8 10\nBoth …", Some((8.0, 10.0))),
        ("8,10", Some((8.0, 10.0))),
        ("8, 10", Some((8.0, 10.0))),
        ("8.5 7", Some((8.5, 7.0))),
        ("8 10 ", Some((8.0, 10.0))),
        ("Scores: 8 10", Some((8.0, 10.0))),
        ("**8 10**\nBoth …", Some((8.0, 10.0))),
        ("Scores for Assistant 1 and 2: 8/10 and 10/10.", Some((8.0, 10.0))),
        ("Sure, here is my rating of the 2 assistants.\n\n8 10\n\nThe first …", Some((8.0, 10.0))),
        ("I would rate them 8 10.", Some((8.0, 10.0))),
        ("Both are good.\nAssistant 1: 8/10\nAssistant 2: 10", Some((8.0, 10.0))),
        ("**Assistant 1:** 8\n**Assistant 2:** **10**", Some((8.0, 10.0))),
        ("<think>\n3 4 perhaps\n</think>\n\n8 10\nfine", Some((8.0, 10.0))),
        ("<think>\n8 10", None),
        ("Assistant 1", None),
        ("I will now compare Assistant 1 and Assistant 2", None),
        ("I will compare assistants 1 2", None),
        ("Assistant 1: names 8 things", None),
        ("80 40", None),
        ("-1 -1", None),
        ("8 nan", None),
        ("8 10 9", None),
        ("8", None),
        ("", None),
    ] {
        assert_eq!(parse_scores(reply), scores, "{reply:?}");
    }
}

#[test]
fn llava_bench_is_the_ratio_of_means() {
    let folder = llava_bench();
    let bench = LlavaBench::open(folder.path()).unwrap();
    let one = folder.lines(
        "r1.jsonl",
        &[
            review(0, "conv", "8 4", None),
            review(1, "detail", "10 5", None),
            review(2, "complex", "6 9", Some([6.0, 9.0])),
        ],
    );
    let scores = bench.score(std::slice::from_ref(&one), None).unwrap();
    assert_eq!((scores.score, scores.spread), (Some(75.0), Some(0.0)));
    assert_eq!(scores.by_category["complex"], Some(150.0));
    assert_eq!((scores.runs[0].all.reference, scores.runs[0].all.model), (Some(80.0), Some(60.0)));

    // An unreadable reply is left out and counted: 100 · (4 + 4) / (8 + 10). A recorded -1, -1 is the published script's.
    for tuple in [None, Some([-1.0, -1.0])] {
        let two = folder.lines(
            "r2.jsonl",
            &[
                review(2, "complex", "I cannot.", tuple),
                review(0, "conv", "8 4", None),
                review(1, "detail", "Scores: 10 4", tuple),
            ],
        );
        let answers = Answers::read(folder.at("answers.jsonl")).unwrap();
        let scores = bench.score(&[one.clone(), two], Some(&answers)).unwrap();
        let second = 800.0 / 18.0;
        assert_eq!(digits(scores.runs[1].all.score.unwrap(), 6), digits(second, 6));
        assert_eq!((scores.runs[1].all.total, scores.runs[1].all.unreadable, scores.unreadable), (3, 1, 1));
        assert_eq!(scores.runs[1].by_category["complex"].score, None);
        // A category counts the runs that have it.
        assert_eq!(scores.by_category["complex"], Some(150.0));
        assert_eq!(digits(scores.score.unwrap(), 6), digits((75.0 + second) / 2.0, 6));
        assert_eq!(digits(scores.spread.unwrap(), 6), digits((75.0 - second) / 2.0, 6));
    }
}

#[test]
fn where_no_judgement_can_be_read_there_is_no_figure() {
    let headline = |report: aspo_eval::Report| report.headlines[0];
    let folder = llava_bench();
    let rows = ["conv", "detail", "complex"];
    let rows: Vec<Value> =
        (0..).zip(rows).map(|(id, name)| review(id, name, "I cannot compare.", None)).collect();
    let file = folder.lines("r.jsonl", &rows);
    let report = Benchmark::LlavaBench.score_judgements(folder.path(), &[file], None).unwrap();
    assert_eq!((&report.figures["score"], &report.figures["unreadable"]), (&json!(null), &json!(3)));
    assert_eq!((headline(report.clone()).percent, headline(report).unreadable), (None, 3));

    let folder = mm_vet();
    let bad = json!({"content": ["The", ""], "score": [0.0, 0.0]});
    let file = folder.json("g.json", &json!({"v1_0": bad, "v1_1": bad, "v1_2": bad}));
    let report = Benchmark::MmVet.score_judgements(folder.path(), &[file], None).unwrap();
    assert_eq!(report.figures["by_capability"]["ocr"], json!(null));
    assert_eq!((headline(report.clone()).percent, headline(report).unreadable), (None, 6));

    let folder = Folder::new();
    let judgement = json!({"raw_judgement": "no", "model_response": "One. Two."});
    let file = folder.json("judgement.json", &json!({"run1": {"7": judgement}}));
    let report = Benchmark::Shr.score_judgements(folder.path(), &[file], None).unwrap();
    assert_eq!((headline(report.clone()).percent, headline(report).unreadable), (None, 2));
}

#[test]
fn reviews_must_be_of_these_questions_and_answers() {
    let folder = llava_bench();
    let bench = LlavaBench::open(folder.path()).unwrap();
    let good =
        [review(0, "conv", "8 4", None), review(1, "detail", "8 4", None), review(2, "complex", "8 4", None)];
    let answers = Answers::read(folder.at("answers.jsonl")).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut rows = good.to_vec();
        change(&mut rows);
        bench.score(&[folder.lines("r.jsonl", &rows)], Some(&answers)).unwrap_err()
    };
    let error = refused(&|rows| rows[1]["category"] = json!("llava_bench_conv"));
    assert!(matches!(error, Error::OtherOrder { row: 2, .. }), "{error}");
    let error = refused(&|rows| rows[1]["category"] = json!("llava_bench_poem"));
    assert!(matches!(error, Error::UnknownCategory { row: 2, .. }), "{error}");
    let error = refused(&|rows| rows[0]["answer2_id"] = json!("own1"));
    assert!(matches!(error, Error::OtherOrder { row: 1, .. }), "{error}");
    let error = refused(&|rows| rows[2]["question_id"] = json!(0));
    assert!(matches!(error, Error::DuplicateId { row: 3, .. }), "{error}");
    let error = refused(&|rows| rows[2]["question_id"] = json!(9));
    assert!(matches!(error, Error::UnknownId { row: 3, .. }), "{error}");
    let error = refused(&|rows| drop(rows.pop()));
    assert!(matches!(error, Error::Missing { missing: 1, total: 3, .. }), "{error}");
    let error = refused(&|rows| drop(rows[0].as_object_mut().unwrap().remove("content")));
    assert!(matches!(&error, Error::MissingColumn { column, row: 1, .. } if column == "content"), "{error}");
}

#[test]
fn llava_bench_prompts_are_the_published_ones() {
    let folder = llava_bench();
    let bench = LlavaBench::open(folder.path()).unwrap();
    let requests = bench.requests(&Answers::read(folder.at("answers.jsonl")).unwrap(), 2).unwrap();
    assert_eq!(requests.len(), 6);
    assert_eq!((requests[4].id.as_str(), requests[4].run), ("1", 2));
    let (prompt, temperature) = &requests[1].tries[0];
    let start = "[Context]\nA hill.\nA sea.\n\n[Question]\nQuestion 1?\n\n[Assistant 1]\ngpt 1\n\n[End of Assistant 1]\n\n\
                 [Assistant 2]\nown 1\n\n[End of Assistant 2]\n\n[System]\nWe would like to request";
    assert!(prompt.starts_with(start), "{prompt}");
    assert!(prompt.ends_with("does not affect your judgment.\n\n"));
    assert_eq!(*temperature, 0.2);
}

/// Three questions of MM-Vet.
pub fn mm_vet() -> Folder {
    let folder = Folder::new();
    folder.json(
        "mm-vet.json",
        &json!({
            "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
            "v1_1": {"imagename": "v1_1.png", "question": "What?", "answer": "a<OR>b", "capability": ["rec"]},
            "v1_2": {"imagename": "v1_2.png", "question": "How?", "answer": "so", "capability": ["math", "ocr"]},
        }),
    );
    folder
}

pub fn grade(scores: &[f64]) -> Value {
    let content: Vec<String> = scores.iter().map(|s| format!("{s:.1}")).collect();
    json!({"model": vec!["gpt-4"; scores.len()], "content": content, "score": scores})
}

#[test]
fn mm_vet_is_the_mean_by_capability_and_over_runs() {
    let folder = mm_vet();
    let bench = MmVet::open(folder.path()).unwrap();
    let grades = json!({"v1_0": grade(&[1.0, 0.5]), "v1_1": grade(&[0.0, 0.4]), "v1_2": grade(&[0.2, 0.3])});
    let scores = bench.score(&[folder.json("g.json", &grades)]).unwrap();
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    close(scores.runs[0].unwrap(), 40.0);
    close(scores.runs[1].unwrap(), 40.0);
    close(scores.score.unwrap(), 40.0);
    close(scores.by_capability["math"].unwrap(), 50.0);
    close(scores.by_capability["rec"].unwrap(), 20.0);
    close(scores.by_integration["math_ocr"].unwrap(), 50.0);
    assert_eq!(scores.by_integration.len(), 2);

    // A reply that is no grade is left out and counted; the published rule, 0, stands beside it.
    let mut bad = grades.clone();
    bad["v1_0"]["content"][0] = json!("The");
    bad["v1_0"]["score"][0] = json!(0.0);
    let scores = bench.score(&[folder.json("g.json", &bad)]).unwrap();
    close(scores.runs[0].unwrap(), 10.0);
    close(scores.score.unwrap(), 25.0);
    close(scores.score_with_unreadable_as_0.unwrap(), (20.0 / 3.0 + 40.0) / 2.0);
    assert_eq!(scores.unreadable, 1);
}

#[test]
fn grades_must_be_of_these_questions_and_as_many_for_each() {
    let folder = mm_vet();
    let bench = MmVet::open(folder.path()).unwrap();
    let good = json!({"v1_0": grade(&[1.0, 0.5]), "v1_1": grade(&[0.0, 0.4]), "v1_2": grade(&[0.2, 0.3])});
    let refused = |change: &dyn Fn(&mut Value)| {
        let mut grades = good.clone();
        change(&mut grades);
        bench.score(&[folder.json("g.json", &grades)]).unwrap_err()
    };
    assert!(matches!(refused(&|g| g["v1_1"] = grade(&[0.0])), Error::Count { found: 1, expected: 2, .. }));
    assert!(matches!(refused(&|g| g["v1_9"] = grade(&[0.0, 0.0])), Error::UnknownId { .. }));
    assert!(matches!(
        refused(&|g| drop(g.as_object_mut().unwrap().remove("v1_2"))),
        Error::Missing { missing: 1, .. }
    ));
    assert!(matches!(refused(&|g| g["v1_1"]["score"][1] = json!(1.5)), Error::Value { column: "score", .. }));
    let lacks = refused(&|g| drop(g["v1_1"].as_object_mut().unwrap().remove("score")));
    assert!(matches!(&lacks, Error::MissingColumn { column, .. } if column == "score"), "{lacks}");
    let double = folder.put("d.json", &format!("{{\"v1_0\": {0}, \"v1_0\": {0}}}", grade(&[1.0])));
    assert!(matches!(bench.score(&[double]), Err(Error::DuplicateId { row: 2, .. })));
    let file = std::fs::read_to_string(folder.at("mm-vet.json")).unwrap();
    folder.put("mm-vet.json", &file.replace("\"rec\"", "\"smell\""));
    assert!(matches!(MmVet::open(folder.path()), Err(Error::UnknownCategory { .. })));
}

#[test]
fn mm_vet_prompts_are_the_published_ones() {
    for (reply, grade) in [
        ("0.5", Some(0.5)),
        ("1.0 \n", Some(1.0)),
        ("Score: 1", Some(1.0)),
        ("**0.5**", Some(0.5)),
        ("0.5/1.0", Some(0.5)),
        ("The grade is 0.5.", Some(0.5)),
        ("It has 1 of 2 objects right.\nScore: 0.5", Some(0.5)),
        ("The correctness of the answer is 0.5, as 1 of 2 is there", Some(0.5)),
        ("It has 1 of 2 objects right.\n\n**0.5**", Some(0.5)),
        ("<think>\n1.0 or 0.2?\n</think>\n\n0.5", Some(0.5)),
        ("<think>\n1.0", None),
        ("1.5", None),
        ("50%", None),
        ("It has 1 of 2 objects", None),
        ("nan", None),
        ("", None),
    ] {
        assert_eq!(parse_grade(reply), grade, "{reply:?}");
    }
    let folder = mm_vet();
    let bench = MmVet::open(folder.path()).unwrap();
    // LLaVA's ids and MM-Vet's are the same questions.
    for rows in [json!({"v1_0": "3", "v1_1": "a", "v1_2": "s"}), json!({"0": "3", "1": "a", "2": "s"})] {
        let requests = bench.requests(&Answers::read(folder.json("a.json", &rows)).unwrap(), 1).unwrap();
        let tries = &requests[0].tries;
        let row = "| 1.0\n\nWhat is x? | -1 <AND> -5 | 3 | ";
        assert!(tries[0].0.ends_with(row), "{:?}", tries[0].0);
        assert!(tries[0].0.starts_with("Compare the ground truth and prediction from AI models"));
        assert_eq!(tries[1].0, format!("{}\nPredict the correctness of the answer (digit): ", tries[0].0));
        assert_eq!(tries.iter().map(|(_, t)| *t).collect::<Vec<_>>(), [0.0, 0.0, 0.5, 1.0, 1.5]);
    }
}

#[test]
fn shr_drops_sentences_that_are_part_of_an_earlier_one() {
    let text = "A dog runs. A dog. A cat sits.A dog runs. A dog runs fast?  .. End";
    assert_eq!(sentences(text), ["A dog runs.", "A cat sits.", "A dog runs fast?.", "End."]);
    assert!(sentences(" . ").is_empty());
}

#[test]
fn shr_classes_are_read_as_published() {
    let text = "A dog runs. A cat sits. It is nice.";
    let classes = |reply: &str| -> Vec<Option<String>> {
        classify(reply, text).into_iter().map(|s| s.classification).collect()
    };
    let some = |names: [&str; 3]| names.map(|n| Some(n.to_owned()));
    assert_eq!(
        classes("Judgement:\n1. Hallucination: none there.\n\n2. correct: yes\n3. Cannot judge: mood"),
        some(["hallucination", "correct", "cannot judge"])
    );
    // As judges write it that think first and like marks.
    let thinking = "<think>Judgement:\n1. x</think>**Judgement**:\n1. **Hallucination**: x\n2. Correct: x\n3. `cannot judge`: x";
    assert_eq!(classes(thinking), some(["hallucination", "correct", "cannot judge"]));
    assert_eq!(classes("Judgement:\n1. wrong: a\n2. correct\n3. b"), some(["wrong", "correct", "b"]));
    // Too few lines, or no judgement: no sentence gets a class.
    assert_eq!(classes("Judgement:\n1. correct: a\n2. correct: b"), [None, None, None]);
    assert_eq!(classes("I like it"), [None, None, None]);
}

#[test]
fn shr_pools_over_all_sentences() {
    let folder = Folder::new();
    folder.json("shr/val_images_final.json", &json!([{"image_id": 7}, {"image_id": "9"}]));
    let judgement = |reply: &str, text: &str| json!({"raw_judgement": reply, "model_response": text});
    let runs = json!({"run1": {
        "7": judgement("Judgement:\n1. Hallucination: x\n2. correct: x\n3. cannot judge: x", "One two. Three. Four five six."),
        "9": judgement("Judgement:\n1. correct: x", "Seven. Eight."),
    }});
    let bench = Shr::open(folder.path()).unwrap();
    let scores = bench.score(&[folder.json("judgement.json", &runs)], None).unwrap();
    let run = &scores.runs[0];
    assert_eq!(
        (run.hallucination, run.correct, run.cannot_judge, run.unreadable, run.total),
        (1, 1, 1, 2, 5)
    );
    assert_eq!(
        (digits(run.hal_sents_ratio.unwrap(), 4), digits(run.hal_words_ratio.unwrap(), 4)),
        ("0.3333".into(), "0.3333".into())
    );
    assert_eq!((run.sents_per_image, run.words_per_image), (2.5, 4.0));

    // A published file also has the classes by sentence, and they are what counts.
    let mut published = runs.clone();
    let sentence = |text: &str, class: Value| json!({"model_response": text, "judgement": class, "classification": class});
    published["run1"]["9"]["judgement"] =
        json!([sentence("Seven.", json!("correct")), sentence("Eight.", json!("hallucination"))]);
    published["run1"]["9"]["mode_response"] = published["run1"]["9"]["model_response"].take();
    published["run1"]["9"].as_object_mut().unwrap().remove("model_response");
    let scores = bench.score(&[folder.json("judgement.json", &published)], None).unwrap();
    assert_eq!((scores.mean_hal_ratio, scores.unreadable), (Some(0.4), 0));

    published["run1"].as_object_mut().unwrap().remove("7");
    let error = bench.score(&[folder.json("judgement.json", &published)], None).unwrap_err();
    assert!(matches!(error, Error::Missing { missing: 1, total: 2, .. }), "{error}");
}

#[test]
fn shr_prompts_hold_regions_facts_and_numbered_sentences() {
    let folder = Folder::new();
    folder.json("shr/val_images_final.json", &json!([{"image_id": 7}]));
    folder.lines("shr/shr_factual_part1.jsonl", &[json!({"7": ["The dog is brown.", "No cat."]})]);
    folder.lines("shr/shr_factual_part2.jsonl", &[json!({"8": ["x"]})]);
    let url = "https://cs.stanford.edu/people/rak248/VG_100K_2/7.jpg";
    folder.json("VG/image_data.json", &json!([{"image_id": 7, "width": 200, "height": 100, "url": url}]));
    let region = |x: u32, phrase: &str| json!({"image_id": 7, "x": x, "y": 0, "width": 100, "height": 50, "phrase": phrase, "region_id": 1});
    folder.json(
        "VG/region_descriptions.json",
        &json!([{"id": 7, "regions": [region(1, "a dog"), region(100, ""), region(25, "a hat")]}]),
    );
    let bench = Shr::open(folder.path()).unwrap();
    let answers = Answers::read(folder.json("a.json", &json!({"7": "A dog. A dog. A hat {}."}))).unwrap();
    let request = &bench.requests(&answers, 1).unwrap()[0];
    let prompt = &request.tries[0].0;
    // 1/200 = 0.005 is a little above that in binary, 25/200 = 0.125 exactly between: to even, as in Python.
    assert!(
        prompt.contains(
            "the image:\n[0.01, 0.0, 0.51, 0.5]: a dog\n[0.12, 0.0, 0.62, 0.5]: a hat\n\n\nFactual"
        ),
        "{prompt}"
    );
    assert!(prompt.contains("Information:\nThe dog is brown.\nNo cat.\n\n\nHere is the comment"), "{prompt}");
    assert!(prompt.ends_with("cannot judge): \n1. A dog\n2. A hat {}\n\n"), "{prompt}");
    let questions = bench.questions(None).unwrap();
    assert_eq!(questions[0].image, Some(aspo_eval::Image::Path(folder.at("VG/VG_100K_2/7.jpg"))));
    assert_eq!(questions[0].prompt, "Describe this image in detail.");
}
