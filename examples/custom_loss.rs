//! Trains a model of your own with ASPO: any Burn module that gives hidden states and has a head will do.
//!
//! ```sh
//! cargo run -p aspo-examples --example custom_loss
//! ```
//!
//! The model is a toy (it sees one token at a time), the pairs are four, and the loss falls from log 2 as the chosen
//! answers become likelier than the rejected ones, relative to the model at the start.

use aspo_loss::{ChunkOptions, LmHead, Logps, Objective, PairLayout, PreferenceBatch, Result, Similarity};
use burn::backend::Autodiff;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;

/// Any language model: tokens to hidden states, and a head.
#[derive(Module, Debug)]
struct Toy<B: Backend> {
    embedding: Embedding<B>,
    layer: Linear<B>,
    head: Linear<B>,
}

impl<B: Backend> Toy<B> {
    fn hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.layer.forward(self.embedding.forward(ids)).tanh()
    }
}

/// Log-probabilities of the response tokens of both sides; ids are as the model reads them.
fn score<B: AutodiffBackend>(
    model: &Toy<B>,
    ids: &[Tensor<B, 2, Int>; 2],
    layout: &PairLayout,
) -> Result<Logps<B>> {
    let hidden = ids.clone().map(|ids| model.hidden(ids));
    Logps::chunked(layout, hidden, ids.clone(), &LmHead::linear(&model.head), &ChunkOptions::default())
}

fn train<B: AutodiffBackend>(device: &B::Device) -> Result<()> {
    B::seed(device, 7);
    let mut model = Toy::<B> {
        embedding: EmbeddingConfig::new(32, 16).init(device),
        layer: LinearConfig::new(16, 16).init(device),
        head: LinearConfig::new(16, 32).init(device),
    };
    let mut optimizer = AdamConfig::new().init();

    // Two prompt tokens, then two sentences (chosen) or one (rejected); 31 is padding. One sentence id per token.
    let chosen = [[1, 2, 5, 6, 7, 8], [1, 3, 9, 6, 7, 31], [1, 4, 5, 9, 8, 7], [1, 2, 9, 5, 6, 31]];
    let rejected = [[1, 2, 10, 11, 31], [1, 3, 12, 11, 10], [1, 4, 13, 10, 31], [1, 2, 12, 13, 11]];
    let ids = [Tensor::from_data(chosen, device), Tensor::from_data(rejected, device)];
    let layout = PairLayout::from_tokens(
        &[[-1, -1, 0, 0, 1, 1], [-1, -1, 0, 0, 1, -1], [-1, -1, 0, 1, 1, 1], [-1, -1, 0, 1, 1, -1]],
        &[[-1, -1, 0, 0, -1], [-1, -1, 0, 0, 0], [-1, -1, 0, 0, -1], [-1, -1, 0, 0, 0]],
    )?;
    let similarity = Similarity::new(&[[0.21, 0.34], [0.30, 0.25], [0.18, 0.27], [0.33, 0.20]])?;
    // The model as it starts is the reference.
    let reference = score(&model, &ids, &layout)?.detach();

    for step in 0..=20 {
        let batch = PreferenceBatch::new(score(&model, &ids, &layout)?)
            .with_reference(reference.clone())?
            .with_similarity(similarity.clone())?;
        let output = Objective::default().loss(&batch)?;
        let gradients = GradientsParams::from_grads(output.loss.backward(), &model);
        model = optimizer.step(1e-2, model, gradients);
        if step % 5 == 0 {
            let metrics = output.metrics();
            let [loss, margin, scale] = ["loss", "aspo/rewards/margins", "aspo/scale"]
                .map(|name| metrics.get(name).unwrap_or(f64::NAN));
            println!("step {step:2}  loss {loss:.4}  margin {margin:.4}  scale {scale:.3}");
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    train::<Autodiff<burn_flex::Flex>>(&Default::default())
}
