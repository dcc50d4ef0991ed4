//! What became of the rows of a run's files.

use std::collections::BTreeSet;

use aspo_data::{EncodedPair, OnFault, Sources};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Faults that are spelled out; those beyond are counted.
const TOLD: usize = 5;
/// What became of the rows of `data` and `eval_data`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Rows read.
    pub rows: usize,
    /// Left out because the prompt leaves no room for an answer.
    pub no_room: usize,
    /// Left out because both answers are the same text, as far as `max_length` keeps them.
    pub equal: usize,
    /// Questions of HA-DPO that its model had answered correctly; HA-DPO leaves them out as well.
    pub correct: usize,
    /// Rows of several answers whose scores are not far enough apart.
    pub tied: usize,
    /// Left out for another fault of the row or its picture (`on_fault = "skip"`).
    pub faulty: usize,
    /// The first of these faults, in words.
    pub faults: Vec<String>,
    /// Chosen answers that lose their end to `max_length`.
    pub cut_chosen: usize,
    /// Rejected answers that do.
    pub cut_rejected: usize,
    /// Columns that held something and that no pair took in.
    pub unread: BTreeSet<String>,
}

impl Account {
    /// What a person should know before the first step, a line each; nothing if every row is used whole.
    pub fn lines(&self, max_length: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let rows = self.rows;
        let mut left_out = |count: usize, why: &str| {
            if count > 0 {
                lines.push(format!("{count} of {rows} pairs left out: {why}"));
            }
        };
        left_out(
            self.no_room,
            &format!("their prompt leaves no room for an answer in max_length {max_length}"),
        );
        left_out(self.equal, "chosen and rejected are the same text");
        left_out(self.correct, "questions that the model had answered correctly");
        left_out(self.tied, "no two of their answers have scores far enough apart");
        left_out(self.faulty, "faulty rows or pictures");
        lines.extend(self.faults.iter().map(|fault| format!("  {fault}")));
        if self.faulty > self.faults.len() && !self.faults.is_empty() {
            lines.push(format!("  … and {} more", self.faulty - self.faults.len()));
        }
        if self.cut_chosen + self.cut_rejected > 0 {
            lines.push(format!(
                "{} chosen and {} rejected answers of {rows} pairs lose their end: longer than max_length {max_length}",
                self.cut_chosen, self.cut_rejected
            ));
        }
        if !self.unread.is_empty() {
            let columns: Vec<&str> = self.unread.iter().map(String::as_str).collect();
            lines.push(format!("columns that are not read: {}", columns.join(", ")));
        }
        lines
    }

    /// Counts a fault that is skipped, or gives it back.
    pub(crate) fn skip(&mut self, fault: Error, on_fault: OnFault) -> Result<()> {
        if on_fault == OnFault::Stop {
            return Err(fault);
        }
        self.faulty += 1;
        if self.faults.len() < TOLD {
            self.faults.push(fault.to_string());
        }
        Ok(())
    }

    pub(crate) fn count_cut(&mut self, pair: &EncodedPair) {
        self.cut_chosen += usize::from(pair.chosen.truncated);
        self.cut_rejected += usize::from(pair.rejected.truncated);
    }

    /// Takes back what a pair counted that is left out after all.
    pub(crate) fn discount_cut(&mut self, pair: &EncodedPair) {
        self.cut_chosen = self.cut_chosen.saturating_sub(usize::from(pair.chosen.truncated));
        self.cut_rejected = self.cut_rejected.saturating_sub(usize::from(pair.rejected.truncated));
    }

    /// Adds what became of other rows.
    pub(crate) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.no_room += other.no_room;
        self.equal += other.equal;
        self.correct += other.correct;
        self.tied += other.tied;
        self.faulty += other.faulty;
        self.faults.extend(other.faults);
        self.faults.truncate(TOLD);
        self.cut_chosen += other.cut_chosen;
        self.cut_rejected += other.cut_rejected;
        self.unread.extend(other.unread);
    }
}

/// Refuses sources of which no pair is left.
pub(crate) fn none_left(
    option: &'static str,
    sources: &Sources,
    left: usize,
    account: &Account,
) -> Result<()> {
    if left > 0 {
        return Ok(());
    }
    let why = [
        (account.no_room, "leave no room"),
        (account.equal, "equal"),
        (account.correct, "answered correctly"),
        (account.tied, "tied"),
        (account.faulty, "faulty"),
    ];
    let why: Vec<String> =
        why.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} {why}")).collect();
    let found = format!("{sources} holds no pair that can be used ({})", why.join(", "));
    Err(Error::option(option, found, "give pairs, or a larger max_length"))
}
