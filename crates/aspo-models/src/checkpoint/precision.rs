//! In which precision weights are kept.

use burn::tensor::DType;

/// In which precision weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Precision {
    /// As in the file (loading), as in the module (saving). A file whose tensors are of several types is loaded in
    /// single precision, which holds them all.
    Keep,
    /// Single precision; every backend has it.
    #[default]
    F32,
    /// Brain float; the range of single precision in half the memory.
    Bf16,
    /// Half precision.
    F16,
}

impl Precision {
    pub(crate) fn of(self, found: DType) -> DType {
        match self {
            Self::Keep if found == DType::F64 => DType::F32,
            Self::Keep => found,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}
