//! Trains a model of your own with ASPO: any Burn module that gives hidden states and has a head will do.
//!
//! ```sh
//! cargo run -p aspo-examples --example custom_loss
//! ```
//!
//! The model is a toy (it sees one token at a time), the pairs are four, and the loss falls from log 2 as the chosen
//! answers become likelier than the rejected ones, relative to the model at the start.

use aspo_loss::{
    ChunkOptions, ChunkedBackend, LmHead, Objective, PairMap, PolicyScores, PreferenceBatch, ReferenceScores,
    Result, SentenceMap, Similarity, chunked_log_probs,
};
use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn_flex::Flex;

type B = Autodiff<Flex>;

/// Any language model: tokens to hidden states, and a head.
#[derive(Module, Debug)]
struct Toy<B: Backend> {
    embedding: Embedding<B>,
    layer: Linear<B>,
    head: Linear<B>,
}

impl<B: Backend> Toy<B> {
    fn new(vocab: usize, features: usize, device: &B::Device) -> Self {
        Self {
            embedding: EmbeddingConfig::new(vocab, features).init(device),
            layer: LinearConfig::new(features, features).init(device),
            head: LinearConfig::new(features, vocab).init(device),
        }
    }

    fn hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.layer.forward(self.embedding.forward(ids)).tanh()
    }
}

/// Log-probabilities of one side's response tokens, on any backend with gradients. Position t scores the token at t + 1.
fn score<B: ChunkedBackend>(
    model: &Toy<B>,
    ids: &Tensor<B, 2, Int>,
    map: &SentenceMap,
) -> Result<Tensor<B, 1>> {
    let [_, length] = ids.dims();
    let hidden = map.select_rows(model.hidden(ids.clone().narrow(1, 0, length - 1)))?;
    let labels = map.select_labels(ids.clone().narrow(1, 1, length - 1))?;
    chunked_log_probs(hidden, &LmHead::linear(&model.head), labels, &ChunkOptions::default())
}

fn main() -> Result<()> {
    let device = Default::default();
    <B as Backend>::seed(&device, 7);
    let mut model = Toy::<B>::new(32, 16, &device);
    let mut optimizer = AdamConfig::new().init();

    // Two prompt tokens, then two sentences (chosen) or one (rejected); 31 is padding. One sentence id per label.
    let chosen = Tensor::from_data(
        [[1, 2, 5, 6, 7, 8], [1, 3, 9, 6, 7, 31], [1, 4, 5, 9, 8, 7], [1, 2, 9, 5, 6, 31]],
        &device,
    );
    let rejected = Tensor::from_data(
        [[1, 2, 10, 11, 31], [1, 3, 12, 11, 10], [1, 4, 13, 10, 31], [1, 2, 12, 13, 11]],
        &device,
    );
    let map = PairMap::new(
        &[[-1, 0, 0, 1, 1], [-1, 0, 0, 1, -1], [-1, 0, 1, 1, 1], [-1, 0, 1, 1, -1]],
        &[[-1, 0, 0, -1], [-1, 0, 0, 0], [-1, 0, 0, -1], [-1, 0, 0, 0]],
    )?;
    let similarity = Similarity::new(&[[0.21, 0.34], [0.30, 0.25], [0.18, 0.27], [0.33, 0.20]])?;
    let sides = |model: &Toy<B>| -> Result<[Tensor<B, 1>; 2]> {
        Ok([score(model, &chosen, &map.chosen)?, score(model, &rejected, &map.rejected)?])
    };

    // The model as it starts is the reference; the record detaches.
    let [c, r] = sides(&model)?;
    let reference = ReferenceScores::flat(&map, c, r)?;

    // The ten lines.
    for step in 0..=20 {
        let [chosen, rejected] = sides(&model)?;
        let policy = PolicyScores::flat(&map, chosen, rejected)?;
        let batch = PreferenceBatch::new(map.clone(), policy)?
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
