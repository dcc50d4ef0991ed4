//! `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, backend::Backend};

use super::{LoraConfig, attach_with, factors};
use crate::checkpoint::{Checkpoint, Layout, Pending, Precision, Pretrained, write_tensors};
use crate::error::{Error, Result};
use crate::nn::EachLinear;

/// What PEFT puts before every path.
const ROOT: &str = "base_model.model.";

/// An adapter's config, and the names and precision its file has.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The options.
    pub config: LoraConfig,
    /// Prefixes of the names: old versions of transformers nested the language model the other way around.
    pub layout: Layout,
    /// Precision of the file; factors are single in memory.
    pub precision: Precision,
}

/// Attach the adapter of a PEFT folder to a model.
///
/// # Errors
/// Files that are missing or untrue, options that are not honoured, factors that are missing, unused or of another
/// shape, all of them listed.
pub fn load_adapter<B, M>(module: M, folder: impl AsRef<Path>) -> Result<(M, Adapter)>
where
    B: Backend,
    M: Pretrained<B> + EachLinear<B>,
{
    let folder = folder.as_ref();
    let config = LoraConfig::load(folder)?;
    let file = folder.join("adapter_model.safetensors");
    if !file.exists() && folder.join("adapter_model.bin").exists() {
        let reason = "only a pickled adapter here; save it again with safe_serialization, pickle is not read";
        return Err(Error::Checkpoint { path: folder.into(), reason: reason.into() });
    }
    let checkpoint = Checkpoint::open(&file)?;
    let mut layout = Layout::default();
    let mut names = BTreeMap::new();
    let mut precision = Precision::F32;
    for name in checkpoint.names() {
        let path = layout.read(name.strip_prefix(ROOT).unwrap_or(name), M::PREFIXES);
        precision = match checkpoint.dtype(name) {
            Some(DType::BF16) => Precision::Bf16,
            Some(DType::F16) => Precision::F16,
            _ => precision,
        };
        names.insert(path, name);
    }
    let mut problems = Vec::new();
    let module = attach_with(module, &config, |path, rank, linear| {
        let [outputs, inputs] = linear.weight.lazy_shape().dims();
        let device = linear.weight.lazy_device();
        let mut factor = |suffix: &str, expected: [usize; 2]| {
            let path = format!("{path}.{suffix}.weight");
            let name = names.remove(&path);
            let found = name.and_then(|name| checkpoint.shape(name)).unwrap_or_default();
            if let Some(name) = name.filter(|_| found == expected) {
                let data = checkpoint.read(name, Precision::F32)?;
                return Ok(Tensor::from_data(data, (&device, DType::F32)));
            }
            problems.push(match name {
                None => format!("{path} is missing"),
                Some(_) => format!("{path} is {found:?}, expected {expected:?}"),
            });
            // Stands in until the problems are told below; a config that lies about its rank allocates nothing.
            Ok(Tensor::zeros([1, 1], &device))
        };
        Ok((factor("lora_A", [rank, inputs])?, factor("lora_B", [outputs, rank])?))
    })?;
    problems.extend(names.values().map(|name| format!("{name} is in the file but no layer takes it")));
    if !problems.is_empty() {
        return Err(Error::Adapter(format!("{}: {}", file.display(), problems.join("; "))));
    }
    Ok((module, Adapter { config, layout, precision }))
}

/// Write the adapters of a model as a PEFT folder. What [`load_adapter`] read is written back to the byte.
///
/// # Errors
/// A model without adapters, or a folder that cannot be written.
pub fn save_adapter<B, M>(module: &M, adapter: &Adapter, folder: impl AsRef<Path>) -> Result<()>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let folder = folder.as_ref();
    let factors = factors(module);
    if factors.is_empty() {
        return Err(Error::Adapter("the model has no adapter to save: attach one first".into()));
    }
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let name = |path: &str| format!("{ROOT}{}", adapter.layout.write(path));
    let tensors: Vec<Pending> =
        factors.into_iter().map(|(path, t)| Pending::new(name(&path), t, adapter.precision)).collect();
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors.iter().collect::<Vec<_>>())?;
    adapter.config.save(folder)
}
