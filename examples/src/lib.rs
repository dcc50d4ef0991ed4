//! What the examples share: measuring on the scenes world, making its base models, a model of one's own.

pub mod account;
pub mod around;
pub mod measure;
pub mod own;
pub mod pretrain;
pub mod rank;
pub mod study;

/// The Rust of the book compiles and runs.
#[cfg(all(doctest, feature = "flex"))]
mod book {
    #[doc = include_str!("../../docs/objective.md")]
    struct Objective;
    #[doc = include_str!("../../docs/pairs.md")]
    struct Pairs;
    #[doc = include_str!("../../docs/evaluation.md")]
    struct Evaluation;
}
