//! Parameters that an adapter's file holds whole, beside its factors.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};

use super::config::LoraConfig;
use super::target::{Selection, ends_with};
use crate::checkpoint::{Layout, Pending, Precision};
use crate::error::{Error, Result};
use crate::nn::EachLinear;
use crate::walk::{Change, Look, change, is_adapters, look};

/// Shape of a parameter of the base, and the precision it is held in.
pub(super) struct Parameter {
    pub shape: Vec<usize>,
    pub precision: Precision,
}

/// What a config says its file holds, by the paths of the base.
pub(super) struct Needed {
    /// Parameters of `modules_to_save`.
    saved: BTreeSet<String>,
    /// Biases.
    biases: BTreeSet<String>,
}

impl Needed {
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.saved.iter().chain(&self.biases)
    }
}

/// All parameters of the base, by path.
pub(super) fn parameters<B: Backend, M: Module<B>>(module: &M) -> BTreeMap<String, Parameter> {
    struct Collect(BTreeMap<String, Parameter>);
    impl<B: Backend> Look<B> for Collect {
        fn look<const D: usize>(&mut self, path: &str, param: &Param<Tensor<B, D>>) {
            if is_adapters(path) {
                return;
            }
            // One without value yet gets none for being asked.
            let precision = match param.is_initialized().then(|| param.val().dtype()) {
                Some(DType::BF16) => Precision::Bf16,
                Some(DType::F16) => Precision::F16,
                _ => Precision::F32,
            };
            self.0.insert(path.to_owned(), Parameter { shape: param.lazy_shape().to_vec(), precision });
        }
    }
    let mut collect = Collect(BTreeMap::new());
    look(module, &mut collect);
    collect.0
}

/// What the file must hold whole. Names of modules are those of `called`.
///
/// # Errors
/// `modules_to_save` that name nothing, an adapted layer, or parameters that cannot be kept beside the base's own.
pub(super) fn needed<B: Backend, M: Module<B> + EachLinear<B>>(
    module: &M,
    config: &LoraConfig,
    selection: &Selection,
    parameters: &BTreeMap<String, Parameter>,
    called: &Layout,
) -> Result<Needed> {
    let mut kept = BTreeSet::new();
    let mut walk = module.clone();
    walk.each_linear("", &mut |path, _| kept.extend([format!("{path}.weight"), format!("{path}.bias")]));
    walk.each_table("", &mut |path, _| kept.extend([format!("{path}.weight")]));

    let adapted = |path: &str| {
        let layer = path.rsplit_once('.').map_or("", |(layer, _)| layer);
        selection.layers.iter().any(|adapted| adapted.path == layer)
    };
    let mut saved = BTreeSet::new();
    for name in config.modules_to_save.iter().flatten() {
        let within = |path: &&String| {
            let called = called.write(path);
            called.match_indices('.').any(|(end, _)| ends_with(&called[..end], name))
        };
        let found: Vec<&String> = parameters.keys().filter(within).collect();
        let why = match found.iter().find(|path| adapted(path) || !kept.contains(**path)) {
            _ if found.is_empty() => "names no module of the model".to_owned(),
            None => {
                saved.extend(found.into_iter().cloned());
                continue;
            }
            Some(path) if adapted(path) => {
                format!("holds {path}, which target_modules adapt: one of them it can be")
            }
            Some(path) => {
                format!("holds {path}: only linear layers and the token table can be saved whole here")
            }
        };
        return Err(Error::Adapter(format!("modules_to_save `{name}` {why}")));
    }
    let is_bias = |path: &&String| match config.bias.as_str() {
        "all" => path.ends_with(".bias"),
        "lora_only" => path.ends_with(".bias") && adapted(path),
        _ => false,
    };
    let biases = parameters.keys().filter(is_bias).filter(|path| !saved.contains(*path)).cloned().collect();
    Ok(Needed { saved, biases })
}

/// Whether the tensor at `path` of the file, `base` in the base, is one that PEFT saves whole.
pub(super) fn is_whole(
    path: &str,
    base: &str,
    config: &LoraConfig,
    selection: &Selection,
    needed: &Needed,
) -> bool {
    let layer = base.rsplit_once('.').map_or("", |(layer, _)| layer);
    let adapted = selection.layers.iter().any(|adapted| adapted.path == layer);
    let wrapped = path != base;
    if base.ends_with(".bias") {
        return needed.saved.contains(base)
            || (config.bias != "none" && adapted == wrapped && needed.biases.contains(base));
    }
    // A head's own weight is saved with its adapter, token table and head with a vocabulary that grew.
    let vocabulary = ends_with(layer, "lm_head") || ends_with(layer, "embed_tokens");
    adapted == wrapped && (vocabulary || needed.saved.contains(base))
}

/// The module with these values in its parameters; what `modules_to_save` take the place of is kept beside them.
pub(super) fn put<B: Backend, M: Module<B> + EachLinear<B>>(
    mut module: M,
    values: BTreeMap<String, TensorData>,
    needed: &Needed,
) -> M {
    struct Put(BTreeMap<String, TensorData>);
    impl<B: Backend> Change<B> for Put {
        fn change<const D: usize>(&mut self, path: &str, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let Some(data) = self.0.remove(path) else { return param };
            let (id, dtype, device) = (param.id, data.dtype, param.lazy_device());
            param.transform_for_load(Tensor::from_data(data, (&device, dtype)), id).set_require_grad(false)
        }
    }
    if values.is_empty() {
        return module;
    }
    let saved = |path: &str| needed.saved.contains(&format!("{path}.weight"));
    module.each_linear("", &mut |path, linear| {
        if saved(path) {
            linear.keep_original();
        }
    });
    module.each_table("", &mut |path, table| {
        if saved(path) {
            table.keep_original();
        }
    });
    change(module, &mut Put(values))
}

/// The parameters at these paths, to be written by their names and precision.
pub(super) fn tensors_at<B: Backend, M: Module<B>>(
    module: &M,
    whole: &BTreeMap<String, (String, Precision)>,
) -> Vec<Pending> {
    struct Collect<'a>(&'a BTreeMap<String, (String, Precision)>, Vec<Pending>);
    impl<B: Backend> Look<B> for Collect<'_> {
        fn look<const D: usize>(&mut self, path: &str, param: &Param<Tensor<B, D>>) {
            if let Some((name, precision)) = self.0.get(path) {
                self.1.push(Pending::new(name.clone(), param.val(), *precision));
            }
        }
    }
    let mut collect = Collect(whole, Vec::new());
    look(module, &mut collect);
    collect.1
}
