//! The backward pass with recomputation of whole blocks (Chen et al. 2016, "Training deep nets with sublinear memory
//! cost"), and of attention by chunks of query rows within a block.
//!
//! The forward pass runs without a graph and keeps each block's input only. Backward, each block is run again with
//! a graph of its own: first what follows attention, then attention a few rows at a time, then what comes before it.
//! So no more than one block's activations and one chunk of attention scores exist at any time. Gradients are those
//! of the plain pass up to rounding.

use aspo_kernels::has_kernels;
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Bool, Tensor, backend::AutodiffBackend, s};

use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::llama::LlamaLayer;
use crate::model::LanguageModel;
use crate::nn::{CHUNK_SCORES, Context, attend, merge_heads, wide};

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
    refuse_dropout(model)?;
    let decoder = model.decoder();
    let embeds = wide(model.embed(input)?);
    let context = decoder.context(input);
    let inner_context = context.on(&embeds.device());

    // Forward without a graph, on the same storage.
    let inner = model.valid();
    let layers = &inner.decoder().layers;
    let mut inputs = Vec::with_capacity(layers.len());
    let mut x = embeds.clone().inner();
    for layer in layers {
        inputs.push(x.clone());
        x = layer.forward(x, &inner_context);
    }
    drop(inner);

    // The final norm, the head and the loss.
    let mut sum = GradientsAccumulator::<M>::new();
    let last = Tensor::<B, 3>::from_inner(x).require_grad();
    let (value, extra) = loss(decoder.norm.forward(last.clone()))?;
    let inner_value = value.clone().inner();
    let mut grads = value.backward();
    let Some(mut flow) = last.grad_remove(&mut grads) else {
        return Err(Error::input("loss", "does not depend on the hidden states"));
    };
    sum.accumulate(model, GradientsParams::from_grads(grads, model));

    for (layer, x) in decoder.layers.iter().zip(inputs).rev() {
        flow = block_backward(model, layer, x, flow, &context, &inner_context, &mut sum);
    }

    // What made the embeddings: the token table and a projector, where they are trained.
    let grads = (embeds * Tensor::from_inner(flow)).sum().backward();
    sum.accumulate(model, GradientsParams::from_grads(grads, model));
    Ok(Recomputed { loss: inner_value, grads: sum.grads(), extra })
}

/// Backward through one block from the gradient of its result; gives the gradient of its input.
fn block_backward<B, M>(
    model: &M,
    layer: &LlamaLayer<B>,
    input: Tensor<B::InnerBackend, 3>,
    flow: Tensor<B::InnerBackend, 3>,
    context: &Context<B>,
    inner_context: &Context<B::InnerBackend>,
    sum: &mut GradientsAccumulator<M>,
) -> Tensor<B::InnerBackend, 3>
where
    B: AutodiffBackend,
    M: AutodiffModule<B>,
{
    let leaf = |t| Tensor::<B, 4>::from_inner(t).require_grad();
    let start = Tensor::<B, 3>::from_inner(input.clone()).require_grad();
    if has_kernels::<B>() {
        // Attention keeps no scores: the block is run again as it is.
        let result = layer.forward(start.clone(), context);
        let mut grads = (result * Tensor::from_inner(flow)).sum().backward();
        let before = start.grad_remove(&mut grads);
        sum.accumulate(model, GradientsParams::from_grads(grads, model));
        return before.expect("a block depends on its input");
    }
    let projected = layer.project_heads(start.clone(), context);
    let [q, k, v] = projected.clone().map(Tensor::inner);

    // After attention.
    let groups = layer.groups();
    let attended = leaf(attend(q.clone(), k.clone(), v.clone(), inner_context.hidden(groups)));
    let around = Tensor::<B, 3>::from_inner(input).require_grad();
    let result = layer.finish(around.clone(), merge_heads(attended.clone()));
    let mut grads = (result * Tensor::from_inner(flow)).sum().backward();
    let around = around.grad_remove(&mut grads);
    let attended = attended.grad_remove(&mut grads);
    sum.accumulate(model, GradientsParams::from_grads(grads, model));

    // Attention and what comes before it.
    let before = attended.and_then(|flow| {
        let [gq, gk, gv] = attention_backward::<B>([q, k, v], context.hidden(groups), flow);
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
    mask: Option<Tensor<B, 4, Bool>>,
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
        let mask = mask.clone().map(|mask| mask.slice(s![.., .., from..to, ..]));
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
