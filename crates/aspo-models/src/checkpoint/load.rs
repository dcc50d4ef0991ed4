//! Tensors of a checkpoint into the parameters of a module.

use std::collections::BTreeMap;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::file::Checkpoint;
use super::precision::Precision;
use crate::error::{Error, Result};
use crate::layout::Prefix;
use crate::report::{LoadReport, MisShaped};
use crate::walk::{Change, change, is_adapters};

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Precision of the weights; single by default.
    pub precision: Precision,
    /// Accept parameters without a tensor (they keep their starting values).
    pub allow_missing: bool,
    /// Accept tensors without a parameter.
    pub allow_unused: bool,
    /// Accept tensors of another shape than their parameter (which keeps its starting value).
    pub allow_mis_shaped: bool,
}

/// Fill a module from a checkpoint, one tensor at a time.
///
/// Adapters in the module are left alone. Buffers that old checkpoints carry (`position_ids`, `inv_freq`) and the
/// copy of a tied head are not counted as unused.
///
/// # Errors
/// What `options` do not allow, all of it listed; a precision the backend lacks; a tensor that is not of floats.
pub fn load<B: Backend, M: Module<B>>(
    module: M,
    checkpoint: &Checkpoint,
    prefixes: &[Prefix],
    options: &LoadOptions,
) -> Result<(M, LoadReport)> {
    let mut report = LoadReport::default();
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for name in checkpoint.names() {
        let path = report.layout.read(name, prefixes);
        if let Some(other) = names.insert(path.clone(), name) {
            let reason = format!("and `{other}` both stand for `{path}`");
            return Err(Error::Tensor { path: checkpoint.file_of(name).into(), name: name.into(), reason });
        }
    }
    let mut precision = options.precision;
    if precision == Precision::Keep {
        let weights = names.iter().filter(|(path, _)| !path.ends_with("inv_freq"));
        let mut types = weights.filter_map(|(_, name)| checkpoint.dtype(name));
        // Layers of unlike types cannot be added to each other.
        if types.next().is_some_and(|first| types.any(|other| other != first)) {
            precision = Precision::F32;
        }
    }
    let mut loader = Loader { checkpoint, names, precision, report, error: None };
    let module = change(module, &mut loader);
    let Loader { names, mut report, error, .. } = loader;
    if let Some(error) = error {
        return Err(error);
    }
    let ignorable = |path: &str| {
        path.ends_with("position_ids") || path.ends_with("inv_freq") || path.ends_with("lm_head.weight")
    };
    report.unused =
        names.into_iter().filter(|(path, _)| !ignorable(path)).map(|(_, n)| n.to_owned()).collect();
    let fits = (options.allow_missing || report.missing.is_empty())
        && (options.allow_unused || report.unused.is_empty())
        && (options.allow_mis_shaped || report.mis_shaped.is_empty());
    if fits {
        Ok((module, report))
    } else {
        Err(Error::Mismatch { path: checkpoint.path().into(), report: Box::new(report) })
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    /// Path to name; what is used is taken out.
    names: BTreeMap<String, &'a str>,
    precision: Precision,
    report: LoadReport,
    error: Option<Error>,
}

impl<B: Backend> Change<B> for Loader<'_> {
    fn change<const D: usize>(&mut self, path: &str, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.error.is_some() || is_adapters(path) {
            return param;
        }
        let Some(name) = self.names.remove(path) else {
            self.report.missing.push(path.to_owned());
            return param;
        };
        let expected = param.lazy_shape();
        let found = self.checkpoint.shape(name).unwrap_or_default().to_vec();
        let scalar = found.is_empty() && expected.as_slice() == [1];
        if found != expected.as_slice() && !scalar {
            self.report.mis_shaped.push(MisShaped {
                path: path.to_owned(),
                found,
                expected: expected.to_vec(),
            });
            return param;
        }
        let device = param.lazy_device();
        let refuse =
            |reason| Error::Tensor { path: self.checkpoint.file_of(name).into(), name: name.into(), reason };
        if let Some(dtype) = self.checkpoint.dtype(name).map(|d| self.precision.of(d))
            && !B::supports_dtype(&device, dtype)
        {
            let reason =
                format!("the backend {} has no {dtype:?}; load in single precision", B::name(&device));
            self.error = Some(refuse(reason));
            return param;
        }
        match self.checkpoint.read(name, self.precision) {
            Ok(data) => {
                self.report.loaded += 1;
                let (id, dtype) = (param.id, data.dtype);
                param.transform_for_load(Tensor::from_data(data, (&device, dtype)), id)
            }
            Err(error) => {
                self.error = Some(error);
                param
            }
        }
    }
}
