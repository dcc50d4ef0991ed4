//! `aspo segment`: the sentences of the texts in a JSONL file.
//!
//! Every line, of a file or of standard input, is an object with `text`. For each, one line is printed with `ends`: where its sentences end, in
//! characters, the white space behind a sentence left out. With `--score` the lines also hold the right `ends`, and the
//! precision, recall and F1 of ours are printed instead.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use aspo_segment::{SplitOptions, split};
use clap::Parser;
use serde::{Deserialize, Serialize};

use crate::{Failure, say};

/// Splits the texts of a JSONL file into sentences.
#[derive(Parser)]
pub struct SegmentArgs {
    /// A JSONL file whose lines hold `text`, and `ends` for `--score`; standard input where not given.
    file: Option<PathBuf>,
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

    fn print(&self) {
        let share = |of: usize| self.both as f64 / of.max(1) as f64;
        let f1 = 2.0 * self.both as f64 / (self.found + self.right).max(1) as f64;
        say!("precision {:.4}  recall {:.4}  F1 {f1:.4}", share(self.found), share(self.right));
    }
}

/// Prints a line for each text, or the score of all of them.
///
/// # Errors
/// A file that cannot be read, a line that is not as it should be, by its number.
pub fn run(arguments: &SegmentArgs) -> Result<(), Failure> {
    let name = arguments.file.as_ref().map_or("standard input".to_owned(), |file| file.display().to_string());
    let input = |error: io::Error| Failure::from(format!("{name}: {error}"));
    let reader: Box<dyn BufRead> = match &arguments.file {
        Some(file) => Box::new(BufReader::new(File::open(file).map_err(input)?)),
        None => Box::new(io::stdin().lock()),
    };
    let mut score = Score::default();
    for (row, line) in reader.lines().enumerate() {
        let fault = |what: &dyn std::fmt::Display| Failure::from(format!("{name}: line {}: {what}", row + 1));
        let line = line.map_err(|error| fault(&error))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let labelled: Labelled = serde_json::from_str(line).map_err(|error| fault(&error))?;
        let ends = sentence_ends(&labelled.text);
        if arguments.score {
            let right = labelled.ends.ok_or_else(|| fault(&"no `ends` to score against"))?;
            score.add(&ends, &right);
        } else {
            let line = serde_json::to_string(&Ends { ends })?;
            say!("{line}");
        }
    }
    if arguments.score {
        score.print();
    }
    Ok(())
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
