//! The decoder's layers.

use aspo_kernels::{Before, Heads, Rotary, Tables, linear, split_heads};
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, backend::Backend};

use super::LlamaConfig;
use crate::input::{self, ModelInput};
use crate::nn::{
    Activation, Context, Embedding, KvCache, Linear, RmsNorm, attend, attention, causal, each_linear,
    merge_heads, wide,
};

/// What the layers share in one step with a cache.
#[derive(Debug, Clone)]
pub struct CachedContext<B: Backend> {
    /// Rotary tables of the new tokens.
    pub(crate) tables: Tables<B>,
    /// `[batch, 1, new, capacity]`, true = hidden.
    pub(crate) mask: Tensor<B, 4, Bool>,
    /// The same where nothing stands before the new tokens, for kernels.
    pub(crate) first: Option<Context<B>>,
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
    dim: usize,
}
each_linear!(LlamaAttention: q_proj, k_proj, v_proj, o_proj);

impl<B: Backend> LlamaAttention<B> {
    fn heads(&self) -> Heads {
        Heads { heads: self.heads, groups: self.groups, dim: self.dim }
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
                dim,
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

    /// `[batch, tokens, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let mixed = attention(self.project(x.clone()), self.self_attn.heads(), context);
        self.finish(x, mixed)
    }

    /// [`forward`](Self::forward) at these places only, `[1, places, hidden]`; place `row · tokens + column`. The context
    /// is that of these places too.
    fn forward_at(&self, x: Tensor<B, 3>, context: &Context<B>, places: Tensor<B, 1, Int>) -> Tensor<B, 3> {
        let at = |x: Tensor<B, 3>| {
            let [batch, tokens, width] = x.dims();
            x.reshape([1, batch * tokens, width]).select(1, places.clone())
        };
        let mixed = attention(self.project(x.clone()), self.self_attn.heads(), context);
        self.finish(at(x), at(mixed))
    }

    /// As [`forward`](Self::forward), the tokens of the cache before these.
    fn forward_cached(
        &self,
        x: Tensor<B, 3>,
        context: &CachedContext<B>,
        cache: &mut KvCache<B>,
    ) -> Tensor<B, 3> {
        let (qkv, heads) = (self.project(x.clone()), self.self_attn.heads());
        let [q, k, v] = split_heads(qkv.clone(), heads, Some(&context.tables));
        let (k, v) = cache.append(k, v);
        let mixed = match &context.first {
            Some(context) => attention(qkv, heads, context),
            None => merge_heads(attend(q, k, v, Some(context.mask.clone()))),
        };
        self.finish(x, mixed)
    }

    /// Queries, keys and values of the layer's input, side by side.
    pub(crate) fn project(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let attn = &self.self_attn;
        let layers = [attn.q_proj.layer(), attn.k_proj.layer(), attn.v_proj.layer()];
        linear(x, self.input_layernorm.before(), &layers, None)
    }

    /// [`project`](Self::project) apart and rotated, each `[batch, heads or groups, tokens, head_dim]`.
    pub(crate) fn project_heads(&self, x: Tensor<B, 3>, context: &Context<B>) -> [Tensor<B, 4>; 3] {
        context.split(self.project(x), self.self_attn.heads())
    }

    /// The rest of the layer, from its input and the mixed values `[batch, tokens, heads · head_dim]`.
    pub(crate) fn finish(&self, x: Tensor<B, 3>, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = linear(mixed, Before::Nothing, &[self.self_attn.o_proj.layer()], Some(x));
        let gate_up = [self.mlp.gate_proj.layer(), self.mlp.up_proj.layer()];
        let wide = linear(x.clone(), self.post_attention_layernorm.before(), &gate_up, None);
        linear(wide, Before::Gated(self.mlp.act.into()), &[self.mlp.down_proj.layer()], Some(x))
    }

    /// Key-value heads.
    pub(crate) fn groups(&self) -> usize {
        self.self_attn.groups
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

    /// Rotary angles and who sees whom of an input without cache.
    pub fn context(&self, input: &ModelInput<B>) -> Context<B> {
        let positions = match &input.position_ids {
            Some(positions) => input::host(positions),
            None => input::positions(&input.attention_mask),
        };
        causal(&input.attention_mask, input.segment_ids.as_ref(), Some(self.rotary(&positions)))
    }

    pub(crate) fn rotary(&self, positions: &[i64]) -> Rotary {
        Rotary::new(positions, self.config.head_width(), self.theta, self.factor)
    }

    /// Embeddings `[batch, tokens, hidden]` to hidden states after the final norm.
    pub fn forward(&self, embeds: Tensor<B, 3>, context: &Context<B>) -> Tensor<B, 3> {
        let x = self.layers.iter().fold(wide(embeds), |x, layer| layer.forward(x, context));
        self.norm.forward(x)
    }

    /// [`forward`](Self::forward) at these places only, `[places, hidden]`; place `row · tokens + column`. The last layer
    /// and the norm are computed for them alone.
    pub fn forward_at(
        &self,
        embeds: Tensor<B, 3>,
        context: &Context<B>,
        places: Tensor<B, 1, Int>,
    ) -> Tensor<B, 2> {
        let [batch, tokens, width] = embeds.dims();
        let x = match self.layers.split_last() {
            Some((last, layers)) => {
                let x = layers.iter().fold(wide(embeds), |x, layer| layer.forward(x, context));
                let wanted: Vec<usize> = input::host(&places).iter().map(|&place| place as usize).collect();
                last.forward_at(x, &context.only(&wanted), places)
            }
            None => embeds.reshape([1, batch * tokens, width]).select(1, places),
        };
        self.norm.forward(x).squeeze_dim(0)
    }

    /// As [`forward`](Self::forward), reading and extending one cache for each layer.
    pub fn forward_cached(
        &self,
        embeds: Tensor<B, 3>,
        context: &CachedContext<B>,
        caches: &mut [KvCache<B>],
    ) -> Tensor<B, 3> {
        let layers = self.layers.iter().zip(caches);
        let x = layers.fold(wide(embeds), |x, (layer, cache)| layer.forward_cached(x, context, cache));
        self.norm.forward(x)
    }
}
