//! Scores a model on a benchmark of the paper: `cargo run --release --example evaluate -- --benchmark NAME --data PATH …`, which
//! is `aspo evaluate`.

use aspo_cli::backend::exit_on_error;
use aspo_cli::evaluate::{EvaluateArgs, run};
use clap::Parser;

fn main() {
    exit_on_error(run(&EvaluateArgs::parse()));
}
