//! The result of one layer put together: product, bias, adapter and residual, at its place beside the other layers.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::launch::{a_unit_a_value, array, arrays, rows, written};

/// The parts of a layer's result.
pub struct Layer<R: CubeRuntime> {
    /// `x Wᵀ`, `[rows, out]`.
    pub product: CubeTensor<R>,
    /// `[out]`, of the type of the product.
    pub bias: Option<CubeTensor<R>>,
    /// `scale (x Aᵀ) Bᵀ`, `[rows, out]` in f32.
    pub adapter: Option<CubeTensor<R>>,
}

/// `product + bias + adapter + residual`, into the columns of `out` that begin at `from`; the residual has the shape
/// and type of `out`.
pub fn join<R: CubeRuntime>(
    layer: Layer<R>,
    residual: Option<CubeTensor<R>>,
    out: &CubeTensor<R>,
    from: usize,
) {
    let ([n, width], whole) = (rows(&layer.product), rows(out)[1]);
    if n * width == 0 {
        return;
    }
    let client = out.client.clone();
    let (count, dim) = a_unit_a_value(&client, n * width);
    let types: [StorageType; 2] = [layer.product.dtype.into(), out.dtype.into()];
    let (product, bias, adapter) = (array(layer.product), arrays(layer.bias), arrays(layer.adapter));
    let (residual, out) = (arrays(residual), written(out));
    unsafe {
        join_layer::launch_unchecked(
            &client,
            count,
            dim,
            product,
            bias,
            adapter,
            residual,
            out,
            n * width,
            width,
            whole,
            from,
            types,
        );
    }
}

#[cube(launch_unchecked)]
fn join_layer<W: Float, T: Float>(
    product: &Array<W>,
    bias: &Sequence<Array<W>>,
    adapter: &Sequence<Array<f32>>,
    residual: &Sequence<Array<T>>,
    out: &mut Array<T>,
    values: usize,
    width: usize,
    whole: usize,
    from: usize,
    #[define(W, T)] _types: [StorageType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < values {
        let column = at % width;
        let to = at / width * whole + from + column;
        let mut sum = f32::cast_from(product[at]);
        #[unroll]
        for i in 0..bias.len() {
            sum += f32::cast_from(bias.index(i)[column]);
        }
        #[unroll]
        for i in 0..adapter.len() {
            sum += adapter.index(i)[at];
        }
        #[unroll]
        for i in 0..residual.len() {
            sum += f32::cast_from(residual.index(i)[to]);
        }
        out[to] = T::cast_from(sum);
    }
}
