//! LLaMA: RMS norms, rotary positions, grouped queries, a gated MLP (Touvron et al. 2023).

mod config;
mod parts;

use burn::module::Module;
use burn::tensor::{Int, Tensor, backend::Backend};

use crate::error::Result;
use crate::input::{self, ModelInput};
use crate::nn::{Linear, each_linear, project};

pub(crate) use config::llama_init;
pub use config::{LlamaConfig, RopeParameters};
pub use parts::{CachedContext, LlamaLayer, LlamaModel};

/// The decoder with its output head, as Hugging Face's `LlamaForCausalLM`.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// Token table, layers and final norm.
    pub model: LlamaModel<B>,
    /// `[vocabulary, hidden]`; `None` where the head is the token table.
    pub lm_head: Option<Linear<B>>,
}

each_linear!(Llama: model, lm_head);

impl<B: Backend> Llama<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &LlamaConfig {
        &self.model.config
    }

    /// The output head's weight, its adapter included, `[vocabulary, hidden]`.
    pub fn head(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.adapted_weight(),
            None => self.model.embed_tokens.weight.val(),
        }
    }

    /// Hidden states after the final norm, `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// Ids outside the vocabulary, or parts of the input with other shapes than the ids.
    pub fn hidden(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        input.check()?;
        input::ids(&input.input_ids, self.config().vocab_size)?;
        Ok(self
            .model
            .forward(self.model.embed_tokens.forward(input.input_ids.clone()), &self.model.context(input)))
    }

    /// Scores of the next token, `[batch, tokens, vocabulary]`.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn logits(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        Ok(project(self.hidden(input)?, self.head()))
    }

    /// [`logits`](Self::logits) of ids and mask alone.
    ///
    /// # Errors
    /// As [`hidden`](Self::hidden).
    pub fn forward(&self, ids: Tensor<B, 2, Int>, attention_mask: Tensor<B, 2, Int>) -> Result<Tensor<B, 3>> {
        self.logits(&ModelInput::new(ids, attention_mask))
    }
}
