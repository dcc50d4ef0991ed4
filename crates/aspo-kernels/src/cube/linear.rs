//! Groups of linear layers, and norms and activations by themselves.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata, backend::Backend};
use burn_cubecl::tensor::CubeTensor;

use super::join::{self, join};
use super::launch::empty;
use super::product::{adapter_product, product, wide_adapter_product};
use super::row::{self, Parts};
use super::stack::side_by_side;
use super::{Home, at_home, reads, unwrap, wrap};
use crate::bridge::{Fast, Fused, record};
use crate::layer::{Activation, Before, GROUP, Layer};
use crate::{cast, wider};

/// What is done to the input of a group; made again in the backward.
#[derive(Debug, Clone)]
enum Prepare<H: Home> {
    Nothing,
    RmsNorm(Tensor<H, 1>, f32),
    LayerNorm(Tensor<H, 1>, Tensor<H, 1>, f32),
    Activation { kind: Activation, gated: bool },
}

impl<H: Home> Prepare<H> {
    fn forward(&self, x: Tensor<H, 2>) -> Tensor<H, 2> {
        wrap(match self {
            Self::Nothing => return x,
            Self::RmsNorm(weight, eps) => row::rms_norm(unwrap(x), unwrap(weight.clone()), *eps),
            Self::LayerNorm(weight, bias, eps) => {
                row::layer_norm(unwrap(x), unwrap(weight.clone()), unwrap(bias.clone()), *eps)
            }
            Self::Activation { kind, gated } => row::activation(unwrap(x), *kind, *gated),
        })
    }

    /// Gradients of the input, and of weight and bias of a norm if wanted.
    fn backward(
        &self,
        x: Tensor<H, 2>,
        grad: Parts<H::Runtime>,
        want_weight: bool,
    ) -> [Option<CubeTensor<H::Runtime>>; 3] {
        let parameters = if want_weight { self.parameters(&x, &grad) } else { [None, None] };
        let dtype = x.dtype();
        let x = unwrap(x);
        let dx = match self {
            Self::Nothing => grad.sum(dtype),
            Self::RmsNorm(weight, eps) => row::rms_norm_backward(x, unwrap(weight.clone()), *eps, grad),
            Self::LayerNorm(weight, _, eps) => {
                row::layer_norm_backward(x, unwrap(weight.clone()), *eps, grad)
            }
            Self::Activation { kind, gated } => row::activation_backward(x, *kind, *gated, grad),
        };
        let [weight, bias] = parameters;
        [Some(dx), weight, bias]
    }

    /// `Σ n dy` with `n` the normed row, and `Σ dy`.
    fn parameters(&self, x: &Tensor<H, 2>, grad: &Parts<H::Runtime>) -> [Option<CubeTensor<H::Runtime>>; 2] {
        let plain = match self {
            Self::Nothing | Self::Activation { .. } => return [None, None],
            Self::RmsNorm(weight, eps) => Self::RmsNorm(weight.ones_like(), *eps),
            Self::LayerNorm(weight, bias, eps) => {
                Self::LayerNorm(weight.ones_like(), bias.zeros_like(), *eps)
            }
        };
        let grad = wrap::<H, 2>(grad.clone().sum(DType::F32));
        let normed = cast(plain.forward(x.clone()), DType::F32);
        let sum = |t: Tensor<H, 2>| Some(unwrap::<H, 1>(cast(t.sum_dim(0).squeeze_dim(0), x.dtype())));
        let bias = matches!(self, Self::LayerNorm(..)).then(|| sum(grad.clone())).flatten();
        [sum(normed * grad), bias]
    }
}

