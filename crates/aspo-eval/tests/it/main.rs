//! The promises of `aspo-eval`, from outside.

mod common;

mod answers;
mod choices;
mod judge;
mod judged;
mod malformed;
mod pope;
mod properties;
mod published;
mod table;
