//! The backward pass with recomputation of whole blocks (Chen et al. 2016, "Training deep nets with sublinear memory
//! cost").
//!
//! The forward pass runs without a graph and keeps each block's input only; the last block has its graph at once, since its
//! backward comes first. Backward, each block before is run again with a graph of its own, so no more than one block's
//! activations exist at any time. Where attention keeps its scores and the block can be [split](Decoder::split), it is run
//! again in parts, the last one too: what follows attention, attention a few rows at a time, what comes before it. Gradients
//! are those of the plain pass up to rounding.

use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Bool, Tensor, backend::AutodiffBackend, s};

use crate::decoder::{Decoder, SplitBlock, at_places};
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::model::{LanguageModel, inside};
use crate::nn::{CHUNK_SCORES, attend, has_kernels, merge_heads, wide};

/// Loss and gradients of [`recompute_backward`].
pub struct Recomputed<B: AutodiffBackend, L> {
    /// Gradients of every parameter that wants one.
    pub grads: GradientsParams,
    /// The loss, `[1]`.
    pub loss: Tensor<B::InnerBackend, 1>,
    /// What the loss function gave beside the loss.
    pub extra: L,
}

/// Loss and gradients of a batch, with activation memory of about one block plus the input of each.
///
/// `loss` gets the hidden states after the final norm, `[batch, tokens, hidden]`, takes the places it needs, and
/// gives a scalar loss with whatever else the caller wants back (metrics). Parameters of the embeddings, of a
/// projector, of the layers, of the final norm and of the head get their gradients; the vision tower, whose features
/// the input holds, does not.
///
/// # Errors
/// What [`embed`](LanguageModel::embed) refuses, what `loss` returns, and adapters with dropout, whose second run
/// would draw another mask.
pub fn recompute_backward<B, M, L, F>(model: &M, input: &ModelInput<B>, loss: F) -> Result<Recomputed<B, L>>
where
    B: AutodiffBackend,
    M: LanguageModel<B> + AutodiffModule<B>,
    M::InnerModule: LanguageModel<B::InnerBackend>,
    F: FnOnce(Tensor<B, 3>) -> Result<(Tensor<B, 1>, L)>,
{
    run(model, input, None, loss)
}

/// [`recompute_backward`] for a loss of the hidden states at chosen places only, `[places, hidden]`, as
/// [`hidden_at`](LanguageModel::hidden_at) gives them; place `row · tokens + column` of the batch. The last block leaves out
/// what other places alone need.
///
/// # Errors
/// As [`recompute_backward`], and places outside the batch.
pub fn recompute_backward_at<B, M, L, F>(
    model: &M,
    input: &ModelInput<B>,
    places: &[i32],
    loss: F,
) -> Result<Recomputed<B, L>>
where
    B: AutodiffBackend,
    M: LanguageModel<B> + AutodiffModule<B>,
    M::InnerModule: LanguageModel<B::InnerBackend>,
    F: FnOnce(Tensor<B, 2>) -> Result<(Tensor<B, 1>, L)>,
{
    run(model, input, Some(places), |hidden| loss(hidden.squeeze_dim(0)))
}

/// `loss` gets `[batch, tokens, hidden]`, or `[1, places, hidden]`.
fn run<B, M, L, F>(
    model: &M,
    input: &ModelInput<B>,
    places: Option<&[i32]>,
    loss: F,
) -> Result<Recomputed<B, L>>
where
    B: AutodiffBackend,
    M: LanguageModel<B> + AutodiffModule<B>,
    M::InnerModule: LanguageModel<B::InnerBackend>,
    F: FnOnce(Tensor<B, 3>) -> Result<(Tensor<B, 1>, L)>,
{
    refuse_dropout(model)?;
    let decoder = model.decoder();
    let embeds = model.embed(input)?;
    let [batch, tokens, _] = embeds.dims();
    let places = places.map(|places| inside(places, [batch, tokens])).transpose()?;
    let positions = model.positions(input)?;
    let device = embeds.device();
    let context = decoder.context(&positions, &device)?;
    let start = decoder.start(wide(embeds), &context);

    let split = |index| decoder.split(index).filter(|_| !has_kernels::<B>());
    let blocks = decoder.shape().num_hidden_layers;
    // The block that has its graph at once: the last, unless its scores would be kept with it.
    let last = blocks.checked_sub(1).filter(|last| split(*last).is_none());

    // Forward without a graph, on the same storage.
    let inner = model.valid();
    let plain = inner.decoder();
    let plain_context = plain.context(&positions, &device)?;
    let mut inputs = Vec::new();
    let mut x = start.clone().inner();
    for index in 0..last.unwrap_or(blocks) {
        inputs.push(x.clone());
        x = plain.block(index, x, &plain_context, None);
    }
    drop((plain_context, inner));

    // The last block, the final norm, the head and the loss.
    let mut sum = GradientsAccumulator::<M>::new();
    let x = Tensor::<B, 3>::from_inner(x).require_grad();
    let end = match (last, &places) {
        (Some(last), Some(places)) => decoder.block_at(last, x.clone(), &context, places),
        (Some(last), None) => decoder.block(last, x.clone(), &context, None),
        (None, Some(places)) => at_places(x.clone(), places),
        (None, None) => x.clone(),
    };
    let (value, extra) = loss(decoder.finish(end))?;
    let inner_value = value.clone().inner();
    let mut grads = value.backward();
    let Some(mut flow) = x.grad_remove(&mut grads) else {
        return Err(Error::input("loss", "does not depend on the hidden states"));
    };
    drop(x);
    sum.accumulate(model, GradientsParams::from_grads(grads, model));

    for (index, x) in inputs.into_iter().enumerate().rev() {
        flow = match split(index) {
            Some(block) => split_backward(model, block, &context, x, flow, &mut sum),
            None => {
                let x = Tensor::<B, 3>::from_inner(x).require_grad();
                let result = decoder.block(index, x.clone(), &context, None);
                let mut grads = (result * Tensor::from_inner(flow)).sum().backward();
                let before = x.grad_remove(&mut grads).expect("a block depends on its input");
                sum.accumulate(model, GradientsParams::from_grads(grads, model));
                before
            }
        };
    }

    // What made the inputs: the token table and a projector, where they are trained.
    let grads = (start * Tensor::from_inner(flow)).sum().backward();
    sum.accumulate(model, GradientsParams::from_grads(grads, model));
    Ok(Recomputed { loss: inner_value, grads: sum.grads(), extra })
}

