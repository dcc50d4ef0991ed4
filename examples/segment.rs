//! Splits the texts of a JSONL file into sentences, as `aspo segment` does.
//!
//! ```sh
//! cargo run --release --example segment -- answers.jsonl > ends.jsonl
//! cargo run --release --example segment -- labelled.jsonl --score
//! ```

use aspo_cli::backend::exit_on_error;
use aspo_cli::segment::{SegmentArgs, run};
use clap::Parser;

fn main() {
    exit_on_error(run(&SegmentArgs::parse()));
}