/// What is done to an input, and the parents among its parameters, in the type of the input.
fn prepare<H: Home, B: Backend>(before: Before<B>, dtype: DType) -> (Prepare<H>, [Option<Fast<H>>; 2]) {
    let parameter = |t: Tensor<B, 1>| {
        let fast = Fast::<H>::of(cast(t, dtype));
        (wrap::<H, 1>(fast.inner()), fast)
    };
    match before {
        Before::Nothing => (Prepare::Nothing, [None, None]),
        Before::RmsNorm { weight, eps } => {
            let (kept, weight) = parameter(weight);
            (Prepare::RmsNorm(kept, eps as f32), [Some(weight), None])
        }
        Before::LayerNorm { weight, bias, eps } => {
            let ((kept, weight), (kept_bias, bias)) = (parameter(weight), parameter(bias));
            (Prepare::LayerNorm(kept, kept_bias, eps as f32), [Some(weight), Some(bias)])
        }
        Before::Activation(kind) => (Prepare::Activation { kind, gated: false }, [None, None]),
        Before::Gated(kind) => (Prepare::Activation { kind, gated: true }, [None, None]),
    }
}

/// A norm or activation by itself. Parents: input, weight, bias.
#[derive(Debug, Clone)]
struct Prepared<H: Home> {
    what: Prepare<H>,
    x: Tensor<H, 2>,
    shape: Vec<usize>,
}

impl<H: Home> Fused<H, 3> for Prepared<H> {
    fn backward(self, grad: FloatTensor<H>, wanted: [bool; 3]) -> [Option<FloatTensor<H>>; 3] {
        let grad = flat::<H>(grad);
        let [dx, weight, bias] = self.what.backward(self.x, Parts::one(unwrap(grad)), wanted[1] || wanted[2]);
        [dx.map(|dx| shaped::<H>(dx, &self.shape)), weight, bias]
    }
}

fn prepared<H: Home>(x: Fast<H>, what: Prepare<H>, [weight, bias]: [Option<Fast<H>>; 2]) -> Fast<H> {
    let shape = x.inner().shape().to_vec();
    let flat = flat::<H>(x.inner());
    let y = shaped::<H>(unwrap(what.forward(flat.clone())), &shape);
    record([Some(&x), weight.as_ref(), bias.as_ref()], y, || Prepared { what, x: flat, shape })
}

/// [`rms_norm`](crate::rms_norm), where there are kernels.
pub fn rms_norm<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    weight: &Tensor<B, 1>,
    eps: f64,
) -> Option<Tensor<B, D>> {
    one(x, || Before::RmsNorm { weight: weight.clone(), eps })
}

/// [`layer_norm`](crate::layer_norm), where there are kernels.
pub fn layer_norm<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    weight: &Tensor<B, 1>,
    bias: &Tensor<B, 1>,
    eps: f64,
) -> Option<Tensor<B, D>> {
    one(x, || Before::LayerNorm { weight: weight.clone(), bias: bias.clone(), eps })
}

/// [`Activation::forward`], where there are kernels.
pub fn activation<B: Backend, const D: usize>(x: &Tensor<B, D>, kind: Activation) -> Option<Tensor<B, D>> {
    one(x, || Before::Activation(kind))
}

fn one<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    before: impl FnOnce() -> Before<B>,
) -> Option<Tensor<B, D>> {
    if reads(x.dtype()) {
        at_home!(B, H => {
            let (what, parameters) = prepare::<H, B>(before(), x.dtype());
            Some(prepared(Fast::of(x.clone()), what, parameters).back())
        });
    }
    None
}

/// `[.., width]` as rows.
fn flat<H: Home>(tensor: FloatTensor<H>) -> Tensor<H, 2> {
    let shape = tensor.shape();
    let width = shape[shape.num_dims() - 1];
    let rows: usize = shape[..shape.num_dims() - 1].iter().product();
    wrap(H::float_reshape(tensor, [rows, width].into()))
}

/// Columns from one on, this many; all of them are the tensor itself.
fn columns<H: Home>(x: &Tensor<H, 2>, [from, count]: [usize; 2]) -> Tensor<H, 2> {
    if x.dims()[1] == count { x.clone() } else { x.clone().narrow(1, from, count) }
}

/// The same values in another shape.
fn shaped<H: Home>(tensor: CubeTensor<H::Runtime>, shape: &[usize]) -> CubeTensor<H::Runtime> {
    H::float_reshape(tensor, shape.into())
}

