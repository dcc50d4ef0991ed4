//! The decoder's layers.

use burn::module::Module;
use burn::tensor::{Bool, Tensor, backend::Backend};

use super::LlamaConfig;
use crate::input::{self, ModelInput};
use crate::nn::{
    Activation, CHUNK_SCORES, Embedding, KvCache, Linear, RmsNorm, Rope, attend, each_linear, merge_heads,
    padding_mask, split_heads,
};

/// What all layers of one pass share: rotary tables and the mask.
#[derive(Debug, Clone)]
pub struct Context<B: Backend> {
    /// Rotary tables of the query positions.
    pub rope: Rope<B>,
    /// `[batch, 1 or groups, queries, keys]`, true = hidden.
    pub mask: Tensor<B, 4, Bool>,
}

/// Causal self-attention with rotary positions.
#[derive(Module, Debug)]
pub struct LlamaAttention<B: Backend> {
    q_proj: Linear<B>,
    k_proj: Linear<B>,
    v_proj: Linear<B>,
    o_proj: Linear<B>,
    heads: usize,
    groups: usize,
}
each_linear!(LlamaAttention: q_proj, k_proj, v_proj, o_proj);

impl<B: Backend> LlamaAttention<B> {
    /// Rotated queries and keys, and values, each `[batch, heads or groups, tokens, head_dim]`.
    pub(crate) fn project(&self, x: Tensor<B, 3>, rope: &Rope<B>) -> [Tensor<B, 4>; 3] {
        let q = rope.apply(split_heads(self.q_proj.forward(x.clone()), self.heads));
        let k = rope.apply(split_heads(self.k_proj.forward(x.clone()), self.groups));
        let v = split_heads(self.v_proj.forward(x), self.groups).swap_dims(1, 2);
        [q, k, v]
    }

    fn forward(&self, x: Tensor<B, 3>, context: &Context<B>, cache: Option<&mut KvCache<B>>) -> Tensor<B, 3> {
        let [q, k, v] = self.project(x, &context.rope);
        let (k, v) = match cache {
            Some(cache) => cache.append(k, v),
            None => (k, v),
        };
        self.o_proj.forward(merge_heads(attend(q, k, v, Some(context.mask.clone()))))
    }
}

/// `down(act(gate(x)) · up(x))`.
#[derive(Module, Debug)]
pub struct LlamaMlp<B: Backend> {
    gate_proj: Linear<B>,
    up_proj: Linear<B>,
    down_proj: Linear<B>,
    #[module(skip)]
    act: Activation,
}
each_linear!(LlamaMlp: gate_proj, up_proj, down_proj);

impl<B: Backend> LlamaMlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let gate = self.act.forward(self.gate_proj.forward(x.clone()));
        self.down_proj.forward(gate * self.up_proj.forward(x))
    }
}

/// One layer: attention, then MLP, each behind an RMS norm.
#[derive(Module, Debug)]
pub struct LlamaLayer<B: Backend> {
    input_layernorm: RmsNorm<B>,
    self_attn: LlamaAttention<B>,
    post_attention_layernorm: RmsNorm<B>,
    mlp: LlamaMlp<B>,
}
each_linear!(LlamaLayer: self_attn, mlp);

impl<B: Backend> LlamaLayer<B> {
    fn new(c: &LlamaConfig, device: &B::Device) -> Self {
        let (width, inner, dim) = (c.hidden_size, c.intermediate_size, c.head_width());
        let (heads, groups) = (c.num_attention_heads, c.key_value_heads());
        let attn = |i, o| Linear::new(i, o, c.attention_bias, device);
        let mlp = |i, o| Linear::new(i, o, c.mlp_bias, device);
        Self {
            input_layernorm: RmsNorm::new(width, c.rms_norm_eps, device),
            self_attn: LlamaAttention {
                q_proj: attn(width, heads * dim),
                k_proj: attn(width, groups * dim),
                v_proj: attn(width, groups * dim),
                o_proj: attn(heads * dim, width),
                heads,
                groups,
            },
            post_attention_layernorm: RmsNorm::new(width, c.rms_norm_eps, device),
            mlp: LlamaMlp {
                gate_proj: mlp(width, inner),
                up_proj: mlp(width, inner),
                down_proj: mlp(inner, width),
                act: c.hidden_act,
            },
        }
    }

