//! LoRA adapters by PEFT's rules, in and out of PEFT's files (Hu et al. 2021).
//!
//! [`attach`] puts factors beside the layers a [`LoraConfig`] names and freezes all else; [`without_adapters`] is
//! the base model over the same storage, which makes it the reference model of preference training for free.

mod attach;
mod config;
mod file;
mod merge;
mod target;
mod whole;

pub use attach::{adapted_layers, attach, with_products_in_bf16};
pub use config::{Indices, InitLora, LoraConfig, Names, Patterns};
pub use file::{Adapter, load_adapter, save_adapter};
pub use merge::{merge, unmerge, without_adapters};
pub use target::Adapted;
