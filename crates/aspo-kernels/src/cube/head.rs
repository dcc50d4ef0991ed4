//! The output head: products by Burn, what is between them in one kernel a tile.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use burn_cubecl::tensor::CubeTensor;

use super::launch::empty;
use super::logits::{self, Rows};
use super::product::{plain, wide_product};
use super::{Home, at_home, reads, unwrap, wrap};
use crate::bridge::Fast;
use crate::cast;
use crate::pass::{HeadGradients, HeadPass, HeadWant};

/// Ids as a tensor on the device of another.
fn indices<H: Home>(ids: &[usize], like: &Tensor<H, 2>) -> Tensor<H, 1, Int> {
    let ids: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    Tensor::from_data(TensorData::new(ids.clone(), [ids.len()]), (&like.device(), DType::I32))
}

/// Begin and length of each part.
fn parts(all: usize, most: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..all).step_by(most.max(1)).map(move |from| [from, most.min(all - from)])
}

/// Rows of a tensor in the type of the products.
fn part<H: Home>(x: &Tensor<H, 2>, [from, len]: [usize; 2], dtype: DType) -> Tensor<H, 2> {
    cast(x.clone().narrow(0, from, len), dtype)
}

/// The type of the products: that of hidden states and head, or f32 where they differ.
fn shared<H: Home>(hidden: &Tensor<H, 2>, head: &Tensor<H, 2>) -> DType {
    match hidden.dtype() == head.dtype() {
        true => head.dtype(),
        false => DType::F32,
    }
}

/// [`head_pass`](crate::head_pass()), where there are kernels.
pub fn head_pass<B: Backend>(
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    tile: [usize; 2],
    want: HeadWant,
) -> Option<HeadPass<B>> {
    if reads(hidden.dtype()) && reads(head.dtype()) {
        at_home!(B, H => {
            let beside = Fast::<H>::of(hidden.clone());
            let [hidden, head] = plain::<H, B>([hidden, head])?;
            let (rows, dlogp_dh) = pass(hidden, head, targets, tile, want);
            Some(HeadPass {
                log_probs: beside.beside(rows.log_probs).back(),
                log_sum_exp: beside.beside(rows.log_sum_exp).back(),
                dlogp_dh: dlogp_dh.map(|d| beside.beside(unwrap(d)).back()),
                kept: Arc::default(),
            })
        });
    }
    None
}

fn pass<H: Home>(
    hidden: Tensor<H, 2>,
    head: Tensor<H, 2>,
    targets: &[usize],
    tile: [usize; 2],
    want: HeadWant,
) -> (Rows<H::Runtime>, Option<Tensor<H, 2>>) {
    let (n, vocabulary, dtype) = (targets.len(), head.dims()[0], shared(&hidden, &head));
    let like = unwrap(hidden.clone());
    let ids = indices(targets, &hidden);
    let rows = Rows {
        targets: ids.clone().into_primitive(),
        running: empty(&like, [n, 3], DType::F32),
        log_sum_exp: empty(&like, [n], DType::F32),
        log_probs: empty(&like, [n], DType::F32),
    };
    let mut all = vec![];
    for [from, len] in parts(n, tile[0]) {
        let h = part(&hidden, [from, len], dtype);
        let mut mixed: Option<Tensor<H, 2>> = None;
        for [column, width] in parts(vocabulary, tile[1]) {
            let w = part(&head, [column, width], dtype);
            let logits = unwrap(wide_product(h.clone(), w.clone().transpose()));
            let [exp, factor] = rows.take(logits, [from, column]);
            if want.dlogp_dh {
                let own = wide_product(cast(wrap::<H, 2>(exp), dtype), w);
                mixed = Some(match mixed {
                    Some(mixed) => mixed * wrap(factor) + own,
                    None => own,
                });
            }
        }
        all.extend(mixed.map(|mixed| {
            let sum = wrap::<H, 2>(rows.running.clone()).slice([from..from + len, 1..2]);
            let own = head.clone().select(0, ids.clone().narrow(0, from, len));
            cast(own, DType::F32) - mixed / sum
        }));
    }
    (rows, want.dlogp_dh.then(|| Tensor::cat(all, 0)))
}

/// [`HeadPass::gradients`], where there are kernels.
pub fn head_gradients<B: Backend>(
    pass: &HeadPass<B>,
    hidden: &Tensor<B, 2>,
    head: &Tensor<B, 2>,
    targets: &[usize],
    grad: &Tensor<B, 1>,
    tile: [usize; 2],
    want_hidden: bool,
) -> Option<HeadGradients<B>> {
    if reads(hidden.dtype()) && reads(head.dtype()) {
        at_home!(B, H => {
            let beside = Fast::<H>::of(hidden.clone());
            let [hidden, head] = plain::<H, B>([hidden, head])?;
            let of_rows = [&pass.log_sum_exp, grad].map(|x| Fast::<H>::of(cast(x.clone(), DType::F32)).inner());
            let (dh, dw) = gradients(hidden, head, targets, of_rows, tile, want_hidden);
            let back = |d: Tensor<H, 2>| beside.beside(unwrap(d)).back();
            Some(HeadGradients { hidden: dh.map(back), head: back(dw) })
        });
    }
    None
}

/// The head's columns are the outer loop, as in the generic way: each tile of its gradient is done at once.
fn gradients<H: Home>(
    hidden: Tensor<H, 2>,
    head: Tensor<H, 2>,
    targets: &[usize],
    [log_sum_exp, grad]: [CubeTensor<H::Runtime>; 2],
    tile: [usize; 2],
    want_hidden: bool,
) -> (Option<Tensor<H, 2>>, Tensor<H, 2>) {
    let (n, vocabulary) = (targets.len(), head.dims()[0]);
    // Small gradients have no room in f16.
    let dtype = if shared(&hidden, &head) == DType::BF16 { DType::BF16 } else { DType::F32 };
    let ids = indices(targets, &hidden).into_primitive();
    let mut dh: Vec<Option<Tensor<H, 2>>> = parts(n, tile[0]).map(|_| None).collect();
    let mut dw = vec![];
    for [column, width] in parts(vocabulary, tile[1]) {
        let w = part(&head, [column, width], dtype);
        let mut own = None;
        for ([from, len], dh) in parts(n, tile[0]).zip(&mut dh) {
            let h = part(&hidden, [from, len], dtype);
            let logits = unwrap(wide_product(h.clone(), w.clone().transpose()));
            let of_rows = [ids.clone(), log_sum_exp.clone(), grad.clone()];
            let dz = cast(wrap::<H, 2>(logits::gradient(logits, of_rows, [from, column])), dtype);
            if want_hidden {
                add(dh, wide_product(dz.clone(), w.clone()));
            }
            add(&mut own, wide_product(dz.transpose(), h));
        }
        dw.extend(own);
    }
    let dh = want_hidden.then(|| Tensor::cat(dh.into_iter().flatten().collect(), 0));
    (dh, Tensor::cat(dw, 0))
}

fn add<H: Home>(sum: &mut Option<Tensor<H, 2>>, part: Tensor<H, 2>) {
    *sum = Some(match sum.take() {
        Some(sum) => sum + part,
        None => part,
    });
}
