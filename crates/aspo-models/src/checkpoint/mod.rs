//! Hugging Face checkpoints in and out: safetensors, single or sharded, memory-mapped, tensor by tensor.
//!
//! A parameter's path in the module is its name in a file, but for prefixes that differ from one age of the library
//! to the next; [`Pretrained::PREFIXES`] lists them and [`Layout`] remembers which were met, so that a model is
//! saved under the names it was read from. No pickle is read.

mod file;
mod layout;
mod load;
mod save;

use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, backend::Backend};

use crate::clip::{Clip, ClipConfig};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::instructblip::{InstructBlip, InstructBlipConfig};
use crate::llama::{Llama, LlamaConfig};
use crate::llava::{Llava, LlavaConfig};
use crate::nn::path_hash;

pub use file::Checkpoint;
pub use layout::{Layout, Prefix};
pub use load::{LoadOptions, LoadReport, MisShaped, load};
pub(crate) use save::{Pending, write_tensors};
pub use save::{SaveOptions, save};

/// In which precision weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// As in the file (loading), as in the module (saving). A file whose tensors are of several types is loaded in
    /// single precision, which holds them all.
    Keep,
    /// Single precision; every backend has it.
    #[default]
    F32,
    /// Brain float; the range of single precision in half the memory.
    Bf16,
    /// Half precision.
    F16,
}

impl Precision {
    pub(crate) fn of(self, found: DType) -> DType {
        match self {
            Self::Keep if found == DType::F64 => DType::F32,
            Self::Keep => found,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// A model that can be read from and written to a Hugging Face folder.
pub trait Pretrained<B: Backend>: Module<B> {
    /// Its `config.json`.
    type Config: ModelConfig;
    /// Where the names of files differ from the paths of the module; nowhere by default.
    const PREFIXES: &'static [Prefix] = &[];

    /// The model of a config, its parameters not yet allocated.
    fn from_config(config: &Self::Config, device: &B::Device) -> Self;

    /// The config to write beside the weights.
    fn model_config(&self) -> &Self::Config;

    /// Read `config.json` and the weights of a folder.
    ///
    /// Peak memory is about one model: files are mapped, and each tensor is made straight from its place in them.
    ///
    /// # Errors
    /// A folder without checkpoint, an untrue header, another architecture, and, unless `options` allow it,
    /// missing, unused or mis-shaped tensors, all of them listed.
    fn from_pretrained(
        folder: impl AsRef<Path>,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<(Self, LoadReport)> {
        let folder = folder.as_ref();
        let config = Self::Config::load(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        load(Self::from_config(&config, device), &checkpoint, Self::PREFIXES, options)
    }

    /// Write `config.json` and the weights into a folder. Factors of adapters are not among them; modules that an adapter
    /// holds whole are, in place of the base's ([`without_adapters`](crate::lora::without_adapters) has the base's).
    ///
    /// # Errors
    /// The folder cannot be written.
    fn save_pretrained(&self, folder: impl AsRef<Path>, options: &SaveOptions) -> Result<()> {
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        self.model_config().save(folder)?;
        save(self, folder, Self::PREFIXES, options)
    }
}

impl<B: Backend> Pretrained<B> for Clip<B> {
    type Config = ClipConfig;

    fn from_config(config: &ClipConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &ClipConfig {
        self.config()
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

impl<B: Backend> Pretrained<B> for Llava<B> {
    type Config = LlavaConfig;
    const PREFIXES: &'static [Prefix] = &[
        Prefix {
            module: "model.language_model.",
            files: &["language_model.model.", "model.language_model."],
        },
        Prefix { module: "lm_head.", files: &["language_model.lm_head.", "lm_head."] },
        Prefix {
            module: "model.vision_tower.",
            files: &[
                "vision_tower.vision_model.",
                "vision_tower.",
                "model.vision_tower.vision_model.",
                "model.vision_tower.",
            ],
        },
        Prefix {
            module: "model.multi_modal_projector.",
            files: &["multi_modal_projector.", "model.multi_modal_projector."],
        },
    ];

    fn from_config(config: &LlavaConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &LlavaConfig {
        self.config()
    }
}

impl<B: Backend> Pretrained<B> for InstructBlip<B> {
    type Config = InstructBlipConfig;
    const PREFIXES: &'static [Prefix] = &[
        Prefix {
            module: "language_model.model.",
            files: &["language_model.model.", "model.language_model."],
        },
        Prefix { module: "language_model.lm_head.", files: &["language_model.lm_head.", "lm_head."] },
        Prefix { module: "vision_model.", files: &["vision_model.", "model.vision_model."] },
        Prefix { module: "qformer.", files: &["qformer.", "model.qformer."] },
        Prefix { module: "query_tokens", files: &["query_tokens", "model.query_tokens"] },
        Prefix {
            module: "language_projection.",
            files: &["language_projection.", "model.language_projection."],
        },
    ];

    fn from_config(config: &InstructBlipConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &InstructBlipConfig {
        self.config()
    }
}

/// Whether a parameter is there for an adapter's sake: a factor, or what of the base the adapter took the place of.
pub(crate) fn is_adapters(path: &[String]) -> bool {
    path.iter().any(|part| part == "lora" || part == "original")
}

/// The module with parameter ids derived from their paths instead of drawn at random, so that optimiser state
/// finds its parameters again in another process.
pub fn stable_ids<B: Backend, M: Module<B>>(module: M) -> M {
    use burn::module::{ModuleMapper, Param, ParamId};
    use burn::tensor::Tensor;

    struct Ids(Vec<String>);
    impl<B: Backend> ModuleMapper<B> for Ids {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn map_float<const D: usize>(&mut self, mut param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            param.id = ParamId::from(path_hash(&self.0.join(".")));
            param
        }
    }
    module.map(&mut Ids(Vec::new()))
}
