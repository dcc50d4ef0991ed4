//! The crate's tests: bodies written once, generic over the backend, run on every backend that is built.

mod aspo;
mod common;
mod finite;
mod golden;
mod hand;
mod kin;
mod log_prob;
mod metric;
mod objective;
mod oracle;
mod pipeline;
mod property;
mod record;
