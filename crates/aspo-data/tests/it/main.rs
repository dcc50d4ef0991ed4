//! Tests of `aspo-data`, by promise.

mod batch;
#[cfg(feature = "parquet")]
mod corpora;
mod encode;
mod files;
mod hostile;
mod image;
mod noise;
mod order;
#[cfg(feature = "parquet")]
mod parquet;
mod prompt;
mod read;
mod records;
mod set;
mod seva;
mod similarity;
mod source;
mod support;
mod tokenizer;
mod validate;