/// A layer's parameters, as they are read.
#[derive(Debug, Clone)]
struct Kept<H: Home> {
    weight: Tensor<H, 2>,
    /// The type in which it is multiplied.
    wide: DType,
    bias: Option<Tensor<H, 1>>,
    lora: Option<Lora<H>>,
}

#[derive(Debug, Clone)]
struct Lora<H: Home> {
    a: Tensor<H, 2>,
    b: Tensor<H, 2>,
    scale: f64,
    /// What inputs are multiplied by, in f32: 0, or one over the probability that they are kept.
    dropout: Option<Tensor<H, 2>>,
    /// `scale · drop(x) Aᵀ`, `[rows, rank]` in the type of the factors, from the forward.
    middle: Option<Tensor<H, 2>>,
}

/// Layers whose adapters read the same: all, or each alone where inputs are dropped or types differ.
fn stacks<H: Home>(layers: &[Kept<H>]) -> Vec<Vec<usize>> {
    let with = (0..layers.len()).filter(|i| layers[*i].lora.is_some());
    let mut adapters = layers.iter().filter_map(|layer| layer.lora.as_ref());
    let dtype = adapters.clone().next().map(|lora| lora.a.dtype());
    if adapters.any(|lora| lora.dropout.is_some() || Some(lora.a.dtype()) != dtype) {
        return with.map(|i| vec![i]).collect();
    }
    let all: Vec<usize> = with.collect();
    if all.is_empty() { vec![] } else { vec![all] }
}

/// The adapters of a stack, as tensors under each other or side by side.
struct Stack<'a, H: Home>(Vec<&'a Lora<H>>);

impl<'a, H: Home> Stack<'a, H> {
    fn of(layers: &'a [Kept<H>], stack: &[usize]) -> Self {
        Self(stack.iter().filter_map(|i| layers[*i].lora.as_ref()).collect())
    }

    /// The type of the products.
    fn dtype(&self) -> DType {
        self.0[0].a.dtype()
    }

    fn read(&self, x: &Tensor<H, 2>) -> Tensor<H, 2> {
        cast(self.drop(x.clone()), self.dtype())
    }

    /// What is dropped of an input, or of its gradient.
    fn drop(&self, x: Tensor<H, 2>) -> Tensor<H, 2> {
        match &self.0[0].dropout {
            Some(dropout) => cast(x, DType::F32) * dropout.clone(),
            None => x,
        }
    }

    /// `A` under each other, `[Σ rank, in]`, times `scale` if `scaled`.
    fn a(&self, scaled: bool) -> Tensor<H, 2> {
        let inputs = self.0[0].a.dims()[1];
        let parts = self.0.iter().map(|lora| {
            let [rank, _] = lora.a.dims();
            let scale = if scaled { lora.scale as f32 } else { 1.0 };
            (unwrap(lora.a.clone().reshape([1, rank * inputs])), scale)
        });
        let all: Tensor<H, 2> = wrap(side_by_side(parts.collect()));
        let ranks = all.dims()[1] / inputs;
        all.reshape([ranks, inputs])
    }

    /// The ranks' ranges, one behind the other.
    fn ranks(&self) -> impl Iterator<Item = [usize; 2]> {
        self.0.iter().scan(0, |from, lora| {
            let rank = lora.a.dims()[0];
            *from += rank;
            Some([*from - rank, rank])
        })
    }
}

/// A group of layers.
#[derive(Debug, Clone)]
struct Group<H: Home> {
    before: Prepare<H>,
    x: Tensor<H, 2>,
    shape: Vec<usize>,
    layers: Vec<Kept<H>>,
}

/// Input, residual, weight and bias of a norm.
const SHARED: usize = 4;

/// W, b, A, B.
const OF_LAYER: usize = 4;

const PARENTS: usize = SHARED + OF_LAYER * GROUP;

