//! What can be said, asked and got wrong about a scene.

use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    pope,
    scene::{Background, Colour, Kind, Object, Place, Scene, Shape, Size},
};

/// A question about a scene with its one right answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The question, without any suffix.
    pub question: String,
    /// One word or phrase, capitalised, without a full stop.
    pub answer: String,
}

/// A description in which some sentences are wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planted {
    /// The whole text.
    pub text: String,
    /// The same without the mistakes: every other sentence is the same to the letter.
    pub right: String,
    /// Indices of the sentences that are wrong, ascending.
    pub mistaken: Vec<usize>,
}

/// A true description of four to nine sentences: the number of objects and the background, every object with its
/// size, colour, shape and place in reading order, and how some stand to each other. `seed` chooses the wording.
pub fn describe(scene: &Scene, seed: u64) -> String {
    sentences(scene, &mut ChaCha8Rng::seed_from_u64(seed)).join(" ")
}

fn sentences(scene: &Scene, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut out = vec![opening(scene.objects.len(), scene.background, rng)];
    out.extend(scene.objects.iter().map(|object| statement(object, rng)));
    let pairs: Vec<(&Object, &Object)> = scene
        .objects
        .iter()
        .flat_map(|a| scene.objects.iter().map(move |b| (a, b)))
        .filter(|(a, b)| {
            a.kind != b.kind && (a.place.row() != b.place.row() || a.place.column() != b.place.column())
        })
        .collect();
    let first_with_last = scene.objects.first().zip(scene.objects.last()).filter(|(a, b)| a.kind != b.kind);
    out.extend(first_with_last.map(|(a, b)| relation(a, b)));
    if scene.objects.len() > 2 {
        out.extend(pairs.choose(rng).map(|(a, b)| relation(a, b)));
    }
    out
}

const NUMBERS: [&str; 10] = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

/// The number that a word names, `zero` to `nine`.
pub(super) fn number(word: &str) -> Option<usize> {
    NUMBERS.iter().position(|name| *name == word)
}

fn opening(count: usize, background: Background, rng: &mut ChaCha8Rng) -> String {
    let (number, background) = (NUMBERS[count], background.word());
    let noun = if count == 1 { "shape" } else { "shapes" };
    let be = if count == 1 { "is" } else { "are" };
    match rng.random_range(0..2) {
        0 => format!("The image shows {number} {noun} on a {background} background."),
        _ => format!("There {be} {number} {noun} on a {background} background."),
    }
}

fn statement(object: &Object, rng: &mut ChaCha8Rng) -> String {
    let (size, words, place) = (object.size.word(), object.kind.words(), object.place.word());
    match rng.random_range(0..3) {
        0 => format!("There is a {size} {words} {place}."),
        1 => format!("A {size} {words} is {place}."),
        _ => format!("{}, there is a {size} {words}.", capitalised(place)),
    }
}

/// How `a` stands to `b`; vertical relations first, since most pairs have one. The cells must differ.
fn relation(a: &Object, b: &Object) -> String {
    let how = match (a.place.row().cmp(&b.place.row()), a.place.column() < b.place.column()) {
        (std::cmp::Ordering::Less, _) => "above",
        (std::cmp::Ordering::Greater, _) => "below",
        (std::cmp::Ordering::Equal, true) => "to the left of",
        (std::cmp::Ordering::Equal, false) => "to the right of",
    };
    format!("The {} is {how} the {}.", a.kind.words(), b.kind.words())
}

/// The description with `count` of its object sentences made wrong (as many as there are, if fewer): an attribute is
/// exchanged, or the object is replaced by one that is not in the scene. Sentences about relations are left out, so
/// that every mistake stands alone.
pub fn plant_mistakes(scene: &Scene, count: usize, seed: u64) -> Planted {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen =
        rand::seq::index::sample(&mut rng, scene.objects.len(), count.min(scene.objects.len())).into_vec();
    chosen.sort_unstable();
    let mut text = opening(scene.objects.len(), scene.background, &mut rng);
    let mut right = text.clone();
    for (index, object) in scene.objects.iter().enumerate() {
        let said = if chosen.contains(&index) { wrong(scene, object, &mut rng) } else { *object };
        let same_words = &mut rng.clone();
        right += &format!(" {}", statement(object, same_words));
        text += &format!(" {}", statement(&said, &mut rng));
    }
    Planted { text, right, mistaken: chosen.into_iter().map(|index| index + 1).collect() }
}

