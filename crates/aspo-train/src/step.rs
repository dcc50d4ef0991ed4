//! One micro-batch: from pairs to a loss, its gradients and what was seen on the way.

use std::ops::Range;

use aspo_data::{EncodedAnswer, EncodedPair, HostBatch, Padding};
use aspo_loss::objective::UnreadLoss;
use aspo_loss::objective::changed_tokens;
use aspo_loss::stats::{TokenStats, chunked_log_probs_with_stats};
use aspo_loss::{
    ChunkOptions, Labels, LmHead, Logps, Metrics, Objective, PairLayout, PreferenceBatch, ResponseLayout,
    Similarity, Totals, chunked_log_probs, chunked_log_probs_forward,
};
use aspo_models::{Ids, ImageFeatures, Instruction, LanguageModel, ModelInput, recompute_backward_at};
use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::corrupt::Piece;
use crate::error::Result;
use crate::features::VisionFeatures;
use crate::policy::Policy;

/// The log-probabilities of the answer tokens of one pair under the reference.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReferenceRow {
    /// One value a token of the chosen answer.
    pub chosen: Vec<f32>,
    /// One value a token of the rejected answer.
    pub rejected: Vec<f32>,
    /// One value a token of the chosen answer beside a corrupted picture; empty where the batch has none.
    pub corrupted: Vec<f32>,
}

/// The reference's log-probabilities of a micro-batch.
#[derive(Clone, Debug)]
pub enum Reference<B: Backend> {
    /// On the host, a row a pair: what was kept.
    Rows(Vec<ReferenceRow>),
    /// On the device: what [`MicroBatch::reference_log_probs`] gives.
    Live(Tensor<B, 1>),
}

