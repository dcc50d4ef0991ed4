//! What the examples share: choosing a backend, asking a model, showing a run, measuring on the scenes world, making its
//! base models, means over seeds.

pub mod account;
pub mod answer;
pub mod backend;
pub mod checkpoint;
pub mod measure;
pub mod out;
pub mod own;
pub mod pretrain;
pub mod progress;
pub mod spread;

/// Anything that can go wrong in an example.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

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
