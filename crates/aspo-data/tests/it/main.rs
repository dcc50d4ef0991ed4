//! Tests of `aspo-data`, by promise.

mod batch;
mod encode;
mod image;
mod noise;
mod read;
mod support;
mod tokenizer;
