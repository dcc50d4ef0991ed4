//! What the model says while it learns: greedy answers to the first prompts, every `eval_steps`.

use aspo_data::{EncodedPair, Encoder, HostBatch, Padding};
use aspo_models::{GenerateConfig, Instruction, ModelInput, VisionLanguageModel, generate};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::features::VisionFeatures;

/// Longest answer in tokens.
const NEW_TOKENS: usize = 256;

/// One line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Optimiser steps done.
    pub step: usize,
    /// Id of the pair whose prompt it was.
    pub id: String,
    /// The answer.
    pub answer: String,
}

impl Sample {
    /// Greedy answers of `model` to the prompts of `pairs`.
    ///
    /// # Errors
    /// A picture that cannot be had, ids outside the vocabulary.
    pub fn of<B: Backend, M: VisionLanguageModel<B>>(
        model: &M,
        encoder: &Encoder,
        pairs: &[EncodedPair],
        step: usize,
        features: &mut VisionFeatures,
        device: &B::Device,
    ) -> Result<Vec<Self>> {
        let pad = encoder.tokenizer.pad();
        let mut samples = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let host = HostBatch::packed(&[pair], Padding { id: pad, multiple_of: 1 })?;
            let mut input = ModelInput::from_rows(std::slice::from_ref(&pair.prompt_ids), pad, device);
            input.image_features = features.of_batch(model, &host, device)?;
            if host.instruction_length > 0 {
                let ids = host.instruction_ids.iter().map(|&id| id as u32).collect();
                input.instruction = Some(Instruction::from_rows(&[ids], 0, device));
            }
            let room =
                encoder.max_length.map_or(NEW_TOKENS, |length| length.saturating_sub(pair.prompt_ids.len()));
            let config = GenerateConfig { max_new_tokens: room.min(NEW_TOKENS), ..GenerateConfig::default() };
            let ids = generate(model, &input, &config, |_, _| ())?.swap_remove(0);
            let answer = encoder.tokenizer.decode(&ids, true)?.trim().to_owned();
            samples.push(Self { step, id: pair.id.clone(), answer });
        }
        Ok(samples)
    }
}
