//! Asking: one interface, deterministic files, and going on after a stop.

use aspo_eval::{
    Answer, AnswerError, AnswerRow, Answers, Error, Id, Question, Said, Settings, answered, ask,
};
use serde_json::json;

use crate::common::Folder;

/// Answers with the prompt's length; fails after so many answers.
struct Toy {
    left: usize,
    asked: Vec<String>,
}

impl Toy {
    fn new(left: usize) -> Self {
        Self { left, asked: Vec::new() }
    }
}

impl Answer for Toy {
    fn model_id(&self) -> String {
        "toy".into()
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
        if self.left < batch.len() {
            return Err("the power went out\nhere".into());
        }
        self.left -= batch.len();
        self.asked.extend(batch.iter().map(|q| q.id.as_str().to_owned()));
        Ok(batch.iter().map(|q| format!("{} letters", q.prompt.len()).into()).collect())
    }
}

fn questions() -> Vec<Question> {
    (1..=7)
        .map(|n| Question {
            id: if n % 2 == 0 { Id::number(n) } else { Id::text(n.to_string()) },
            image: None,
            prompt: "é\n".repeat(n as usize),
            recorded_prompt: format!("question {n}"),
        })
        .collect()
}

#[test]
fn a_stopped_run_goes_on_and_writes_the_same_file() {
    let folder = Folder::new();
    let whole = folder.at("whole.jsonl");
    ask(&mut Toy::new(100), &questions(), &whole, 2, |_| ()).unwrap();

    let path = folder.at("stopped.jsonl");
    let error = ask(&mut Toy::new(4), &questions(), &path, 2, |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Answer { id, .. } if id == "5"), "{error}");
    assert!(!path.exists());
    // A crash in the middle of a line.
    let partial = folder.at("stopped.jsonl.partial");
    let mut bytes = std::fs::read(&partial).unwrap();
    bytes.truncate(bytes.len() - 3);
    std::fs::write(&partial, bytes).unwrap();

    let mut toy = Toy::new(100);
    let mut heard = Vec::new();
    let answers = ask(&mut toy, &questions(), &path, 3, |done| heard.push(done)).unwrap();
    assert_eq!(toy.asked, ["4", "5", "6", "7"]);
    assert_eq!(heard, [3, 6, 7]);
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&whole).unwrap());
    assert!(!partial.exists());
    assert_eq!((answers.rows().len(), answers.model_id()), (7, "toy".into()));
}

#[test]
fn answers_are_written_in_llavas_format_with_ids_as_they_came() {
    let folder = Folder::new();
    let path = folder.at("a.jsonl");
    ask(&mut Toy::new(100), &questions(), &path, 16, |_| ()).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let first = r#"{"question_id":"1","prompt":"question 1","text":"3 letters","answer_id":"toy-1","model_id":"toy","metadata":{}}"#;
    assert_eq!(text.lines().next(), Some(first));
    assert!(text.lines().nth(1).unwrap().starts_with(r#"{"question_id":2,"#));
}

#[test]
fn another_runs_partial_file_is_refused() {
    let folder = Folder::new();
    let path = folder.at("a.jsonl");
    let stopped = || ask(&mut Toy::new(2), &questions(), &path, 1, |_| ()).unwrap_err();
    stopped();
    let mut others = questions();
    others[1].recorded_prompt = "another".into();
    let error = ask(&mut Toy::new(9), &others, &path, 1, |_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherRun { .. }), "{error}");
    let error = ask(&mut Toy::new(9), &questions()[..1], &path, 1, |_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherRun { .. }), "{error}");
}

