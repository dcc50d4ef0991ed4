//! The interface through which trainers, generators and benchmarks use any of the models.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData, backend::Backend};

use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::ids::Ids;
use crate::input::ModelInput;
use crate::nn::{EachLinear, cast, project};
use crate::picture::{ImageFeatures, Picture, PictureShape};
use crate::positions::Positions;

/// A decoder with its output head: scores the next token of a row.
pub trait LanguageModel<B: Backend>: Module<B> + EachLinear<B> {
    /// Its blocks.
    type Decoder: Decoder<B>;

    /// The blocks.
    fn decoder(&self) -> &Self::Decoder;

    /// The output head's weight, `[vocabulary, hidden]`; with an adapter on the head, `W + scale · B A` in `f32`, with
    /// gradients to its factors ([`Linear::adapted_weight`](crate::nn::Linear::adapted_weight)).
    fn head(&self) -> Tensor<B, 2>;

    /// The decoder's inputs, `[batch, tokens, hidden]`: token vectors, pictures in their places.
    ///
    /// # Errors
    /// Ids outside the vocabulary, parts of other shapes than the ids, or pictures that do not fit the image tokens.
    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>>;

    /// Ids that end an answer; none by default, and it goes on to the most tokens that are asked for.
    fn end_tokens(&self) -> Vec<u32> {
        Vec::new()
    }

    /// Where each token stands and whom it sees: one axis that counts, by default. Models whose positions follow the shapes
    /// of pictures (M-RoPE) compute them here, so that training, packed rows and generation have them alike.
    ///
    /// # Errors
    /// As [`ModelInput::segments`].
    fn positions(&self, input: &ModelInput<B>) -> Result<Positions> {
        Positions::of(input)
    }

    /// Hidden states after the final norm, `[batch, tokens, hidden]`.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn hidden(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let embeds = self.embed(input)?;
        let context = self.decoder().context(&self.positions(input)?, &embeds.device())?;
        Ok(self.decoder().forward(embeds, &context))
    }

    /// Hidden states at chosen places only, `[places, hidden]`; place `row · tokens + column` of the batch.
    ///
    /// # Errors
    /// As [`embed`](Self::embed), and places outside the batch.
    fn hidden_at(&self, input: &ModelInput<B>, places: &[i32]) -> Result<Tensor<B, 2>> {
        let embeds = self.embed(input)?;
        let [batch, tokens, _] = embeds.dims();
        let places = inside(places, [batch, tokens])?;
        let context = self.decoder().context(&self.positions(input)?, &embeds.device())?;
        Ok(self.decoder().forward_at(embeds, &context, &places))
    }

    /// Scores of the next token everywhere, `[batch, tokens, vocabulary]`; for small models and tests.
    ///
    /// # Errors
    /// As [`embed`](Self::embed).
    fn logits(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        Ok(project(self.hidden(input)?, self.head()))
    }
}

/// Places, if they are places of such a batch.
pub(crate) fn inside(places: &[i32], [batch, tokens]: [usize; 2]) -> Result<Vec<usize>> {
    let inside = |&place: &i32| match usize::try_from(place) {
        Ok(place) if place < batch * tokens => Ok(place),
        _ => {
            let reason = format!("{place}, but the batch has {batch} rows of {tokens} tokens");
            Err(Error::input("places", reason))
        }
    };
    places.iter().map(inside).collect()
}

/// A language model that sees pictures.
pub trait VisionLanguageModel<B: Backend>: LanguageModel<B> + 'static {
    /// The id that holds the place of a picture's features.
    fn image_token(&self) -> u32;

    /// How many of them a picture of this shape takes.
    fn tokens(&self, shape: &PictureShape) -> usize;

    /// Height and width of a tile in pixels, which an image processor's settings are held to.
    fn image_size(&self) -> usize;

    /// Paths of the modules that are not trained: what lies below them sees no gradient, because
    /// [`vision_features`](Self::vision_features) runs through them once a picture.
    fn frozen(&self) -> &'static [&'static str];

    /// What the vision tower sees in each picture.
    ///
    /// Run it on the plain backend (`model.valid()`), keep the result, and give it as [`ModelInput::image_features`]. The
    /// projector comes later, in [`embed`](LanguageModel::embed), and so can be trained.
    ///
    /// # Errors
    /// Pixels of another shape than the model's.
    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>>;
}

/// Token vectors with `features` in the places of the image token `token`, in reading order: the usual
/// [`LanguageModel::embed`] of a vision-language model.
///
/// `features` are those of all pictures of `input`, projected, `[image tokens, hidden]`; `None` for text alone. The image
/// token may lie outside the table.
///
/// # Errors
/// What [`ModelInput::check`] refuses, ids outside the vocabulary, and more or fewer image tokens than features.
pub fn embed_with_images<B: Backend>(
    decoder: &impl Decoder<B>,
    input: &ModelInput<B>,
    token: u32,
    features: Option<Tensor<B, 2>>,
) -> Result<Tensor<B, 3>> {
    input.check()?;
    let [batch, tokens] = input.input_ids.dims();
    let vocabulary = decoder.shape().vocab_size;
    let host = input.input_ids.values();
    let is_image = |id: &i64| *id == i64::from(token);
    if let Some(at) = host.iter().position(|id| !is_image(id) && !(0..vocabulary as i64).contains(id)) {
        let reason = format!("id {} in row {}, vocabulary of {vocabulary}", host[at], at / tokens.max(1));
        return Err(Error::input("input_ids", reason));
    }
    let count = host.iter().filter(|id| is_image(id)).count();
    let [given, width] = features.as_ref().map_or([0, 0], |features| features.dims());
    if count != given {
        let images = input.image_features.len();
        return Err(Error::ImageTokens { tokens: count, token, images, features: given });
    }
    let device = input.input_ids.device().clone();
    let Some(features) = features.filter(|_| count > 0) else {
        return Ok(decoder.embed_tokens(input.input_ids.tensor()));
    };
    // The image token's row of the table is never looked at.
    let ids = if (token as usize) < vocabulary {
        input.input_ids.clone()
    } else {
        let text = |&id: &i64| if is_image(&id) { 0 } else { id };
        Ids::new(host.iter().map(text).collect::<Vec<_>>(), input.input_ids.dims(), &device)
    };
    let text = decoder.embed_tokens(ids.tensor()).reshape([batch * tokens, width]);
    let features = cast(features, text.dtype());
    // One gather from "tokens, then features" keeps the way open for gradients of either.
    let mut next = (batch * tokens) as i64;
    let source: Vec<i64> = (0i64..)
        .zip(host)
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
    Ok(aspo_kernels::cat(vec![text, features], 0).select(0, source).reshape([batch, tokens, width]))
}
