//! A language model's head, in either layout that people hold it in.

use aspo_kernels::cat;
use burn::nn::Linear;
use burn::prelude::*;

use crate::error::{Error, Result};

/// What turns hidden states `[N, D]` into logits `[N, V]`: a weight, and a bias if there is one. A bare tensor does not say
/// which of its axes is the vocabulary, so a head is made by naming where it comes from.
#[derive(Debug, Clone)]
pub struct LmHead<B: Backend> {
    /// `[V, D]`.
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
}

impl<B: Backend> LmHead<B> {
    /// From a weight `[V, D]`, one row a token: Hugging Face's `lm_head.weight`, or the weight of an embedding that is tied.
    pub fn hugging_face(weight: Tensor<B, 2>) -> Self {
        Self { weight, bias: None }
    }

    /// From Burn's layer, whose weight is `[D, V]`, with its bias. Gradients flow to both if they train.
    pub fn linear(layer: &Linear<B>) -> Self {
        Self { weight: layer.weight.val().transpose(), bias: layer.bias.as_ref().map(|bias| bias.val()) }
    }

    /// With a bias `[V]`.
    #[must_use]
    pub fn with_bias(self, bias: Tensor<B, 1>) -> Self {
        Self { bias: Some(bias), ..self }
    }

    /// Hidden states and a weight `[V, D]` whose product is the logits. A bias becomes one more feature that is always 1:
    /// that copies the weight.
    pub(crate) fn product(&self, hidden: Tensor<B, 2>) -> Result<(Tensor<B, 2>, Tensor<B, 2>)> {
        let ([_, found], [vocab, features]) = (hidden.dims(), self.weight.dims());
        if found != features {
            let why = "the head's features; LmHead::hugging_face takes a weight [V, D], LmHead::linear Burn's layer";
            return Err(Error::shape("hidden states [N, D]", found, features, why));
        }
        let Some(bias) = &self.bias else { return Ok((hidden, self.weight.clone())) };
        if bias.dims() != [vocab] {
            return Err(Error::shape("the head's bias [V]", bias.dims(), [vocab], "one value per token"));
        }
        if found == 0 {
            return Err(Error::Empty { what: "hidden states [N, D]".into() });
        }
        let one = hidden.clone().narrow(1, 0, 1).ones_like();
        let column = bias.clone().cast(self.weight.dtype()).unsqueeze_dim(1);
        Ok((cat(vec![hidden, one], 1), cat(vec![self.weight.clone(), column], 1)))
    }
}
