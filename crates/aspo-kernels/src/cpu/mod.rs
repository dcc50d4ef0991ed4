//! The kernels for Burn's CPU backend.
//!
//! `attention`, `decode`, `linear`, `row` and `head` are functions over slices. `vector` and `matrix` are what they are made of, and hold all
//! `unsafe` code. `bridge` is the way between flex's tensors and slices, `ops` the operations on tensors.

#![allow(clippy::needless_range_loop)] // Loops by index over slices of one length become vectors, zipped iterators not always.

mod attention;
pub(crate) mod bridge;
mod decode;
mod head;
mod linear;
mod matrix;
pub(crate) mod ops;
mod row;
#[cfg(test)]
mod tests;
mod vector;

pub(crate) use decode::Cache;
