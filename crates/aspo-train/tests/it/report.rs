//! The page that shows a run.

use aspo_train::{MarkedSentence, MetricLine, Picture, Report, WeighedSentence};

fn sentence(text: &str, weight: f64, hallucinated: bool) -> MarkedSentence {
    let sentence = WeighedSentence { text: text.into(), similarity: Some(0.25), perplexity: 3.0, weight };
    MarkedSentence { sentence, hallucinated }
}

fn page(report: &Report) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    report.write(&path).unwrap();
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_gallery_has_its_heading_and_texts_of_users_are_escaped() {
    let picture = |answer: Vec<MarkedSentence>| Picture {
        images: vec![b"GIF89a".to_vec(), b"BM".to_vec()],
        question: "Is <b> there?".into(),
        answers: vec![("trained".into(), answer)],
    };
    let own = vec![picture(vec![sentence("A <b> dot.", 1.0, false)])];
    let mut report = Report {
        title: "a & b".into(),
        pictures: vec![("Of the training".into(), own), ("Empty".into(), Vec::new())],
        ..Report::default()
    };
    let html = page(&report);
    for part in
        ["a &amp; b", "<h2>Of the training</h2>", "A &lt;b&gt; dot.", "Is &lt;b&gt; there?", "image/gif"]
    {
        assert!(html.contains(part), "no {part}");
    }
    assert!(
        !html.contains("Empty") && !html.contains("Underlined in red"),
        "nothing is false, nothing is told of it"
    );
    report.pictures[1].1.push(picture(vec![sentence("A lie.", 0.0, true)]));
    let html = page(&report);
    assert!(html.contains("<h2>Empty</h2>") && html.contains("Underlined in red</span>: false."));
}

#[test]
fn a_curve_needs_two_points_that_are_numbers() {
    let line = |step: usize, loss: f64| MetricLine { step, values: [("loss".to_owned(), loss)].into() };
    let with = |lines: Vec<MetricLine>| page(&Report { metrics: lines, ..Report::default() });
    assert!(with(vec![line(1, 0.5), line(2, 0.4)]).contains("<polyline"));
    assert!(!with(vec![line(1, 0.5), line(2, f64::NAN)]).contains("<polyline"));
}
