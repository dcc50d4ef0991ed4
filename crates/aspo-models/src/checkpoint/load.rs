//! Tensors of a checkpoint into the parameters of a module.

use std::collections::BTreeMap;
use std::fmt;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};

use super::{Checkpoint, Layout, Precision, Prefix, is_adapters};
use crate::error::{Error, Result};

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

/// A tensor whose shape is not its parameter's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisShaped {
    /// Path of the parameter.
    pub path: String,
    /// Shape in the file.
    pub found: Vec<usize>,
    /// Shape of the parameter.
    pub expected: Vec<usize>,
}

/// What was done with each tensor.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadReport {
    /// Parameters filled.
    pub loaded: usize,
    /// Paths of parameters that had no tensor.
    pub missing: Vec<String>,
    /// Names of tensors that had no parameter.
    pub unused: Vec<String>,
    /// Tensors of another shape.
    pub mis_shaped: Vec<MisShaped>,
    /// The prefixes met, to save under the same names.
    pub layout: Layout,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} loaded", self.loaded)?;
        let list = |f: &mut fmt::Formatter<'_>, what: &str, names: Vec<String>| {
            if names.is_empty() {
                Ok(())
            } else {
                write!(f, "\n{} {what}: {}", names.len(), names.join(", "))
            }
        };
        list(f, "missing from the files", self.missing.clone())?;
        list(f, "in the files but not in the model", self.unused.clone())?;
        let shapes = |m: &MisShaped| format!("{} {:?} instead of {:?}", m.path, m.found, m.expected);
        list(f, "of another shape", self.mis_shaped.iter().map(shapes).collect())
    }
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
    let mut loader = Loader { checkpoint, names, precision, path: Vec::new(), report, error: None };
    let module = module.map(&mut loader);
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
    path: Vec<String>,
    report: LoadReport,
    error: Option<Error>,
}

impl<B: Backend> ModuleMapper<B> for Loader<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if self.error.is_some() || is_adapters(&self.path) {
            return param;
        }
        let path = self.path.join(".");
        let Some(name) = self.names.remove(&path) else {
            self.report.missing.push(path);
            return param;
        };
        let expected = param.lazy_shape();
        let found = self.checkpoint.shape(name).unwrap_or_default().to_vec();
        let scalar = found.is_empty() && expected.as_slice() == [1];
        if found != expected.as_slice() && !scalar {
            self.report.mis_shaped.push(MisShaped { path, found, expected: expected.to_vec() });
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
