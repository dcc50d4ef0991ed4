//! The scenes world: a seeded generator of pictures about which every statement can be judged exactly.
//!
//! A [`Scene`] is a plain background with one to four coloured shapes, each in its own cell of a 3×3 grid.
//! [`render`] draws it, [`describe`] puts it into several sentences, [`questions`] asks and answers about it,
//! [`pope`] makes balanced yes/no questions of POPE's three kinds, [`plant_mistakes`] spoils a description in known
//! places, and [`judge`] reads any text back and tells, sentence by sentence, what is true, false or unreadable.
//!
//! Kinds of objects are not equally frequent and some keep company (see [`Kind::companion`]), so that a model can
//! learn habits of language that the picture does not support: the ground on which hallucinations grow.
//!
//! Everything is a function of a seed. A scene belongs to one [`Split`] by a hash of what it shows, so splits never
//! share a scene, however many are drawn.
//!
//! ```
//! use aspo_scenes::{Split, describe, judge, render, scene};
//!
//! let scene = scene(7, Split::Test, 0);
//! let picture = render(&scene);
//! assert_eq!((picture.width(), picture.height()), (72, 72));
//! let text = describe(&scene, 1);
//! assert_eq!(judge(&scene, &text).hallucinated(), 0);
//! ```

mod error;
mod judge;
mod language;
mod pope;
mod render;
mod scene;
mod write;

pub use error::{Error, Result};
pub use judge::{Judgement, Verdict, judge};
pub use language::{Planted, Question, describe, plant_mistakes, questions};
pub use pope::{PopeKind, PopeQuestion, pope};
pub use render::{SIDE, render};
pub use scene::{Background, Colour, Kind, Object, Place, Scene, Shape, Size, Split, scene};
pub use write::{WrittenScene, load, write};

/// The example of the README compiles and runs too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
