//! Every operation against plain loops in f64, values and gradients, on every backend: flex by its kernels, others by
//! Burn's own operations.

mod adamw;
mod attention;
mod block;
mod cat;
mod cross;
mod decode;
mod head;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod launches;
mod linear;
mod norm;
mod support;
