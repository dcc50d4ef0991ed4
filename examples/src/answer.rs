//! Answers of a model to questions about pictures, in batches.

use aspo_data::{Encoder, Pair};
use aspo_models::{GenerateConfig, ModelInput, VisionLanguageModel, generate};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::Failure;

/// One question about one picture.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// The question, without template.
    pub question: &'a str,
    /// Preprocessed pixels.
    pub pixels: &'a [f32],
}

/// Greedy answers, at most `max_new_tokens` each, `batch` questions at a time.
///
/// # Errors
/// A question that cannot be encoded, pixels of another size than the model's.
pub fn answer<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &[Asked],
    batch: usize,
    max_new_tokens: usize,
    device: &B::Device,
) -> Result<Vec<String>, Failure> {
    let size = model.image_size();
    let config = GenerateConfig { max_new_tokens, ..Default::default() };
    let mut answers = Vec::with_capacity(asked.len());
    for part in asked.chunks(batch) {
        let rows = part
            .iter()
            .map(|asked| encoder.encode_prompt(&Pair::new("", asked.question, "", "").with_image("picture")))
            .collect::<Result<Vec<_>, _>>()?;
        let pixels: Vec<f32> = part.iter().flat_map(|asked| asked.pixels.iter().copied()).collect();
        let pixels = Tensor::<B, 4>::from_data(TensorData::new(pixels, [part.len(), 3, size, size]), device);
        let input = ModelInput::from_rows(&rows, encoder.tokenizer.pad(), device)
            .with_images(model.vision_features(pixels)?);
        for ids in generate(model, &input, &config, |_, _| {})? {
            answers.push(encoder.tokenizer.decode(&ids, true)?.trim().to_owned());
        }
    }
    Ok(answers)
}
