//! Every operation against plain loops in f64, values and gradients, on every backend: flex by its kernels, others by
//! Burn's own operations.

mod adamw;
mod attention;
mod block;
mod cat;
mod cross;
mod decode;
mod head;
#[cfg(feature = "wgpu")]
mod launches;
mod linear;
mod norm;
mod support;
