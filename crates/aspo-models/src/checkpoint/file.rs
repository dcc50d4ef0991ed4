//! Opening safetensors files, one or many, and decoding a tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use burn::tensor::{DType, TensorData};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::Deserialize;

use super::precision::Precision;
use crate::config::read_json;
use crate::error::{Error, Result};

/// The tensors of a folder or file, mapped into memory, none of them read yet.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<Mapped>,
    /// Name to file.
    names: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    start: usize,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Open `model.safetensors`, the shards of `model.safetensors.index.json`, or the file itself.
    ///
    /// Headers are checked here: sizes, offsets and shapes that contradict each other or the file are refused.
    ///
    /// # Errors
    /// Nothing to open, an index that names files outside its folder or tensors its files lack, an untrue header.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::of_files(path, vec![path.to_owned()]);
        }
        let single = path.join("model.safetensors");
        let index = path.join("model.safetensors.index.json");
        if single.is_file() {
            return Self::of_files(path, vec![single]);
        }
        if !index.is_file() {
            let pickle =
                ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|f| path.join(f).exists());
            let reason = if pickle {
                "only pickled weights here; convert them to safetensors, pickle is not read"
            } else {
                "neither model.safetensors nor model.safetensors.index.json here"
            };
            return Err(Error::Checkpoint { path: path.to_owned(), reason: reason.into() });
        }
        let map: Index = read_json(&index, "a safetensors index")?;
        let broken = |reason: String| Error::Checkpoint { path: index.clone(), reason };
        let shards: BTreeSet<&String> = map.weight_map.values().collect();
        if shards.is_empty() {
            return Err(broken("the index names no tensor".into()));
        }
        if let Some(bad) = shards.iter().find(|name| !is_plain(name)) {
            return Err(broken(format!("shard `{bad}` is not a plain file name")));
        }
        let out = Self::of_files(path, shards.into_iter().map(|name| path.join(name)).collect())?;
        for (name, shard) in &map.weight_map {
            match out.names.get(name) {
                Some(&at) if out.files[at].path == path.join(shard) => {}
                _ => {
                    return Err(broken(format!(
                        "tensor `{name}` is not in `{shard}`, where the index puts it"
                    )));
                }
            }
        }
        Ok(out)
    }

    fn of_files(path: &Path, paths: Vec<PathBuf>) -> Result<Self> {
        let mut out = Self { path: path.to_owned(), files: Vec::new(), names: BTreeMap::new() };
        for file in paths {
            let mapped = Mapped::open(file)?;
            let at = out.files.len();
            for name in mapped.header.offset_keys() {
                if let Some(other) = out.names.insert(name.clone(), at) {
                    let reason = format!("also in {}", out.files[other].path.display());
                    return Err(Error::Tensor { path: mapped.path, name, reason });
                }
            }
            out.files.push(mapped);
        }
        Ok(out)
    }

    /// The folder or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.info(name).map(|(_, info)| info.shape.as_slice())
    }

    /// Dtype of a float tensor; `None` where there is no such tensor or it is not of a float type we read.
    pub fn dtype(&self, name: &str) -> Option<DType> {
        self.info(name).and_then(|(_, info)| float(info.dtype))
    }

    /// Read a float tensor into memory, in `to`'s precision.
    ///
    /// # Errors
    /// No such tensor, or one that does not hold `f64`, `f32`, `f16` or `bf16`.
    pub fn read(&self, name: &str, to: Precision) -> Result<TensorData> {
        let Some((file, info)) = self.info(name) else {
            let reason = "not in this checkpoint".into();
            return Err(Error::Tensor { path: self.path.clone(), name: name.into(), reason });
        };
        let refuse = || Error::Tensor {
            path: file.path.clone(),
            name: name.into(),
            reason: format!("holds {:?}; weights are read as F64, F32, F16 or BF16", info.dtype),
        };
        let dtype = float(info.dtype).ok_or_else(refuse)?;
        let bytes = &file.map[file.start..][info.data_offsets.0..info.data_offsets.1];
        Ok(decode(bytes, &info.shape, dtype, to.of(dtype)))
    }

    /// The file a tensor lies in.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        self.names.get(name).map_or(&self.path, |&at| &self.files[at].path)
    }

    fn info(&self, name: &str) -> Option<(&Mapped, &TensorInfo)> {
        let file = &self.files[*self.names.get(name)?];
        Some((file, file.header.info(name)?))
    }
}

impl Mapped {
    fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(Error::io(&path))?;
        if file.metadata().map_err(Error::io(&path))?.len() == 0 {
            return Err(Error::Header { path, reason: "the file is empty".into() });
        }
        // SAFETY: the map is read-only. Shortening the file while it is mapped would end the process, as with every
        // program that maps its weights.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        match SafeTensors::read_metadata(&map) {
            Ok((length, header)) => Ok(Self { path, map, header, start: 8 + length }),
            Err(e) => Err(Error::Header { path, reason: e.to_string() }),
        }
    }
}

/// A name without folders, so that an index cannot reach elsewhere.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

fn float(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F64 => Some(DType::F64),
        Dtype::F32 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        _ => None,
    }
}

/// Little-endian bytes of `from` to tensor data of `to`; a scalar becomes `[1]`.
pub(crate) fn decode(bytes: &[u8], shape: &[usize], from: DType, to: DType) -> TensorData {
    fn le<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|chunk| f(*chunk)).collect()
    }
    let shape = if shape.is_empty() { vec![1] } else { shape.to_vec() };
    match (from, to) {
        (DType::BF16, DType::BF16) => TensorData::new(le(bytes, bf16::from_le_bytes), shape),
        (DType::F16, DType::F16) => TensorData::new(le(bytes, f16::from_le_bytes), shape),
        _ => {
            let single = match from {
                DType::BF16 => le(bytes, |b| bf16::from_le_bytes(b).to_f32()),
                DType::F16 => le(bytes, |b| f16::from_le_bytes(b).to_f32()),
                DType::F64 => le(bytes, |b| f64::from_le_bytes(b) as f32),
                _ => le(bytes, f32::from_le_bytes),
            };
            match to {
                DType::BF16 => {
                    TensorData::new(single.into_iter().map(bf16::from_f32).collect::<Vec<_>>(), shape)
                }
                DType::F16 => {
                    TensorData::new(single.into_iter().map(f16::from_f32).collect::<Vec<_>>(), shape)
                }
                _ => TensorData::new(single, shape),
            }
        }
    }
}
