//! The towers and their transformer layers.

use aspo_kernels::BlockMask;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};

use super::config::{ClipTextConfig, ClipVisionConfig};
use crate::ids::Ids;
use crate::nn::{
    Activation, Before, Context, Embedding, Heads, LayerNorm, Linear, PatchEmbedding, attention, each_linear,
    linear, normal, unmasked,
};

/// Multi-head self-attention with biases.
#[derive(Module, Debug)]
pub struct ClipAttention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    out_proj: Linear<B>,
    heads: usize,
}
each_linear!(ClipAttention: q_proj, k_proj, v_proj, out_proj);

impl<B: Backend> ClipAttention<B> {
    fn new(width: usize, heads: usize, device: &B::Device) -> Self {
        let linear = || Linear::new(width, width, true, device);
        Self { q_proj: linear(), k_proj: linear(), v_proj: linear(), out_proj: linear(), heads }
    }
}

/// Two linear layers with an activation between them.
#[derive(Module, Debug)]
pub struct ClipMlp<B: Backend> {
    fc1: Linear<B>,
    fc2: Linear<B>,
    #[module(skip)]
    act: Activation,
}
each_linear!(ClipMlp: fc1, fc2);

impl<B: Backend> ClipMlp<B> {
    pub(crate) fn new(width: usize, inner: usize, act: Activation, device: &B::Device) -> Self {
        Self {
            fc1: Linear::new(width, inner, true, device),
            fc2: Linear::new(inner, width, true, device),
            act,
        }
    }

    /// `x + fc2(act(fc1(norm(x))))`.
    pub(crate) fn add_to(&self, x: Tensor<B, 3>, norm: &LayerNorm<B>) -> Tensor<B, 3> {
        let wide = linear(x.clone(), norm.before(), &[self.fc1.layer()], None);
        linear(wide, Before::Activation(self.act.into()), &[self.fc2.layer()], Some(x))
    }
}

/// A pre-norm transformer layer.
#[derive(Module, Debug)]
pub struct ClipEncoderLayer<B: Backend> {
    self_attn: ClipAttention<B>,
    layer_norm1: LayerNorm<B>,
    mlp: ClipMlp<B>,
    layer_norm2: LayerNorm<B>,
}
each_linear!(ClipEncoderLayer: self_attn, mlp);

impl<B: Backend> ClipEncoderLayer<B> {
    pub(crate) fn forward(&self, x: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let a = &self.self_attn;
        let heads = Heads { heads: a.heads, groups: a.heads, dim: x.dims()[2] / a.heads };
        let layers = [a.q_proj.layer(), a.k_proj.layer(), a.v_proj.layer()];
        let mixed = attention(linear(x.clone(), self.layer_norm1.before(), &layers, None), heads, context);
        let x = linear(mixed, Before::Nothing, &[a.out_proj.layer()], Some(x));
        self.mlp.add_to(x, &self.layer_norm2)
    }
}

/// The stack of layers of either tower.
#[derive(Module, Debug)]
pub struct ClipEncoder<B: Backend> {
    /// In order.
    pub layers: Vec<ClipEncoderLayer<B>>,
}
each_linear!(ClipEncoder: layers);

impl<B: Backend> ClipEncoder<B> {
    pub(crate) fn new(
        (width, inner, heads, layers): (usize, usize, usize, usize),
        act: Activation,
        eps: f64,
        device: &B::Device,
    ) -> Self {
        let layer = |_| ClipEncoderLayer {
            self_attn: ClipAttention::new(width, heads, device),
            layer_norm1: LayerNorm::new(width, eps, device),
            mlp: ClipMlp::new(width, inner, act, device),
            layer_norm2: LayerNorm::new(width, eps, device),
        };
        Self { layers: (0..layers).map(layer).collect() }
    }
}

/// Token and position tables of the text tower.
#[derive(Module, Debug)]
pub struct ClipTextEmbeddings<B: Backend> {
    token_embedding: Embedding<B>,
    position_embedding: Embedding<B>,
}

/// The text tower: causal attention, final norm.
#[derive(Module, Debug)]
pub struct ClipTextModel<B: Backend> {
    embeddings: ClipTextEmbeddings<B>,
    encoder: ClipEncoder<B>,
    final_layer_norm: LayerNorm<B>,
}
each_linear!(ClipTextModel: encoder);

impl<B: Backend> ClipTextModel<B> {
    /// The tower of a config, its parameters not yet allocated.
    pub fn new(c: &ClipTextConfig, device: &B::Device) -> Self {
        let sizes = (c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers);
        Self {
            embeddings: ClipTextEmbeddings {
                token_embedding: Embedding::new(c.vocab_size, c.hidden_size, device),
                position_embedding: Embedding::new(c.max_position_embeddings, c.hidden_size, device),
            },
            encoder: ClipEncoder::new(sizes, c.hidden_act, c.layer_norm_eps, device),
            final_layer_norm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
        }
    }

