//! What a scene is, and how one is drawn from a seed.

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Declares a plain word list: an enum whose variants are written, in text and in JSON, by one lower-case word or phrase.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $(#[doc = $word] #[serde(rename = $word)] $variant),+ }

        impl $name {
            /// Every value, in a fixed order.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// How the value is written in a sentence.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

words!(
    /// The kind of outline.
    Shape { Circle = "circle", Square = "square", Triangle = "triangle", Cross = "cross" }
);
words!(
    /// The fill of an object.
    Colour { Red = "red", Green = "green", Blue = "blue", Yellow = "yellow", Purple = "purple", Orange = "orange" }
);
words!(
    /// How big an object is drawn.
    Size { Small = "small", Large = "large" }
);
words!(
    /// The fill behind the objects.
    Background { Pink = "pink", Gray = "gray", White = "white" }
);
words!(
    /// A cell of the 3×3 grid, in reading order.
    Place {
        TopLeft = "in the top left",
        Top = "at the top",
        TopRight = "in the top right",
        Left = "on the left",
        Center = "in the center",
        Right = "on the right",
        BottomLeft = "in the bottom left",
        Bottom = "at the bottom",
        BottomRight = "in the bottom right",
    }
);

impl Place {
    /// Row of the cell, 0 at the top.
    pub fn row(self) -> usize {
        self as usize / 3
    }

    /// Column of the cell, 0 at the left.
    pub fn column(self) -> usize {
        self as usize % 3
    }
}

/// Colour and shape together: what POPE's questions call an object. There are 24.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Kind {
    /// The fill.
    pub colour: Colour,
    /// The outline.
    pub shape: Shape,
}

impl Kind {
    /// Every kind, colour by colour.
    pub fn all() -> impl Iterator<Item = Kind> {
        Colour::ALL.iter().flat_map(|&colour| Shape::ALL.iter().map(move |&shape| Kind { colour, shape }))
    }

    /// How often the kind is drawn, relative to the others: a few are common, many rare.
    pub fn frequency(self) -> f64 {
        // A fixed shuffle of the ranks, so that no colour or shape is common as a whole.
        let index = self.colour as usize * Shape::ALL.len() + self.shape as usize;
        let rank = index * 7 % 24;
        1.0 / (1.0 + rank as f64 / 4.0)
    }

    /// The kind that often stands beside this one (in two scenes of five where there is room).
    pub fn companion(self) -> Kind {
        let colour = Colour::ALL[(self.colour as usize + 2) % Colour::ALL.len()];
        let shape = Shape::ALL[(self.shape as usize + 1) % Shape::ALL.len()];
        Kind { colour, shape }
    }

    /// `red circle`.
    pub fn words(self) -> String {
        format!("{} {}", self.colour.word(), self.shape.word())
    }

    /// `a red circle`, `an orange circle`.
    pub fn with_article(self) -> String {
        let article = if self.colour == Colour::Orange { "an" } else { "a" };
        format!("{article} {}", self.words())
    }
}

/// One object of a scene.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Colour and shape.
    #[serde(flatten)]
    pub kind: Kind,
    /// How big.
    pub size: Size,
    /// Which cell.
    pub place: Place,
    /// Centre in pixels, `[x, y]`.
    pub centre: [f32; 2],
    /// Half the extent in pixels.
    pub radius: f32,
}

/// A picture's truth. Objects stand in reading order, in different cells, and no two are of one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scene {
    /// What fills the picture behind the objects.
    pub background: Background,
    /// One to four objects.
    pub objects: Vec<Object>,
}

impl Scene {
    /// The object of a kind, if the scene has it.
    pub fn find(&self, kind: Kind) -> Option<&Object> {
        self.objects.iter().find(|object| object.kind == kind)
    }

    /// A hash (FNV-1a) of everything that a sentence can say about the scene.
    fn signature(&self) -> u64 {
        let attributes = self
            .objects
            .iter()
            .flat_map(|o| [o.kind.colour as u8, o.kind.shape as u8, o.size as u8, o.place as u8]);
        std::iter::once(self.background as u8)
            .chain(attributes)
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

/// The parts of the world. Which one a scene belongs to is told by what it shows, so no scene is in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For making the base models.
    Train,
    /// For preference pairs.
    Pairs,
    /// For looking at while choosing settings.
    Validation,
    /// For the figures that are reported.
    Test,
}

impl Split {
    fn of(scene: &Scene) -> Split {
        match (scene.signature() >> 17) % 16 {
            0..8 => Split::Train,
            8..12 => Split::Pairs,
            12..14 => Split::Validation,
            _ => Split::Test,
        }
    }

    /// The name of the split's folder.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Pairs => "pairs",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

/// The `index`-th scene of a split under a seed.
pub fn scene(seed: u64, split: Split, index: usize) -> Scene {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(((split as u64) << 40) | index as u64);
    loop {
        let scene = draw(&mut rng);
        if Split::of(&scene) == split {
            return scene;
        }
    }
}

fn draw(rng: &mut ChaCha8Rng) -> Scene {
    let background = Background::ALL[rng.random_range(0..Background::ALL.len())];
    let count = [1, 2, 2, 3, 3, 3, 4, 4][rng.random_range(0..8)];
    let mut places = Place::ALL.to_vec();
    places.shuffle(rng);
    let mut kinds: Vec<Kind> = Vec::with_capacity(count);
    while kinds.len() < count {
        let kind = match kinds.last() {
            Some(last) if rng.random_bool(0.4) => last.companion(),
            _ => draw_kind(rng),
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let mut objects: Vec<Object> = kinds
        .into_iter()
        .zip(places)
        .map(|(kind, place)| {
            let size = Size::ALL[rng.random_range(0..Size::ALL.len())];
            let radius = match size {
                Size::Small => rng.random_range(6.0..7.0),
                Size::Large => rng.random_range(9.5..10.5),
            };
            let mut along = |cell: usize| cell as f32 * 24.0 + 12.0 + rng.random_range(-1.0..1.0);
            let centre = [along(place.column()), along(place.row())];
            Object { kind, size, place, centre, radius }
        })
        .collect();
    objects.sort_by_key(|object| object.place);
    Scene { background, objects }
}

fn draw_kind(rng: &mut ChaCha8Rng) -> Kind {
    let total: f64 = Kind::all().map(Kind::frequency).sum();
    let mut left = rng.random_range(0.0..total);
    for kind in Kind::all() {
        left -= kind.frequency();
        if left < 0.0 {
            return kind;
        }
    }
    Kind { colour: Colour::Red, shape: Shape::Circle }
}