    /// `[batch, tokens, hidden]` to the same shape; with a cache, its tokens come before these.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &Context<B>,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), context, cache);
        self.feed(x)
    }

    /// Queries, keys and values of the layer's input.
    pub(crate) fn project(&self, x: Tensor<B, 3>, context: &Context<B>) -> [Tensor<B, 4>; 3] {
        self.self_attn.project(self.input_layernorm.forward(x), &context.rope)
    }

    /// The rest of the layer, from its input and the attended values `[batch, heads, tokens, head_dim]`.
    pub(crate) fn finish(&self, x: Tensor<B, 3>, attended: Tensor<B, 4>) -> Tensor<B, 3> {
        self.feed(x + self.self_attn.o_proj.forward(merge_heads(attended)))
    }

    fn feed(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}

/// Token table, layers and final norm, as Hugging Face's `LlamaModel`.
#[derive(Module, Debug)]
pub struct LlamaModel<B: Backend> {
    /// Token table.
    pub embed_tokens: Embedding<B>,
    /// In order.
    pub layers: Vec<LlamaLayer<B>>,
    /// Final norm.
    pub norm: RmsNorm<B>,
    #[module(skip)]
    pub(crate) config: LlamaConfig,
    theta: f64,
    factor: f64,
}
each_linear!(LlamaModel: embed_tokens, layers);

impl<B: Backend> LlamaModel<B> {
    pub(crate) fn new(c: &LlamaConfig, device: &B::Device) -> Self {
        let (theta, factor) = c.rope();
        Self {
            embed_tokens: Embedding::new(c.vocab_size, c.hidden_size, device),
            layers: (0..c.num_hidden_layers).map(|_| LlamaLayer::new(c, device)).collect(),
            norm: RmsNorm::new(c.hidden_size, c.rms_norm_eps, device),
            config: c.clone(),
            theta,
            factor,
        }
    }

    /// The config of the language model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Rotary tables and causal mask of an input without cache.
    pub fn context(&self, input: &ModelInput<B>) -> Context<B> {
        let positions = input.position_ids.clone().unwrap_or_else(|| input::positions(&input.attention_mask));
        let [batch, tokens] = input.input_ids.dims();
        let mask = padding_mask(input.attention_mask.clone(), tokens, true, input.segment_ids.clone());
        let groups = self.config.key_value_heads();
        // Written out for all groups while it is small: every layer would copy a view of it, forward and backward.
        let small = batch * groups * tokens * tokens <= CHUNK_SCORES;
        Context { rope: self.rope(positions), mask: if small { mask.repeat_dim(1, groups) } else { mask } }
    }

    pub(crate) fn rope(&self, positions: Tensor<B, 2, burn::tensor::Int>) -> Rope<B> {
        Rope::new(positions, self.config.head_width(), self.theta, self.factor)
    }

    /// Embeddings `[batch, tokens, hidden]` to hidden states after the final norm.
    pub fn forward(&self, embeds: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let mut x = embeds;
        for layer in &self.layers {
            x = layer.forward(x, context, None);
        }
        self.norm.forward(x)
    }

    /// As [`forward`](Self::forward), reading and extending one cache for each layer.
    pub fn forward_cached(
        &self,
        embeds: Tensor<B, 3>,
        context: &Context<B>,
        caches: &mut [KvCache<B>],
    ) -> Tensor<B, 3> {
        let mut x = embeds;
        for (layer, cache) in self.layers.iter().zip(caches) {
            x = layer.forward(x, context, Some(cache));
        }
        self.norm.forward(x)
    }
}
