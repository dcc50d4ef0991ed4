//! Answers of a model to questions about pictures, in batches.

use aspo_data::seva::Reply;
use aspo_data::{Encoder, Pair};
use aspo_models::{GenerateConfig, Instruction, ModelInput, Picture, VisionLanguageModel, generate};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::Failure;

/// One question about one picture, or about none.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The question, without template.
    pub question: &'a str,
    /// Preprocessed pixels of its picture, if it has one.
    pub pixels: Option<&'a [f32]>,
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
    let size = model.image_size();
    let config = GenerateConfig { max_new_tokens, ..Default::default() };
    let ends = model.end_tokens();
    let mut answers = Vec::with_capacity(asked.len());
    for part in asked.chunks(batch) {
        let (mut rows, mut instructions, mut pixels) = (Vec::new(), Vec::new(), Vec::new());
        for asked in part {
            let mut pair = Pair::new("", asked.question, "", "");
            if let Some(values) = asked.pixels {
                pair = pair.with_image("picture");
                pixels.extend_from_slice(values);
                // InstructBLIP's Q-Former reads the question too, in a vocabulary of its own.
                if let Some(tokenizer) = &encoder.instruction {
                    instructions.push(tokenizer.encode(asked.question, true)?.ids);
                }
            }
            rows.push(encoder.encode_prompt(&pair)?);
        }
        let mut input = ModelInput::from_rows(&rows, encoder.tokenizer.pad(), device);
        if !pixels.is_empty() {
            let shape = [pixels.len() / (3 * size * size), 3, size, size];
            let pixels = Tensor::<B, 4>::from_data(TensorData::new(pixels, shape), device);
            input = input.with_images(model.vision_features(&Picture::each(pixels))?);
        }
        if let (Some(tokenizer), false) = (&encoder.instruction, instructions.is_empty()) {
            input = input.with_instruction(Instruction::from_rows(&instructions, tokenizer.pad(), device));
        }
        for ids in generate(model, &input, &config, |_, _| {})? {
            let cut = ids.len() == max_new_tokens && !ids.last().is_some_and(|last| ends.contains(last));
            answers.push(Reply { text: encoder.tokenizer.decode(&ids, true)?.trim().to_owned(), cut });
        }
    }
    Ok(answers)
}
