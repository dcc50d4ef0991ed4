//! What becomes of rows, pictures and questions that cannot be used.

/// What to do with a faulty row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFault {
    /// Stop at the first.
    #[default]
    Stop,
    /// Leave it out and count it.
    Skip,
}

/// Most faults that a report spells out.
pub const MAX_FAULTS_TOLD: usize = 20;
