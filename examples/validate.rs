//! Gives an account of a file of preference pairs: rows, faults by kind, lengths, sentences, duplicates.
//!
//! ```sh
//! cargo run --release --example validate -- pairs.json --images coco/train2017
//! cargo run --release --example validate -- pairs.parquet --strict --tokenizer llava/tokenizer.json
//! ```
//!
//! Ends with 0 when every row is sound, with 1 when there are faults, with 2 when the file cannot be read.

use std::path::PathBuf;
use std::process::ExitCode;

use aspo_data::validate::{ValidateOptions, validate};
use aspo_data::{Encoder, Format, OnFault, Template, Tokenizer};
use clap::Parser;

/// Checks a file of preference pairs.
#[derive(Parser)]
struct Arguments {
    /// JSON list, JSON lines or parquet.
    file: PathBuf,
    /// trl, seva, rlaif-v or llama-factory; recognised where not given.
    #[arg(long)]
    format: Option<String>,
    /// Folder of the images: every image is looked for.
    #[arg(long)]
    images: Option<PathBuf>,
    /// Decode every image.
    #[arg(long)]
    decode: bool,
    /// A tokenizer.json, for lengths in tokens and truncation.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// How prompts are written, for lengths in tokens.
    #[arg(long, default_value_t = Template::VicunaV1)]
    template: Template,
    /// Tokens of one image.
    #[arg(long, default_value_t = 576)]
    image_tokens: usize,
    /// Longest sequence in tokens.
    #[arg(long, default_value_t = 2048)]
    max_length: usize,
    /// Stop at the first fault.
    #[arg(long)]
    strict: bool,
    /// Print the account as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let format: Option<Format> = match &arguments.format {
        None => None,
        Some(name) => Some(
            serde_json::from_value(serde_json::Value::String(name.clone()))
                .map_err(|_| format!("--format {name:?}: use trl, seva, rlaif-v or llama-factory"))?,
        ),
    };
    let encoder = match &arguments.tokenizer {
        None => None,
        Some(path) => Some(Encoder {
            max_length: Some(arguments.max_length),
            ..Encoder::new(Tokenizer::from_file(path)?, arguments.template, arguments.image_tokens)
        }),
    };
    let options = ValidateOptions {
        format,
        image_root: arguments.images.clone(),
        decode_images: arguments.decode,
        encoder: encoder.as_ref(),
        on_fault: if arguments.strict { OnFault::Stop } else { OnFault::Skip },
        ..ValidateOptions::default()
    };
    let report = validate(&arguments.file, &options)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(report.faulty() == 0)
}
