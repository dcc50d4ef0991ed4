//! The program `aspo`: preference training of vision-language models, sentence by sentence, from files to an adapter.
//!
//! Each command is a record of options, which clap reads, and a function that does it. They are a library, so that another
//! program can have a command with its own defaults, or something of its own around it (see [`train::Around`]).
//!
//! | command | does |
//! |---|---|
//! | `aspo train` | trains an adapter on preference pairs, and writes checkpoints, metrics, a report and a model card |
//! | `aspo plan` | tells what a training will take, before a weight is read |
//! | `aspo pairs` | makes preference pairs from a model's own answers |
//! | `aspo validate` | gives an account of a file of pairs |
//! | `aspo evaluate` | scores a model on a benchmark |
//! | `aspo generate` | asks a model about pictures |
//! | `aspo weigh` | shows how much each sentence of people's answers counts |
//! | `aspo report` | lays several runs side by side, as a page |
//! | `aspo merge` | writes a model with its adapter merged in |
//! | `aspo segment` | splits texts into sentences |
//! | `aspo completions` | prints completions for a shell |

pub mod answer;
mod ask;
pub mod backend;
mod card;
pub mod checkpoint;
pub mod compare;
pub mod evaluate;
pub mod generate;
mod hub;
pub mod merge;
pub mod options;
pub mod out;
mod page;
pub mod pairs;
pub mod progress;
pub mod report;
pub mod segment;
pub mod together;
pub mod train;
pub mod validate;
pub mod weigh;

/// Anything that can go wrong: its text names the option or file, what was found, and the remedy.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
