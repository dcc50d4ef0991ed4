//! The image tower: a ViT whose query, key and value projections are one layer.

use aspo_kernels::{Before, Heads, linear};
use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::config::BlipVisionConfig;
use crate::clip::ClipMlp;
use crate::nn::{Context, LayerNorm, Linear, PatchEmbedding, attention, each_linear, normal, unmasked};

/// Self-attention with a fused projection.
#[derive(Module, Debug)]
pub struct BlipAttention<B: Backend> {
    qkv: Linear<B>,
    projection: Linear<B>,
    heads: usize,
}
each_linear!(BlipAttention: qkv, projection);

/// A pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct BlipEncoderLayer<B: Backend> {
    self_attn: BlipAttention<B>,
    layer_norm1: LayerNorm<B>,
    mlp: ClipMlp<B>,
    layer_norm2: LayerNorm<B>,
}
each_linear!(BlipEncoderLayer: self_attn, mlp);

impl<B: Backend> BlipEncoderLayer<B> {
    fn forward(&self, x: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let a = &self.self_attn;
        let heads = Heads { heads: a.heads, groups: a.heads, dim: x.dims()[2] / a.heads };
        let qkv = linear(x.clone(), self.layer_norm1.before(), &[a.qkv.layer()], None);
        let x = linear(attention(qkv, heads, context), Before::Nothing, &[a.projection.layer()], Some(x));
        self.mlp.add_to(x, &self.layer_norm2)
    }
}

/// The stack of layers.
#[derive(Module, Debug)]
pub struct BlipEncoder<B: Backend> {
    layers: Vec<BlipEncoderLayer<B>>,
}
each_linear!(BlipEncoder: layers);

/// Class vector, patches and positions.
#[derive(Module, Debug)]
pub struct BlipVisionEmbeddings<B: Backend> {
    class_embedding: Param<Tensor<B, 3>>,
    patch_embedding: PatchEmbedding<B>,
    position_embedding: Param<Tensor<B, 3>>,
}

/// The image tower.
#[derive(Module, Debug)]
pub struct BlipVisionModel<B: Backend> {
    embeddings: BlipVisionEmbeddings<B>,
    encoder: BlipEncoder<B>,
    post_layernorm: LayerNorm<B>,
}
each_linear!(BlipVisionModel: encoder);

impl<B: Backend> BlipVisionModel<B> {
    /// The tower of a config, its parameters not yet allocated.
    pub fn new(c: &BlipVisionConfig, device: &B::Device) -> Self {
        let width = c.hidden_size;
        let norm = || LayerNorm::new(width, c.layer_norm_eps, device);
        let layer = |_| BlipEncoderLayer {
            self_attn: BlipAttention {
                qkv: Linear::new(width, 3 * width, c.qkv_bias, device),
                projection: Linear::new(width, width, true, device),
                heads: c.num_attention_heads,
            },
            layer_norm1: norm(),
            mlp: ClipMlp::new(width, c.intermediate_size, c.hidden_act, device),
            layer_norm2: norm(),
        };
        Self {
            embeddings: BlipVisionEmbeddings {
                class_embedding: normal([1, 1, width], device),
                patch_embedding: PatchEmbedding::new(3, width, c.patch_size, true, device),
                position_embedding: normal([1, c.patches() + 1, width], device),
            },
            encoder: BlipEncoder { layers: (0..c.num_hidden_layers).map(layer).collect() },
            post_layernorm: norm(),
        }
    }

    /// `[images, 3, size, size]` to `[images, 1 + patches, width]` after the final norm.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let patches = self.embeddings.patch_embedding.forward(pixels);
        let [images, _, width] = patches.dims();
        let class = self.embeddings.class_embedding.val().expand([images, 1, width]);
        let mut x = aspo_kernels::cat(vec![class, patches], 1) + self.embeddings.position_embedding.val();
        let context = unmasked(images, x.dims()[1], &x.device());
        for layer in &self.encoder.layers {
            x = layer.forward(x, &context);
        }
        self.post_layernorm.forward(x)
    }
}
