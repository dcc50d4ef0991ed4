//! CLIP, LLaMA, LLaVA-1.5, InstructBLIP and LoRA on Burn, with Hugging Face and PEFT files in and out.

pub mod checkpoint;
pub mod clip;
pub mod config;
mod error;
pub mod generate;
mod input;
pub mod instructblip;
pub mod llama;
pub mod llava;
pub mod lora;
mod model;
pub mod nn;
mod recompute;

pub use checkpoint::{Checkpoint, LoadOptions, LoadReport, Precision, Pretrained, SaveOptions, stable_ids};
pub use clip::{Clip, ClipConfig};
pub use config::ModelConfig;
pub use error::{Error, Result};
pub use generate::{GenerateConfig, generate};
pub use input::ModelInput;
pub use instructblip::{InstructBlip, InstructBlipConfig};
pub use llama::{Llama, LlamaConfig};
pub use llava::{Llava, LlavaConfig};
pub use lora::{Adapter, LoraConfig};
pub use model::{LanguageModel, VisionLanguageModel};
pub use nn::EachLinear;
pub use recompute::{Recomputed, recompute_backward};
