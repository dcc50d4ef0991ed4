//! The interface of a stack of transformer blocks.

use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor, TensorData, backend::Backend};

use crate::error::Result;
use crate::nn::{EachLinear, Heads, KvCache, wide};
use crate::positions::Positions;

/// Blocks of one width after a table of tokens and before a norm.
///
/// Training, recomputation, generation and a run's plan go from block to block through it; what is inside a block is the
/// model's own. [`LlamaModel`](crate::llama::LlamaModel) is one; the book builds another.
pub trait Decoder<B: Backend>: Module<B> + EachLinear<B> {
    /// What all blocks of a pass share: who sees whom, rotary angles; for causal attention
    /// [`CausalContext`](crate::nn::CausalContext). It holds nothing that is trained: what depends on trained values (learned
    /// positions) is added by [`start`](Self::start).
    type Context: Clone;

    /// Its sizes.
    fn shape(&self) -> DecoderShape;

    /// The context of tokens at these positions.
    ///
    /// # Errors
    /// Positions that the decoder does not have: beyond a table of learned ones, or too few axes.
    fn context(&self, positions: &Positions, device: &B::Device) -> Result<Self::Context>;

    /// Token vectors, `[batch, tokens]` ids to `[batch, tokens, hidden]`.
    fn embed_tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3>;

    /// From the model's inputs, `[batch, tokens, hidden]`, to those of the first block: learned positions, a scale or a norm;
    /// nothing by default.
    fn start(&self, x: Tensor<B, 3>, context: &Self::Context) -> Tensor<B, 3> {
        let _ = context;
        x
    }

    /// Block `index`, `[batch, tokens, hidden]` to the same shape. Given a cache, it writes the keys and values of these
    /// tokens behind those of the past, which the tokens see too.
    fn block(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        context: &Self::Context,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3>;

    /// What follows the last block, `[batch, tokens, hidden]` to the same shape: the final norm.
    fn finish(&self, x: Tensor<B, 3>) -> Tensor<B, 3>;

    /// [`block`](Self::block) at some places only, `[1, places, hidden]`; place `row · tokens + column`. A block that
    /// overrides it leaves out what other places alone need.
    fn block_at(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        context: &Self::Context,
        places: &[usize],
    ) -> Tensor<B, 3> {
        at_places(self.block(index, x, context, None), places)
    }

    /// Block `index` as attention between two halves. Recomputation asks for it on backends whose attention keeps its scores
    /// ([`has_kernels`](crate::nn::has_kernels) is false), to hold those of a few queries at a time; without it, the default,
    /// it holds those of a whole block.
    fn split(&self, index: usize) -> Option<&dyn SplitBlock<B, Self::Context>> {
        let _ = index;
        None
    }

    /// The model's inputs, `[batch, tokens, hidden]`, through all blocks and the final norm.
    fn forward(&self, embeds: Tensor<B, 3>, context: &Self::Context) -> Tensor<B, 3> {
        let x = self.start(wide(embeds), context);
        let blocks = 0..self.shape().num_hidden_layers;
        self.finish(blocks.fold(x, |x, index| self.block(index, x, context, None)))
    }

    /// [`forward`](Self::forward) at some places only, `[places, hidden]`: the last block and the norm are computed for them
    /// alone where the block can.
    fn forward_at(&self, embeds: Tensor<B, 3>, context: &Self::Context, places: &[usize]) -> Tensor<B, 2> {
        let x = self.start(wide(embeds), context);
        let x = match self.shape().num_hidden_layers.checked_sub(1) {
            Some(last) => {
                let x = (0..last).fold(x, |x, index| self.block(index, x, context, None));
                self.block_at(last, x, context, places)
            }
            None => at_places(x, places),
        };
        self.finish(x).squeeze_dim(0)
    }
}

/// A block as attention between two halves; see [`Decoder::split`].
pub trait SplitBlock<B: Backend, Context> {
    /// Queries `[batch, heads, tokens, dim]`, keys and values `[batch, groups, tokens, dim]` of the block's input, positions
    /// included.
    fn before(&self, x: Tensor<B, 3>, context: &Context) -> [Tensor<B, 4>; 3];

    /// The mask to [attend](crate::nn::attend) with, true where a key is hidden; `None` hides nothing.
    fn hidden(&self, context: &Context) -> Option<Tensor<B, 4, Bool>>;

    /// The block's result, from its input and the mixed values `[batch, tokens, heads · dim]`.
    fn after(&self, x: Tensor<B, 3>, mixed: Tensor<B, 3>) -> Tensor<B, 3>;
}

/// Sizes of a decoder, by the names of Hugging Face's configs; a run's memory and operations are counted from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderShape {
    /// Rows of the token table.
    pub vocab_size: usize,
    /// Width of the blocks.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub heads: Heads,
    /// The MLP has a gate beside the widening layer (SwiGLU).
    pub gated: bool,
}

/// `[batch, tokens, width]` at these places, `[1, places, width]`; place `row · tokens + column`.
pub fn at_places<B: Backend>(x: Tensor<B, 3>, places: &[usize]) -> Tensor<B, 3> {
    let [batch, tokens, width] = x.dims();
    let index: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let index = Tensor::from_data(TensorData::new(index, [places.len()]), &x.device());
    x.reshape([1, batch * tokens, width]).select(1, index)
}