impl<H: Home> Fused<H, PARENTS> for Group<H> {
    fn backward(self, grad: FloatTensor<H>, wanted: [bool; PARENTS]) -> [Option<FloatTensor<H>>; PARENTS] {
        let want_x = wanted[0] || wanted[2] || wanted[3];
        let of_layers = || wanted[SHARED..].chunks_exact(OF_LAYER).zip(&self.layers);
        // Made again for the gradients of weights and of `A`.
        let read = of_layers().any(|(own, _)| own[0] || own[2]).then(|| self.before.forward(self.x.clone()));
        let mut out = [const { None }; PARENTS];
        out[1] = wanted[1].then(|| grad.clone());
        let dy = flat::<H>(grad);
        let (mut parts, mut from) = (Parts::default(), 0);
        let mut inner = vec![];
        for ((own, layer), out) in of_layers().zip(out[SHARED..].chunks_exact_mut(OF_LAYER)) {
            let outputs = layer.weight.dims()[0];
            let dy = columns(&dy, [from, outputs]);
            from += outputs;
            let wide = cast(dy.clone(), layer.wide);
            if want_x {
                let weight = cast(layer.weight.clone(), layer.wide);
                parts.push(unwrap(product(wide.clone(), weight)));
            }
            if own[0] {
                let read = read.clone().expect("made above");
                let grad = product(wide.clone().transpose(), cast(read, layer.wide));
                out[0] = Some(unwrap(grad));
            }
            if own[1] {
                out[1] = Some(unwrap::<H, 1>(wide.sum_dim(0).squeeze_dim(0)));
            }
            inner.push(layer.lora.as_ref().map(|lora| {
                let dy = cast(dy, lora.a.dtype());
                if own[3] {
                    let middle = lora.middle.clone().expect("kept by the forward");
                    out[3] = Some(unwrap(wide_adapter_product(dy.clone().transpose(), middle, layer.wide)));
                }
                (unwrap(adapter_product(dy, lora.b.clone(), layer.wide)), lora.scale as f32)
            }));
        }
        for stack in stacks(&self.layers) {
            let (own, wide) = (Stack::of(&self.layers, &stack), self.layers[stack[0]].wide);
            let inner = stack.iter().filter_map(|i| inner[*i].take()).collect();
            let inner: Tensor<H, 2> = wrap(side_by_side(inner));
            if want_x {
                parts.push(unwrap(own.drop(wide_adapter_product(inner.clone(), own.a(false), wide))));
            }
            if stack.iter().any(|i| wanted[SHARED + OF_LAYER * i + 2]) {
                let read = own.read(read.as_ref().expect("made above"));
                let all = wide_adapter_product(inner.transpose(), read, wide);
                for (i, [from, rank]) in stack.iter().zip(own.ranks()) {
                    out[SHARED + OF_LAYER * i + 2] = Some(unwrap(all.clone().narrow(0, from, rank)));
                }
            }
        }
        if want_x {
            let [dx, weight, bias] = self.before.backward(self.x, parts, wanted[2] || wanted[3]);
            out[0] = dx.map(|dx| shaped::<H>(dx, &self.shape));
            (out[2], out[3]) = (weight, bias);
        }
        out
    }
}

/// [`linear`](crate::linear()), where there are kernels; `dropped` is 1 where an input of an adapter is kept.
pub fn linear<B: Backend, const D: usize>(
    x: &Tensor<B, D>,
    before: &Before<B>,
    layers: &[Layer<B>],
    dropped: &[Option<Tensor<B, 2>>],
    residual: Option<&Tensor<B, D>>,
) -> Option<Tensor<B, D>> {
    let dtype = x.dtype();
    if reads(dtype) && residual.is_none_or(|residual| residual.dtype() == dtype) {
        at_home!(B, H => {
            let (before, norm) = prepare::<H, B>(before.clone(), dtype);
            let mut parameters = [const { None }; OF_LAYER * GROUP];
            let kept = layers
                .iter()
                .zip(dropped)
                .zip(parameters.chunks_exact_mut(OF_LAYER))
                .map(|((layer, dropped), parents)| Kept::of(layer, dropped.as_ref(), dtype, parents))
                .collect();
            let residual = residual.map(|residual| Fast::of(residual.clone()));
            Some(group::<H>(Fast::of(x.clone()), before, norm, kept, parameters, residual).back())
        });
    }
    None
}

