//! Answers of a model to questions about pictures, in batches.

use aspo_data::seva::Reply;
use std::path::Path;

use aspo_data::{ChatTemplate, Encoder, ImageProcessor, Pair, Pixels, Template, Tokenizer};
use aspo_models::{GenerateConfig, Instruction, ModelInput, VisionLanguageModel, generate};
use aspo_train::{Sight, picture, qformer_tokenizer};
use burn::tensor::backend::Backend;

use crate::Failure;

/// One question about pictures, or about none.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The question, without template.
    pub question: &'a str,
    /// Its pictures, preprocessed.
    pub pictures: &'a [Pixels],
}

/// Turns questions into prompts for the model of a checkpoint folder, whose pictures are prepared by `processor`.
///
/// # Errors
/// A tokenizer or chat template that cannot be read or is not there.
pub fn encoder<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    folder: &Path,
    template: Template,
    processor: &ImageProcessor,
) -> Result<Encoder, Failure> {
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::for_checkpoint(&path, folder, model.image_token())?;
    let sight = Sight::with(model, processor.clone());
    let mut encoder = Encoder::new(tokenizer, template, sight.fixed().unwrap_or_default());
    encoder.images = sight.image_tokens(Path::new("."))?;
    match template {
        Template::Chat => encoder.chat = ChatTemplate::of_checkpoint(folder)?,
        Template::InstructBlip => encoder.instruction = Some(qformer_tokenizer(folder)?),
        _ => {}
    }
    Ok(encoder)
}

/// The texts of [`replies`].
///
/// # Errors
/// As [`replies`].
pub fn answer<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &[Asked],
    batch: usize,
    max_new_tokens: usize,
    device: &B::Device,
) -> Result<Vec<String>, Failure> {
    let replies = replies(model, encoder, asked, batch, max_new_tokens, device)?;
    Ok(replies.into_iter().map(|reply| reply.text).collect())
}

/// Greedy answers, at most `max_new_tokens` each, `batch` questions at a time. One that reached that length without an end
/// token is marked as cut.
///
/// # Errors
/// A question that cannot be encoded, pixels of another size than the model's.
pub fn replies<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &[Asked],
    batch: usize,
    max_new_tokens: usize,
    device: &B::Device,
) -> Result<Vec<Reply>, Failure> {
    let config = GenerateConfig { max_new_tokens, ..Default::default() };
    let ends = model.end_tokens();
    let mut answers = Vec::with_capacity(asked.len());
    for part in asked.chunks(batch) {
        for ids in generate(model, &input(model, encoder, part, device)?, &config, |_, _| {})? {
            let cut = ids.len() == max_new_tokens && !ids.last().is_some_and(|last| ends.contains(last));
            answers.push(Reply { text: encoder.tokenizer.decode(&ids, true)?.trim().to_owned(), cut });
        }
    }
    Ok(answers)
}

/// The answer to one question; `told` hears its text in pieces, as whole characters are known.
///
/// # Errors
/// As [`replies`], and a config that means nothing.
pub fn stream<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &Asked,
    config: &GenerateConfig,
    device: &B::Device,
    mut told: impl FnMut(&str),
) -> Result<String, Failure> {
    let input = input(model, encoder, std::slice::from_ref(asked), device)?;
    let (mut ids, mut shown) = (Vec::new(), 0);
    let mut show = |ids: &[u32], whole: bool| -> Result<String, Failure> {
        // Text is decoded from its beginning each time: what a token says may depend on those before it. A character that waits
        // for its other bytes is decoded as the replacement character; white space at the end may be the last.
        let text = encoder.tokenizer.decode(ids, true)?.trim_start().to_owned();
        let known = if whole { text.trim_end() } else { text.trim_end_matches('\u{fffd}').trim_end() };
        if let Some(new) = known.get(shown..).filter(|new| !new.is_empty()) {
            told(new);
            shown = known.len();
        }
        Ok(known.to_owned())
    };
    let mut fault = None;
    generate(model, &input, config, |_, id| {
        ids.push(id);
        if let Err(error) = show(&ids, false) {
            fault.get_or_insert(error);
        }
    })?;
    match fault {
        Some(error) => Err(error),
        None => show(&ids, true),
    }
}

/// The prompts of some questions and what the model sees in their pictures.
fn input<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &[Asked],
    device: &B::Device,
) -> Result<ModelInput<B>, Failure> {
    let (mut rows, mut instructions, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
    for asked in asked {
        let mut pair = Pair::new("", asked.question, "", "");
        let mut shapes = Vec::new();
        for pixels in asked.pictures {
            pair = pair.with_image("picture");
            shapes.push(pixels.shape);
            pictures.push(picture(pixels, device));
        }
        // InstructBLIP's Q-Former reads the question too, in a vocabulary of its own.
        if let (Some(tokenizer), false) = (&encoder.instruction, shapes.is_empty()) {
            instructions.push(tokenizer.encode(asked.question, true)?.ids);
        }
        rows.push(encoder.encode_prompt_of(&pair, &shapes)?);
    }
    let mut input = ModelInput::from_rows(&rows, encoder.tokenizer.pad(), device);
    if !pictures.is_empty() {
        input = input.with_images(model.vision_features(&pictures)?);
    }
    if let (Some(tokenizer), false) = (&encoder.instruction, instructions.is_empty()) {
        input = input.with_instruction(Instruction::from_rows(&instructions, tokenizer.pad(), device));
    }
    Ok(input)
}
