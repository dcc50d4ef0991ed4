//! From a tensor of any backend to flex's memory and back, with no bound but `B: Backend`, and one backward node for all
//! operations.
//!
//! Primitives are `'static`, so that `Any` tells them apart. `Autodiff<Flex, C>` has the same primitive for every
//! strategy `C`; autodiff of another backend, or of autodiff, is not ours and takes the generic way.

use core::any::{Any, TypeId};
use core::fmt::Debug;
use core::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorPrimitive, backend::Backend};
use burn_flex::{Flex, FlexTensor, Layout};

/// A tensor of `Autodiff<Flex>`; its type's own name is private to Burn.
type Tracked = FloatTensor<Autodiff<Flex>>;

/// Do tensors of this backend lie in flex's memory?
pub fn is_flex<B: Backend>() -> bool {
    let own = TypeId::of::<FloatTensor<B>>();
    own == TypeId::of::<FlexTensor>() || own == TypeId::of::<Tracked>()
}

/// A float tensor in flex's memory, with or without a graph.
#[derive(Debug, Clone)]
pub enum Fast {
    Plain(FlexTensor),
    Tracked(Tracked),
}

impl Fast {
    /// # Panics
    /// If the backend is not [flex](is_flex).
    pub fn of<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Self {
        let primitive: FloatTensor<B> = tensor.into_primitive().tensor();
        match same(primitive) {
            Ok(plain) => Self::Plain(plain),
            Err(other) => match same(other) {
                Ok(tracked) => Self::Tracked(tracked),
                Err(_) => unreachable!("the caller has asked whether the backend is flex"),
            },
        }
    }

    pub fn back<B: Backend, const D: usize>(self) -> Tensor<B, D> {
        let primitive: Option<FloatTensor<B>> = match self {
            Self::Plain(plain) => same(plain).ok(),
            Self::Tracked(tracked) => same(tracked).ok(),
        };
        let primitive = primitive.expect("made of tensors of this backend");
        Tensor::from_primitive(TensorPrimitive::Float(primitive))
    }

    /// A tensor without a graph, of the same backend as this one.
    pub fn beside(&self, tensor: FlexTensor) -> Self {
        match self {
            Self::Plain(_) => Self::Plain(tensor),
            Self::Tracked(_) => Self::Tracked(Tracked::new(tensor)),
        }
    }

    /// Is a gradient asked of it?
    pub fn is_tracked(&self) -> bool {
        matches!(self, Self::Tracked(tracked) if tracked.is_tracked())
    }

    /// The values, contiguous; a copy only of a view that is not.
    pub fn solid(&self) -> FlexTensor {
        solid(match self {
            Self::Plain(plain) => plain.clone(),
            Self::Tracked(tracked) => tracked.primitive.clone(),
        })
    }
}

/// The value as a `T`, if that is its type.
fn same<S: 'static, T: 'static>(value: S) -> Result<T, S> {
    let mut slot = Some(value);
    match (&mut slot as &mut dyn Any).downcast_mut::<Option<T>>() {
        Some(found) => Ok(found.take().expect("just filled")),
        None => Err(slot.expect("not taken")),
    }
}

fn solid(tensor: FlexTensor) -> FlexTensor {
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

/// What an operation of `N` parents keeps for its backward, and that backward.
pub trait Fused<const N: usize>: Clone + Send + Debug + 'static {
    /// Gradients of the parents; of those not `wanted` none need be given.
    fn backward(self, grad: FlexTensor, wanted: [bool; N]) -> [Option<FlexTensor>; N];
}

#[derive(Debug)]
struct Node<O>(PhantomData<O>);

impl<O: Fused<N>, const N: usize> Backward<Flex, N> for Node<O> {
    type State = O;

    fn backward(self, ops: Ops<O, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = solid(grads.consume::<Flex>(&ops.node));
        let wanted = core::array::from_fn(|i| ops.parents[i].is_some());
        for (parent, grad) in ops.parents.into_iter().zip(ops.state.backward(grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<Flex>(parent.id, grad);
            }
        }
    }
}

/// Hang `out` into the graph below its parents, or give it as it is where there is no graph. `state` is asked for only if
/// a gradient is.
pub fn record<O: Fused<N>, const N: usize>(
    parents: [Option<&Fast>; N],
    out: FlexTensor,
    state: impl FnOnce() -> O,
) -> Fast {
    if !parents.iter().any(|parent| matches!(parent, Some(Fast::Tracked(_)))) {
        return Fast::Plain(out);
    }
    // A leaf without a gradient fills the places of parents that are not there.
    let blank = Tracked::new(tensor(Vec::new(), [0])).node;
    let nodes = parents.map(|parent| match parent {
        Some(Fast::Tracked(tracked)) => tracked.node.clone(),
        _ => blank.clone(),
    });
    Fast::Tracked(match Node::<O>(PhantomData).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state(), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    })
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
