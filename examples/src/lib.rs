//! What the examples share: choosing a backend, and printing.