fn group<H: Home>(
    x: Fast<H>,
    before: Prepare<H>,
    norm: [Option<Fast<H>>; 2],
    mut layers: Vec<Kept<H>>,
    parameters: [Option<Fast<H>>; OF_LAYER * GROUP],
    residual: Option<Fast<H>>,
) -> Fast<H> {
    let shape = x.inner().shape().to_vec();
    let given = flat::<H>(x.inner());
    let read = before.forward(given.clone());
    let whole: usize = layers.iter().map(|layer| layer.weight.dims()[0]).sum();
    let out = empty(&unwrap(given.clone()), [given.dims()[0], whole], given.dtype());
    let added = residual.as_ref().map(|residual| unwrap(flat::<H>(residual.inner())));
    for stack in stacks(&layers) {
        let own = Stack::of(&layers, &stack);
        let all = adapter_product(own.read(&read), own.a(true).transpose(), layers[stack[0]].wide);
        let middles: Vec<_> = own.ranks().map(|range| columns(&all, range)).collect();
        for (i, middle) in stack.into_iter().zip(middles) {
            layers[i].lora.as_mut().expect("a stack of adapters").middle = Some(middle);
        }
    }
    let mut from = 0;
    for layer in &layers {
        let weight = cast(layer.weight.clone(), layer.wide).transpose();
        let product = product(cast(read.clone(), layer.wide), weight);
        let adapter = layer.lora.as_ref().map(|lora| {
            let middle = lora.middle.clone().expect("made above");
            unwrap(wide_adapter_product(middle, lora.b.clone().transpose(), layer.wide))
        });
        let bias = layer.bias.clone().map(unwrap);
        join(join::Layer { product: unwrap(product), bias, adapter }, added.clone(), &out, from);
        from += layer.weight.dims()[0];
    }
    let mut parents: [Option<&Fast<H>>; PARENTS] = [None; PARENTS];
    parents[..SHARED].copy_from_slice(&[Some(&x), residual.as_ref(), norm[0].as_ref(), norm[1].as_ref()]);
    for (parent, parameter) in parents[SHARED..].iter_mut().zip(&parameters) {
        *parent = parameter.as_ref();
    }
    let mut wide = shape.clone();
    *wide.last_mut().expect("axes") = whole;
    let y = shaped::<H>(out, &wide);
    record(parents, y, || Group { before, x: given, shape, layers })
}

impl<H: Home> Kept<H> {
    /// The layer's parameters, and the parents among them.
    fn of<B: Backend>(
        layer: &Layer<B>,
        dropped: Option<&Tensor<B, 2>>,
        dtype: DType,
        parents: &mut [Option<Fast<H>>],
    ) -> Self {
        let wide = wider(dtype, layer.weight.dtype());
        let mut keep = |place: usize, parent: Fast<H>| {
            let inner = parent.inner();
            parents[place] = Some(parent);
            inner
        };
        keep(0, Fast::of(cast(layer.weight.clone(), wide)));
        Self {
            weight: wrap(Fast::<H>::of(layer.weight.clone()).inner()),
            wide,
            bias: layer.bias.clone().map(|bias| wrap(keep(1, Fast::of(cast(bias, wide))))),
            lora: layer.lora.as_ref().filter(|lora| lora.a.dims()[0] > 0).map(|lora| Lora {
                a: wrap(keep(2, Fast::of(lora.a.clone()))),
                b: wrap(keep(3, Fast::of(cast(lora.b.clone(), lora.a.dtype())))),
                scale: lora.scale,
                dropout: dropped.map(|kept| {
                    wrap::<H, 2>(Fast::<H>::of(kept.clone()).inner()).div_scalar(1.0 - lora.dropout)
                }),
                middle: None,
            }),
        }
    }
}
