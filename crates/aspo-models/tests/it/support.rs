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

/// What is committed with the crate.
pub fn fixtures(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The folders with an `expected` file in a sub-folder of the oracle: of `ASPO_ORACLE`, else of the copy beside the tests.
/// None where `ASPO_ORACLE` has no such sub-folder; one without a case is a failure.
pub fn oracle(sub: &str, expected: &str) -> Vec<PathBuf> {
    let folder = match std::env::var_os("ASPO_ORACLE") {
        None => fixtures(sub),
        Some(root) if !Path::new(&root).join(sub).is_dir() => return Vec::new(),
        Some(root) => PathBuf::from(root).join(sub),
    };
    let mut found: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join(expected).is_file())
        .collect();
    assert!(!found.is_empty(), "no case in {}", folder.display());
    found.sort();
    found
}

/// Models that are implemented here; the oracle has others too.
const KNOWN: [&str; 9] = [
    "clip",
    "llama",
    "llava",
    "instructblip",
    "qwen2_vl",
    "qwen2_5_vl",
    "idefics3",
    "smolvlm",
    "llava_onevision",
];

fn model_type(case: &Path) -> String {
    aspo_models::config::model_type(case).unwrap_or_else(|e| panic!("{}: {e}", case.display()))
}

/// Every case of the oracle's models that is implemented, with its `model_type`.
pub fn models() -> Vec<(String, PathBuf)> {
    let all = oracle("models", "expected.safetensors");
    let found: Vec<_> = all.iter().map(|case| (model_type(case), case.clone())).collect();
    let found: Vec<_> = found.into_iter().filter(|(kind, _)| KNOWN.contains(&kind.as_str())).collect();
    assert!(all.is_empty() || !found.is_empty(), "the oracle holds no model that is implemented");
    found
}

/// Every case of the oracle's models of this `model_type`; the committed copy has one of each.
pub fn cases(kind: &str) -> Vec<PathBuf> {
    let found: Vec<_> =
        models().into_iter().filter(|(found, _)| found == kind).map(|(_, case)| case).collect();
    assert!(!found.is_empty() || std::env::var_os("ASPO_ORACLE").is_some(), "no {kind}");
    found
}

/// A folder of files, some of which may be there for the test alone.
pub struct Laid {
    pub path: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

/// Copies a folder's files, and those of its folders, to where none of the name is.
fn lay(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            lay(&entry.path(), &target);
        } else if !target.exists() {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A case as it lies, and with the files laid over it that transformers 4 spelt otherwise (`hub4/`).
pub fn generations(case: &Path) -> Vec<Laid> {
    let mut out = vec![Laid { path: case.to_owned(), _temporary: None }];
    let older = case.join("hub4");
    if older.is_dir() {
        let laid = tempfile::tempdir().unwrap();
        // What is there is not written over: the older spelling comes first.
        lay(&older, laid.path());
        lay(case, laid.path());
        out.push(Laid { path: laid.path().to_owned(), _temporary: Some(laid) });
    }
    out
}

/// The base of the oracle's adapters and trajectories.
pub fn oracle_llava() -> PathBuf {
    let given = std::env::var_os("ASPO_ORACLE").map(|root| PathBuf::from(root).join("models/llava"));
    given.filter(|folder| folder.is_dir()).unwrap_or_else(|| fixtures("models/llava"))
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

    /// A text of the header, empty where there is none.
    pub fn metadata(&self, key: &str) -> String {
        let (_, header) = safetensors::SafeTensors::read_metadata(&self.bytes).unwrap();
        header.metadata().as_ref().and_then(|texts| texts.get(key)).cloned().unwrap_or_default()
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

/// Largest difference of as many numbers, all of them finite: `zip` would stop at the shorter, `f64::max` pass over NaN.
#[track_caller]
pub fn worst(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many values");
    assert!(!expected.is_empty(), "something to compare");
    assert!(found.iter().chain(expected).all(|value| value.is_finite()), "a value is not finite");
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Largest magnitude.
pub fn scale(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, value| value.abs().max(most))
}

/// Largest difference over the largest expected magnitude, at rows of the last axis whose mask is 1.
#[track_caller]
pub fn relative(found: &[f64], expected: &[f64], mask: Option<&[i64]>) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many values");
    let width = expected.len() / mask.map_or(1, <[i64]>::len);
    let seen = |values: &[f64]| -> Vec<f64> {
        let rows = values.chunks(width).enumerate();
        rows.filter(|(row, _)| mask.is_none_or(|m| m[*row] == 1)).flat_map(|(_, row)| row.to_vec()).collect()
    };
    let (found, expected) = (seen(found), seen(expected));
    let scale = scale(&expected);
    assert!(scale > 0.0, "nothing but zeros is expected");
    worst(&found, &expected) / scale
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
