//! The operations on Burn's tensors in flex's memory.

use core::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Tensor, backend::Backend};
use burn_flex::{Flex, FlexTensor};
use half::bf16;

use super::bridge::{Fast, is_flex, shape, solid, tensor, values};
use super::decode::Cache;
use super::linear::{Dropout, Factors, Grads, Wanted, Weight};
use super::{attention as slices, head, linear as group, row};
use crate::bridge::{Fused, record};
use crate::cast;
use crate::context::{Context, Heads};
use crate::layer::Activation;
use crate::layer::{Before, GROUP, Layer};
use crate::mask::BlockMask;
use crate::pass::{HeadGradients, HeadPass, HeadWant};
use crate::rotary::Rotary;

/// Do the kernels take this tensor?
pub fn takes<B: Backend, const D: usize>(x: &Tensor<B, D>) -> bool {
    is_flex::<B>() && x.dtype() == DType::F32
}

/// A tensor as f32 in flex's memory.
fn fast<B: Backend, const D: usize>(x: Tensor<B, D>) -> Fast {
    #[cfg(test)]
    super::bridge::taken::more();
    Fast::of(cast(x, DType::F32))
}

// Attention.

/// Parents: queries, or all that one sequence looks at itself with; keys and values of another sequence.
#[derive(Debug, Clone)]
struct Attention {
    q: FlexTensor,
    kv: Option<FlexTensor>,
    out: FlexTensor,
    sums: Arc<Vec<f32>>,
    heads: Heads,
    mask: Arc<BlockMask>,
    rotary: Option<Arc<Rotary>>,
}

impl Fused<Flex, 2> for Attention {
    fn backward(self, grad: FlexTensor, _: [bool; 2]) -> [Option<FlexTensor>; 2] {
        let how = slices::Attention { heads: self.heads, mask: &self.mask, rotary: self.rotary.as_deref() };
        let read = slices::Read::new(values(&self.q), self.kv.as_ref().map(values), self.heads);
        let grad = solid(grad);
        let [dq, dkv] = how.backward(read, values(&self.out), &self.sums, values(&grad));
        [Some(tensor(dq, shape(&self.q))), self.kv.map(|kv| tensor(dkv, shape(&kv)))]
    }
}

/// Of queries, keys and values side by side, or of queries over the keys and values of another sequence.
pub fn attention<B: Backend>(
    q: Tensor<B, 3>,
    kv: Option<Tensor<B, 3>>,
    heads: Heads,
    context: &Context<B>,
) -> Tensor<B, 3> {
    let (q, kv) = (fast(q), kv.map(fast));
    let (solid, solid_kv) = (q.solid(), kv.as_ref().map(Fast::solid));
    let (mask, rotary) = context.parts();
    let keep = q.is_tracked() || kv.as_ref().is_some_and(Fast::is_tracked);
    let read = slices::Read::new(values(&solid), solid_kv.as_ref().map(values), heads);
    let how = slices::Attention { heads, mask: &mask, rotary: rotary.as_deref() };
    let (out, sums) = how.forward(read, keep);
    let out = tensor(out, [mask.batch(), mask.tokens(), heads.heads * heads.dim]);
    let kept = out.clone();
    let sums = Arc::new(sums);
    let state = || Attention { q: solid, kv: solid_kv, out: kept, sums, heads, mask, rotary };
    record([Some(&q), kv.as_ref()], out, state).back()
}

/// A cache that holds the keys and values of the first tokens; none where the kernels do not take them.
pub fn begin_cache<B: Backend>(qkv: &Tensor<B, 3>, heads: Heads, context: &Context<B>) -> Option<Cache> {
    if !takes(qkv) {
        return None;
    }
    let qkv = Fast::of(qkv.clone());
    if qkv.is_tracked() {
        return None;
    }
    let (mask, rotary) = context.parts();
    let mut cache = Cache::new(mask.batch(), heads);
    cache.append(values(&qkv.solid()), heads, mask.tokens(), rotary.as_deref());
    Some(cache)
}

/// New tokens into a cache and their attention out of it.
pub fn step<B: Backend>(
    qkv: Tensor<B, 3>,
    heads: Heads,
    cache: &mut Cache,
    rotary: Option<&Rotary>,
    seen: &[Vec<Range<usize>>],
) -> Tensor<B, 3> {
    let [batch, tokens, _] = qkv.dims();
    let beside = fast(qkv);
    let qkv = beside.solid();
    cache.append(values(&qkv), heads, tokens, rotary);
    let out = cache.attend(values(&qkv), heads, tokens, rotary, seen);
    beside.beside(tensor(out, [batch, tokens, heads.heads * heads.dim])).back()
}

