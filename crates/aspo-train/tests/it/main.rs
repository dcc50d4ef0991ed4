//! The crate's promises, one module each.

mod adapter;
mod bad_input;
mod config;
mod dropout;
mod equal;
mod held_out;
mod kept;
mod kill;
mod numbers;
mod oracle;
mod plan;
#[cfg(feature = "mpi")]
mod ranks;
mod reads;
mod reference;
mod report;
mod resume;
mod sight;
mod support;
mod tensorboard;
