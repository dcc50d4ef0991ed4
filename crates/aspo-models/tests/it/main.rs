//! Integration tests: each body is generic over the backend and runs on flex and ndarray.

mod adapters;
mod architecture;
mod checkpoints;
mod conversations;
mod corpora;
mod corrupt;
mod decoder;
mod generation;
mod layers;
mod memory;
mod oracle;
mod qwen;
mod recompute;
mod siglip;
mod support;
mod trajectory;
