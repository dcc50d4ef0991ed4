//! From a tensor of any backend to one of a backend that kernels are written for, its home, and back, with no bound but
//! `B: Backend`; and one backward node for all operations.
//!
//! Primitives are `'static`, so that `Any` tells them apart. `Autodiff<H, C>` has the same primitive for every strategy `C`;
//! autodiff of another backend, or of autodiff, is not ours and takes the generic way.

use core::any::{Any, TypeId};
use core::fmt::Debug;
use core::marker::PhantomData;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive, backend::Backend};

/// A tensor of `Autodiff<H>`; its type's own name is private to Burn.
pub type Tracked<H> = FloatTensor<Autodiff<H>>;

/// Are tensors of `B` those of the home `H`, with or without a graph?
pub fn lives_in<B: Backend, H: Backend>() -> bool {
    let own = TypeId::of::<FloatTensor<B>>();
    own == TypeId::of::<FloatTensor<H>>() || own == TypeId::of::<Tracked<H>>()
}

/// A float tensor of the home, with or without a graph.
#[derive(Debug, Clone)]
pub enum Fast<H: Backend> {
    Plain(FloatTensor<H>),
    Tracked(Tracked<H>),
}

impl<H: Backend> Fast<H> {
    /// # Panics
    /// If tensors of `B` are not [those](lives_in) of the home.
    pub fn of<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Self {
        let primitive: FloatTensor<B> = tensor.into_primitive().tensor();
        match same(primitive) {
            Ok(plain) => Self::Plain(plain),
            Err(other) => match same(other) {
                Ok(tracked) => Self::Tracked(tracked),
                Err(_) => unreachable!("the caller has asked where the tensor lives"),
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
    pub fn beside(&self, tensor: FloatTensor<H>) -> Self {
        match self {
            Self::Plain(_) => Self::Plain(tensor),
            Self::Tracked(_) => Self::Tracked(<Tracked<H>>::new(tensor)),
        }
    }

    /// Is a gradient asked of it?
    pub fn is_tracked(&self) -> bool {
        matches!(self, Self::Tracked(tracked) if tracked.is_tracked())
    }

    /// The values, as they lie.
    pub fn inner(&self) -> FloatTensor<H> {
        match self {
            Self::Plain(plain) => plain.clone(),
            Self::Tracked(tracked) => tracked.primitive.clone(),
        }
    }
}

/// The value as a `T`, if that is its type.
pub fn same<S: 'static, T: 'static>(value: S) -> Result<T, S> {
    let mut slot = Some(value);
    match (&mut slot as &mut dyn Any).downcast_mut::<Option<T>>() {
        Some(found) => Ok(found.take().expect("just filled")),
        None => Err(slot.expect("not taken")),
    }
}

/// What an operation of `N` parents keeps for its backward, and that backward.
pub trait Fused<H: Backend, const N: usize>: Clone + Send + Debug + 'static {
    /// Gradients of the parents; of those not `wanted` none need be given.
    fn backward(self, grad: FloatTensor<H>, wanted: [bool; N]) -> [Option<FloatTensor<H>>; N];
}

#[derive(Debug)]
struct Node<O>(PhantomData<O>);

impl<H: Backend, O: Fused<H, N>, const N: usize> Backward<H, N> for Node<O> {
    type State = O;

    fn backward(self, ops: Ops<O, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<H>(&ops.node);
        let wanted = core::array::from_fn(|i| ops.parents[i].is_some());
        for (parent, grad) in ops.parents.into_iter().zip(ops.state.backward(grad, wanted)) {
            if let (Some(parent), Some(grad)) = (parent, grad) {
                grads.register::<H>(parent.id, grad);
            }
        }
    }
}

/// Hang `out` into the graph below its parents, or give it as it is where there is no graph. `state` is asked for only if
/// a gradient is.
pub fn record<H: Backend, O: Fused<H, N>, const N: usize>(
    parents: [Option<&Fast<H>>; N],
    out: FloatTensor<H>,
    state: impl FnOnce() -> O,
) -> Fast<H> {
    if !parents.iter().any(|parent| matches!(parent, Some(Fast::Tracked(_)))) {
        return Fast::Plain(out);
    }
    // A leaf without a gradient fills the places of parents that are not there.
    let blank = <Tracked<H>>::new(out.clone()).node;
    let nodes = parents.map(|parent| match parent {
        Some(Fast::Tracked(tracked)) => tracked.node.clone(),
        _ => blank.clone(),
    });
    Fast::Tracked(match Node::<O>(PhantomData).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(state(), out),
        OpsKind::UnTracked(prep) => prep.finish(out),
    })
}
