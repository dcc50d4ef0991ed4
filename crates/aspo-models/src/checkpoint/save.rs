//! Parameters of a module into safetensors files.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use safetensors::tensor::{Dtype, View, serialize_to_file};

use super::precision::Precision;
use crate::config::write_json;
use crate::error::{Error, Result};
use crate::layout::{Layout, Prefix};
use crate::walk::{Look, is_adapters, look};

/// How to save.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// Precision of the files; that of the module by default.
    pub precision: Precision,
    /// Names to use: [`LoadReport::layout`](crate::LoadReport::layout), or `None` for the hub's.
    pub layout: Option<Layout>,
    /// Bytes of tensors a file may hold before another is begun; 5 GB by default, as Hugging Face.
    pub shard_bytes: u64,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self { precision: Precision::Keep, layout: None, shard_bytes: 5_000_000_000 }
    }
}

/// Parameters that are scalars in files; tensors here have one axis at least.
const SCALARS: &[&str] = &["logit_scale"];

/// A tensor to write, fetched from its device when its turn comes.
pub(crate) struct Pending {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    fetch: Box<dyn Fn() -> TensorData>,
}

impl Pending {
    pub(crate) fn new<B: Backend, const D: usize>(
        name: String,
        tensor: Tensor<B, D>,
        precision: Precision,
    ) -> Self {
        let dtype = precision.of(tensor.dtype());
        let scalar = SCALARS.contains(&name.as_str());
        let shape = if scalar { Vec::new() } else { tensor.dims().to_vec() };
        Self { name, shape, dtype, fetch: Box::new(move || tensor.to_data().convert_dtype(dtype)) }
    }

    fn bytes(&self) -> u64 {
        (self.shape.iter().product::<usize>() * self.dtype.size()) as u64
    }
}

impl View for &Pending {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned((self.fetch)().as_bytes().to_vec())
    }

    fn data_len(&self) -> usize {
        self.bytes() as usize
    }
}

/// Write the parameters of a module (adapters excepted) as `model.safetensors`, or as shards with their index.
///
/// Files of an earlier save that would shadow these are removed.
///
/// # Errors
/// The folder cannot be written.
pub fn save<B: Backend, M: Module<B>>(
    module: &M,
    folder: impl AsRef<Path>,
    prefixes: &[Prefix],
    options: &SaveOptions,
) -> Result<()> {
    let folder = folder.as_ref();
    let layout = options.layout.clone().unwrap_or_else(|| Layout::hub(prefixes));
    let mut collector = Collector { layout, precision: options.precision, tensors: Vec::new() };
    look(module, &mut collector);
    let mut tensors = collector.tensors;
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let total: u64 = tensors.iter().map(Pending::bytes).sum();
    let index = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if total <= options.shard_bytes {
        write_tensors(&single, &tensors.iter().collect::<Vec<_>>())?;
        return remove(&index);
    }
    let mut shards: Vec<Vec<&Pending>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in &tensors {
        if filled > 0 && filled + tensor.bytes() > options.shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_tensors(&folder.join(&file), shard)?;
        weight_map.extend(shard.iter().map(|t| (t.name.as_str(), file.clone())));
    }
    write_json(
        &index,
        &serde_json::json!({ "metadata": { "total_size": total }, "weight_map": weight_map }),
    )?;
    remove(&single)
}

/// One safetensors file with PyTorch's `format` mark, written beside its name, synced and renamed.
pub(crate) fn write_tensors(path: &Path, tensors: &[&Pending]) -> Result<()> {
    let partial = path.with_extension("safetensors.partial");
    // What safetensors writes can be read by its owner alone: it gets the permissions of any new file.
    let new = File::create(&partial).and_then(|file| file.metadata()).map_err(Error::io(&partial))?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let views = tensors.iter().map(|t| (t.name.as_str(), *t));
    serialize_to_file(views, Some(metadata), &partial)
        .map_err(|e| Error::Header { path: path.to_owned(), reason: format!("cannot be written: {e}") })?;
    std::fs::set_permissions(&partial, new.permissions()).map_err(Error::io(&partial))?;
    File::open(&partial).and_then(|f| f.sync_all()).map_err(Error::io(&partial))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path)(e)),
        _ => Ok(()),
    }
}

struct Collector {
    layout: Layout,
    precision: Precision,
    tensors: Vec<Pending>,
}

impl<B: Backend> Look<B> for Collector {
    fn look<const D: usize>(&mut self, path: &str, param: &Param<Tensor<B, D>>) {
        if !is_adapters(path) {
            self.tensors.push(Pending::new(self.layout.write(path), param.val(), self.precision));
        }
    }
}