// Linear layers.

/// What is done to the input of a group; made again in the backward.
#[derive(Debug, Clone)]
enum Prepare {
    Nothing,
    RmsNorm(FlexTensor, f32),
    LayerNorm(FlexTensor, FlexTensor, f32),
    Activation(Activation),
    Gated(Activation),
}

impl Prepare {
    fn forward(&self, x: &FlexTensor) -> FlexTensor {
        let v = values(x);
        let y = match self {
            Self::Nothing => return x.clone(),
            Self::RmsNorm(weight, eps) => row::rms_norm(v, values(weight), *eps),
            Self::LayerNorm(weight, bias, eps) => row::layer_norm(v, values(weight), values(bias), *eps),
            Self::Activation(kind) => row::activation(v, *kind),
            Self::Gated(kind) => {
                let mut half = shape(x);
                let inner = half.last_mut().expect("axes");
                *inner /= 2;
                let y = row::gated(v, *inner, *kind);
                return tensor(y, half);
            }
        };
        tensor(y, shape(x))
    }

    /// Gradients of the input, and of weight and bias of a norm if wanted.
    fn backward(&self, x: &FlexTensor, grad: FlexTensor, want_weight: bool) -> [Option<FlexTensor>; 3] {
        if let Self::Nothing = self {
            return [Some(grad), None, None];
        }
        let (v, grad) = (values(x), values(&grad));
        let own = |d: Vec<f32>| Some(tensor(d, shape(x)));
        let flat = |d: Vec<f32>| {
            let n = d.len();
            tensor(d, [n])
        };
        match self {
            Self::Nothing => unreachable!("above"),
            Self::RmsNorm(weight, eps) => {
                let (dx, d_weight) = row::rms_norm_backward(v, values(weight), *eps, grad, want_weight);
                [own(dx), d_weight.map(flat), None]
            }
            Self::LayerNorm(weight, _, eps) => {
                let weight = values(weight);
                let (dx, d_weight) = row::layer_norm_backward(v, weight, *eps, grad, want_weight);
                let d_bias = want_weight.then(|| flat(group::column_sums(grad, weight.len())));
                [own(dx), d_weight.map(flat), d_bias]
            }
            Self::Activation(kind) => [own(row::activation_backward(v, *kind, grad)), None, None],
            Self::Gated(kind) => {
                let inner = shape(x).last().expect("axes") / 2;
                [own(row::gated_backward(v, inner, *kind, grad)), None, None]
            }
        }
    }
}

/// A norm or activation by itself. Parents: input, weight, bias.
#[derive(Debug, Clone)]
struct Prepared {
    what: Prepare,
    x: FlexTensor,
}

impl Fused<Flex, 3> for Prepared {
    fn backward(self, grad: FlexTensor, wanted: [bool; 3]) -> [Option<FlexTensor>; 3] {
        self.what.backward(&self.x, solid(grad), wanted[1] || wanted[2])
    }
}

fn prepared<B: Backend, const D: usize>(x: Tensor<B, D>, before: Before<B>) -> Tensor<B, D> {
    let x = fast(x);
    let (what, [weight, bias]) = prepare(before);
    let solid = x.solid();
    let y = what.forward(&solid);
    record([Some(&x), weight.as_ref(), bias.as_ref()], y, || Prepared { what, x: solid }).back()
}

/// What is done to an input, and the parents among its parameters.
fn prepare<B: Backend>(before: Before<B>) -> (Prepare, [Option<Fast>; 2]) {
    match before {
        Before::Nothing => (Prepare::Nothing, [None, None]),
        Before::RmsNorm { weight, eps } => {
            let weight = fast(weight);
            (Prepare::RmsNorm(weight.solid(), eps as f32), [Some(weight), None])
        }
        Before::LayerNorm { weight, bias, eps } => {
            let (weight, bias) = (fast(weight), fast(bias));
            (Prepare::LayerNorm(weight.solid(), bias.solid(), eps as f32), [Some(weight), Some(bias)])
        }
        Before::Activation(kind) => (Prepare::Activation(kind), [None, None]),
        Before::Gated(kind) => (Prepare::Gated(kind), [None, None]),
    }
}

pub fn rms_norm<B: Backend, const D: usize>(x: Tensor<B, D>, weight: Tensor<B, 1>, eps: f64) -> Tensor<B, D> {
    prepared(x, Before::RmsNorm { weight, eps })
}

pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    prepared(x, Before::LayerNorm { weight, bias, eps })
}

