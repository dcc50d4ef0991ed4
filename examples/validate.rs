//! Gives an account of a file of preference pairs, as `aspo validate` does.
//!
//! ```sh
//! cargo run --release --example validate -- pairs.json --images coco/train2017
//! cargo run --release --example validate -- pairs.parquet --strict --tokenizer llava/tokenizer.json
//! ```

use std::process::ExitCode;

use aspo_cli::validate::{ValidateArgs, run};
use clap::Parser;

fn main() -> ExitCode {
    run(&ValidateArgs::parse())
}
