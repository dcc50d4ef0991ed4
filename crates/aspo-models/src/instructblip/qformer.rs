//! The Q-Former: a BERT over learned queries and the instruction, whose queries look at the picture.

#![allow(non_snake_case)] // `LayerNorm` is a parameter's name in checkpoints.

use aspo_kernels::{Before, BlockMask, Heads, cross_attention, linear};
use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend, s};

use super::config::QFormerConfig;
use crate::ids::Ids;
use crate::nn::{Activation, Context, Embedding, LayerNorm, Linear, attention, bidirectional, each_linear};

/// Queries from one sequence, keys and values from the same or another.
#[derive(Module, Debug)]
pub struct QFormerHeads<B: Backend> {
    query: Linear<B>,
    key: Linear<B>,
    value: Linear<B>,
    heads: usize,
}
each_linear!(QFormerHeads: query, key, value);

impl<B: Backend> QFormerHeads<B> {
    /// For tokens like these.
    fn sizes(&self, x: &Tensor<B, 3>) -> Heads {
        Heads { heads: self.heads, groups: self.heads, dim: x.dims()[2] / self.heads }
    }
}

/// A linear layer, the residual, a norm.
#[derive(Module, Debug)]
pub struct QFormerOutput<B: Backend> {
    dense: Linear<B>,
    LayerNorm: LayerNorm<B>,
}
each_linear!(QFormerOutput: dense);

impl<B: Backend> QFormerOutput<B> {
    fn new(from: usize, c: &QFormerConfig, device: &B::Device) -> Self {
        Self {
            dense: Linear::new(from, c.hidden_size, true, device),
            LayerNorm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
        }
    }

    fn forward(&self, x: Tensor<B, 3>, before: Before<B>, residual: Tensor<B, 3>) -> Tensor<B, 3> {
        self.LayerNorm.forward(linear(x, before, &[self.dense.layer()], Some(residual)))
    }
}

/// Attention with its output layer.
#[derive(Module, Debug)]
pub struct QFormerAttention<B: Backend> {
    attention: QFormerHeads<B>,
    output: QFormerOutput<B>,
}
each_linear!(QFormerAttention: attention, output);

impl<B: Backend> QFormerAttention<B> {
    fn new(keys: usize, c: &QFormerConfig, device: &B::Device) -> Self {
        let linear = |from| Linear::new(from, c.hidden_size, true, device);
        Self {
            attention: QFormerHeads {
                query: linear(c.hidden_size),
                key: linear(keys),
                value: linear(keys),
                heads: c.num_attention_heads,
            },
            output: QFormerOutput::new(c.hidden_size, c, device),
        }
    }

    /// Every token looks at its row, as the context says.
    fn to_itself(&self, x: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let a = &self.attention;
        let layers = [a.query.layer(), a.key.layer(), a.value.layer()];
        let qkv = linear(x.clone(), Before::Nothing, &layers, None);
        self.output.forward(attention(qkv, a.sizes(&x), context), Before::Nothing, x)
    }

    /// Every token looks at another sequence, as the context says.
    fn to_other(&self, x: Tensor<B, 3>, other: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let a = &self.attention;
        let q = linear(x.clone(), Before::Nothing, &[a.query.layer()], None);
        let kv = linear(other, Before::Nothing, &[a.key.layer(), a.value.layer()], None);
        self.output.forward(cross_attention(q, kv, a.sizes(&x), context), Before::Nothing, x)
    }
}

/// The widening half of the MLP.
#[derive(Module, Debug)]
pub struct QFormerIntermediate<B: Backend> {
    dense: Linear<B>,
    #[module(skip)]
    act: Activation,
}
each_linear!(QFormerIntermediate: dense);

/// One layer; queries and instruction have MLPs of their own.
#[derive(Module, Debug)]
pub struct QFormerLayer<B: Backend> {
    attention: QFormerAttention<B>,
    crossattention: Option<QFormerAttention<B>>,
    intermediate: QFormerIntermediate<B>,
    output: QFormerOutput<B>,
    intermediate_query: QFormerIntermediate<B>,
    output_query: QFormerOutput<B>,
}
each_linear!(QFormerLayer: attention, crossattention, intermediate, output, intermediate_query, output_query);

