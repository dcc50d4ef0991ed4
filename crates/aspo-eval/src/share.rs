//! Shares of right answers.

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// How many of how many are right; written with its percentage as `accuracy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Right ones.
    pub correct: usize,
    /// All.
    pub total: usize,
}

impl Share {
    /// Counts one more.
    pub fn count(&mut self, right: bool) {
        self.correct += usize::from(right);
        self.total += 1;
    }

    /// 100 · correct / total; `None` of nothing.
    pub fn percent(&self) -> Option<f64> {
        (self.total > 0).then(|| 100.0 * self.correct as f64 / self.total as f64)
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut share = serializer.serialize_struct("Share", 3)?;
        share.serialize_field("accuracy", &self.percent())?;
        share.serialize_field("correct", &self.correct)?;
        share.serialize_field("total", &self.total)?;
        share.end()
    }
}
