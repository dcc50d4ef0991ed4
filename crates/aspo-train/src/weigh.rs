//! The weights that ASPO gives to the sentences of any answer, for reports and for looking.

use aspo_data::EncodedPair;
use aspo_loss::ChunkOptions;
use aspo_loss::sentence::perplexity;
use aspo_loss::weight::sentence_weights;
use aspo_models::VisionLanguageModel;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::features::VisionFeatures;
use crate::step::MicroBatch;

/// One sentence of a chosen answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeighedSentence {
    /// Its text.
    pub text: String,
    /// CLIP's cosine with the picture.
    pub similarity: Option<f32>,
    /// `PPL_i` under the model.
    pub perplexity: f64,
    /// `w_i`, 0 to 1.
    pub weight: f64,
}

/// The sentences of the chosen answer of each pair, weighed as a step would weigh them.
///
/// # Errors
/// A picture that cannot be had, ids outside the vocabulary, an `alpha` above 0 for a pair that was not
/// [scored](crate::score).
pub fn weigh<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    pairs: &[&EncodedPair],
    features: &mut VisionFeatures,
    alpha: f64,
    pad: u32,
    device: &B::Device,
) -> Result<Vec<Vec<WeighedSentence>>> {
    if pairs.is_empty() {
        return Ok(Vec::new());
    }
    let scored = |pair: &&&EncodedPair| pair.chosen.similarity.len() == pair.chosen.sentence_count();
    if let (true, Some(pair)) = (alpha > 0.0, pairs.iter().find(|pair| !scored(pair))) {
        let found = format!("{alpha}, but pair {:?} has no similarities", pair.id);
        return Err(Error::option("alpha", found, "score the pairs first, or use 0"));
    }
    let batch = MicroBatch::new(pairs, true, pad, features, model, device)?;
    let rows = batch.reference(model, &ChunkOptions::of::<B>(device))?;
    let weighed = pairs.iter().zip(rows).map(|(pair, row)| {
        let answer = &pair.chosen;
        let (mut sums, mut tokens) = (vec![0.0; answer.sentence_count()], vec![0; answer.sentence_count()]);
        for (log_prob, &sentence) in row.chosen.iter().zip(&answer.sentences) {
            sums[sentence as usize] += f64::from(*log_prob);
            tokens[sentence as usize] += 1;
        }
        let perplexities: Vec<f64> = sums.iter().zip(&tokens).map(|(&sum, &n)| perplexity(sum, n)).collect();
        let similarity: Vec<f64> = answer.similarity.iter().map(|&score| f64::from(score)).collect();
        let similarity = (alpha > 0.0).then_some(similarity.as_slice());
        let weights = sentence_weights(similarity, &perplexities, alpha);
        let sentences = answer.sentence_texts().zip(perplexities).zip(weights).enumerate();
        sentences
            .map(|(index, ((text, perplexity), weight))| WeighedSentence {
                text: text.to_owned(),
                similarity: answer.similarity.get(index).copied(),
                perplexity,
                weight,
            })
            .collect()
    });
    Ok(weighed.collect())
}
