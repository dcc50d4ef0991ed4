//! A transformer block's operations on [Burn](https://burn.dev) tensors, each with a backward of its own.
//!
//! Autodiff keeps what each small operation reads, and an attention of small operations keeps its scores, its mask and every
//! copy between. Here an operation is as large as it can be, keeps the least its backward needs, and makes the rest again:
//!
//! | operation | what | kept, values a token |
//! |---|---|---|
//! | [`linear()`] | up to three layers of one input, biases, LoRA, norm or activation before, residual after | `in + Σ rank` |
//! | [`attention()`] | rotary positions, grouped queries, causal order and segments | `(2 heads + 2 groups) dim + heads` |
//! | [`KvCache::attention`] | the same for new tokens behind those of a cache, without a backward | |
//! | [`cross_attention`] | over another sequence | `2 heads dim + heads`, and `2 groups dim` a key |
//! | [`rms_norm`], [`layer_norm`], [`Activation`] | | `in` |
//! | [`head_pass`] | log-probabilities of given tokens and their gradients, by tiles of logits | as told |
//!
//! A LLaMA block is five of them:
//!
//! ```
//! use aspo_kernels::{Activation, Before, BlockMask, Context, Heads, Layer, Rotary, attention, linear};
//! use burn::tensor::{Tensor, backend::Backend};
//!
//! struct Block<B: Backend> {
//!     norms: [Tensor<B, 1>; 2],
//!     qkv: [Layer<B>; 3],
//!     o: Layer<B>,
//!     gate_up: [Layer<B>; 2],
//!     down: Layer<B>,
//! }
//!
//! fn block<B: Backend>(b: &Block<B>, x: Tensor<B, 3>, heads: Heads, context: &Context<B>) -> Tensor<B, 3> {
//!     let norm = |i: usize| Before::RmsNorm { weight: b.norms[i].clone(), eps: 1e-6 };
//!     let qkv = linear(x.clone(), norm(0), &b.qkv, None);
//!     let x = linear(attention(qkv, heads, context), Before::Nothing, &[b.o.clone()], Some(x));
//!     let wide = linear(x.clone(), norm(1), &b.gate_up, None);
//!     linear(wide, Before::Gated(Activation::Silu), &[b.down.clone()], Some(x))
//! }
//!
//! type B = burn_flex::Flex;
//! let device = Default::default();
//! let ones = |shape| Layer::<B> { weight: Tensor::ones(shape, &device), bias: None, lora: None };
//! let heads = Heads { heads: 2, groups: 1, dim: 4 };
//! let b = Block {
//!     norms: [Tensor::ones([8], &device), Tensor::ones([8], &device)],
//!     qkv: [ones([8, 8]), ones([4, 8]), ones([4, 8])],
//!     o: ones([8, 8]),
//!     gate_up: [ones([16, 8]), ones([16, 8])],
//!     down: ones([8, 16]),
//! };
//! // A prompt of three tokens, two answers beside it, and one token of padding.
//! let mask = BlockMask::causal(1, 8, &[0, 0, 0, 1, 1, 2, 2, -1]);
//! let rotary = Rotary::new(&[0, 1, 2, 3, 4, 3, 4, 0], 4, 10_000.0, 1.0);
//! let y = block(&b, Tensor::ones([1, 8, 8], &device), heads, &Context::new(mask, Some(rotary), &device));
//! assert_eq!(y.dims(), [1, 8, 8]);
//! ```
//!
//! Which way an operation takes is read from its tensors:
//!
//! - **f32 values in flex's memory** (`Flex`, `Autodiff<Flex>`; feature `flex`, on by default) go to kernels over slices: AVX2
//!   or AVX-512 as found at run time, NEON as compiled, on all of rayon's threads. [`has_kernels`] tells.
//! - **Values in CubeCL's memory** (`Wgpu`, `Cuda` and their `Autodiff`; features `wgpu`, `cuda`) go to kernels in CubeCL for what is between
//!   products, which are Burn's.
//! - **Every other backend or type** goes to Burn's own operations, held to the same tests.
//!
//! Results do not depend on the number of threads: work is cut by shapes alone, and every value is summed in one order. They
//! do depend on the instruction set, in the last bits.

mod activation;
pub mod adamw;
mod attention;
#[cfg(any(feature = "flex", feature = "cube"))]
mod bridge;
mod context;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod decode;
mod head;
mod layer;
mod linear;
mod mask;
mod norm;
mod pass;
mod product;
mod rotary;
mod slot;

use burn::tensor::{DType, Tensor, backend::Backend};

pub use attention::{attend, attention, cross_attention, merge_heads};
pub use context::{CHUNK_SCORES, Context, Heads, split_heads};
pub use decode::{KvCache, Step};
pub use head::head_pass;
pub use layer::{Activation, Before, Factors, GROUP, Layer};
pub use linear::linear;
pub use mask::BlockMask;
pub use norm::{layer_norm, rms_norm};
pub use pass::{HeadGradients, HeadPass, HeadWant};
pub use product::product;
pub use rotary::{Rotary, Tables};

/// Whether f32 tensors of this backend go to kernels of this crate. What is kept for a backward depends on it.
pub fn has_kernels<B: Backend>() -> bool {
    #[cfg(feature = "cube")]
    if cube::is_cube::<B>() {
        return true;
    }
    widens::<B>()
}

/// Whether the kernels of this backend take f32 values over a base of any type, so that values need never be narrowed to the
/// type of the base (on the CPU, where narrow types are no faster).
pub fn widens<B: Backend>() -> bool {
    #[cfg(feature = "flex")]
    return cpu::bridge::is_flex::<B>();
    #[cfg(not(feature = "flex"))]
    return false;
}

/// Whether a device of this backend is the CPU.
pub fn on_cpu<B: Backend>(device: &B::Device) -> bool {
    let name = B::name(device).to_lowercase();
    ["flex", "ndarray", "cpu"].iter().any(|host| name.contains(host))
}

/// `Tensor::cat`, whose inputs stay in the graph meanwhile.
///
/// Burn 0.21's autodiff lets go of them before it has registered the result. Where nothing else holds on to their graph
/// (the first layer over embeddings that do not train, say), a backward pass that ends on another thread takes the graph for
/// abandoned and frees it, and gradients are lost without a word.
pub fn cat<B: Backend, const D: usize>(tensors: Vec<Tensor<B, D>>, dim: usize) -> Tensor<B, D> {
    let _kept = tensors.clone();
    Tensor::cat(tensors, dim)
}

pub(crate) fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}

/// The type that holds both: f32 beside a half.
pub(crate) fn wider(a: DType, b: DType) -> DType {
    if a.size() >= b.size() { a } else { b }
}

/// The example of the README compiles and runs too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