/// A micro-batch, laid out for a model.
#[derive(Debug)]
pub struct MicroBatch<B: Backend> {
    /// The arrays in plain memory.
    pub host: HostBatch,
    features: Vec<ImageFeatures<B>>,
    /// Prompts with one token for each picture: what DDPO compares answers in.
    prompts: Vec<Vec<u32>>,
    /// Every pair stands a second time after all of them, beside a piece of its picture, or its other picture, and with one token
    /// as its rejected answer.
    corrupted: bool,
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
        Self::with_corrupted(pairs, packed, pad, None, features, model, device)
    }

    /// The same for mDPO, if a seed is given: the chosen answers stand a second time beside a random piece of their pictures.
    ///
    /// # Errors
    /// A picture that cannot be had.
    pub fn with_corrupted<M: aspo_models::VisionLanguageModel<B>>(
        pairs: &[&EncodedPair],
        packed: bool,
        pad: u32,
        seed: Option<u64>,
        features: &mut VisionFeatures,
        model: &M,
        device: &B::Device,
    ) -> Result<Self> {
        let padding = Padding { id: pad, multiple_of: 8 };
        let image = model.image_token();
        let prompts = pairs.iter().map(|pair| {
            let mut prompt = pair.prompt_ids.clone();
            prompt.dedup_by(|one, other| *one == image && *other == image);
            prompt
        });
        let prompts = prompts.collect();
        let twins: Vec<EncodedPair> =
            pairs.iter().filter(|_| seed.is_some()).map(|pair| twin(pair)).collect();
        let all: Vec<&EncodedPair> = pairs.iter().copied().chain(&twins).collect();
        let host =
            if packed { HostBatch::packed(&all, padding)? } else { HostBatch::stacked(&all, padding)? };
        // One entry for each run of image tokens, rows in order; each side has rows of its own where they are not packed.
        let pieces: Vec<Option<Piece>> = (0..host.rows)
            .map(|row| row % all.len())
            .flat_map(|index| {
                let pair = all[index];
                // Data that bring the other picture need no piece of the pair's own.
                let seed = seed.filter(|_| index >= pairs.len() && pair.rejected_images.is_empty());
                pair.images.iter().map(move |image| seed.map(|seed| Piece::new(seed, &pair.id, &image.key())))
            })
            .collect();
        let features = features.of_pieces(model, &host, &pieces, device)?;
        Ok(Self { host, features, prompts, corrupted: seed.is_some(), device: device.clone() })
    }

    /// Pairs, each counted once.
    fn pairs(&self) -> usize {
        self.prompts.len()
    }

    /// Ids of the pairs.
    pub fn ids(&self) -> &[String] {
        &self.host.ids[..self.pairs()]
    }

    /// Where the tokens of the chosen answers, of those beside corrupted pictures, and of the rejected answers are.
    fn ranges(&self) -> [Range<usize>; 3] {
        let counts = &self.host.responses.token_counts;
        let (pairs, all) = (self.pairs(), self.host.pairs());
        let end = |sequences: usize| counts[..sequences].iter().sum::<usize>();
        [0..end(pairs), end(pairs)..end(all), end(all)..end(all + pairs)]
    }

    /// The model's input, on the plain backend or with gradients.
    fn input<T: Backend<Device = B::Device>>(&self, features: Vec<ImageFeatures<T>>) -> ModelInput<T> {
        let shape = [self.host.rows, self.host.length];
        let grid = |values: Vec<i64>, shape| Ids::<T>::new(values, shape, &self.device);
        let wide = |values: &[i32]| values.iter().map(|&value| i64::from(value)).collect();
        let marks = |values: &[bool]| values.iter().map(|&real| i64::from(real)).collect();
        let mask = marks(&self.host.attention_mask);
        let mut input = ModelInput::new(grid(wide(&self.host.input_ids), shape), grid(mask, shape));
        let segments = self.host.segments.iter().map(|&segment| i64::from(segment.max(0))).collect();
        input.segment_ids = Some(grid(segments, shape));
        input.image_features = features;
        let [pairs, length] = [self.host.pairs(), self.host.instruction_length];
        if length > 0 {
            // A row each time a picture is shown: twice a pair where answers have rows of their own.
            let times = self.host.rows / pairs;
            let grid = |values: Vec<i64>| grid(values.repeat(times), [times * pairs, length]);
            let ids = grid(wide(&self.host.instruction_ids));
            let attention_mask = grid(marks(&self.host.instruction_mask));
            input.instruction = Some(Instruction { ids, attention_mask });
        }
        input
    }

    /// The values of each sequence, chosen before rejected, those of pairs that stand a second time included.
    fn by_sequence<T: Clone>(&self, values: &[T]) -> Vec<Vec<T>> {
        let mut rest = values;
        let counts = self.host.responses.token_counts.iter();
        counts.map(|&count| rest.split_off(..count).unwrap_or_default().to_vec()).collect()
    }

    /// The layout of the answers' tokens, for the loss.
    fn map(&self) -> Result<PairLayout> {
        let ids: Vec<i64> = self.host.responses.sentence_ids.iter().map(|&id| i64::from(id)).collect();
        let (rows, pairs, all) = (self.by_sequence(&ids), self.pairs(), self.host.pairs());
        let [chosen, rejected] = [&rows[..pairs], &rows[all..all + pairs]];
        Ok(PairLayout::from_sides(
            ResponseLayout::from_labels(chosen)?,
            ResponseLayout::from_labels(rejected)?,
        )?)
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
        let values: Vec<f32> =
            self.reference_log_probs(reference, chunk)?.into_data().iter::<f32>().collect();
        let rows = self.by_sequence(&values);
        let (pairs, all) = (self.pairs(), self.host.pairs());
        let row = |pair: usize| ReferenceRow {
            chosen: rows[pair].clone(),
            rejected: rows[all + pair].clone(),
            corrupted: if self.corrupted { rows[pairs + pair].clone() } else { Vec::new() },
        };
        Ok((0..pairs).map(row).collect())
    }

    /// The same left on the device, for a [`step`](Self::step) of this batch.
    ///
    /// # Errors
    /// Ids outside the vocabulary.
    pub fn reference_log_probs<M: LanguageModel<B>>(
        &self,
        model: &M,
        chunk: &ChunkOptions,
    ) -> Result<Tensor<B, 1>> {
        let responses = &self.host.responses;
        let hidden = model.hidden_at(&self.input(self.features.clone()), &responses.positions)?;
        let head = LmHead::hugging_face(model.head());
        let labels = Labels::new(&responses.targets, &self.device);
        Ok(chunked_log_probs_forward(hidden, &head, labels, chunk)?)
    }

    /// Log-probabilities of the answers' tokens, and what their distributions say if the loss asks for it.
    fn scores<A: AutodiffBackend<Device = B::Device>>(
        &self,
        hidden: Tensor<A, 2>,
        head: &LmHead<A>,
        objective: &Objective,
        chunk: &ChunkOptions,
    ) -> Result<(Tensor<A, 1>, Option<TokenStats<A>>)> {
        let targets = Labels::new(&self.host.responses.targets, &self.device);
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
        reference: Option<&Reference<B>>,
        chunk: &ChunkOptions,
    ) -> Result<Metrics> {
        let positions = &self.host.responses.positions;
        let hidden = policy.hidden_at(&self.input(self.features.clone()), positions)?;
        // The loss is written for a backend with gradients; here it has nothing to follow.
        let head = LmHead::hugging_face(Tensor::<Autodiff<B>, 2>::from_inner(policy.head()));
        let scores = self.scores(Tensor::from_inner(hidden), &head, objective, chunk)?;
        Ok(self.preference(scores, objective, reference)?.read()?.metrics())
    }

    /// This micro-batch's share of the loss of an optimiser step, and its gradients. Nothing is read back from the device.
    ///
    /// Micro-batches of one optimiser step share its [`totals`], so that their gradients add up to those of one batch.
    ///
    /// # Errors
    /// What model or loss refuse.
    pub fn step<M: Policy<B>>(
        &self,
        policy: &M,
        objective: &Objective,
        reference: Option<&Reference<B>>,
        totals: Totals,
        recompute: bool,
        chunk: &ChunkOptions,
    ) -> Result<StepOutput<B>> {
        type Ad<B> = Autodiff<B>;
        let features = self.features.iter().cloned().map(ImageFeatures::from_inner);
        let input = self.input::<Ad<B>>(features.collect());
        let places = &self.host.responses.positions;
        type Share<B> = (Tensor<Ad<B>, 1>, UnreadLoss<Ad<B>>);
        let loss = |hidden: Tensor<Ad<B>, 2>| -> Result<Share<B>> {
            let scores = self.scores(hidden, &LmHead::hugging_face(policy.head()), objective, chunk)?;
            let unread = self.preference(scores, objective, reference)?;
            Ok((unread.share(totals), unread))
        };
        let (gradients, unread) = if recompute {
            let mut failure = None;
            let done = recompute_backward_at(policy, &input, places, |hidden| {
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
            let (loss, unread) = loss(policy.hidden_at(&input, places)?)?;
            (GradientsParams::from_grads(loss.backward(), policy), unread)
        };
        Ok(StepOutput { gradients, unread, tokens: self.ranges()[0].len() + self.ranges()[2].len() })
    }

    fn preference(
        &self,
        (log_probs, stats): (Tensor<Autodiff<B>, 1>, Option<TokenStats<Autodiff<B>>>),
        objective: &Objective,
        reference: Option<&Reference<B>>,
    ) -> Result<UnreadLoss<Autodiff<B>>> {
        let map = self.map()?;
        let [chosen, corrupted, rejected] = self.ranges();
        let part = |range: Range<usize>| log_probs.clone().slice([range]);
        let policy = Logps::new(&map, part(chosen), part(rejected))?;
        let mut batch = PreferenceBatch::new(policy);
        match reference {
            Some(Reference::Rows(rows)) => {
                if self.corrupted {
                    let known: Vec<f32> = rows.iter().flat_map(|row| row.corrupted.iter().copied()).collect();
                    let known = TensorData::new(known, [corrupted.len()]);
                    batch = batch.with_corrupted(part(corrupted), Tensor::from_data(known, &self.device))?;
                }
                let chosen: Vec<&[f32]> = rows.iter().map(|row| row.chosen.as_slice()).collect();
                let rejected: Vec<&[f32]> = rows.iter().map(|row| row.rejected.as_slice()).collect();
                batch = batch.with_reference(Logps::from_rows(&map, &chosen, &rejected, &self.device)?)?;
            }
            Some(Reference::Live(values)) => {
                let known = |range: Range<usize>| Tensor::from_inner(values.clone().slice([range]));
                let [chosen, _, rejected] = self.ranges();
                if self.corrupted {
                    batch = batch.with_corrupted(part(corrupted.clone()), known(corrupted))?;
                }
                batch = batch.with_reference(Logps::new(&map, known(chosen), known(rejected))?)?;
            }
            None => {}
        }
        let (pairs, all) = (self.pairs(), self.host.pairs());
        let similarity = &self.host.responses.similarity;
        let [chosen, rejected] = [&similarity[..pairs], &similarity[all..all + pairs]];
        if objective.needs_similarity() {
            batch = batch.with_similarity(Similarity::new(chosen)?)?;
        }
        if objective.needs_rejected_similarity() {
            batch = batch.with_rejected_similarity(Similarity::new(rejected)?)?;
        }
        if let Some(stats) = stats {
            let [chosen, _, rejected] = self.ranges();
            batch = batch.with_stats(stats.part(chosen)?, stats.part(rejected)?)?;
        }
        if objective.needs_changed() {
            let (chosen, rejected) = self.changed(&map);
            batch = batch.with_changed(&chosen, &rejected)?;
        }
        Ok(objective.forward(&batch)?)
    }
}

/// The pair as it stands a second time: for its chosen answer, beside its other pictures if it has any. A row cannot lack a
/// rejected answer, so that has one token.
fn twin(pair: &EncodedPair) -> EncodedPair {
    let mut twin = pair.clone();
    if !pair.rejected_images.is_empty() {
        twin.images.clone_from(&pair.rejected_images);
    }
    twin.rejected =
        EncodedAnswer { ids: pair.chosen.ids[..1].to_vec(), sentences: vec![0], ..EncodedAnswer::default() };
    twin
}

impl<B: Backend> MicroBatch<B> {
    /// Which answer tokens a correction changed, as RLHF-V marks them: in whole sequences from the second token on.
    fn changed(&self, map: &PairLayout) -> (Vec<Vec<bool>>, Vec<Vec<bool>>) {
        let [chosen, _, rejected] = self.ranges().map(|range| &self.host.responses.targets[range]);
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

/// What a micro-batch gives.
pub struct StepOutput<B: Backend> {
    /// Of the adapter's factors.
    pub gradients: GradientsParams,
    /// Loss and metrics, still on the device.
    pub unread: UnreadLoss<Autodiff<B>>,
    /// Answer tokens of both sides.
    pub tokens: usize,
}
