//! Fixtures, readers and comparisons shared by the tests.

use std::path::{Path, PathBuf};

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// Instantiate generic tests for every backend that is built in.
macro_rules! on_backends {
    ($($test:ident),+ $(,)?) => {
        mod flex {
            $(#[test] fn $test() { super::$test::<burn_flex::Flex>(); })+
        }
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn_ndarray::NdArray>(); })+
        }
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $test() { super::$test::<burn::backend::Wgpu>(); })+
        }
        #[cfg(feature = "cuda")]
        mod cuda {
            $(#[test] fn $test() { super::$test::<burn::backend::Cuda>(); })+
        }
    };
}
pub(crate) use on_backends;

/// The oracle's folder: `ASPO_ORACLE`, else the copy beside the tests.
pub fn oracle() -> PathBuf {
    std::env::var_os("ASPO_ORACLE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), PathBuf::from)
}

/// Every case of the oracle's models whose `model_type` is this.
pub fn cases(model_type: &str) -> Vec<PathBuf> {
    let models = oracle().join("models");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&models)
        .unwrap_or_else(|e| panic!("{}: {e}", models.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("expected.safetensors").is_file())
        .filter(|path| aspo_models::config::model_type(path).unwrap() == model_type)
        .collect();
    found.sort();
    found
}

/// Tensors of a file, read without the code under test's float decoder.
pub struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        Self { bytes: std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())) }
    }

    pub fn names(&self) -> Vec<String> {
        self.file().names().into_iter().map(str::to_owned).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn floats(&self, name: &str) -> (Vec<f64>, Vec<usize>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let data = view.data();
        let values = match view.dtype() {
            safetensors::Dtype::F64 => {
                data.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            safetensors::Dtype::F32 => {
                data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            other => panic!("{name} holds {other:?}"),
        };
        (values, view.shape().to_vec())
    }

    pub fn ints(&self, name: &str) -> (Vec<i64>, Vec<usize>) {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        (values, view.shape().to_vec())
    }

    pub fn float_tensor<B: Backend, const D: usize>(&self, name: &str) -> Tensor<B, D> {
        let (values, shape) = self.floats(name);
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    pub fn int_tensor<B: Backend, const D: usize>(&self, name: &str) -> Tensor<B, D, Int> {
        let (values, shape) = self.ints(name);
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }

    fn file(&self) -> safetensors::SafeTensors<'_> {
        safetensors::SafeTensors::deserialize(&self.bytes).unwrap()
    }
}

pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.to_data().iter::<f64>().collect()
}

/// Largest difference over the largest expected magnitude, at rows of the last axis whose mask is 1.
pub fn relative(found: &[f64], expected: &[f64], mask: Option<&[i64]>) -> f64 {
    assert_eq!(found.len(), expected.len());
    let rows = mask.map_or(1, <[i64]>::len);
    let width = expected.len() / rows;
    let seen = |i: usize| mask.is_none_or(|m| m[i / width] == 1);
    let scale = (0..expected.len()).filter(|&i| seen(i)).map(|i| expected[i].abs()).fold(0.0, f64::max);
    let diff = (0..expected.len())
        .filter(|&i| seen(i))
        .map(|i| {
            let d = (found[i] - expected[i]).abs();
            if d.is_nan() { f64::INFINITY } else { d }
        })
        .fold(0.0, f64::max);
    diff / scale
}

/// `expected[name]` is met to 1e-4 of its largest magnitude, the oracle's tolerance for f32 models.
pub fn assert_close<B: Backend, const D: usize>(
    case: &Path,
    found: Tensor<B, D>,
    expected: &Expected,
    name: &str,
    mask: Option<&[i64]>,
) {
    let (want, shape) = expected.floats(name);
    assert_eq!(found.dims().to_vec(), shape, "{}: {name}", case.display());
    let error = relative(&values(found), &want, mask);
    println!("{}: {name} {error:.2e}", case.display());
    assert!(error <= 1e-4, "{}: {name} is off by {error:.2e}", case.display());
}
