//! Promises of aspo-segment, one module a theme.