pub fn activation<B: Backend, const D: usize>(x: Tensor<B, D>, kind: Activation) -> Tensor<B, D> {
    prepared(x, Before::Activation(kind))
}

/// A layer's parameters, as they are read.
#[derive(Debug, Clone)]
struct Kept {
    weight: FlexTensor,
    bias: Option<FlexTensor>,
    lora: Option<Lora>,
}

#[derive(Debug, Clone)]
struct Lora {
    a: FlexTensor,
    b: FlexTensor,
    scale: f32,
    dropout: Option<Arc<Dropout>>,
}

impl Kept {
    fn layer(&self) -> group::Layer<'_> {
        let out = self.weight.layout().shape()[0];
        group::Layer {
            weight: match self.weight.dtype() {
                DType::BF16 => Weight::Bf16(self.weight.as_slice::<bf16>().expect("contiguous")),
                _ => Weight::F32(values(&self.weight)),
            },
            out,
            bias: self.bias.as_ref().map(values),
            lora: self.lora.as_ref().map(|lora| Factors {
                a: values(&lora.a),
                b: values(&lora.b),
                rank: lora.a.layout().shape()[0],
                scale: lora.scale,
                dropout: lora.dropout.as_deref(),
            }),
        }
    }
}

/// A group of layers.
#[derive(Debug, Clone)]
struct Group {
    before: Prepare,
    x: FlexTensor,
    /// Rows and inputs of the layers.
    read: [usize; 2],
    layers: Vec<Kept>,
    middles: Arc<Vec<Vec<f32>>>,
}

/// Input, residual, weight and bias of a norm.
const SHARED: usize = 4;

/// W, b, A, B.
const OF_LAYER: usize = 4;

const PARENTS: usize = SHARED + OF_LAYER * GROUP;

impl Fused<Flex, PARENTS> for Group {
    fn backward(self, grad: FlexTensor, wanted: [bool; PARENTS]) -> [Option<FlexTensor>; PARENTS] {
        let grad = solid(grad);
        let layers: Vec<_> = self.layers.iter().map(Kept::layer).collect();
        let of_layers: Vec<Wanted> = (0..layers.len())
            .map(|i| {
                let own = &wanted[SHARED + OF_LAYER * i..][..OF_LAYER];
                Wanted { weight: own[0], bias: own[1], factors: own[2] || own[3] }
            })
            .collect();
        let want_x = wanted[0] || wanted[2] || wanted[3];
        let read = self.before.forward(&self.x);
        let (dx, grads) = group::backward(
            values(&read),
            self.read,
            &layers,
            &self.middles,
            values(&grad),
            want_x,
            &of_layers,
        );
        let read_shape = shape(&read);
        drop(read);
        let mut out = [const { None }; PARENTS];
        if let Some(dx) = dx {
            let dx = tensor(dx, read_shape);
            [out[0], out[2], out[3]] = self.before.backward(&self.x, dx, wanted[2] || wanted[3]);
        }
        for (i, (layer, Grads { weight, bias, factors })) in layers.iter().zip(grads).enumerate() {
            let [_, inputs] = self.read;
            let to = &mut out[SHARED + OF_LAYER * i..][..OF_LAYER];
            to[0] = weight.map(|d| tensor(d, [layer.out, inputs]));
            to[1] = bias.map(|d| tensor(d, [layer.out]));
            if let (Some([a, b]), Some(lora)) = (factors, &layer.lora) {
                to[2] = Some(tensor(a, [lora.rank, inputs]));
                to[3] = Some(tensor(b, [layer.out, lora.rank]));
            }
        }
        out[1] = Some(grad);
        out
    }
}

pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    before: Before<B>,
    layers: &[Layer<B>],
    dropped: Vec<Option<Tensor<B, 2>>>,
    residual: Option<Tensor<B, D>>,
) -> Tensor<B, D> {
    let (x, residual) = (fast(x), residual.map(fast));
    let (before, norm) = prepare(before);
    let mut parameters: [Option<Fast>; OF_LAYER * GROUP] = [const { None }; OF_LAYER * GROUP];
    let kept: Vec<Kept> = layers
        .iter()
        .zip(dropped)
        .zip(parameters.chunks_exact_mut(OF_LAYER))
        .map(|((layer, dropped), parents)| {
            let (weight, kept) = weight(layer.weight.clone());
            parents[0] = Some(weight);
            let mut keep = |place: usize, parent: Fast| {
                let solid = parent.solid();
                parents[place] = Some(parent);
                solid
            };
            let bias = layer.bias.clone().map(|bias| keep(1, fast(bias)));
            let lora = layer.lora.as_ref().filter(|lora| lora.a.dims()[0] > 0).map(|lora| Lora {
                a: keep(2, fast(lora.a.clone())),
                b: keep(3, fast(lora.b.clone())),
                scale: lora.scale as f32,
                dropout: dropped.map(|dropped| {
                    let scale = (1.0 / (1.0 - lora.dropout)) as f32;
                    Arc::new(Dropout::new(values(&fast(dropped).solid()), scale))
                }),
            });
            Kept { weight: kept, bias, lora }
        })
        .collect();
    let solid = x.solid();
    let read = before.forward(&solid);
    let own: Vec<_> = kept.iter().map(Kept::layer).collect();
    let mut shape = shape(&read);
    let inputs = shape[D - 1];
    let rows: usize = shape[..D - 1].iter().product();
    shape[D - 1] = own.iter().map(|layer| layer.out).sum();
    let added = residual.as_ref().map(Fast::solid);
    let (y, middles) = group::forward(values(&read), [rows, inputs], &own, added.as_ref().map(values));
    drop(own);
    let mut parents: [Option<&Fast>; PARENTS] = [None; PARENTS];
    parents[..SHARED].copy_from_slice(&[Some(&x), residual.as_ref(), norm[0].as_ref(), norm[1].as_ref()]);
    for (parent, parameter) in parents[SHARED..].iter_mut().zip(&parameters) {
        *parent = parameter.as_ref();
    }
    let state = || Group { before, x: solid, read: [rows, inputs], layers: kept, middles: Arc::new(middles) };
    record(parents, tensor(y, shape), state).back()
}

/// A weight and its values: bf16 stays what it is while no gradient is asked of it.
fn weight<B: Backend>(weight: Tensor<B, 2>) -> (Fast, FlexTensor) {
    if weight.dtype() == DType::BF16 {
        let parent = Fast::of(weight.clone());
        if !parent.is_tracked() {
            let kept = parent.solid();
            return (parent, kept);
        }
    }
    let parent = fast(weight);
    let kept = parent.solid();
    (parent, kept)
}

// The output head.

pub fn head_pass<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    tile: [usize; 2],
    want: HeadWant,
) -> Option<HeadPass<B>> {
    let (beside, hidden, head) = head_parts(hidden, head)?;
    let (rows, weight) = (targets.len(), Kept { weight: head, bias: None, lora: None });
    let (layer, width) = (weight.layer(), hidden.layout().shape()[1]);
    let shape = head::Shape { width, vocabulary: layer.out, tile };
    let pass = head::pass(values(&hidden), layer.weight, shape, targets, want);
    let plain = |values: Vec<f32>| beside.beside(tensor(values, [rows])).back();
    Some(HeadPass {
        log_probs: plain(pass.log_probs),
        log_sum_exp: plain(pass.log_sum_exp),
        dlogp_dh: want.dlogp_dh.then(|| beside.beside(tensor(pass.dlogp_dh, [rows, width])).back()),
        kept: Arc::new(pass.kept),
    })
}

/// Hidden states and head in flex's memory, if they are ours and no gradient is asked of them.
fn head_parts<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
) -> Option<(Fast, FlexTensor, FlexTensor)> {
    if !takes(hidden) || ![DType::F32, DType::BF16].contains(&head.dtype()) {
        return None;
    }
    let (hidden, head) = (Fast::of(hidden.clone()), Fast::of(head.clone()));
    if hidden.is_tracked() || head.is_tracked() {
        return None;
    }
    Some((hidden.clone(), hidden.solid(), head.solid()))
}

pub fn head_gradients<B: Backend>(
    pass: &HeadPass<B>,
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    grad: &Tensor<B, 1>,
    tile: [usize; 2],
    want_hidden: bool,
) -> Option<HeadGradients<B>> {
    let (beside, hidden, head) = head_parts(hidden, head)?;
    let weight = Kept { weight: head, bias: None, lora: None };
    let (layer, width) = (weight.layer(), hidden.layout().shape()[1]);
    let shape = head::Shape { width, vocabulary: layer.out, tile };
    let [log_sum_exp, grad] = [&pass.log_sum_exp, grad].map(|x| fast(x.clone()).solid());
    let (h, rows) = (values(&hidden), [values(&log_sum_exp), values(&grad)]);
    let (dh, dw) = head::gradients(h, layer.weight, shape, targets, rows, &pass.kept, want_hidden);
    let back = |values: Vec<f32>| {
        let rows = values.len() / width.max(1);
        beside.beside(tensor(values, [rows, width])).back()
    };
    Some(HeadGradients { hidden: dh.map(back), head: back(dw) })
}
