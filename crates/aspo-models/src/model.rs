//! The interface through which trainers, generators and benchmarks use any of the models.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use crate::error::{Error, Result};
use crate::input::{self, ModelInput};
use crate::llama::{Llama, LlamaModel};
use crate::nn::{EachLinear, project};

/// A decoder that scores the next token of a row.
pub trait LanguageModel<B: Backend>: Module<B> + EachLinear<B> {
    /// The layers.
    fn decoder(&self) -> &LlamaModel<B>;

    /// The output head's weight, `[vocabulary, hidden]`; with an adapter on the head, `W + scale · B A` in `f32`, with
    /// gradients to its factors.
    fn head(&self) -> Tensor<B, 2>;

    /// The decoder's inputs, `[batch, tokens, hidden]`: token vectors, pictures in their places.
    ///
    /// # Errors
    /// Ids outside the vocabulary, parts of other shapes than the ids, or pictures that do not fit the image tokens.
    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>>;

    /// Hidden states after the final norm, `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn hidden(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let embeds = self.embed(input)?;
        Ok(self.decoder().forward(embeds, &self.decoder().context(input)))
    }

    /// Hidden states at chosen places only, `[places, hidden]`; place `row · tokens + column` of the batch.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn hidden_at(&self, input: &ModelInput<B>, places: Tensor<B, 1, Int>) -> Result<Tensor<B, 2>> {
        let embeds = self.embed(input)?;
        Ok(self.decoder().forward_at(embeds, &self.decoder().context(input), places))
    }

    /// Scores of the next token everywhere, `[batch, tokens, vocabulary]`; for small models and tests.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn logits(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        Ok(project(self.hidden(input)?, self.head()))
    }
}

/// A language model that sees pictures.
pub trait VisionLanguageModel<B: Backend>: LanguageModel<B> {
    /// Image tokens that a picture takes in a row.
    fn tokens_per_image(&self) -> usize;

    /// The id that holds the place of a picture's features.
    fn image_token(&self) -> u32;

    /// Height and width of a picture in pixels.
    fn image_size(&self) -> usize;

    /// The path of the vision tower, which is not trained: what lies below it sees no gradient.
    fn tower(&self) -> &'static str;

    /// What the vision tower sees in `[images, 3, size, size]` normalised pixels: `[images, features, width]`.
    ///
    /// The tower is frozen in training: run it once a picture on the plain backend (`model.valid()`), keep the
    /// result, and give it as [`ModelInput::image_features`]. The projector comes later, in
    /// [`embed`](LanguageModel::embed), and so can be trained.
    ///
    /// # Errors
    /// Pixels of another shape than the model's.
    fn vision_features(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 3>>;
}

impl<B: Backend> LanguageModel<B> for Llama<B> {
    fn decoder(&self) -> &LlamaModel<B> {
        &self.model
    }

    fn head(&self) -> Tensor<B, 2> {
        Llama::head(self)
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        input.check()?;
        input::ids(&input.input_ids, self.config().vocab_size)?;
        if input.image_features.is_some() {
            return Err(Error::input("image_features", "a language model without vision was given pictures"));
        }
        Ok(self.model.embed_tokens.forward(input.input_ids.clone()))
    }
}

/// Token vectors with `features` `[images, per image, hidden]` in the places of the image token, in reading order.
pub(crate) fn embed_with_images<B: Backend>(
    decoder: &LlamaModel<B>,
    input: &ModelInput<B>,
    token: u32,
    features: Option<Tensor<B, 3>>,
) -> Result<Tensor<B, 3>> {
    input.check()?;
    let [batch, tokens] = input.input_ids.dims();
    let vocabulary = decoder.config().vocab_size;
    // The image token may lie outside the table: its row is never looked at.
    let host = input::host(&input.input_ids);
    let is_image = |id: &i64| *id == i64::from(token);
    if let Some(at) = host.iter().position(|id| !is_image(id) && !(0..vocabulary as i64).contains(id)) {
        let reason = format!("id {} in row {}, vocabulary of {vocabulary}", host[at], at / tokens.max(1));
        return Err(Error::input("input_ids", reason));
    }
    let count = host.iter().filter(|id| is_image(id)).count();
    let [images, per_image, width] = features.as_ref().map_or([0, 0, 0], |f| f.dims());
    if count != images * per_image {
        return Err(Error::ImageTokens { tokens: count, token, images, per_image });
    }
    let device = input.input_ids.device();
    let Some(features) = features.filter(|_| count > 0) else {
        return Ok(decoder.embed_tokens.forward(input.input_ids.clone()));
    };
    let ids = if (token as usize) < vocabulary {
        input.input_ids.clone()
    } else {
        input.input_ids.clone().mask_fill(input.input_ids.clone().equal_elem(token), 0)
    };
    let text = decoder.embed_tokens.forward(ids).reshape([batch * tokens, width]);
    let features = crate::nn::cast(features.reshape([count, width]), text.dtype());
    // One gather from "tokens, then features" keeps the way open for gradients of either.
    let mut next = (batch * tokens) as i64;
    let source: Vec<i64> = (0i64..)
        .zip(&host)
        .map(|(place, id)| {
            if is_image(id) {
                next += 1;
                next - 1
            } else {
                place
            }
        })
        .collect();
    let source = Tensor::from_data(TensorData::new(source, [batch * tokens]), &device);
    Ok(Tensor::cat(vec![text, features], 0).select(0, source).reshape([batch, tokens, width]))
}
