//! The decoder's layers.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, backend::Backend};

use super::config::LlamaConfig;
use crate::decoder::{Decoder, DecoderShape, SplitBlock, at_places};
use crate::error::Result;
use crate::nn::{
    Activation, Before, CausalContext, Embedding, Heads, KvCache, Linear, RmsNorm, Rotary, each_linear,
    linear,
};
use crate::positions::Positions;

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
        let attn = |i, o| Linear::new(i, o, c.qkv_bias(), device);
        let mlp = |i, o| Linear::new(i, o, c.mlp_bias, device);
        Self {
            input_layernorm: RmsNorm::new(width, c.rms_norm_eps, device),
            self_attn: LlamaAttention {
                q_proj: attn(width, heads * dim),
                k_proj: attn(width, groups * dim),
                v_proj: attn(width, groups * dim),
                o_proj: Linear::new(heads * dim, width, c.output_bias(), device),
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

    /// `[batch, tokens, hidden]` to the same shape; the tokens of a cache stand before these.
    fn forward(
        &self,
        x: Tensor<B, 3>,
        context: &CausalContext<B>,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let mixed = context.attention(self.project(x.clone()), self.self_attn.heads(), cache);
        self.after(x, mixed)
    }

    /// Queries, keys and values of the layer's input, side by side.
    fn project(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let attn = &self.self_attn;
        let layers = [attn.q_proj.layer(), attn.k_proj.layer(), attn.v_proj.layer()];
        linear(x, self.input_layernorm.before(), &layers, None)
    }
}

impl<B: Backend> SplitBlock<B, CausalContext<B>> for LlamaLayer<B> {
    fn before(&self, x: Tensor<B, 3>, context: &CausalContext<B>) -> [Tensor<B, 4>; 3] {
        context.split(self.project(x), self.self_attn.heads())
    }

    fn hidden(&self, context: &CausalContext<B>) -> Option<Tensor<B, 4, Bool>> {
        context.hidden(self.self_attn.groups)
    }

    fn after(&self, x: Tensor<B, 3>, mixed: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = linear(mixed, Before::Nothing, &[self.self_attn.o_proj.layer()], Some(x));
        let gate_up = [self.mlp.gate_proj.layer(), self.mlp.up_proj.layer()];
        let wide = linear(x.clone(), self.post_attention_layernorm.before(), &gate_up, None);
        linear(wide, Before::Gated(self.mlp.act.into()), &[self.mlp.down_proj.layer()], Some(x))
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
    /// The decoder of a config, its parameters not yet allocated.
    pub fn new(c: &LlamaConfig, device: &B::Device) -> Self {
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

    /// The output head's weight, its adapter included: of `lm_head`, or the token table where there is none.
    pub fn head(&self, lm_head: Option<&Linear<B>>) -> Tensor<B, 2> {
        lm_head.map_or_else(|| self.embed_tokens.weight.val(), Linear::adapted_weight)
    }
}

impl<B: Backend> Decoder<B> for LlamaModel<B> {
    type Context = CausalContext<B>;

    fn shape(&self) -> DecoderShape {
        let c = &self.config;
        DecoderShape {
            vocab_size: c.vocab_size,
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            heads: Heads { heads: c.num_attention_heads, groups: c.key_value_heads(), dim: c.head_width() },
            gated: true,
        }
    }

    fn context(&self, positions: &Positions, device: &B::Device) -> Result<CausalContext<B>> {
        let rotary = match (self.config.mrope_section(), positions.axes.as_slice()) {
            (Some(sections), [time, height, width]) => {
                multimodal_rotary([time, height, width], sections, self.theta)
            }
            _ => Rotary::new(&positions.axes[0], self.config.head_width(), self.theta, self.factor),
        };
        Ok(CausalContext::new(positions, Some(rotary), device))
    }

    fn embed_tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.embed_tokens.forward(ids)
    }

    fn block(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        context: &CausalContext<B>,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        self.layers[index].forward(x, context, cache)
    }

    fn finish(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.norm.forward(x)
    }

    /// Attention and the MLP run for these places alone; keys and values for all.
    fn block_at(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        context: &CausalContext<B>,
        places: &[usize],
    ) -> Tensor<B, 3> {
        let layer = &self.layers[index];
        let qkv = layer.project(x.clone());
        let mixed = context.only(places).attention(qkv, layer.self_attn.heads(), None);
        layer.after(at_places(x, places), at_places(mixed, places))
    }

    fn split(&self, index: usize) -> Option<&dyn SplitBlock<B, CausalContext<B>>> {
        Some(&self.layers[index])
    }
}

/// Angles by three axes (M-RoPE; Wang et al. 2024, arXiv 2409.12191, §2.1): the pairs of a head's channels are cut into
/// `sections`, which turn by time, by height and by width. Where all axes are alike it is plain rotation.
fn multimodal_rotary(axes: [&[i64]; 3], sections: [usize; 3], theta: f64) -> Rotary {
    let half: usize = sections.iter().sum();
    let of_pair = axes.into_iter().zip(sections).flat_map(|(axis, count)| std::iter::repeat_n(axis, count));
    let turn = |pair: usize| (1.0 / theta.powf(pair as f64 / half as f64)) as f32;
    let pairs: Vec<(&[i64], f32)> = of_pair.enumerate().map(|(pair, axis)| (axis, turn(pair))).collect();
    let angles =
        (0..axes[0].len()).flat_map(|token| pairs.iter().map(move |(axis, turn)| axis[token] as f32 * turn));
    Rotary::from_angles(&angles.collect::<Vec<f32>>(), half)
}
