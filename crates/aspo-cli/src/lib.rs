//! The program aspo.
