//! SigLIP's image tower: a ViT without class token (Zhai et al. 2023, "Sigmoid loss for language image pre-training").

mod config;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::clip::{ClipEncoder, layer_index};
use crate::nn::{Embedding, LayerNorm, PatchEmbedding, each_linear, unmasked, wide};

pub use config::SiglipVisionConfig;

/// Tiles that go through the tower together: a cut picture has up to 37, whose values need not all be held at once.
const TOGETHER: usize = 8;

/// Patches and their positions.
#[derive(Module, Debug)]
pub struct SiglipVisionEmbeddings<B: Backend> {
    patch_embedding: PatchEmbedding<B>,
    position_embedding: Embedding<B>,
}

/// The image tower.
#[derive(Module, Debug)]
pub struct SiglipVisionModel<B: Backend> {
    embeddings: SiglipVisionEmbeddings<B>,
    encoder: ClipEncoder<B>,
    post_layernorm: LayerNorm<B>,
}
each_linear!(SiglipVisionModel: encoder);

impl<B: Backend> SiglipVisionModel<B> {
    /// The tower of a config, its parameters not yet allocated.
    pub fn new(c: &SiglipVisionConfig, device: &B::Device) -> Self {
        let sizes = (c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers);
        Self {
            embeddings: SiglipVisionEmbeddings {
                patch_embedding: PatchEmbedding::new(3, c.hidden_size, c.patch_size, true, device),
                position_embedding: Embedding::new(c.patches(), c.hidden_size, device),
            },
            encoder: ClipEncoder::new(sizes, c.hidden_act, c.layer_norm_eps, device),
            post_layernorm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
        }
    }

    /// `[tiles, 3, size, size]` to `[tiles, patches, hidden]` after the final norm; patches row by row.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let layers = self.encoder.layers.len();
        self.in_groups(pixels, |tiles| self.post_layernorm.forward(self.run(tiles, layers)))
    }

    /// The hidden state with this index, without the final norm: 0 is the embeddings, then each layer's result; negative
    /// counts from the end. `None` where there is no such layer.
    pub fn hidden_state(&self, pixels: Tensor<B, 4>, index: i64) -> Option<Tensor<B, 3>> {
        let layers = layer_index(self.encoder.layers.len(), index)?;
        Some(self.in_groups(pixels, |tiles| self.run(tiles, layers)))
    }

    fn in_groups(&self, pixels: Tensor<B, 4>, see: impl Fn(Tensor<B, 4>) -> Tensor<B, 3>) -> Tensor<B, 3> {
        aspo_kernels::cat(pixels.split(TOGETHER, 0).into_iter().map(see).collect(), 0)
    }

    /// Patch `k` of a tile has row `k` of the position table. Idefics3 looks the row up by the patch's place as a fraction of
    /// the edge, in `f32`. For 2 to 18, 20 to 24, 26, 27, 28, 30 and 32 patches an edge, the published models' among them, that
    /// is the same; for others its rounding takes a neighbour's row here and there, which ones depends on the processor.
    fn run(&self, pixels: Tensor<B, 4>, layers: usize) -> Tensor<B, 3> {
        let patches = self.embeddings.patch_embedding.forward(pixels);
        let mut x = wide(patches + self.embeddings.position_embedding.weight.val().unsqueeze());
        let context = unmasked(x.dims()[0], x.dims()[1], &x.device());
        for layer in &self.encoder.layers[..layers] {
            x = layer.forward(x, &context);
        }
        x
    }
}
