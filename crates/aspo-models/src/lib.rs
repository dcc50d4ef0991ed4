//! LLaVA-1.5 and LLaVA-OneVision, SmolVLM, Qwen2-VL and Qwen2.5-VL, InstructBLIP, LLaMA, CLIP and LoRA on Burn, with Hugging
//! Face and PEFT files in and out.
//!
//! # Load, look, answer
//!
//! A model is read from a Hugging Face folder by [`Pretrained::from_pretrained`] and used through [`LanguageModel`] and
//! [`VisionLanguageModel`], whichever it is. Rows go in as [`ModelInput`]; image placeholders are already expanded to
//! as many image tokens as a picture [takes](VisionLanguageModel::tokens).
//!
//! ```no_run
//! use aspo_models::{
//!     GenerateConfig, Llava, LoadOptions, ModelInput, Picture, Pretrained, VisionLanguageModel, generate,
//! };
//! use burn::tensor::Tensor;
//! use burn_flex::Flex;
//!
//! # fn main() -> aspo_models::Result<()> {
//! let device = Default::default();
//! let (model, _) = Llava::<Flex>::from_pretrained("llava-1.5-7b-hf", &LoadOptions::default(), &device)?;
//! let pictures = Picture::each(Tensor::zeros([1, 3, 336, 336], &device)); // one picture, normalised
//! let image = vec![model.image_token(); model.tokens(&pictures[0].shape)];
//! let features = model.vision_features(&pictures)?;
//! let ids = [vec![1], image, vec![1724, 338, 445, 29973]].concat();
//! let input = ModelInput::from_rows(&[ids], 0, &device).with_images(features);
//! let answer = generate(&model, &input, &GenerateConfig::default(), |_row, token| print!("{token} "))?;
//! # Ok(())
//! # }
//! ```
//!
//! # Train
//!
//! Over `Autodiff<B>`: [`lora::attach`] freezes everything and puts factors beside the layers a [`LoraConfig`] names;
//! [`lora::without_adapters`] is the base over the same storage, the reference model of preference training.
//! A forward pass gives hidden states ([`LanguageModel::hidden_at`] at chosen places only), a caller's loss takes it
//! from there, and [`recompute_backward`] ([`recompute_backward_at`]) does both with the memory of about one block. The vision tower runs once a
//! picture, on the plain backend (`model.valid()`), and its features are kept.
//!
//! ```
//! use aspo_models::lora::{LoraConfig, Names, attach, without_adapters};
//! use aspo_models::{LanguageModel, LlamaConfig, ModelConfig, ModelInput, recompute_backward};
//! use burn::backend::Autodiff;
//! use burn_flex::Flex;
//!
//! # fn main() -> aspo_models::Result<()> {
//! let config = LlamaConfig::from_json(serde_json::json!({
//!     "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
//!     "num_hidden_layers": 2, "num_attention_heads": 4,
//! }))?;
//! let model = config.init_seeded::<Autodiff<Flex>>(0, &Default::default());
//! let policy = attach(model, &LoraConfig::new(4, 8.0, Names::Pattern("all-linear".into())), 0)?;
//! let reference = without_adapters(&policy);
//! let input = ModelInput::from_rows(&[vec![1, 5, 9], vec![1, 7]], 0, &Default::default());
//! let out = recompute_backward(&policy, &input, |hidden| Ok((hidden.square().mean(), ())))?;
//! assert_eq!(out.grads.len(), 2 * 7 * 2); // A and B of seven layers in each of two blocks
//! # Ok(())
//! # }
//! ```
//!
//! # Choices
//!
//! - Softmax, norms and rotary angles are computed in `f32` whatever the weights are; factors of adapters are `f32`.
//! - A linear layer keeps its weight as Hugging Face lays it, `[out, in]`, and parameters have Hugging Face's names.
//! - Positions are the model's own: LLaMA's count the real tokens of each row from 0, so padding may stand on either side,
//!   and restart after the prompt of a packed row.
//! - Attention runs the same operations with and without a graph, so a policy whose adapter is still zero equals its
//!   reference exactly.
//! - On a plain autodiff pass a layer keeps one set of attention weights; [`recompute_backward`] keeps none.

mod architecture;
pub mod checkpoint;
pub mod clip;
pub mod config;
mod decoder;
mod error;
pub mod generate;
#[cfg(feature = "hub")]
pub mod hub;
mod ids;
mod input;
pub mod instructblip;
mod layout;
pub mod llama;
pub mod llava;
pub mod llava_onevision;
pub mod lora;
mod model;
pub mod nn;
mod picture;
mod positions;
pub mod qwen_vl;
mod recompute;
mod report;
pub mod siglip;
pub mod smolvlm;
mod walk;

pub use architecture::{Architecture, OnArchitecture, on_architecture};
pub use checkpoint::{Checkpoint, LoadOptions, LoadReport, Precision, Pretrained, SaveOptions};
pub use clip::{Clip, ClipConfig};
pub use config::ModelConfig;
pub use decoder::{Decoder, DecoderShape, SplitBlock, at_places};
pub use error::{Error, Result};
pub use generate::{GenerateConfig, generate};
pub use ids::Ids;
pub use input::{Instruction, ModelInput};
pub use instructblip::{InstructBlip, InstructBlipConfig};
pub use llama::{Llama, LlamaConfig};
pub use llava::{Llava, LlavaConfig};
pub use llava_onevision::{LlavaOnevision, LlavaOnevisionConfig};
pub use lora::{Adapter, LoraConfig};
pub use model::{LanguageModel, VisionLanguageModel, embed_with_images};
pub use nn::EachLinear;
pub use picture::{ImageFeatures, Picture, PictureShape};
pub use positions::Positions;
pub use qwen_vl::{QwenVl, QwenVlConfig};
pub use recompute::{Recomputed, recompute_backward, recompute_backward_at};
pub use smolvlm::{SmolVlm, SmolVlmConfig};
pub use walk::stable_ids;

/// All that the definition of a model takes: the traits, their records, and the layers.
pub mod prelude {
    pub use crate::nn::{
        Activation, Before, CausalContext, Embedding, Heads, KvCache, LayerNorm, Linear, PatchEmbedding,
        RmsNorm, Rotary, bidirectional, linear, unmasked,
    };
    pub use crate::{
        Decoder, DecoderShape, EachLinear, ImageFeatures, LanguageModel, ModelConfig, ModelInput, Picture,
        PictureShape, Positions, Pretrained, Result, SplitBlock, VisionLanguageModel, each_linear,
        embed_with_images,
    };
}

/// The examples of the README compile and run too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
