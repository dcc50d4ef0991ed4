//! What a judge replied, when, at what cost: the lines of a transcript.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the judge replied, and everything needed to repeat it. One line of a transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The question's id.
    pub id: String,
    /// The run, from 1.
    pub run: usize,
    /// The model's name as it was asked for; empty in transcripts of earlier versions.
    #[serde(default)]
    pub asked: String,
    /// The model's name, as the endpoint reports it.
    pub judge_model: String,
    /// When, in UTC.
    pub date: String,
    /// The last prompt.
    pub prompt: String,
    /// The raw replies to all tries; the last one is the judgement.
    pub replies: Vec<String>,
    /// Why the endpoint gave no text, if it gave none: a filter blocked the question, or the reply. It is not asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked: Option<String>,
    /// What it cost.
    pub usage: Usage,
}

impl Reply {
    /// The reply that counts: the last; empty if it was blocked.
    pub fn text(&self) -> &str {
        match self.blocked {
            Some(_) => "",
            None => self.replies.last().map_or("", String::as_str),
        }
    }
}

/// What judging cost, as the endpoint reports it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Requests that were sent, failed ones included.
    pub requests: u64,
    /// Tokens of prompts.
    pub prompt_tokens: u64,
    /// Tokens of replies.
    pub completion_tokens: u64,
}

impl Usage {
    /// What that is in money, at the endpoint's prices for a million tokens of prompt and of reply.
    pub fn cost(self, prompt_price: f64, completion_price: f64) -> f64 {
        (self.prompt_tokens as f64 * prompt_price + self.completion_tokens as f64 * completion_price) / 1e6
    }
}

impl std::iter::Sum for Usage {
    fn sum<I: Iterator<Item = Self>>(usages: I) -> Self {
        usages.fold(Self::default(), |sum, one| Self {
            requests: sum.requests + one.requests,
            prompt_tokens: sum.prompt_tokens + one.prompt_tokens,
            completion_tokens: sum.completion_tokens + one.completion_tokens,
        })
    }
}

/// What a list of replies cost together.
pub fn total_usage(replies: &[Reply]) -> Usage {
    replies.iter().map(|reply| reply.usage).sum()
}

/// Replies as JSON lines.
pub(super) fn lines<'a>(replies: impl IntoIterator<Item = &'a Reply>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for reply in replies {
        serde_json::to_writer(&mut bytes, reply).expect("a reply is plain data");
        bytes.push(b'\n');
    }
    bytes
}

/// The whole lines of a transcript; none if it is not there. A last line that a crash cut off is dropped.
pub(super) fn read_transcript(path: &Path) -> Result<Vec<Reply>> {
    let text = match std::fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Io { path: path.into(), source }),
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut replies: Vec<Reply> = Vec::new();
    for (at, line) in whole.lines().enumerate() {
        let (path, row) = (path.to_path_buf(), at + 1);
        let reply: Reply = match serde_json::from_str(line) {
            Ok(reply) => reply,
            Err(e) => return Err(Error::Malformed { path, row, message: e.to_string() }),
        };
        if replies.iter().any(|r| r.id == reply.id && r.run == reply.run) {
            return Err(Error::DuplicateId { path, row, id: reply.id });
        }
        replies.push(reply);
    }
    Ok(replies)
}

/// The time, as `2025-05-26T07:03:09Z`.
pub(super) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    utc(seconds)
}

/// Seconds since 1970 as a date of the civil calendar (Hinnant, "chrono-compatible low-level date algorithms").
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second % 3_600 / 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_748_242_989), "2025-05-26T07:03:09Z");
    }
}
