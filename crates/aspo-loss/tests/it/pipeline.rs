//! From padded hidden states to a loss: how a batch is laid out and cut changes nothing.

use aspo_loss::property::{HostBatch, HostResponse, batches};
use aspo_loss::{
    ChunkOptions, LmHead, Logps, Objective, PairLayout, PreferenceBatch, ResponseLayout, Similarity,
    chunked_log_probs, chunked_log_probs_forward,
};
use burn::backend::Autodiff;
use burn::prelude::*;
use proptest::prelude::*;

use crate::common::{cases, check, grad, ints, on_every_backend, tensor, values};

on_every_backend!(padding_pad_id_and_chunk_size_change_nothing);

type A<B> = Autodiff<B>;

const VOCAB: usize = 7;
const FEATURES: usize = 3;

/// What must not matter.
#[derive(Debug, Clone)]
struct Layout {
    /// More positions before and after each response.
    padding: (usize, usize),
    /// The label of positions that are no response tokens, inside the vocabulary or not.
    pad_id: i64,
    /// Their hidden states.
    junk: f32,
    options: ChunkOptions,
}

fn layouts() -> impl Strategy<Value = Layout> {
    let pad_id = proptest::sample::select(vec![-100, -1, 0, VOCAB as i64 - 1, 32_001]);
    let options = (1..=200_usize, proptest::option::of(1..=9_usize));
    let padding = (0..3_usize, 0..3_usize);
    (padding, pad_id, -50.0..50.0_f32, options).prop_map(|(padding, pad_id, junk, (cells, rows))| Layout {
        padding,
        pad_id,
        junk,
        options: ChunkOptions { byte_budget: 4 * cells, rows },
    })
}

fn head<B: Backend>(phase: f32) -> Tensor<B, 2> {
    let values: Vec<f32> = (0..VOCAB * FEATURES).map(|i| (i as f32 * 1.7 + phase).sin()).collect();
    tensor(&values, [VOCAB, FEATURES])
}

/// One side as a model gives it.
struct Side<B: Backend> {
    /// Hidden states `[B, T, D]`, a leaf.
    hidden: Tensor<A<B>, 3>,
    /// Labels `[B, T]`.
    labels: Tensor<A<B>, 2, Int>,
    ids: Vec<Vec<i64>>,
}

impl<B: Backend> Side<B> {
    fn new(responses: &[&HostResponse], layout: &Layout) -> Self {
        let (before, after) = layout.padding;
        let longest = responses.iter().map(|r| r.padding.0 + r.policy.len()).max().unwrap();
        let width = before + longest + after;
        let (mut hidden, mut labels, mut ids) = (vec![], vec![], vec![]);
        for response in responses {
            let start = before + response.padding.0;
            let sentences = response.sentences.iter().enumerate();
            let sentences: Vec<i64> = sentences.flat_map(|(s, &n)| vec![s as i64; n]).collect();
            let mut row = vec![-1; width];
            row[start..start + sentences.len()].copy_from_slice(&sentences);
            for (position, &sentence) in row.iter().enumerate() {
                if sentence < 0 {
                    labels.push(layout.pad_id);
                    hidden.extend([layout.junk; FEATURES]);
                } else {
                    let token = position - start;
                    let (p, r) = (response.policy[token], response.reference[token]);
                    labels.push((token * 5 + 3) as i64 % VOCAB as i64);
                    hidden.extend([p, r, p - r].map(|x| 0.4 * x));
                }
            }
            ids.push(row);
        }
        let rows = responses.len();
        Self {
            hidden: tensor::<A<B>, 3>(&hidden, [rows, width, FEATURES]).require_grad(),
            labels: ints(&labels, [rows, width]),
            ids,
        }
    }

    fn policy(
        &self,
        map: &ResponseLayout,
        head: &Tensor<A<B>, 2>,
        options: &ChunkOptions,
    ) -> Tensor<A<B>, 1> {
        let rows = map.select_hidden(self.hidden.clone()).unwrap();
        let labels = map.select_targets(self.labels.clone()).unwrap();
        chunked_log_probs(rows, &LmHead::hugging_face(head.clone()), labels, options).unwrap()
    }

    fn reference(&self, map: &ResponseLayout, options: &ChunkOptions) -> Tensor<A<B>, 1> {
        let rows = map.select_hidden(self.hidden.clone()).unwrap();
        let labels = map.select_targets(self.labels.clone()).unwrap();
        chunked_log_probs_forward(rows, &LmHead::hugging_face(head(0.3)), labels, options).unwrap()
    }
}

/// Losses, the gradient in the head if it trains, and that in the response positions' hidden states.
fn run<B: Backend>(host: &HostBatch, layout: &Layout, head_trains: bool) -> [Vec<f64>; 3] {
    let chosen: Vec<_> = host.pairs.iter().map(|pair| &pair.chosen).collect();
    let rejected: Vec<_> = host.pairs.iter().map(|pair| &pair.rejected).collect();
    let sides = [Side::<B>::new(&chosen, layout), Side::<B>::new(&rejected, layout)];
    let map = PairLayout::from_labels(&sides[0].ids, &sides[1].ids).unwrap();
    let head = head::<A<B>>(0.0).set_require_grad(head_trains);
    let maps = [&map.chosen, &map.rejected];
    let [c, r] = [0, 1].map(|side| sides[side].policy(maps[side], &head, &layout.options));
    let policy = Logps::new(&map, c, r).unwrap();
    let [c, r] = [0, 1].map(|side| sides[side].reference(maps[side], &layout.options));
    let reference = Logps::new(&map, c, r).unwrap();
    let similarity: Vec<_> = chosen.iter().map(|r| r.similarity.clone()).collect();
    let batch = PreferenceBatch::new(policy).with_reference(reference).unwrap();
    let batch = batch.with_similarity(Similarity::new(&similarity).unwrap()).unwrap();
    let output = Objective { beta: 0.5, ..Objective::default() }.loss(&batch).unwrap();
    let grads = output.losses.clone().sum().backward();
    let mut hidden = vec![];
    for side in &sides {
        let ids = side.ids.iter().flatten();
        for (row, &id) in grad(&side.hidden, &grads).chunks(FEATURES).zip(ids) {
            if id < 0 {
                assert_eq!(row, [0.0; FEATURES], "a position outside the responses has a gradient");
            } else {
                hidden.extend_from_slice(row);
            }
        }
    }
    let head = if head_trains { grad(&head, &grads) } else { vec![] };
    [values(&output.losses), head, hidden]
}

fn padding_pad_id_and_chunk_size_change_nothing<B: Backend>() {
    check(
        cases::<B>(),
        (batches(), layouts(), layouts(), any::<bool>()),
        |(host, one, other, head_trains)| {
            let [found, expected] = [&one, &other].map(|layout| run::<B>(&host, layout, head_trains));
            for (what, found, expected) in [
                ("losses", &found[0], &expected[0]),
                ("head gradient", &found[1], &expected[1]),
                ("hidden gradient", &found[2], &expected[2]),
            ] {
                prop_assert_eq!(found.len(), expected.len());
                // Another tile sums the vocabulary in another order: f32 rounding of log-probabilities near 10.
                let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() <= 2e-5 * (1.0 + e.abs()));
                prop_assert!(close, "{what}: {found:?} and {expected:?}");
            }
            Ok(())
        },
    );
}
