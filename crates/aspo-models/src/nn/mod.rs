//! The layers shared by the models, with Hugging Face's parameter names and layouts.
//!
//! A parameter's path in the module tree is its name in a checkpoint: [`Linear`] keeps `weight` as `[out, in]`,
//! norms call their parameters `weight` and `bias`, and so no table of renamed tensors is needed.
//! Softmax, norms and rotary angles are computed in `f32` whatever the dtype of the weights.

mod activation;
mod attention;
mod each;
mod embedding;
mod init;
mod linear;
mod norm;

pub use crate::each_linear;
pub use activation::Activation;
pub use aspo_kernels::{
    Before, CHUNK_SCORES, Context, Heads, KvCache, Layer, Rotary, attend, attention, has_kernels, linear,
    merge_heads,
};
pub use attention::{CausalContext, bidirectional, unmasked};
pub use each::{EachLinear, join};
pub use embedding::{Embedding, PatchEmbedding};
pub use init::{Init, initialize};
pub(crate) use init::{normal, ones, rng_for, zeros};
pub(crate) use linear::project;
pub use linear::{Linear, Lora, Original};
pub use norm::{LayerNorm, RmsNorm};
pub(crate) use norm::{cast, to_f32, wide};
