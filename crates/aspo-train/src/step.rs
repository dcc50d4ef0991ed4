//! One micro-batch: from pairs to a loss, its gradients and what was seen on the way.

use aspo_data::{EncodedPair, HostBatch, Padding};
use aspo_loss::{
    ChunkOptions, Metrics, Objective, PairMap, PolicyScores, PreferenceBatch, ReferenceScores, SentenceMap,
    Similarity, chunked_log_probs, chunked_log_probs_forward,
};
use aspo_models::{LanguageModel, ModelInput, recompute_backward};
use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::error::Result;
use crate::features::VisionFeatures;
use crate::policy::Policy;

/// The log-probabilities of the answer tokens of one pair under the reference.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceRow {
    /// One value a token of the chosen answer.
    pub chosen: Vec<f32>,
    /// One value a token of the rejected answer.
    pub rejected: Vec<f32>,
}

/// A micro-batch, laid out for a model.
#[derive(Debug)]
pub struct MicroBatch<B: Backend> {
    /// The arrays in plain memory.
    pub host: HostBatch,
    features: Option<Tensor<B, 3>>,
    device: B::Device,
}

impl<B: Backend> MicroBatch<B> {
    /// Lays out `pairs` in one row each (`packed`) or two, with their pictures.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn new<M: aspo_models::VisionLanguageModel<B>>(
        pairs: &[&EncodedPair],
        packed: bool,
        pad: u32,
        features: &mut VisionFeatures,
        model: &M,
        device: &B::Device,
    ) -> Result<Self> {
        let padding = Padding { id: pad, multiple_of: 8 };
        let host =
            if packed { HostBatch::packed(pairs, padding)? } else { HostBatch::stacked(pairs, padding)? };
        let features = features.of_batch(model, &host, device)?;
        Ok(Self { host, features, device: device.clone() })
    }

    /// The model's input, on the plain backend or with gradients.
    fn input<T: Backend<Device = B::Device>>(&self, features: Option<Tensor<T, 3>>) -> ModelInput<T> {
        let shape = [self.host.rows, self.host.length];
        let grid =
            |values: Vec<i32>| Tensor::<T, 2, Int>::from_data(TensorData::new(values, shape), &self.device);
        let mask = self.host.attention_mask.iter().map(|&real| i32::from(real)).collect();
        let mut input = ModelInput::new(grid(self.host.input_ids.clone()), grid(mask));
        input.position_ids = Some(grid(self.host.position_ids.clone()));
        input.segment_ids = Some(grid(self.host.segments.iter().map(|&segment| segment.max(0)).collect()));
        input.image_features = features;
        let [pairs, length] = [self.host.pairs(), self.host.instruction_length];
        if length > 0 {
            // A row each time a picture is shown: twice a pair where answers have rows of their own.
            let times = self.host.rows / pairs;
            let grid = |values: Vec<i32>| {
                let data = TensorData::new(values.repeat(times), [times * pairs, length]);
                Tensor::<T, 2, Int>::from_data(data, &self.device)
            };
            let mask = self.host.instruction_mask.iter().map(|&real| i32::from(real)).collect();
            input.qformer_input_ids = Some(grid(self.host.instruction_ids.clone()));
            input.qformer_attention_mask = Some(grid(mask));
        }
        input
    }

    fn ints<T: Backend<Device = B::Device>>(&self, values: &[i32]) -> Tensor<T, 1, Int> {
        Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &self.device)
    }

    /// The layout of the answers' tokens, for the loss.
    fn map(&self) -> Result<PairMap> {
        let responses = &self.host.responses;
        let pairs = self.host.pairs();
        let mut rows: Vec<Vec<i64>> = Vec::with_capacity(2 * pairs);
        let mut start = 0;
        for &count in &responses.token_counts {
            rows.push(responses.sentence_ids[start..start + count].iter().map(|&id| i64::from(id)).collect());
            start += count;
        }
        let rejected = rows.split_off(pairs);
        Ok(PairMap::from_maps(SentenceMap::new(&rows)?, SentenceMap::new(&rejected)?)?)
    }

    /// The reference's log-probabilities of every pair: `reference` is the policy with its adapter off.
    ///
    /// # Errors
    /// Ids outside the vocabulary.
    pub fn reference<M: LanguageModel<B>>(
        &self,
        reference: &M,
        chunk: &ChunkOptions,
    ) -> Result<Vec<ReferenceRow>> {
        let values: Vec<f32> = self.log_probs(reference, chunk)?.into_data().iter::<f32>().collect();
        let counts = &self.host.responses.token_counts;
        let mut rows = Vec::with_capacity(counts.len());
        let mut start = 0;
        for &count in counts {
            rows.push(values[start..start + count].to_vec());
            start += count;
        }
        let rejected = rows.split_off(self.host.pairs());
        Ok(rows
            .into_iter()
            .zip(rejected)
            .map(|(chosen, rejected)| ReferenceRow { chosen, rejected })
            .collect())
    }

    fn log_probs<M: LanguageModel<B>>(&self, model: &M, chunk: &ChunkOptions) -> Result<Tensor<B, 1>> {
        let responses = &self.host.responses;
        let hidden = model.hidden_at(&self.input(self.features.clone()), self.ints(&responses.positions))?;
        Ok(chunked_log_probs_forward(hidden, model.head(), self.ints(&responses.targets), chunk)?)
    }

    /// Metrics of pairs that are not trained on, the loss among them. `policy` is without gradients (`valid()`).
    ///
    /// # Errors
    /// Ids outside the vocabulary, scores that ASPO cannot weigh by because they are not finite.
    pub fn evaluate<M: LanguageModel<B>>(
        &self,
        policy: &M,
        objective: &Objective,
        reference: Option<&[ReferenceRow]>,
        chunk: &ChunkOptions,
    ) -> Result<Metrics> {
        // The loss is written for a backend with gradients; here it has nothing to follow.
        let log_probs = Tensor::from_inner(self.log_probs(policy, chunk)?);
        Ok(self.preference(log_probs, objective, reference, self.host.pairs())?.1.metrics)
    }

    /// Loss (a sum over pairs, divided by `global_pairs`), gradients and metrics of the policy.
    ///
    /// Micro-batches of one optimiser step share `global_pairs`, so that their gradients add up to those of one batch.
    ///
    /// # Errors
    /// What model or loss refuse.
    pub fn step<M: Policy<B>>(
        &self,
        policy: &M,
        objective: &Objective,
        reference: Option<&[ReferenceRow]>,
        global_pairs: usize,
        recompute: bool,
        chunk: &ChunkOptions,
    ) -> Result<StepOutput> {
        type Ad<B> = Autodiff<B>;
        let input = self.input::<Ad<B>>(self.features.clone().map(Tensor::from_inner));
        let loss = |hidden: Tensor<Ad<B>, 3>| -> Result<(Tensor<Ad<B>, 1>, StepValues)> {
            let [rows, length, width] = hidden.dims();
            let positions = self.ints(&self.host.responses.positions);
            let hidden = hidden.reshape([rows * length, width]).select(0, positions);
            let targets = self.ints(&self.host.responses.targets);
            let log_probs = chunked_log_probs(hidden, policy.head(), targets, chunk)?;
            self.preference(log_probs, objective, reference, global_pairs)
        };
        let (gradients, values) = if recompute {
            let mut failure = None;
            let done = recompute_backward(policy, &input, |hidden| {
                loss(hidden).map_err(|error| {
                    let told = aspo_models::Error::Input { name: "loss", reason: error.to_string() };
                    failure = Some(error);
                    told
                })
            });
            match (done, failure) {
                (_, Some(error)) => return Err(error),
                (done, None) => {
                    let done = done?;
                    (done.grads, done.extra)
                }
            }
        } else {
            let (loss, values) = loss(policy.hidden(&input)?)?;
            (GradientsParams::from_grads(loss.backward(), policy), values)
        };
        Ok(StepOutput {
            gradients,
            loss: values.loss,
            metrics: values.metrics,
            tokens: self.host.responses.len(),
        })
    }

    fn preference(
        &self,
        log_probs: Tensor<Autodiff<B>, 1>,
        objective: &Objective,
        reference: Option<&[ReferenceRow]>,
        global_pairs: usize,
    ) -> Result<(Tensor<Autodiff<B>, 1>, StepValues)> {
        let map = self.map()?;
        let pairs = map.batch_size();
        let policy = PolicyScores::joined(&map, log_probs)?;
        let mut batch = PreferenceBatch::new(map.clone(), policy)?;
        if let Some(rows) = reference {
            let chosen: Vec<&[f32]> = rows.iter().map(|row| row.chosen.as_slice()).collect();
            let rejected: Vec<&[f32]> = rows.iter().map(|row| row.rejected.as_slice()).collect();
            batch = batch.with_reference(ReferenceScores::rows(&map, &chosen, &rejected, &self.device)?)?;
        }
        let (chosen, rejected) = self.host.responses.similarity.split_at(pairs);
        if objective.needs_similarity() {
            batch = batch.with_similarity(Similarity::new(chosen)?)?;
        }
        if objective.needs_rejected_similarity() {
            batch = batch.with_rejected_similarity(Similarity::new(rejected)?)?;
        }
        let output = objective.loss(&batch)?;
        let metrics = output.metrics();
        let loss = output.losses.sum().div_scalar(global_pairs as f64);
        let values = StepValues { loss: metrics.get("loss").unwrap_or(f64::NAN), metrics };
        Ok((loss, values))
    }
}

struct StepValues {
    loss: f64,
    metrics: Metrics,
}

/// What a micro-batch gives.
pub struct StepOutput {
    /// Of the adapter's factors.
    pub gradients: GradientsParams,
    /// Mean loss of the micro-batch's pairs.
    pub loss: f64,
    /// By TRL's names.
    pub metrics: Metrics,
    /// Answer tokens of both sides.
    pub tokens: usize,
}
