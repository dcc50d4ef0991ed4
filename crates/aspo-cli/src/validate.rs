//! `aspo validate`: an account of a file of preference pairs: rows, faults by kind, lengths, sentences, duplicates.
//!
//! Ends with 0 when every row is sound (rows with equal answers are dropped and counted, as in training), with 1 when
//! there are faults, with 2 when the file cannot be read, or not to its end.

use std::path::PathBuf;
use std::process::ExitCode;

use aspo_data::validate::{ValidateOptions, validate};
use aspo_data::{Encoder, Format, OnFault, Template, Tokenizer};
use clap::Parser;

use crate::{Failure, note, say};

/// Checks a file of preference pairs.
#[derive(Parser)]
pub struct ValidateArgs {
    /// JSON list, JSON lines or parquet, plain, gzip or zstd; a folder of such files, or a pattern.
    file: PathBuf,
    /// trl, seva, rlaif-v, llama-factory, ms-swift, openai or ha-dpo; recognised where not given.
    #[arg(long)]
    format: Option<Format>,
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

/// Prints the account. The exit code is 0, 1 where there are faults, 2 where the file cannot be read, or not to its end.
pub fn run(arguments: &ValidateArgs) -> ExitCode {
    account(arguments).unwrap_or_else(|error| {
        note!("error: {error}");
        ExitCode::from(2)
    })
}

fn account(arguments: &ValidateArgs) -> Result<ExitCode, Failure> {
    if let Some(images) = arguments.images.as_ref().filter(|images| !images.is_dir()) {
        let what = if images.exists() {
            "a file, where the folder of the images is wanted"
        } else {
            "no such folder"
        };
        return Err(format!("--images {}: {what}", images.display()).into());
    }
    if let Some(tokenizer) = arguments.tokenizer.as_ref().filter(|tokenizer| tokenizer.is_dir()) {
        let what = "a folder: name the tokenizer.json in it";
        return Err(format!("--tokenizer {}: {what}", tokenizer.display()).into());
    }
    let encoder = match &arguments.tokenizer {
        None => None,
        Some(path) => Some(Encoder {
            max_length: Some(arguments.max_length),
            ..Encoder::new(Tokenizer::from_file(path)?, arguments.template, arguments.image_tokens)
        }),
    };
    let options = ValidateOptions {
        format: arguments.format,
        image_root: arguments.images.clone(),
        decode_images: arguments.decode,
        encoder: encoder.as_ref(),
        on_fault: if arguments.strict { OnFault::Stop } else { OnFault::Skip },
        ..ValidateOptions::default()
    };
    let report = validate(&arguments.file, &options)?;
    let text = if arguments.json { serde_json::to_string_pretty(&report)? } else { report.to_string() };
    say!("{text}");
    Ok(ExitCode::from(match (report.broken.is_some(), report.faulty()) {
        (true, _) => 2,
        (false, 0) => 0,
        (false, _) => 1,
    }))
}
