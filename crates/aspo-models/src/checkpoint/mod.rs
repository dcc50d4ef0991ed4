//! Hugging Face checkpoints in and out: safetensors, single or sharded, memory-mapped, tensor by tensor.
//!
//! A parameter's path in the module is its name in a file, but for prefixes that differ from one age of the library
//! to the next; [`Pretrained::PREFIXES`] lists them and [`Layout`] remembers which were met, so that a model is
//! saved under the names it was read from. No pickle is read.

mod file;
mod load;
mod precision;
mod pretrained;
mod save;

pub use crate::layout::{Layout, Prefix};
pub use crate::report::{LoadReport, MisShaped};
pub use file::Checkpoint;
pub use load::{LoadOptions, load};
pub use precision::Precision;
pub use pretrained::Pretrained;
pub(crate) use save::{Pending, write_tensors};
pub use save::{SaveOptions, save};
