//! LLaMA: RMS norms, rotary positions, grouped queries, a gated MLP (Touvron et al. 2023).

mod config;
mod parts;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::checkpoint::Pretrained;
use crate::error::{Error, Result};
use crate::input::{self, ModelInput};
use crate::model::LanguageModel;
use crate::nn::{Linear, each_linear, initialize};

pub(crate) use config::llama_init;
pub use config::{LlamaConfig, RopeParameters};
pub use parts::{LlamaLayer, LlamaModel};

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
}

impl<B: Backend> LanguageModel<B> for Llama<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.model.head(self.lm_head.as_ref())
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        input.check()?;
        input::check_ids(&input.input_ids, self.config().vocab_size)?;
        if !input.image_features.is_empty() {
            return Err(Error::input("image_features", "a language model without vision was given pictures"));
        }
        Ok(self.model.embed_tokens.forward(input.input_ids.tensor()))
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.config().eos()
    }
}

impl LlamaConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Llama<B> {
        Llama { model: LlamaModel::new(self, device), lm_head: self.head(device) }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> Llama<B> {
        initialize(self.init(device), seed, |path, _| llama_init(path, self.initializer_range))
    }

    /// The output head, unless it is the token table.
    pub(crate) fn head<B: Backend>(&self, device: &B::Device) -> Option<Linear<B>> {
        (!self.tie_word_embeddings).then(|| Linear::new(self.hidden_size, self.vocab_size, false, device))
    }
}

impl<B: Backend> Pretrained<B> for Llama<B> {
    type Config = LlamaConfig;

    fn from_config(config: &LlamaConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &LlamaConfig {
        self.config()
    }
}
