//! Between flex's tensors and slices.

use burn::tensor::{Bytes, DType, Shape, backend::Backend};
use burn_flex::{Flex, FlexTensor, Layout};

use crate::bridge::lives_in;

/// A float tensor in flex's memory, with or without a graph.
pub type Fast = crate::bridge::Fast<Flex>;

/// Do tensors of this backend lie in flex's memory?
pub fn is_flex<B: Backend>() -> bool {
    lives_in::<B, Flex>()
}

impl Fast {
    /// The values, contiguous; a copy only of a view that is not.
    pub fn solid(&self) -> FlexTensor {
        solid(self.inner())
    }
}

pub fn solid(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// A buffer as a tensor, without a copy.
pub fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32)
}

/// Values of a contiguous f32 tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous and f32")
}

pub fn shape(tensor: &FlexTensor) -> Vec<usize> {
    tensor.layout().shape().to_vec()
}

/// How often an operation of this thread has taken the fast way.
#[cfg(test)]
pub mod taken {
    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<usize> = const { Cell::new(0) };
    }

    pub fn count() -> usize {
        TAKEN.get()
    }

    pub fn more() {
        TAKEN.set(TAKEN.get() + 1);
    }
}
