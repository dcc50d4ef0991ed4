//! The program aspo.
fn main() {}
