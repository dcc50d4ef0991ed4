//! Products of matrices. Burn's take factors in f32 to be TF32, of ten bits, where a device has units for that (NVIDIA's tensor
//! cores): these do not.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use cubecl::prelude::CubePrimitive;
use cubecl::tf32;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

use super::launch::empty;
use super::{Home, at_home, unwrap, wrap};
use crate::bridge::Fast;

/// [`product`](crate::product()) of matrices in f32, where there are kernels.
pub fn plain_product<B: Backend>(a: &Tensor<B, 2>, b: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
    if a.dtype() == DType::F32 && b.dtype() == DType::F32 {
        at_home!(B, H => {
            let beside = Fast::<H>::of(a.clone());
            let [a, b] = plain::<H, B>([a, b])?;
            Some(beside.beside(unwrap(of_f32(a, b))).back())
        });
    }
    None
}

/// Two matrices of which no gradient is asked.
pub fn plain<H: Home, B: Backend>(tensors: [&Tensor<B, 2>; 2]) -> Option<[Tensor<H, 2>; 2]> {
    let tensors = tensors.map(|tensor| Fast::<H>::of(tensor.clone()));
    if tensors.iter().any(Fast::is_tracked) { None } else { Some(tensors.map(|t| wrap(t.inner()))) }
}

/// `a b` in the type of its factors.
pub fn product<H: Home, const D: usize>(a: Tensor<H, D>, b: Tensor<H, D>) -> Tensor<H, D> {
    if a.dtype() == DType::F32 { of_f32(a, b) } else { a.matmul(b) }
}

/// `a b` in f32 of two matrices of one type, which are multiplied as they are and summed in f32. (Burn's own product has the
/// type of its factors: in bf16 a sum of thousands of terms would be told in eight bits.)
pub fn wide_product<H: Home>(a: Tensor<H, 2>, b: Tensor<H, 2>) -> Tensor<H, 2> {
    if a.dtype() == DType::F32 {
        return of_f32(a, b);
    }
    let (a, b) = (unwrap(a), unwrap(b));
    let found = burn_cubecl::kernel::matmul::matmul(a, b, None, Default::default(), DType::F32);
    wrap(found.expect("every device has some product of every type it has"))
}

/// As [`product`], of adapters beside layers of the type `wide`: over halves TF32 has bits enough, for what is read has fewer.
pub fn adapter_product<H: Home>(a: Tensor<H, 2>, b: Tensor<H, 2>, wide: DType) -> Tensor<H, 2> {
    if a.dtype() == DType::F32 && wide != DType::F32 { a.matmul(b) } else { product(a, b) }
}

/// As [`wide_product`], of adapters.
pub fn wide_adapter_product<H: Home>(a: Tensor<H, 2>, b: Tensor<H, 2>, wide: DType) -> Tensor<H, 2> {
    if a.dtype() == DType::F32 { adapter_product(a, b, wide) } else { wide_product(a, b) }
}

/// `a b` with all bits of f32, on every device.
fn of_f32<H: Home, const D: usize>(a: Tensor<H, D>, b: Tensor<H, D>) -> Tensor<H, D> {
    let (rows, columns) = (a.dims(), b.dims());
    let terms = rows[D - 1];
    // Axes before the last two are batches, of which one is repeated.
    let shape: [usize; D] = core::array::from_fn(|axis| match D - 1 - axis {
        0 => columns[axis],
        1 => rows[axis],
        _ => rows[axis].max(columns[axis]),
    });
    let (left, right) = (unwrap(a), unwrap(b));
    let rounds = left.client.properties().supports_type(tf32::as_type_native_unchecked().storage_type());
    if !rounds || terms == 0 || shape.contains(&0) {
        return wrap::<H, D>(left).matmul(wrap(right));
    }
    let (client, out) = (left.client.clone(), empty(&left, shape, DType::F32));
    let f32 = DType::F32.into();
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems { lhs: f32, rhs: f32, out: f32 });
    // Tiles by plain units; and one product after the other where a shape has no tiles.
    let tiles = Strategy::SimpleUnit(Default::default());
    let launch = |strategy: &Strategy, types: &mut MatmulElems| {
        let [left, right] = [&left, &right].map(|x| InputBinding::new(x.clone().binding(), f32));
        launch_ref(strategy, &client, left, right, out.clone().binding(), types)
    };
    let done = launch(&tiles, &mut types).or_else(|_| launch(&Strategy::Naive, &mut types));
    done.expect("every device has some product of f32");
    wrap(out)
}
