//! Making the tiny base models of the scenes world.

pub mod clip;
pub mod corpus;
pub mod llava;
pub mod tokenizer;
