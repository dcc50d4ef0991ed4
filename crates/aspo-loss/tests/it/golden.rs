//! Golden files: in `$ASPO_ORACLE`, else in `tests/fixtures`.

use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

/// One file: its name, its options, its tensors with their shapes.
pub struct Case {
    pub name: String,
    pub metadata: HashMap<String, String>,
    pub tensors: HashMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Case {
    /// The values of a tensor that has to be there.
    pub fn get(&self, name: &str) -> &[f64] {
        &self.entry(name).1
    }

    /// Shape and values.
    pub fn entry(&self, name: &str) -> &(Vec<usize>, Vec<f64>) {
        self.tensors.get(name).unwrap_or_else(|| panic!("{}: no tensor {name}", self.name))
    }

    /// A number among the options.
    pub fn option(&self, name: &str) -> f64 {
        self.metadata[name].trim_matches('"').parse().unwrap()
    }

    /// A matrix of whole numbers by rows.
    pub fn rows(&self, name: &str) -> Vec<Vec<i64>> {
        let (shape, values) = self.entry(name);
        values.chunks(shape[1]).map(|row| row.iter().map(|&v| v as i64).collect()).collect()
    }
}

/// The cases of one sub-folder of the oracle. One that `ASPO_ORACLE` names may lack the sub-folder; if it is there it holds
/// a case.
pub fn cases(kind: &str) -> Vec<Case> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let named = std::env::var_os("ASPO_ORACLE").map(PathBuf::from);
    let folder = named.clone().unwrap_or_else(|| fixtures.into()).join(kind);
    if named.is_some() && !folder.exists() {
        return vec![];
    }
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "no case in {}", folder.display());
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &std::path::Path) -> Case {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap_or_default();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = view.data();
            let values = match view.dtype() {
                Dtype::F32 => {
                    data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
                }
                Dtype::F64 => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
                Dtype::I64 => {
                    data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
                }
                other => panic!("{}: {name} has type {other:?}", path.display()),
            };
            (name, (view.shape().to_vec(), values))
        })
        .collect();
    Case { name: path.file_stem().unwrap().to_string_lossy().into(), metadata, tensors }
}
