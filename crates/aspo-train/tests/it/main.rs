//! The crate's promises, one module each.
