//! Generating pairs.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use aspo_data::seva::{
    Answer, GenerateOptions, Newlines, OnCut, Progress, Provenance, Reply, Request, generate,
};
use aspo_data::{Error, ImageLoader, ImageProcessor, OnFault, Pair, Template, read_pairs};
use serde_json::Value;

use crate::support::png;

fn provenance() -> Provenance {
    Provenance {
        model: "echo".into(),
        weights: "0123".into(),
        decoding: "greedy, 64 new tokens".into(),
        template: Template::VicunaV1,
        noise_step: 500,
        seed: 3,
        newlines: Newlines::Keep,
    }
}

/// A model that tells how bright the picture is: noise changes the answer.
fn brightness(requests: &[Request<'_>]) -> Result<Vec<Reply>, String> {
    let clean = |request: &Request<'_>| request.pixels[0].values[0] == request.pixels[0].values[1];
    Ok(requests
        .iter()
        .map(|request| {
            let text = match request.pair.prompt.as_str() {
                "same" => "always this".to_owned(),
                "mute" => if clean(request) { " " } else { "x" }.to_owned(),
                prompt => {
                    format!(" {prompt}\n\nvalue {:.4}.</s>", request.pixels[0].values.iter().sum::<f32>())
                }
            };
            Reply { text, cut: request.pair.prompt == "long" && clean(request) }
        })
        .collect())
}

struct World {
    folder: tempfile::TempDir,
    questions: Vec<Pair>,
    loader: ImageLoader,
}

fn question(text: &str, image: usize) -> Pair {
    Pair::new("q", text, "", "").with_image(format!("{image}.png").as_str())
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for image in 0..3 {
            std::fs::write(folder.path().join(format!("{image}.png")), png(4, 4, [40 * image, 9, 9]))
                .unwrap();
        }
        let questions = ["a", "b", "same", "c", "d", "mute", "e"]
            .iter()
            .enumerate()
            .map(|(i, text)| question(text, i % 3));
        let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(4)).unwrap();
        Self { questions: questions.collect(), folder, loader }
    }

    fn output(&self) -> std::path::PathBuf {
        self.folder.path().join("out/pairs.json")
    }

    fn run(
        &self,
        provenance: &Provenance,
        options: GenerateOptions,
        answer: &mut Answer<'_>,
    ) -> aspo_data::Result<Progress> {
        let mut go_on = |_: &Progress| ControlFlow::Continue(());
        generate(&self.questions, &self.output(), &self.loader, provenance, &options, answer, &mut go_on)
    }

    /// One batch size, all else by default; the questions that the model was asked, without repeats.
    fn asked(&self, batch: usize) -> (Progress, Vec<String>) {
        let mut asked = Vec::new();
        let done = self
            .run(&provenance(), batched(batch), &mut |requests: &[Request<'_>]| {
                asked.extend(requests.iter().map(|request| request.pair.prompt.clone()));
                brightness(requests)
            })
            .unwrap();
        let mut once: Vec<String> = Vec::new();
        asked.into_iter().for_each(|text| {
            if !once.contains(&text) {
                once.push(text)
            }
        });
        (done, once)
    }

    fn prompts(&self) -> Vec<String> {
        read_pairs(&self.output()).unwrap().map(|pair| pair.unwrap().prompt).collect()
    }
}

fn batched(batch: usize) -> GenerateOptions {
    GenerateOptions { batch, ..Default::default() }
}

fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn pairs_are_made_equal_answers_dropped_and_provenance_recorded() {
    let world = World::new();
    let done = world.run(&provenance(), batched(2), &mut brightness).unwrap();
    assert_eq!((done.questions, done.done, done.pairs, done.equal, done.empty), (7, 7, 5, 1, 1));
    assert!(done.finished && done.faulty == 0 && done.cut == 0 && done.resumed == 0);
    let pairs: Vec<Pair> = read_pairs(&world.output()).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.prompt.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    assert!(
        pairs[0].chosen.starts_with("a\n\nvalue") && pairs[0].chosen.ends_with('.'),
        "{}",
        pairs[0].chosen
    );
    assert_eq!(pairs[1].images, ["1.png".into()]);
    assert_eq!(
        names(world.output().parent().unwrap()),
        ["pairs.json", "pairs.json.journal", "pairs.json.provenance.json"].map(String::from).into()
    );
    let record = std::fs::read_to_string(world.folder.path().join("out/pairs.json.provenance.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        (&record["provenance"]["noise_step"], &record["provenance"]["seed"]),
        (&500.into(), &3.into())
    );
    assert_eq!(record["counts"]["equal"], 1);
}

#[test]
fn an_interrupted_run_goes_on_and_ends_the_same_whatever_the_batch() {
    let reference = World::new();
    reference.run(&provenance(), batched(7), &mut brightness).unwrap();
    let wanted = std::fs::read(reference.output()).unwrap();
    for batch in [1, 2, 3] {
        let world = World::new();
        let mut calls = 0;
        let error = world.run(&provenance(), batched(batch), &mut |requests: &[Request<'_>]| {
            calls += 1;
            // The second call of a batch fails: its clean answers are not kept either.
            if calls == 4 { Err("power cut".into()) } else { brightness(requests) }
        });
        assert!(error.unwrap_err().to_string().contains("power cut"));
        // The crash tears the last line.
        let journal = world.folder.path().join("out/pairs.json.journal");
        let mut text = std::fs::read(&journal).unwrap();
        text.extend_from_slice(b"{\"key\":\"12\",\"cho");
        std::fs::write(&journal, text).unwrap();
        assert!(!world.output().exists());
        let (done, _) = world.asked(batch + 1);
        assert_eq!((done.done, done.resumed), (7, batch));
        assert_eq!(std::fs::read(world.output()).unwrap(), wanted);
    }
}

#[test]
fn a_run_that_is_told_to_stop_keeps_its_answers_and_goes_on() {
    let world = World::new();
    let mut stop = |state: &Progress| match state.done {
        0..4 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    };
    let options = batched(2);
    let done = generate(
        &world.questions,
        &world.output(),
        &world.loader,
        &provenance(),
        &options,
        &mut brightness,
        &mut stop,
    )
    .unwrap();
    assert_eq!((done.done, done.finished, world.output().exists()), (4, false, false));
    let (done, asked) = world.asked(2);
    assert!(done.finished && done.resumed == 4);
    assert_eq!(asked, ["d", "mute", "e"]);
}

#[test]
fn a_finished_run_is_not_answered_again_nor_its_files_touched() {
    let world = World::new();
    world.asked(2);
    let files = || {
        names(world.output().parent().unwrap())
            .into_iter()
            .map(|name| {
                let path = world.output().with_file_name(name);
                (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap().modified().unwrap())
            })
            .collect::<Vec<_>>()
    };
    let before = files();
    let (done, asked) = world.asked(3);
    assert_eq!((done.finished, done.resumed, done.pairs, asked.len()), (true, 7, 5, 0));
    assert!(files() == before, "a file was written again");
}

#[test]
fn another_list_of_questions_keeps_the_answers_that_it_shares() {
    let mut world = World::new();
    world.asked(2);
    // One taken out, one put in front, one asked twice, one about another picture, the rest in another order.
    world.questions.remove(1);
    world.questions.reverse();
    world.questions.insert(0, question("new", 1));
    world.questions.push(question("new", 1));
    world.questions.push(question("a", 2));
    let (done, asked) = world.asked(2);
    assert_eq!(asked, ["new", "a"]);
    assert_eq!((done.questions, done.done, done.resumed), (9, 9, 6));
    assert_eq!(world.prompts(), ["new", "e", "d", "c", "a", "new", "a"]);
    // Another picture under the old name.
    std::fs::write(world.folder.path().join("1.png"), png(4, 4, [200; 3])).unwrap();
    let (_, asked) = world.asked(2);
    assert_eq!(asked, ["new", "d"]);
}

#[test]
fn answers_of_other_settings_are_not_taken_and_not_lost() {
    let world = World::new();
    world.asked(2);
    for other in [
        Provenance { seed: 4, ..provenance() },
        Provenance { noise_step: 501, ..provenance() },
        Provenance { weights: "4567".into(), ..provenance() },
        Provenance { decoding: "greedy, 65 new tokens".into(), ..provenance() },
        Provenance { template: Template::LlavaHf, ..provenance() },
    ] {
        assert_eq!(world.run(&other, batched(2), &mut brightness).unwrap().resumed, 0, "{other:?}");
    }
    let (done, asked) = world.asked(2);
    assert_eq!((done.resumed, asked.len()), (7, 0));
    // What only the writing follows from does not ask again.
    let joined = Provenance { newlines: Newlines::Space, ..provenance() };
    assert_eq!(world.run(&joined, batched(2), &mut brightness).unwrap().resumed, 7);
}

#[test]
fn a_damaged_line_of_the_journal_costs_its_own_answer_only() {
    let world = World::new();
    world.asked(1);
    let journal = world.folder.path().join("out/pairs.json.journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    let damaged: Vec<String> = text
        .lines()
        .enumerate()
        .map(|(number, line)| if number == 2 { line.replace(':', "?") } else { line.to_owned() })
        .collect();
    std::fs::write(&journal, damaged.join("\n") + "\n").unwrap();
    let (done, asked) = world.asked(1);
    assert_eq!((done.resumed, asked), (6, vec!["b".to_owned()]));
}

#[test]
fn a_file_that_it_did_not_make_is_never_overwritten() {
    let world = World::new();
    std::fs::create_dir(world.output().parent().unwrap()).unwrap();
    std::fs::write(world.output(), "[{\"mine\": 1}]").unwrap();
    let mut asked = |_: &[Request<'_>]| panic!("asked");
    let error = world.run(&provenance(), batched(2), &mut asked).unwrap_err();
    assert!(
        error.to_string().contains("pairs.json") && error.to_string().contains("move it away"),
        "{error}"
    );
    assert_eq!(std::fs::read_to_string(world.output()).unwrap(), "[{\"mine\": 1}]");
    std::fs::remove_file(world.output()).unwrap();
    world.asked(2);
    // Its own, with a correction by hand.
    let text = std::fs::read_to_string(world.output()).unwrap().replace("value", "worth");
    std::fs::write(world.output(), &text).unwrap();
    assert!(matches!(world.run(&provenance(), batched(2), &mut asked), Err(Error::Stored { .. })));
    assert_eq!(std::fs::read_to_string(world.output()).unwrap(), text);
    // A journal that is none.
    let world = World::new();
    std::fs::create_dir(world.output().parent().unwrap()).unwrap();
    let journal = world.folder.path().join("out/pairs.json.journal");
    std::fs::write(&journal, "dear diary\n").unwrap();
    assert!(matches!(world.run(&provenance(), batched(2), &mut asked), Err(Error::Stored { .. })));
    assert_eq!(std::fs::read_to_string(&journal).unwrap(), "dear diary\n");
}

#[test]
fn answers_that_were_cut_are_marked_or_dropped_and_counted() {
    let mut world = World::new();
    world.questions[1].prompt = "long".into();
    let (done, _) = world.asked(2);
    assert_eq!((done.cut, done.pairs), (1, 5));
    let rows: Value = serde_json::from_slice(&std::fs::read(world.output()).unwrap()).unwrap();
    let marks: Vec<&Value> = rows.as_array().unwrap().iter().map(|row| &row["cut"]).collect();
    assert_eq!(marks, [&Value::Null, &"chosen".into(), &Value::Null, &Value::Null, &Value::Null]);
    let options = GenerateOptions { on_cut: OnCut::Drop, ..batched(2) };
    let done = world.run(&provenance(), options, &mut brightness).unwrap();
    assert_eq!((done.cut, done.pairs, done.resumed), (1, 4, 7));
    assert_eq!(world.prompts(), ["a", "c", "d", "e"]);
}

#[test]
fn newlines_are_kept_joined_or_deleted_by_choice() {
    for (newlines, wanted) in
        [(Newlines::Keep, "a\n\nvalue"), (Newlines::Space, "a value"), (Newlines::Delete, "avalue")]
    {
        let world = World::new();
        world.run(&Provenance { newlines, ..provenance() }, batched(4), &mut brightness).unwrap();
        let first = read_pairs(&world.output()).unwrap().next().unwrap().unwrap();
        assert!(first.chosen.starts_with(wanted), "{}", first.chosen);
    }
}

#[test]
fn pictures_and_questions_that_cannot_be_used_are_counted_or_stop() {
    let whole = png(40, 40, [9, 80, 7]);
    let bad = |index: usize, change: &dyn Fn(&mut World)| {
        let mut world = World::new();
        // A picture whose header is whole: only decoding tells.
        std::fs::write(world.folder.path().join("cut.png"), &whole[..whole.len() - 30]).unwrap();
        change(&mut world);
        let stop = GenerateOptions { on_fault: OnFault::Stop, ..batched(4) };
        let error = world.run(&provenance(), stop, &mut brightness).unwrap_err();
        assert!(
            matches!(error, Error::Image { .. } | Error::ImagePath { .. } | Error::File { .. }),
            "{error}"
        );
        let (done, _) = world.asked(4);
        assert_eq!((done.faulty, done.pairs, done.done, done.finished), (1, 4, 7, true), "{index}");
        // Mended, it is the only one that is asked.
        world.questions[1] = question("b", 1);
        assert_eq!(world.asked(4).1, ["b"]);
        done.faults[0].clone()
    };
    let told = bad(0, &|world| world.questions[1].images = vec!["none.png".into()]);
    assert!(told.contains("none.png"), "{told}");
    let told = bad(1, &|world| world.questions[1].images = vec!["cut.png".into()]);
    assert!(told.contains("cut.png") && told.contains("cut short"), "{told}");
    let told = bad(2, &|world| world.questions[1].images = vec!["../0.png".into()]);
    assert!(told.contains("../0.png"), "{told}");
    let told = bad(3, &|world| world.questions[1].images.clear());
    assert!(told.contains("no image"), "{told}");
    let told = bad(4, &|world| world.questions[1].images.push("2.png".into()));
    assert!(told.contains("several images"), "{told}");
    let told = bad(5, &|world| world.questions[1].images = vec![png(2, 2, [0; 3]).into()]);
    assert!(told.contains("image bytes"), "{told}");
}

#[test]
fn what_makes_no_sense_is_refused_before_any_answer() {
    let mut world = World::new();
    let mut asked = |_: &[Request<'_>]| panic!("asked");
    let far = Provenance { noise_step: 1000, ..provenance() };
    assert!(matches!(world.run(&far, batched(2), &mut asked), Err(Error::Option { .. })));
    assert!(matches!(world.run(&provenance(), batched(0), &mut asked), Err(Error::Option { .. })));
    let error = World::new().run(&provenance(), batched(2), &mut |_: &[Request<'_>]| Ok(vec![])).unwrap_err();
    assert!(error.to_string().contains("0 answers to 2 questions"), "{error}");
    world.questions.clear();
    let error = world.run(&provenance(), batched(2), &mut asked).unwrap_err();
    assert!(error.to_string().contains("questions"), "{error}");
    assert!(!world.output().exists());
}
