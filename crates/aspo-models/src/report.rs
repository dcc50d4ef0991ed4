//! What loading did with each tensor.

use std::fmt;

use crate::layout::Layout;

/// A tensor whose shape is not its parameter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisShaped {
    /// Path of the parameter.
    pub path: String,
    /// Shape in the file.
    pub found: Vec<usize>,
    /// Shape of the parameter.
    pub expected: Vec<usize>,
}

/// What was done with each tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// Parameters filled.
    pub loaded: usize,
    /// Paths of parameters that had no tensor.
    pub missing: Vec<String>,
    /// Names of tensors that had no parameter.
    pub unused: Vec<String>,
    /// Tensors of another shape.
    pub mis_shaped: Vec<MisShaped>,
    /// The prefixes met, to save under the same names.
    pub layout: Layout,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} loaded", self.loaded)?;
        let list = |f: &mut fmt::Formatter<'_>, what: &str, names: Vec<String>| {
            if names.is_empty() {
                Ok(())
            } else {
                write!(f, "\n{} {what}: {}", names.len(), names.join(", "))
            }
        };
        list(f, "missing from the files", self.missing.clone())?;
        list(f, "in the files but not in the model", self.unused.clone())?;
        let shapes = |m: &MisShaped| format!("{} {:?} instead of {:?}", m.path, m.found, m.expected);
        list(f, "of another shape", self.mis_shaped.iter().map(shapes).collect())
    }
}
