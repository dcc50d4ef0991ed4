//! Yes/no questions of POPE's three kinds (Li et al. 2023, arXiv 2305.10355).

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::scene::{Kind, Scene};

/// How the absent objects are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PopeKind {
    /// Any absent object.
    Random,
    /// The absent objects that are most frequent in the world.
    Popular,
    /// The absent objects that most often stand beside those present.
    Adversarial,
}

impl PopeKind {
    /// The three kinds, in the order of the published tables.
    pub const ALL: [PopeKind; 3] = [PopeKind::Random, PopeKind::Popular, PopeKind::Adversarial];

    /// The category's name in POPE's files.
    pub fn name(self) -> &'static str {
        match self {
            PopeKind::Random => "random",
            PopeKind::Popular => "popular",
            PopeKind::Adversarial => "adversarial",
        }
    }
}

/// One question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PopeQuestion {
    /// `Is there a red circle in the image?`
    pub text: String,
    /// The right answer.
    pub label: bool,
}

/// As many questions about absent objects as about present ones, present and absent in turn.
pub fn pope(scene: &Scene, kind: PopeKind, seed: u64) -> Vec<PopeQuestion> {
    let mut absent: Vec<Kind> = Kind::all().filter(|&kind| scene.find(kind).is_none()).collect();
    // The shuffle settles ties, and is all there is to the random kind.
    absent.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let company = |kind: &Kind| scene.objects.iter().filter(|o| o.kind.companion() == *kind).count();
    match kind {
        PopeKind::Random => {}
        PopeKind::Popular => absent.sort_by(|a, b| b.frequency().total_cmp(&a.frequency())),
        PopeKind::Adversarial => {
            absent.sort_by(|a, b| company(b).cmp(&company(a)).then(b.frequency().total_cmp(&a.frequency())))
        }
    }
    let question = |kind: Kind, label: bool| PopeQuestion { text: text(kind), label };
    scene
        .objects
        .iter()
        .zip(absent)
        .flat_map(|(object, absent)| [question(object.kind, true), question(absent, false)])
        .collect()
}

/// The question about one kind.
pub(super) fn text(kind: Kind) -> String {
    format!("Is there {} in the image?", kind.with_article())
}