    /// `[texts, tokens]` to `[texts, tokens, hidden]` after the final norm.
    pub fn forward(&self, ids: Tensor<B, 2, Int>, attention_mask: Ids<B>) -> Tensor<B, 3> {
        let tokens = ids.dims()[1];
        let positions = self.embeddings.position_embedding.weight.val().slice(0..tokens);
        let segments: Vec<i64> =
            attention_mask.values().iter().map(|&real| if real == 0 { -1 } else { 0 }).collect();
        let mask = BlockMask::causal(ids.dims()[0], tokens, &segments);
        let context = Context::new(mask, None, &ids.device());
        let mut x = self.embeddings.token_embedding.forward(ids) + positions.unsqueeze();
        for layer in &self.encoder.layers {
            x = layer.forward(x, &context);
        }
        self.final_layer_norm.forward(x)
    }
}

/// Class vector, patches and positions of the image tower.
#[derive(Module, Debug)]
pub struct ClipVisionEmbeddings<B: Backend> {
    class_embedding: Param<Tensor<B, 1>>,
    patch_embedding: PatchEmbedding<B>,
    position_embedding: Embedding<B>,
}

/// The image tower.
#[derive(Module, Debug)]
pub struct ClipVisionModel<B: Backend> {
    embeddings: ClipVisionEmbeddings<B>,
    // The name is Hugging Face's, spelling included.
    pre_layrnorm: LayerNorm<B>,
    encoder: ClipEncoder<B>,
    post_layernorm: LayerNorm<B>,
}
each_linear!(ClipVisionModel: encoder);

/// What the image tower gives.
#[derive(Debug, Clone)]
pub struct VisionOutput<B: Backend> {
    /// After the last layer, without the final norm: `[images, 1 + patches, hidden]`.
    pub last: Tensor<B, 3>,
    /// The class token after the final norm: `[images, hidden]`.
    pub pooled: Tensor<B, 2>,
}

impl<B: Backend> ClipVisionModel<B> {
    /// The tower of a config, its parameters not yet allocated.
    pub fn new(c: &ClipVisionConfig, device: &B::Device) -> Self {
        let sizes = (c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_hidden_layers);
        Self {
            embeddings: ClipVisionEmbeddings {
                class_embedding: normal([c.hidden_size], device),
                patch_embedding: PatchEmbedding::new(
                    c.num_channels,
                    c.hidden_size,
                    c.patch_size,
                    false,
                    device,
                ),
                position_embedding: Embedding::new(c.patches() + 1, c.hidden_size, device),
            },
            pre_layrnorm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
            encoder: ClipEncoder::new(sizes, c.hidden_act, c.layer_norm_eps, device),
            post_layernorm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
        }
    }

    /// Every hidden state, `[images, 1 + patches, hidden]` each: the embeddings, then each layer's result.
    pub fn hidden_states(&self, pixels: Tensor<B, 4>) -> Vec<Tensor<B, 3>> {
        let mut states = Vec::with_capacity(self.encoder.layers.len() + 1);
        self.run(pixels, self.encoder.layers.len(), |x| states.push(x.clone()));
        states
    }

    /// The hidden state with this index of [`hidden_states`](Self::hidden_states), computing no layer beyond it.
    ///
    /// Negative indices count from the end: LLaVA-1.5 reads -2. `None` where there is no such layer.
    pub fn hidden_state(&self, pixels: Tensor<B, 4>, index: i64) -> Option<Tensor<B, 3>> {
        let layers = layer_index(self.encoder.layers.len(), index)?;
        Some(self.run(pixels, layers, |_| ()))
    }

    /// Last hidden state and pooled class token.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> VisionOutput<B> {
        let last = self.run(pixels, self.encoder.layers.len(), |_| ());
        let [images, _, width] = last.dims();
        let class = last.clone().slice([0..images, 0..1, 0..width]).reshape([images, width]);
        VisionOutput { last, pooled: self.post_layernorm.forward(class) }
    }

    fn run(&self, pixels: Tensor<B, 4>, layers: usize, mut see: impl FnMut(&Tensor<B, 3>)) -> Tensor<B, 3> {
        let patches = self.embeddings.patch_embedding.forward(pixels);
        let [images, _, width] = patches.dims();
        let class = self.embeddings.class_embedding.val().reshape([1, 1, width]).expand([images, 1, width]);
        let positions = self.embeddings.position_embedding.weight.val();
        let x = aspo_kernels::cat(vec![class, patches], 1) + positions.unsqueeze();
        let mut x = self.pre_layrnorm.forward(x);
        see(&x);
        let context = unmasked(images, x.dims()[1], &x.device());
        for layer in &self.encoder.layers[..layers] {
            x = layer.forward(x, &context);
            see(&x);
        }
        x
    }
}

/// How many layers hidden state `index` needs, of `layers` there are.
pub(crate) fn layer_index(layers: usize, index: i64) -> Option<usize> {
    let states = layers as i64 + 1;
    let at = if index < 0 { states + index } else { index };
    (0..states).contains(&at).then_some(at as usize)
}
