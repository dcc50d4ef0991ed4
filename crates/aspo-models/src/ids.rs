//! Integers of a batch that the host knows: what is checked and counted is never read back from a device.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

/// A grid `[rows, columns]` of ids or marks, on the host; on a device where a model asks for it.
#[derive(Debug, Clone)]
pub struct Ids<B: Backend> {
    values: Arc<[i64]>,
    dims: [usize; 2],
    device: B::Device,
}

impl<B: Backend> Ids<B> {
    /// From values row by row, for a device.
    ///
    /// # Panics
    /// If there are not `dims[0] · dims[1]` values.
    pub fn new(values: impl Into<Arc<[i64]>>, dims: [usize; 2], device: &B::Device) -> Self {
        let values = values.into();
        assert_eq!(values.len(), dims[0] * dims[1], "{dims:?}");
        Self { values, dims, device: device.clone() }
    }

    /// Rows and columns.
    pub fn dims(&self) -> [usize; 2] {
        self.dims
    }

    /// Row by row.
    pub fn values(&self) -> &[i64] {
        &self.values
    }

    /// The device that they are for.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// On the device.
    pub fn tensor(&self) -> Tensor<B, 2, Int> {
        Tensor::from_data(TensorData::new(self.values.to_vec(), self.dims), &self.device)
    }

    /// For another backend on the same device.
    pub fn on<C: Backend<Device = B::Device>>(&self) -> Ids<C> {
        Ids { values: self.values.clone(), dims: self.dims, device: self.device.clone() }
    }
}

/// Reads the tensor back, once.
impl<B: Backend> From<Tensor<B, 2, Int>> for Ids<B> {
    fn from(tensor: Tensor<B, 2, Int>) -> Self {
        let (dims, device) = (tensor.dims(), tensor.device());
        Self { values: tensor.into_data().iter::<i64>().collect(), dims, device }
    }
}