impl<B: Backend> QFormerLayer<B> {
    fn forward(
        &self,
        x: Tensor<B, 3>,
        queries: usize,
        picture: (&Tensor<B, 3>, &Context<B>),
        context: &Context<B>,
    ) -> Tensor<B, 3> {
        let x = self.attention.to_itself(x, context);
        let mut seen = x.clone().slice(s![.., 0..queries, ..]);
        if let Some(cross) = &self.crossattention {
            seen = cross.to_other(seen, picture.0.clone(), picture.1);
        }
        let feed = |wide: &QFormerIntermediate<B>, narrow: &QFormerOutput<B>, x: Tensor<B, 3>| {
            narrow.forward(wide.dense.forward(x.clone()), Before::Activation(wide.act.into()), x)
        };
        let seen = feed(&self.intermediate_query, &self.output_query, seen);
        if x.dims()[1] == queries {
            return seen;
        }
        let text = feed(&self.intermediate, &self.output, x.slice(s![.., queries.., ..]));
        aspo_kernels::cat(vec![seen, text], 1)
    }
}

/// The stack of layers.
#[derive(Module, Debug)]
pub struct QFormerEncoder<B: Backend> {
    layer: Vec<QFormerLayer<B>>,
}
each_linear!(QFormerEncoder: layer);

/// Tables for the instruction, and the norm over all inputs.
#[derive(Module, Debug)]
pub struct QFormerEmbeddings<B: Backend> {
    word_embeddings: Embedding<B>,
    position_embeddings: Embedding<B>,
    layernorm: LayerNorm<B>,
}

/// The Q-Former.
#[derive(Module, Debug)]
pub struct QFormer<B: Backend> {
    embeddings: QFormerEmbeddings<B>,
    encoder: QFormerEncoder<B>,
}
each_linear!(QFormer: encoder);

impl<B: Backend> QFormer<B> {
    /// For pictures of `picture` features; its parameters are not yet allocated.
    pub fn new(c: &QFormerConfig, picture: usize, device: &B::Device) -> Self {
        let wide = || QFormerIntermediate {
            dense: Linear::new(c.hidden_size, c.intermediate_size, true, device),
            act: c.hidden_act,
        };
        let layer = |i: usize| QFormerLayer {
            attention: QFormerAttention::new(c.hidden_size, c, device),
            crossattention: i
                .is_multiple_of(c.cross_attention_frequency)
                .then(|| QFormerAttention::new(picture, c, device)),
            intermediate: wide(),
            output: QFormerOutput::new(c.intermediate_size, c, device),
            intermediate_query: wide(),
            output_query: QFormerOutput::new(c.intermediate_size, c, device),
        };
        Self {
            embeddings: QFormerEmbeddings {
                word_embeddings: Embedding::new(c.vocab_size, c.hidden_size, device),
                position_embeddings: Embedding::new(c.max_position_embeddings, c.hidden_size, device),
                layernorm: LayerNorm::new(c.hidden_size, c.layer_norm_eps, device),
            },
            encoder: QFormerEncoder { layer: (0..c.num_hidden_layers).map(layer).collect() },
        }
    }

    /// `queries` `[images, queries, width]`, the picture `[images, patches, vision width]` and the instruction
    /// `[images, tokens]` with its mask (1 = real) to the queries' last states.
    pub fn forward(
        &self,
        queries: Tensor<B, 3>,
        picture: Tensor<B, 3>,
        instruction: Option<(Ids<B>, Ids<B>)>,
    ) -> Tensor<B, 3> {
        let [images, count, _] = queries.dims();
        let mut seen = vec![vec![1; count]; images];
        let device = queries.device();
        let mut x = queries;
        if let Some((ids, mask)) = instruction {
            let positions = self.embeddings.position_embeddings.weight.val().slice(0..ids.dims()[1]);
            let words = self.embeddings.word_embeddings.forward(ids.tensor()) + positions.unsqueeze();
            x = aspo_kernels::cat(vec![x, words], 1);
            let rows = mask.values().chunks(mask.dims()[1].max(1));
            seen.iter_mut().zip(rows).for_each(|(seen, row)| seen.extend(row));
        }
        let columns = seen.first().map_or(0, Vec::len);
        let context = bidirectional(&Ids::new(seen.concat(), [images, columns], &device));
        let patches = picture.dims()[1];
        let across = BlockMask::across(images, count, patches, &vec![true; images * patches]);
        let across = Context::new(across, None, &picture.device());
        let mut x = self.embeddings.layernorm.forward(x);
        for layer in &self.encoder.layer {
            x = layer.forward(x, count, (&picture, &across), &context);
        }
        x.slice(s![.., 0..count, ..])
    }
}
