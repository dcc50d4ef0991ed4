//! The crate's promises, one module each.

mod bad_input;
mod config;
mod equal;
mod kill;
mod numbers;
mod oracle;
mod resume;
mod support;
mod tensorboard;
