//! Reads a text about a scene back and tells what is true in it.

use crate::{
    language::{colour, number, shape},
    scene::{Background, Kind, Object, Place, Scene, Size},
};

/// What a sentence is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything it claims holds.
    True,
    /// Something it claims does not hold: a hallucination.
    False,
    /// It claims nothing that can be checked.
    Unreadable,
}

/// The verdict on a whole text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// One entry a sentence, in order: the sentence and its verdict.
    pub sentences: Vec<(String, Verdict)>,
    /// Objects of the scene that some sentence which is not false names by colour and shape.
    pub described: usize,
    /// Objects of the scene.
    pub objects: usize,
}

impl Judgement {
    /// Number of sentences that are false.
    pub fn hallucinated(&self) -> usize {
        self.sentences.iter().filter(|(_, verdict)| *verdict == Verdict::False).count()
    }
}

/// Judges a text sentence by sentence (sentences end at `.`, `!`, `?` or a line break). A sentence is false when any
/// object it names is not there, or has another size, place or relation; when a number of shapes or a background is
/// wrong; and, with "no" or "not", when what it denies holds. Case and filling words do not matter.
pub fn judge(scene: &Scene, text: &str) -> Judgement {
    let mut described = vec![false; scene.objects.len()];
    let sentences = text
        .split_inclusive(['.', '!', '?', '\n'])
        .map(str::trim)
        .filter(|sentence| sentence.chars().any(char::is_alphanumeric))
        .map(|sentence| {
            let claim = Claim::read(sentence);
            let verdict = claim.verdict(scene);
            if verdict == Verdict::True && !claim.denied {
                for (seen, object) in described.iter_mut().zip(&scene.objects) {
                    *seen |= claim.mentions.iter().any(|mention| mention.kind == object.kind);
                }
            }
            (sentence.to_owned(), verdict)
        })
        .collect();
    Judgement {
        sentences,
        described: described.into_iter().filter(|&seen| seen).count(),
        objects: scene.objects.len(),
    }
}

/// An object as a sentence names it.
struct Mention {
    kind: Kind,
    size: Option<Size>,
}

/// What one sentence claims.
#[derive(Default)]
struct Claim {
    denied: bool,
    mentions: Vec<Mention>,
    count: Option<usize>,
    background: Option<Background>,
    place: Option<Place>,
    relation: Option<fn(&Object, &Object) -> bool>,
}

impl Claim {
    fn read(sentence: &str) -> Claim {
        let lower = sentence.to_lowercase();
        let words: Vec<&str> =
            lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let spaced = format!(" {} ", words.join(" "));
        let says = |phrase: &str| spaced.contains(&format!(" {phrase} "));
        let mut claim = Claim { denied: says("no") || says("not"), ..Claim::default() };
        for (index, window) in words.windows(2).enumerate() {
            if let (Some(colour), Some(shape)) = (colour(window[0]), shape(window[1])) {
                let size = index
                    .checked_sub(1)
                    .and_then(|before| Size::ALL.iter().copied().find(|size| size.word() == words[before]));
                claim.mentions.push(Mention { kind: Kind { colour, shape }, size });
            }
            if matches!(window[1], "shape" | "shapes") {
                claim.count = number(window[0]);
            }
            if window[1] == "background" {
                claim.background = Background::ALL.iter().copied().find(|value| value.word() == window[0]);
            }
        }
        claim.relation = if says("above") {
            Some(|a, b| a.place.row() < b.place.row())
        } else if says("below") {
            Some(|a, b| a.place.row() > b.place.row())
        } else if says("left of") {
            Some(|a, b| a.place.column() < b.place.column())
        } else if says("right of") {
            Some(|a, b| a.place.column() > b.place.column())
        } else {
            None
        };
        // The longest phrase decides: "in the top left" is neither "at the top" nor "on the left".
        claim.place =
            Place::ALL.iter().copied().filter(|place| says(place.word())).max_by_key(|p| p.word().len());
        claim
    }

    fn verdict(&self, scene: &Scene) -> Verdict {
        let mut checks: Vec<bool> = Vec::new();
        checks.extend(self.count.map(|count| count == scene.objects.len()));
        checks.extend(self.background.map(|background| background == scene.background));
        let found: Vec<Option<&Object>> = self
            .mentions
            .iter()
            .map(|mention| {
                scene.find(mention.kind).filter(|o| mention.size.is_none_or(|size| size == o.size))
            })
            .collect();
        checks.extend(found.iter().map(Option::is_some));
        match (self.relation, found.as_slice(), self.place) {
            (Some(holds), [Some(a), Some(b)], _) => checks.push(holds(a, b)),
            (Some(_), [_], _) => return Verdict::Unreadable,
            (None, [Some(object)], Some(place)) => checks.push(object.place == place),
            (None, [], Some(_)) => return Verdict::Unreadable,
            _ => {}
        }
        match checks.as_slice() {
            [] => Verdict::Unreadable,
            all if all.iter().all(|&check| check) != self.denied => Verdict::True,
            _ => Verdict::False,
        }
    }
}