fn wrong(scene: &Scene, object: &Object, rng: &mut ChaCha8Rng) -> Object {
    let absent: Vec<Kind> = Kind::all().filter(|&kind| scene.find(kind).is_none()).collect();
    let kind = |keep: &dyn Fn(&Kind) -> bool, rng: &mut ChaCha8Rng| {
        let fitting: Vec<Kind> = absent.iter().copied().filter(|kind| keep(kind)).collect();
        fitting.choose(rng).copied()
    };
    let mut said = *object;
    match rng.random_range(0..5) {
        0 => said.size = if object.size == Size::Small { Size::Large } else { Size::Small },
        1 => {
            let others: Vec<Place> =
                Place::ALL.iter().copied().filter(|&place| place != object.place).collect();
            said.place = *others.choose(rng).unwrap_or(&object.place);
        }
        2 => said.kind = kind(&|k| k.shape == object.kind.shape, rng).unwrap_or(absent[0]),
        3 => said.kind = kind(&|k| k.colour == object.kind.colour, rng).unwrap_or(absent[0]),
        _ => said.kind = kind(&|_| true, rng).unwrap_or(absent[0]),
    }
    said
}

/// Questions with short answers: number, background, and of every object its colour, shape, size and place where the
/// question has one answer, and whether it is there; for each object present, one that is absent is asked about too.
pub fn questions(scene: &Scene, seed: u64) -> Vec<Question> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = Vec::new();
    let mut ask =
        |question: String, answer: &str| out.push(Question { question, answer: capitalised(answer) });
    ask("How many shapes are there?".into(), NUMBERS[scene.objects.len()]);
    ask("What color is the background?".into(), scene.background.word());
    for object in &scene.objects {
        let Kind { colour, shape } = object.kind;
        let alone = |same: &dyn Fn(&Object) -> bool| scene.objects.iter().filter(|o| same(o)).count() == 1;
        if alone(&|o| o.kind.shape == shape) {
            ask(format!("What color is the {}?", shape.word()), colour.word());
        }
        if alone(&|o| o.kind.colour == colour) {
            ask(format!("What shape is {}?", colour.word()), shape.word());
        }
        ask(format!("What is {}?", object.place.word()), &object.kind.with_article());
        ask(format!("What size is the {}?", object.kind.words()), object.size.word());
        ask(format!("Where is the {}?", object.kind.words()), object.place.word());
        ask(pope::text(object.kind), "yes");
    }
    let mut absent: Vec<Kind> = Kind::all().filter(|&kind| scene.find(kind).is_none()).collect();
    for _ in &scene.objects {
        let drawn = match rng.random_range(0..3) {
            0 => absent.choose_weighted(&mut rng, |kind| kind.frequency()).ok().copied(),
            1 => absent.iter().copied().find(|&kind| scene.objects.iter().any(|o| resembles(o.kind, kind))),
            _ => absent.choose(&mut rng).copied(),
        };
        if let Some(kind) = drawn {
            absent.retain(|&other| other != kind);
            ask(pope::text(kind), "no");
        }
    }
    out
}

/// Whether one kind is the other's companion, or shares its colour or shape.
fn resembles(present: Kind, absent: Kind) -> bool {
    present.companion() == absent || present.colour == absent.colour || present.shape == absent.shape
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The value of a word list that a word names.
pub(super) fn colour(word: &str) -> Option<Colour> {
    Colour::ALL.iter().copied().find(|value| value.word() == word)
}

/// The shape that a word names, singular or plural.
pub(super) fn shape(word: &str) -> Option<Shape> {
    let matches =
        |value: &&Shape| word.strip_prefix(value.word()).is_some_and(|rest| matches!(rest, "" | "s" | "es"));
    Shape::ALL.iter().find(matches).copied()
}
