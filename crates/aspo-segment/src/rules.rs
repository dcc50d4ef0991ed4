//! Where a sentence ends, by each of the [`Rules`](crate::Rules).

use crate::answer;
use crate::chars::{is_newline, leading_space};
use crate::options::{Rules, SplitOptions};

/// The end of the sentence that starts at `start`, its trailing white space included. What ends it is looked for before
/// `limit`; an end past `limit` only says that there is none before.
pub(crate) fn sentence_end(text: &str, start: usize, limit: usize, options: &SplitOptions) -> usize {
    match options.rules {
        Rules::Answer => answer::sentence_end(text, start, limit, options.language),
        Rules::Period => after(text, start, limit, |c| c == '.'),
        Rules::Newline => after(text, start, limit, is_newline),
    }
}

/// The end of the first run of `is_end`, and the white space behind it.
fn after(text: &str, start: usize, limit: usize, is_end: fn(char) -> bool) -> usize {
    let first = start + leading_space(&text[start..]);
    let Some(found) = text[first.min(limit)..limit].find(is_end) else {
        return text.len();
    };
    let found = first + found;
    let end = text.len() - text[found..].trim_start_matches(is_end).len();
    end + leading_space(&text[end..])
}
