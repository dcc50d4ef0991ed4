//! One micro-batch: from pairs to a loss, its gradients and what was seen on the way.

use aspo_data::{EncodedPair, HostBatch, Padding};
use aspo_loss::{
    ChunkOptions, ChunkedBackend, LmHead, Metrics, Objective, PairMap, PolicyScores, PreferenceBatch,
    ReferenceScores, SentenceMap, Similarity, TokenStats, Totals, changed_tokens, chunked_log_probs,
    chunked_log_probs_forward, chunked_log_probs_with_stats,
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
    /// Prompts with one token for each picture: what DDPO compares answers in.
    prompts: Vec<Vec<u32>>,
    device: B::Device,
}

/// What the loss of an optimiser step over `pairs` is averaged over.
pub fn totals<'a>(pairs: impl IntoIterator<Item = &'a EncodedPair>) -> Totals {
    pairs.into_iter().fold(Totals { pairs: 0, chosen_tokens: 0 }, |sum, pair| Totals {
        pairs: sum.pairs + 1,
        chosen_tokens: sum.chosen_tokens + pair.chosen.ids.len(),
    })
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
        let image = model.image_token();
        let prompts = pairs.iter().map(|pair| {
            let mut prompt = pair.prompt_ids.clone();
            prompt.dedup_by(|one, other| *one == image && *other == image);
            prompt
        });
        Ok(Self { host, features, prompts: prompts.collect(), device: device.clone() })
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
        let head = LmHead::hugging_face(model.head());
        Ok(chunked_log_probs_forward(hidden, &head, self.ints(&responses.targets), chunk)?)
    }

    /// Log-probabilities of the answers' tokens, and what their distributions say if the loss asks for it.
    fn scores<A: ChunkedBackend<Device = B::Device>>(
        &self,
        hidden: Tensor<A, 2>,
        head: &LmHead<A>,
        objective: &Objective,
        chunk: &ChunkOptions,
    ) -> Result<(Tensor<A, 1>, Option<TokenStats>)> {
        let targets = self.ints(&self.host.responses.targets);
        if objective.needs_stats() {
            let (log_probs, stats) = chunked_log_probs_with_stats(hidden, head, targets, chunk)?;
            return Ok((log_probs, Some(stats)));
        }
        Ok((chunked_log_probs(hidden, head, targets, chunk)?, None))
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
        let positions = self.ints(&self.host.responses.positions);
        let hidden = policy.hidden_at(&self.input(self.features.clone()), positions)?;
        // The loss is written for a backend with gradients; here it has nothing to follow.
        let head = LmHead::hugging_face(Tensor::<Autodiff<B>, 2>::from_inner(policy.head()));
        let scores = self.scores(Tensor::from_inner(hidden), &head, objective, chunk)?;
        // Means are made of the metrics' sums: the share of a step is not asked for.
        let totals = Totals { pairs: self.host.pairs(), chosen_tokens: self.host.responses.len() };
        Ok(self.preference(scores, objective, reference, totals)?.1.metrics)
    }

    /// This micro-batch's share of the loss of an optimiser step, gradients and metrics of the policy.
    ///
    /// Micro-batches of one optimiser step share its [`totals`], so that their gradients add up to those of one batch.
    ///
    /// # Errors
    /// What model or loss refuse.
    pub fn step<M: Policy<B>>(
        &self,
        policy: &M,
        objective: &Objective,
        reference: Option<&[ReferenceRow]>,
        totals: Totals,
        recompute: bool,
        chunk: &ChunkOptions,
    ) -> Result<StepOutput> {
        type Ad<B> = Autodiff<B>;
        let input = self.input::<Ad<B>>(self.features.clone().map(Tensor::from_inner));
        let loss = |hidden: Tensor<Ad<B>, 3>| -> Result<(Tensor<Ad<B>, 1>, StepValues)> {
            let [rows, length, width] = hidden.dims();
            let positions = self.ints(&self.host.responses.positions);
            let hidden = hidden.reshape([rows * length, width]).select(0, positions);
            let scores = self.scores(hidden, &LmHead::hugging_face(policy.head()), objective, chunk)?;
            self.preference(scores, objective, reference, totals)
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
        (log_probs, stats): (Tensor<Autodiff<B>, 1>, Option<TokenStats>),
        objective: &Objective,
        reference: Option<&[ReferenceRow]>,
        totals: Totals,
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
        if let Some(stats) = stats {
            let (chosen, rejected) = stats.split_at(map.chosen.num_tokens());
            batch = batch.with_stats(chosen, rejected)?;
        }
        if objective.needs_changed() {
            let (chosen, rejected) = self.changed(&map);
            batch = batch.with_changed(&chosen, &rejected)?;
        }
        let output = objective.loss(&batch)?;
        let metrics = output.metrics();
        let loss = output.share(totals);
        let values = StepValues { loss: metrics.get("loss").unwrap_or(f64::NAN), metrics };
        Ok((loss, values))
    }
}

impl<B: Backend> MicroBatch<B> {
    /// Which answer tokens a correction changed, as RLHF-V marks them: in whole sequences from the second token on.
    fn changed(&self, map: &PairMap) -> (Vec<Vec<bool>>, Vec<Vec<bool>>) {
        let (chosen, rejected) = self.host.responses.targets.split_at(map.chosen.num_tokens());
        let sequence = |row: usize, answer: &[i32]| -> Vec<i32> {
            self.prompts[row].iter().skip(1).map(|&id| id as i32).chain(answer.iter().copied()).collect()
        };
        let marks = |row: usize| {
            let (chosen, rejected) = (&chosen[map.chosen.range(row)], &rejected[map.rejected.range(row)]);
            let marks = changed_tokens(&sequence(row, chosen), &sequence(row, rejected));
            let answer = |marks: Vec<bool>, tokens: usize| marks[marks.len() - tokens..].to_vec();
            (answer(marks.0, chosen.len()), answer(marks.1, rejected.len()))
        };
        (0..map.batch_size()).map(marks).unzip()
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
