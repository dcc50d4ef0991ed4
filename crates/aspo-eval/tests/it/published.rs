//! The real files give the published figures, to their last digit. They are not the project's to ship.

use aspo_eval::{Answers, Benchmark};
use aspo_eval::{
    llava_bench::LlavaBench,
    mm_vet::MmVet,
    pope::{Pope, Split},
    science_qa::ScienceQa,
};

use crate::common::{bench_data, digits};

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn pope_of_llava_13b() {
    let data = bench_data("pope");
    let answers = Answers::read(data.join("answers_llava-v1.5-13b.jsonl")).unwrap();
    let scores = Pope::open(&data).unwrap().score(&answers).unwrap();
    for (split, expected) in [
        (Split::Random, ["0.8714", "0.8801", "0.9744", "0.7880", "0.4168"]),
        (Split::Popular, ["0.8625", "0.8743", "0.9525", "0.7880", "0.4137"]),
    ] {
        let s = &scores.splits[&split];
        assert_eq!(
            [s.f1, s.accuracy, s.precision, s.recall, s.yes_ratio].map(|x| digits(x.unwrap(), 4)),
            expected,
            "{split:?}"
        );
    }
    // Splits whose labels are not among the files are passed over, their answers too.
    let labelled = Split::ALL.map(|split| data.join(format!("coco_pope_{}.json", split.name())).is_file());
    assert_eq!(scores.splits.len(), labelled.into_iter().filter(|there| *there).count());

    // One label file alone is that split alone.
    let random = Pope::open(data.join("coco_pope_random.json")).unwrap().score(&answers).unwrap();
    assert_eq!(random.splits[&Split::Random], scores.splits[&Split::Random]);
    assert_eq!(random.splits.len(), 1);
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn pope_labels_alone_ask_the_same_questions_as_llavas_file() {
    let data = bench_data("pope");
    let folder = crate::common::Folder::new();
    for name in ["coco_pope_random.json", "coco_pope_popular.json"] {
        std::fs::copy(data.join(name), folder.at(name)).unwrap();
    }
    let answers = Answers::read(data.join("answers_llava-v1.5-13b.jsonl")).unwrap();
    let (with, without) = (Pope::open(&data).unwrap(), Pope::open(folder.path()).unwrap());
    let scores = without.score(&answers).unwrap();
    for (split, scores) in &scores.splits {
        assert_eq!(with.score(&answers).unwrap().splits[split], *scores);
    }
    let known: Vec<_> = with.questions(None).into_iter().map(|q| q.id).collect();
    assert!(without.questions(None).iter().all(|q| known.contains(&q.id)));
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn science_qa_of_llava_13b() {
    let data = bench_data("scienceqa");
    let answers = Answers::read(data.join("answers_llava-v1.5-13b.json")).unwrap();
    let scores = ScienceQa::open(&data).unwrap().score(&answers).unwrap();
    assert_eq!((scores.correct, scores.total), (3155, 4241));
    assert_eq!((scores.image_correct, scores.image_total), (1445, 2017));
    assert_eq!(
        (digits(scores.accuracy.unwrap(), 2), digits(scores.image_accuracy.unwrap(), 2)),
        ("74.39".into(), "71.64".into())
    );
    assert_eq!(scores.unparsable, 5);
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn llava_bench_of_llava_7b() {
    let data = bench_data("llava_bench");
    let bench = LlavaBench::open(&data).unwrap();
    let answers = Answers::read(data.join("answers_llava-v1.5-7b.jsonl")).unwrap();
    let files: Vec<_> = (1..=3).map(|run| data.join(format!("llava-v1.5-7b-eval{run}.jsonl"))).collect();
    let scores = bench.score(&files, Some(&answers)).unwrap();
    let runs: Vec<String> = scores.runs.iter().map(|run| digits(run.all.score.unwrap(), 1)).collect();
    assert_eq!(runs, ["64.8", "65.3", "66.3"]);
    let first =
        ["conv", "detail", "complex"].map(|name| digits(scores.runs[0].by_category[name].score.unwrap(), 1));
    assert_eq!(first, ["59.3", "47.7", "77.6"]);
    assert_eq!((scores.unreadable, scores.runs.iter().map(|r| r.disagreeing).sum::<usize>()), (0, 0));
    assert_eq!(digits(scores.score.unwrap(), 1), "65.5");
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn mm_vet_of_llava_7b() {
    let data = bench_data("mmvet");
    let bench = MmVet::open(&data).unwrap();
    let one = bench.score(&[data.join("llava-v1.5-7b_gpt-4-grade-1runs.json")]).unwrap();
    assert_eq!(digits(one.score.unwrap(), 1), "31.2");
    let three = bench.score(&[data.join("llava-v1.5-7b_gpt-4-grade-3runs.json")]).unwrap();
    assert_eq!(
        three.runs.iter().map(|x| digits(x.unwrap(), 1)).collect::<Vec<_>>(),
        ["31.2", "30.8", "31.2"]
    );
    assert_eq!((one.unreadable, three.unreadable, three.disagreeing), (0, 0, 0));
    assert!(three.spread.unwrap() > 0.1 && one.spread == Some(0.0));
}

#[test]
#[ignore = "needs the files that the benchmarks publish: ASPO_BENCH_DATA=FOLDER cargo test -- --ignored"]
fn reports_name_every_figure() {
    let data = bench_data("pope");
    let answers = Answers::read(data.join("answers_llava-v1.5-13b.jsonl")).unwrap();
    let report = Benchmark::Pope.score(&data, &answers).unwrap();
    for name in ["accuracy", "precision", "recall", "f1", "yes_ratio", "total", "correct", "unparsable"] {
        assert!(report.figures["random"][name].is_number(), "{name}");
    }
    assert!(report.text().contains("popular.f1: 0.8625\n"));
    assert_eq!(digits(report.headlines[0].percent.unwrap(), 1), "86.7");
}
