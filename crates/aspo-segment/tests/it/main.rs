//! Promises of aspo-segment, one module a theme.

mod align;
mod answer;
mod benchmark;
mod corpora;
mod lengths;
mod oracle;
mod property;

use aspo_segment::{SplitOptions, split};

/// The sentences of a text, by the default rules, white space around them cut off.
fn sentences(text: &str) -> Vec<&str> {
    sentences_with(text, &SplitOptions::default())
}

fn sentences_with<'t>(text: &'t str, options: &SplitOptions) -> Vec<&'t str> {
    split(text, options).map(|span| text[span].trim()).collect()
}
