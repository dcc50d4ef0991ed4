//! Models that come from a folder.

use std::path::Path;

use burn::module::Module;
use burn::tensor::backend::Backend;

use super::file::Checkpoint;
use super::load::{LoadOptions, load};
use super::save::{SaveOptions, save};
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::layout::Prefix;
use crate::report::LoadReport;

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