/// The toy, with settings.
struct Set(Toy, &'static [(&'static str, &'static str)]);

impl Answer for Set {
    fn model_id(&self) -> String {
        self.0.model_id()
    }

    fn settings(&self) -> Settings {
        self.1.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
        self.0.answer(batch)
    }
}

#[test]
fn a_run_of_one_name_and_other_settings_is_refused_by_what_differs() {
    let folder = Folder::new();
    let (path, partial) = (folder.at("a.jsonl"), folder.at("a.jsonl.partial"));
    let mine: &[_] = &[("adapter", "1f"), ("template", "plain")];
    let run = |left, settings| ask(&mut Set(Toy::new(left), settings), &questions(), &path, 1, |_| ());
    run(3, mine).unwrap_err();
    // First what was stopped, then what was finished.
    for finished in [false, true] {
        let there = if finished { &path } else { &partial };
        let before = std::fs::read(there).unwrap();
        for (settings, said) in [
            (&[("adapter", "2e"), ("template", "plain")][..], "(adapter 1f, now adapter 2e)"),
            (&[("template", "plain")][..], "(adapter 1f, now no adapter)"),
            (&[("adapter", "1f"), ("fit", "pad"), ("template", "plain")][..], "(no fit, now fit pad)"),
            (&[][..], "(adapter 1f, now no adapter)"),
        ] {
            let error = run(100, settings).unwrap_err();
            assert!(matches!(error, Error::OtherRun { .. }), "{error}");
            assert!(error.to_string().contains(said), "{error}");
            assert_eq!(std::fs::read(there).unwrap(), before, "nothing of it is lost");
        }
        let mine: Settings = Set(Toy::new(0), mine).settings();
        let known = answered(&path, &questions(), "toy", &mine).unwrap();
        assert_eq!(known, if finished { 7 } else { 3 });
        if !finished {
            run(100, &[("adapter", "1f"), ("template", "plain")]).unwrap();
        }
    }
}

#[test]
fn a_finished_file_is_read_and_nothing_is_asked_again() {
    let folder = Folder::new();
    let path = folder.at("a.jsonl");
    let first = ask(&mut Toy::new(100), &questions(), &path, 2, |_| ()).unwrap();
    let mut toy = Toy::new(100);
    let mut heard = Vec::new();
    let again = ask(&mut toy, &questions(), &path, 2, |done| heard.push(done)).unwrap();
    assert!(toy.asked.is_empty() && heard == [7], "{:?} {heard:?}", toy.asked);
    assert!(again.rows().eq(first.rows()));
    // A file of a person's own is not written over, whatever it is.
    folder.put("mine.jsonl", "{\"question_id\": 1, \"text\": \"mine\"}\n");
    let error = ask(&mut Toy::new(100), &questions(), &folder.at("mine.jsonl"), 2, |_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherRun { .. }), "{error}");
    folder.put("notes.jsonl", "not json");
    assert!(ask(&mut Toy::new(100), &questions(), &folder.at("notes.jsonl"), 2, |_| ()).is_err());
    assert_eq!(std::fs::read_to_string(folder.at("notes.jsonl")).unwrap(), "not json");
}

#[test]
fn two_runs_do_not_write_one_file() {
    let folder = Folder::new();
    let path = folder.at("a.jsonl");
    /// Starts the same run again from within.
    struct Twice(std::path::PathBuf);
    impl Answer for Twice {
        fn model_id(&self) -> String {
            "toy".into()
        }
        fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
            let error = ask(&mut Toy::new(100), &questions(), &self.0, 1, |_| ()).unwrap_err();
            assert!(error.to_string().contains("another process"), "{error}");
            Ok(batch.iter().map(|_| "once".into()).collect())
        }
    }
    let answers = ask(&mut Twice(path.clone()), &questions(), &path, 4, |_| ()).unwrap();
    assert!(answers.rows().all(|row| row.text == "once"));
}

#[test]
fn cut_answers_are_marked_and_counted() {
    let folder = Folder::new();
    struct Cut;
    impl Answer for Cut {
        fn model_id(&self) -> String {
            "cut".into()
        }
        fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
            Ok(batch.iter().map(|q| Said { text: "a".into(), cut: q.id == Id::number(4) }).collect())
        }
    }
    let answers = ask(&mut Cut, &questions(), &folder.at("a.jsonl"), 4, |_| ()).unwrap();
    assert_eq!(answers.cut(), 1);
    assert!(answers.get(&Id::number(4)).unwrap().is_cut() && !answers.get(&Id::number(5)).unwrap().is_cut());
    assert_eq!(Answers::read(folder.at("a.jsonl")).unwrap().cut(), 1);
}

#[test]
fn recorded_answers_are_a_model_too() {
    let folder = Folder::new();
    let rows =
        questions().iter().rev().map(|q| AnswerRow::new(q.id.clone(), format!("to {}", q.id))).collect();
    let mut recorded = Answers::from_rows("recorded.jsonl", rows).unwrap();
    let answers = ask(&mut recorded, &questions(), &folder.at("a.jsonl"), 2, |_| ()).unwrap();
    assert_eq!(answers.get(&Id::number(3)).unwrap().text, "to 3");
    assert_eq!(answers.model_id(), "recorded");
    assert!(
        ask(
            &mut recorded,
            &[Question { id: Id::number(8), ..questions()[0].clone() }],
            &folder.at("b"),
            1,
            |_| ()
        )
        .is_err()
    );
}

#[test]
fn every_published_shape_of_answers_is_read() {
    let folder = Folder::new();
    let text_of = |path| Answers::read(path).unwrap().get(&Id::number(4)).unwrap().text.clone();
    let rows = [json!({"question_id": 3, "text": "x"}), json!({"question_id": "4", "text": "yes"})];
    assert_eq!(text_of(folder.lines("a.jsonl", &rows)), "yes");
    assert_eq!(text_of(folder.json("b.json", &json!([{"questionId": "4", "prediction": "yes"}]))), "yes");
    assert_eq!(text_of(folder.json("c.json", &json!({"3": "x", "4": "yes"}))), "yes");
    // Pretty-printed objects, one after another.
    let pretty: String = rows.iter().map(|row| format!("{row:#}\n")).collect();
    assert_eq!(text_of(folder.put("d.json", &pretty)), "yes");
    // One answer alone is a record, not a map of ids.
    assert_eq!(text_of(folder.lines("e.jsonl", &rows[1..])), "yes");
}
