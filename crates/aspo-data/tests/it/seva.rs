//! Generating pairs.

use std::collections::BTreeSet;
use std::path::Path;

use aspo_data::seva::{Answer, GenerateOptions, Newlines, Progress, Provenance, Request, generate};
use aspo_data::{Error, ImageLoader, ImageProcessor, OnFault, Pair, Template, read_pairs};

use crate::support::png;

fn provenance() -> Provenance {
    Provenance {
        model: "echo".into(),
        template: Template::VicunaV1,
        noise_step: 500,
        seed: 3,
        newlines: Newlines::Keep,
    }
}

/// A model that tells how bright the picture is: noise changes the answer.
fn brightness(requests: &[Request<'_>]) -> Result<Vec<String>, String> {
    Ok(requests
        .iter()
        .map(|request| match request.pair.prompt.as_str() {
            "same" => "always this".to_owned(),
            "mute" => if request.pixels[0][0] == request.pixels[0][1] { " " } else { "x" }.to_owned(),
            prompt => format!(" {prompt}\n\nvalue {:.4}.</s>", request.pixels[0].iter().sum::<f32>()),
        })
        .collect())
}

struct World {
    folder: tempfile::TempDir,
    questions: Vec<Pair>,
    loader: ImageLoader,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for image in 0..3 {
            std::fs::write(folder.path().join(format!("{image}.png")), png(4, 4, [40 * image, 9, 9]))
                .unwrap();
        }
        let question = |text: &str, image: usize| {
            Pair::new("q", text, "", "").with_image(format!("{image}.png").as_str())
        };
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
        batch: usize,
        answer: &mut Answer<'_>,
    ) -> aspo_data::Result<Progress> {
        let options = GenerateOptions { batch, ..Default::default() };
        generate(&self.questions, &self.output(), &self.loader, provenance, &options, answer, &mut |_| {})
    }
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
    let done = world.run(&provenance(), 2, &mut brightness).unwrap();
    assert_eq!((done.questions, done.done, done.pairs, done.equal, done.empty), (7, 7, 5, 1, 1));
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
        ["pairs.json", "pairs.json.provenance.json"].map(String::from).into()
    );
    let record = std::fs::read_to_string(world.folder.path().join("out/pairs.json.provenance.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(
        (&record["provenance"]["noise_step"], &record["provenance"]["seed"]),
        (&500.into(), &3.into())
    );
    assert_eq!(record["counts"]["equal"], 1);
}

#[test]
fn an_interrupted_run_goes_on_and_ends_the_same_whatever_the_batch() {
    let reference = World::new();
    reference.run(&provenance(), 7, &mut brightness).unwrap();
    let wanted = std::fs::read(reference.output()).unwrap();
    let world = World::new();
    for stop in 1..4 {
        let mut calls = 0;
        let error = world
            .run(&provenance(), 1, &mut |requests: &[Request<'_>]| {
                calls += 1;
                if calls > 3 * stop { Err("power cut".into()) } else { brightness(requests) }
            })
            .unwrap_err();
        assert!(error.to_string().contains("power cut"));
        assert!(!world.output().exists());
        // A torn last line, as a crash leaves it.
        let journal = world.folder.path().join("out/pairs.json.partial");
        let mut text = std::fs::read(&journal).unwrap();
        text.extend(b"{\"index\": 6, \"cho");
        std::fs::write(&journal, text).unwrap();
        if stop == 2 {
            break;
        }
    }
    let done = world.run(&provenance(), 3, &mut brightness).unwrap();
    assert!(done.resumed >= 3, "{done:?}");
    assert_eq!(std::fs::read(world.output()).unwrap(), wanted);
}

#[test]
fn a_journal_of_another_run_is_refused() {
    let world = World::new();
    world.run(&provenance(), 1, &mut |_: &[Request<'_>]| Err("stop".into())).unwrap_err();
    let other = Provenance { seed: 4, ..provenance() };
    assert!(matches!(world.run(&other, 1, &mut brightness), Err(Error::Stored { .. })));
    assert!(world.run(&provenance(), 1, &mut brightness).is_ok());
}

#[test]
fn newlines_are_kept_joined_or_deleted_by_choice() {
    for (newlines, wanted) in
        [(Newlines::Keep, "a\n\nvalue"), (Newlines::Space, "a value"), (Newlines::Delete, "avalue")]
    {
        let world = World::new();
        world.run(&Provenance { newlines, ..provenance() }, 4, &mut brightness).unwrap();
        let first = read_pairs(&world.output()).unwrap().next().unwrap().unwrap();
        assert!(first.chosen.starts_with(wanted), "{}", first.chosen);
    }
}

#[test]
fn a_missing_picture_stops_or_is_counted_and_a_wrong_number_of_answers_is_named() {
    let mut world = World::new();
    world.questions[1].images = vec!["none.png".into()];
    assert!(matches!(world.run(&provenance(), 4, &mut brightness), Err(Error::Image { .. })));
    let options = GenerateOptions { batch: 4, on_fault: OnFault::Skip };
    let mut seen = Vec::new();
    let done = generate(
        &world.questions,
        &world.output(),
        &world.loader,
        &provenance(),
        &options,
        &mut brightness,
        &mut |state| {
            seen.push(state.done);
        },
    )
    .unwrap();
    assert_eq!((done.faulty, done.pairs), (1, 4));
    assert!(done.faults[0].contains("none.png"));
    assert_eq!(*seen.last().unwrap(), 7);
    let error = World::new().run(&provenance(), 2, &mut |_: &[Request<'_>]| Ok(vec![])).unwrap_err();
    assert!(error.to_string().contains("0 answers to 2 questions"), "{error}");
}

#[test]
fn what_the_format_cannot_hold_is_refused_before_any_answer() {
    let mut world = World::new();
    world.questions[6].images = vec![png(2, 2, [0; 3]).into()];
    let mut asked = false;
    let error = world.run(&provenance(), 2, &mut |_: &[Request<'_>]| {
        asked = true;
        Err("asked".into())
    });
    assert!(matches!(error, Err(Error::File { .. })) && !asked);
    let far = Provenance { noise_step: 1000, ..provenance() };
    assert!(matches!(World::new().run(&far, 2, &mut brightness), Err(Error::Option { .. })));
}
