//! Splits the texts of a JSONL file into sentences.
//!
//! ```sh
//! cargo run --release --example segment -- answers.jsonl > ends.jsonl
//! cargo run --release --example segment -- labelled.jsonl --score
//! ```
//!
//! Every line is an object with `text`. For each, one line is printed with `ends`: where its sentences end, in
//! characters, the white space behind a sentence left out. With `--score` the lines also hold the right `ends`, and the
//! precision, recall and F1 of ours are printed instead.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::PathBuf;

use aspo_segment::{SplitOptions, split};
use clap::Parser;
use serde::{Deserialize, Serialize};

type Error = Box<dyn std::error::Error>;

#[derive(Parser)]
#[command(about = "Splits the texts of a JSONL file into sentences")]
struct Arguments {
    /// A JSONL file whose lines hold `text`, and `ends` for `--score`.
    file: PathBuf,
    /// Compare with the `ends` of each line and print precision, recall and F1.
    #[arg(long)]
    score: bool,
}

#[derive(Deserialize)]
struct Labelled {
    text: String,
    ends: Option<Vec<usize>>,
}

#[derive(Serialize)]
struct Ends {
    ends: Vec<usize>,
}

/// Sentence ends found, right ones, and those that are both.
#[derive(Default)]
struct Score {
    found: usize,
    right: usize,
    both: usize,
}

impl Score {
    fn add(&mut self, found: &[usize], right: &[usize]) {
        self.found += found.len();
        self.right += right.len();
        self.both += found.iter().filter(|end| right.contains(end)).count();
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let share = |of: usize| self.both as f64 / of.max(1) as f64;
        let f1 = 2.0 * self.both as f64 / (self.found + self.right).max(1) as f64;
        writeln!(out, "precision {:.4}  recall {:.4}  F1 {f1:.4}", share(self.found), share(self.right))
    }
}

fn main() -> Result<(), Error> {
    let arguments = Arguments::parse();
    let name = arguments.file.display();
    let file = File::open(&arguments.file).map_err(|error| format!("{name}: {error}"))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut score = Score::default();
    for (row, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| format!("{name}: line {}: {error}", row + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let labelled: Labelled =
            serde_json::from_str(&line).map_err(|error| format!("{name}: line {}: {error}", row + 1))?;
        let ends = sentence_ends(&labelled.text);
        if arguments.score {
            let right = labelled
                .ends
                .ok_or_else(|| format!("{name}: line {}: no `ends` to score against", row + 1))?;
            score.add(&ends, &right);
        } else {
            serde_json::to_writer(&mut out, &Ends { ends })?;
            writeln!(out)?;
        }
    }
    if arguments.score {
        score.print(&mut out)?;
    }
    Ok(out.flush()?)
}

/// Where each sentence ends, in characters, without the white space behind it.
fn sentence_ends(text: &str) -> Vec<usize> {
    let mut characters = 0;
    let mut ends = Vec::new();
    for span in split(text, &SplitOptions::default()) {
        let sentence = &text[span];
        ends.push(characters + sentence.trim_end().chars().count());
        characters += sentence.chars().count();
    }
    ends
}
