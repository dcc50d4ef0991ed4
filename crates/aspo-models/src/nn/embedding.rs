//! Token tables and image patches.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend, module::embedding, s};

use super::init::{normal, zeros};
use super::linear::Original;
use super::norm::cast;

/// A table of vectors, one a token.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[rows, features]`.
    pub weight: Param<Tensor<B, 2>>,
    /// The base's own table, where an adapter put a whole one in its place.
    pub original: Option<Original<B>>,
}

impl<B: Backend> Embedding<B> {
    /// A table of `rows` vectors.
    pub fn new(rows: usize, features: usize, device: &B::Device) -> Self {
        Self { weight: normal([rows, features], device), original: None }
    }

    /// Keep the table, before an adapter's takes its place.
    pub(crate) fn keep_original(&mut self) {
        self.original = Some(Original { weight: self.weight.clone(), bias: None, merged: false });
    }

    /// The base's own table, unless the adapter's was merged.
    pub(crate) fn restore(&mut self) {
        if let Some(original) = self.original.take().filter(|original| !original.merged) {
            self.weight = original.weight;
        }
    }

    /// `[batch, tokens]` ids to `[batch, tokens, features]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        embedding(self.weight.val(), ids)
    }
}

/// A convolution whose stride equals its kernel: one product for each patch.
#[derive(Module, Debug)]
pub struct PatchEmbedding<B: Backend> {
    /// `[features, channels, patch, patch]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[features]`; CLIP has none.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> PatchEmbedding<B> {
    /// Patches of `patch × patch` pixels.
    pub fn new(channels: usize, features: usize, patch: usize, bias: bool, device: &B::Device) -> Self {
        Self {
            weight: normal([features, channels, patch, patch], device),
            bias: bias.then(|| zeros([features], device)),
        }
    }

    /// `[images, channels, height, width]` to `[images, patches, features]`, row by row. What is left at the right and bottom
    /// edge, less than a patch, is not looked at.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let [features, channels, patch, _] = self.weight.lazy_shape().dims();
        let [images, _, height, width] = pixels.dims();
        let (rows, columns) = (height / patch, width / patch);
        let patches = pixels
            .slice(s![.., .., ..rows * patch, ..columns * patch])
            .reshape([images, channels, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([images * rows * columns, channels * patch * patch]);
        let weight = self.weight.val().reshape([features, channels * patch * patch]);
        let out = cast(patches, weight.dtype()).matmul(weight.transpose());
        let out = match &self.bias {
            Some(bias) => out + bias.val().unsqueeze(),
            None => out,
        };
        out.reshape([images, rows * columns, features])
    }
}
