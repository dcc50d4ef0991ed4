//! `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::attach::{attach_to, linear_paths};
use super::config::LoraConfig;
use super::target::Selection;
use super::whole::{Parameter, is_whole, needed, parameters, put, tensors_at};
use crate::checkpoint::{Checkpoint, Layout, Pending, Precision, Pretrained, write_tensors};
use crate::error::{Error, Result};
use crate::nn::EachLinear;
use crate::walk::stable_ids;

/// What PEFT puts before every path.
const ROOT: &str = "base_model.model.";

/// An adapter's config, and the names and precision its file has.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The options.
    pub config: LoraConfig,
    /// Prefixes of the names: old versions of transformers nested the language model the other way around.
    pub layout: Layout,
    /// Precision of the factors in the file; they are single in memory.
    pub precision: Precision,
    /// What of the config matches nothing in the model, to be told: PEFT passes over it.
    pub warnings: Vec<String>,
    /// Parameters that the file holds whole, with their names and precision there.
    pub(super) whole: BTreeMap<String, (String, Precision)>,
}

/// Attach the adapter of a PEFT folder to a model.
///
/// Besides the factors a file may hold parameters whole, as PEFT saves them: `modules_to_save` (linear layers and the
/// token table, which [`without_adapters`](super::without_adapters) takes away again), biases by `bias`, the weight of an
/// adapted output head, and token table and head of a vocabulary that grew. These stand in for the base's.
///
/// # Errors
/// Files that are missing or untrue, options that are not honoured, values that are not finite, tensors that are
/// missing, unused or of another shape, all of them listed.
pub fn load_adapter<B, M>(mut module: M, folder: impl AsRef<Path>) -> Result<(M, Adapter)>
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
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for name in checkpoint.names() {
        let path = layout.read(name.strip_prefix(ROOT).unwrap_or(name), M::PREFIXES);
        if let Some(other) = names.insert(path.clone(), name) {
            let reason = format!("and `{other}` both stand for `{path}`");
            return Err(Error::Tensor { path: file, name: name.into(), reason });
        }
    }
    // Names in the config are of the same age as those of the tensors.
    let called = layout.completed(M::PREFIXES);
    let selection = Selection::of(&config, &linear_paths(&mut module), &called)?;
    if selection.layers.is_empty() {
        let reason = format!("target_modules {} name no linear layer of the model", config.targets());
        return Err(Error::Adapter(format!("{}: {reason}", folder.display())));
    }

    let mut problems = Vec::new();
    let mut precisions = Vec::new();
    let module = attach_to(module, &config, &selection.layers, |path, rank, linear| {
        let [outputs, inputs] = linear.weight.lazy_shape().dims();
        let device = linear.weight.lazy_device();
        let mut factor = |suffix: &str, expected: [usize; 2]| {
            let path = format!("{path}.{suffix}.weight");
            let name = names.remove(&path);
            let found = name.and_then(|name| checkpoint.shape(name)).unwrap_or_default();
            if let Some(name) = name.filter(|_| found == expected) {
                precisions.push(precision_of(&checkpoint, name));
                let data = read(&checkpoint, name, Precision::F32)?;
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

    let parameters = parameters(&module);
    let needed = needed(&module, &config, &selection, &parameters, &called)?;
    let (mut values, mut whole) = (BTreeMap::new(), BTreeMap::new());
    for (path, name) in std::mem::take(&mut names) {
        let base = path.replacen(".base_layer.", ".", 1);
        match parameters.get(&base).filter(|_| is_whole(&path, &base, &config, &selection, &needed)) {
            None => problems.push(format!("{name} is in the file but no layer takes it")),
            Some(Parameter { shape, precision }) => {
                let found = checkpoint.shape(name).unwrap_or_default();
                if found == shape {
                    values.insert(base.clone(), read(&checkpoint, name, *precision)?);
                    whole.insert(base, (name.to_owned(), precision_of(&checkpoint, name)));
                } else {
                    problems.push(format!("{base} is {found:?}, expected {shape:?}"));
                }
            }
        }
    }
    let missing = needed.all().filter(|path| !whole.contains_key(*path));
    problems.extend(missing.map(|path| format!("{path} is missing")));
    if !problems.is_empty() {
        return Err(Error::Adapter(format!("{}: {}", file.display(), problems.join("; "))));
    }
    let module = stable_ids(put(module, values, &needed));
    let precision = match precisions.first() {
        Some(first) if precisions.iter().all(|other| other == first) => *first,
        _ => Precision::F32,
    };
    let nothing =
        |what| format!("{}: nothing in the model matches {what}; it is passed over", folder.display());
    let warnings = selection.unmatched.into_iter().map(nothing).collect();
    Ok((module, Adapter { config, layout, precision, warnings, whole }))
}

/// The values of a tensor, each of them finite.
fn read(checkpoint: &Checkpoint, name: &str, precision: Precision) -> Result<TensorData> {
    let data = checkpoint.read(name, precision)?;
    let Some((at, found)) = data.iter::<f32>().enumerate().find(|(_, value)| !value.is_finite()) else {
        return Ok(data);
    };
    let reason = format!("value {at} is {found}, which is not finite; train or export the adapter again");
    Err(Error::Tensor { path: checkpoint.file_of(name).into(), name: name.into(), reason })
}

fn precision_of(checkpoint: &Checkpoint, name: &str) -> Precision {
    match checkpoint.dtype(name) {
        Some(DType::BF16) => Precision::Bf16,
        Some(DType::F16) => Precision::F16,
        _ => Precision::F32,
    }
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
    let mut tensors: Vec<Pending> =
        factors.into_iter().map(|(path, t)| Pending::new(name(&path), t, adapter.precision)).collect();
    tensors.extend(tensors_at(module, &adapter.whole));
    write_tensors(&folder.join("adapter_model.safetensors"), &tensors.iter().collect::<Vec<_>>())?;
    adapter.config.save(folder)
}

/// Adapters of a module with their paths, `A` then `B` of each layer, for files.
fn factors<B, M>(module: &M) -> Vec<(String, Tensor<B, 2>)>
where
    B: Backend,
    M: Module<B> + EachLinear<B>,
{
    let mut out = Vec::new();
    // A clone shares storage; the walk needs it only because it may also change layers.
    module.clone().each_linear("", &mut |path, linear| {
        if let Some(lora) = &linear.lora {
            out.push((format!("{path}.lora_A.weight"), lora.lora_a.val()));
            out.push((format!("{path}.lora_B.weight"), lora.lora_b.val()));
        }
    });
    out
}

/// An [`Adapter`] for a module whose factors were just [attached](super::attach()): PEFT's own names, single precision.
impl From<LoraConfig> for Adapter {
    fn from(config: LoraConfig) -> Self {
        Self {
            config,
            layout: Layout::tree(),
            precision: Precision::F32,
            warnings: Vec::new(),
            whole: Default::default(),
        }
    }
}