/// Backward through one block from the gradient of its result, with the attention scores of a few queries at a time; gives
/// the gradient of its input.
fn split_backward<B, M, C>(
    model: &M,
    block: &dyn SplitBlock<B, C>,
    context: &C,
    input: Tensor<B::InnerBackend, 3>,
    flow: Tensor<B::InnerBackend, 3>,
    sum: &mut GradientsAccumulator<M>,
) -> Tensor<B::InnerBackend, 3>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
{
    let start = Tensor::<B, 3>::from_inner(input.clone()).require_grad();
    let projected = block.before(start.clone(), context);
    let [q, k, v] = projected.clone().map(Tensor::inner);
    let mask = block.hidden(context).map(Tensor::inner);

    // After attention.
    let attended = attend(q.clone(), k.clone(), v.clone(), mask.clone());
    let attended = Tensor::<B, 4>::from_inner(attended).require_grad();
    let around = Tensor::<B, 3>::from_inner(input).require_grad();
    let result = block.after(around.clone(), merge_heads(attended.clone()));
    let mut grads = (result * Tensor::from_inner(flow)).sum().backward();
    let around = around.grad_remove(&mut grads);
    let attended = attended.grad_remove(&mut grads);
    sum.accumulate(model, GradientsParams::from_grads(grads, model));

    // Attention and what comes before it.
    let before = attended.and_then(|flow| {
        let [gq, gk, gv] = attention_backward::<B>([q, k, v], mask, flow);
        let [q, k, v] = projected;
        let pull = |t: Tensor<B, 4>, g| (t * Tensor::from_inner(g)).sum();
        let mut grads = (pull(q, gq) + pull(k, gk) + pull(v, gv)).backward();
        let before = start.grad_remove(&mut grads);
        sum.accumulate(model, GradientsParams::from_grads(grads, model));
        before
    });
    match (around, before) {
        (Some(a), Some(b)) => a + b,
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => unreachable!("a block depends on its input"),
    }
}

/// Gradients of queries, keys and values, a chunk of query rows at a time.
fn attention_backward<B: AutodiffBackend>(
    [q, k, v]: [Tensor<B::InnerBackend, 4>; 3],
    mask: Option<Tensor<B::InnerBackend, 4, Bool>>,
    flow: Tensor<B::InnerBackend, 4>,
) -> [Tensor<B::InnerBackend, 4>; 3] {
    let [batch, heads, queries, _] = q.dims();
    let keys = k.dims()[2];
    let rows = (CHUNK_SCORES / (batch * heads * keys).max(1)).clamp(1, queries);
    let leaf = |t| Tensor::<B, 4>::from_inner(t).require_grad();
    let mut gq = Vec::new();
    let (mut gk, mut gv) = (k.zeros_like(), v.zeros_like());
    for from in (0..queries).step_by(rows) {
        let to = (from + rows).min(queries);
        let (q, k, v) = (leaf(q.clone().slice(s![.., .., from..to, ..])), leaf(k.clone()), leaf(v.clone()));
        let mask = mask.clone().map(|mask| Tensor::from_inner(mask.slice(s![.., .., from..to, ..])));
        let out = attend(q.clone(), k.clone(), v.clone(), mask);
        let flow = Tensor::from_inner(flow.clone().slice(s![.., .., from..to, ..]));
        let mut grads = (out * flow).sum().backward();
        gq.push(q.grad_remove(&mut grads).unwrap_or_else(|| q.inner().zeros_like()));
        gk = k.grad_remove(&mut grads).map_or(gk.clone(), |g| gk + g);
        gv = v.grad_remove(&mut grads).map_or(gv.clone(), |g| gv + g);
    }
    [Tensor::cat(gq, 2), gk, gv]
}

fn refuse_dropout<B: AutodiffBackend, M: LanguageModel<B>>(model: &M) -> Result<()> {
    let mut found = None;
    model.clone().each_linear("", &mut |path, linear| {
        if linear.lora.as_ref().is_some_and(|lora| lora.dropout > 0.0) {
            found.get_or_insert_with(|| path.to_owned());
        }
    });
    match found {
        None => Ok(()),
        Some(path) => {
            let reason = format!(
                "`{path}` has dropout, which a second run would draw anew; use the plain backward pass"
            );
            Err(Error::input("lora_dropout", reason))
        }
    }
}
