//! The batch is its rows: nothing more, nothing less.

use aspo_data::batch::pixel_tensor;
use aspo_data::{EncodedAnswer, EncodedPair, Encoder, HostBatch, Padding, Pair, Template};
use burn::tensor::backend::Backend;

use crate::support::tiny_tokenizer;

const PADDING: Padding = Padding { id: 999, multiple_of: 8 };

fn pairs() -> Vec<EncodedPair> {
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let mut pairs: Vec<EncodedPair> = [
        Pair::new("a", "What?", "The dog runs. There are two.", "the cat").with_image("1.jpg"),
        Pair::new("b", "And a longer question here?", "Yes", "No. Not at all. Never.").with_image("2.jpg"),
        Pair::new("c", "Hi", "x", "y").with_image("1.jpg"),
    ]
    .iter()
    .map(|pair| encoder.encode(pair).unwrap())
    .collect();
    pairs[0].chosen.similarity = vec![0.25, 0.5];
    pairs
}

fn answers(pairs: &[EncodedPair]) -> Vec<(&EncodedPair, &EncodedAnswer)> {
    pairs
        .iter()
        .map(|pair| (pair, &pair.chosen))
        .chain(pairs.iter().map(|pair| (pair, &pair.rejected)))
        .collect()
}

#[test]
fn stacked_rows_are_prompt_and_answer_and_padding() {
    let pairs = pairs();
    let batch = HostBatch::stacked(&pairs.iter().collect::<Vec<_>>(), PADDING).unwrap();
    assert_eq!((batch.rows, batch.pairs()), (6, 3));
    assert_eq!(batch.length % 8, 0);
    for (row, (pair, answer)) in answers(&pairs).into_iter().enumerate() {
        let cells = row * batch.length..(row + 1) * batch.length;
        let wanted: Vec<i32> = pair.prompt_ids.iter().chain(&answer.ids).map(|id| *id as i32).collect();
        let ids = &batch.input_ids[cells.clone()];
        assert_eq!(ids[..wanted.len()], wanted);
        assert!(ids[wanted.len()..].iter().all(|id| *id == 999));
        for (column, cell) in cells.enumerate() {
            assert_eq!(batch.attention_mask[cell], column < wanted.len());
            assert_eq!(batch.position_ids[cell] as usize, if column < wanted.len() { column } else { 0 });
        }
    }
}

#[test]
fn responses_of_both_layouts_are_the_answers_in_order() {
    let pairs = pairs();
    let refs: Vec<&EncodedPair> = pairs.iter().collect();
    let stacked = HostBatch::stacked(&refs, PADDING).unwrap();
    let packed = HostBatch::packed(&refs, PADDING).unwrap();
    for batch in [&stacked, &packed] {
        let responses = &batch.responses;
        let mut token = 0;
        for (sequence, (pair, answer)) in answers(&pairs).into_iter().enumerate() {
            assert_eq!(responses.token_counts[sequence], answer.ids.len());
            assert_eq!(responses.sentence_counts[sequence], answer.sentence_count());
            assert_eq!(responses.similarity[sequence], answer.similarity);
            for (index, id) in answer.ids.iter().enumerate() {
                assert_eq!(responses.targets[token] as u32, *id);
                assert_eq!(responses.sequences[token] as usize, sequence);
                assert_eq!(responses.sentence_ids[token] as u32, answer.sentences[index]);
                // The predicting position holds the token before this one in its sequence.
                let before =
                    if index == 0 { *pair.prompt_ids.last().unwrap() } else { answer.ids[index - 1] };
                let position = responses.positions[token] as usize;
                assert_eq!(batch.input_ids[position] as u32, before);
                assert_eq!(batch.position_ids[position] as usize, pair.prompt_ids.len() + index - 1);
                token += 1;
            }
        }
        assert_eq!(token, responses.len());
    }
    assert_eq!(stacked.responses.targets, packed.responses.targets);
    assert_eq!(stacked.responses.sequences, packed.responses.sequences);
    assert!(packed.rows * packed.length < stacked.rows * stacked.length, "the prompt is held once");
}

#[test]
fn packed_segments_restart_positions_after_the_prompt() {
    let pairs = pairs();
    let batch = HostBatch::packed(&pairs.iter().collect::<Vec<_>>(), PADDING).unwrap();
    for (row, pair) in pairs.iter().enumerate() {
        let (p, c, r) = (pair.prompt_ids.len(), pair.chosen.ids.len(), pair.rejected.ids.len());
        let cells = &batch.segments[row * batch.length..(row + 1) * batch.length];
        let wanted: Vec<i32> =
            [vec![0; p], vec![1; c], vec![2; r], vec![-1; batch.length - p - c - r]].concat();
        assert_eq!(cells, wanted);
        let positions = &batch.position_ids[row * batch.length..][..p + c + r];
        let wanted: Vec<i32> = (0..p + c).chain(p..p + r).map(|x| x as i32).collect();
        assert_eq!(positions, wanted);
    }
}

#[test]
fn each_image_is_listed_once_and_every_run_of_image_tokens_points_to_its_own() {
    let pairs = pairs();
    let refs: Vec<&EncodedPair> = pairs.iter().collect();
    let stacked = HostBatch::stacked(&refs, PADDING).unwrap();
    assert_eq!(stacked.images, ["1.jpg".into(), "2.jpg".into()]);
    assert_eq!(stacked.image_index, [0, 1, 0, 0, 1, 0]);
    assert_eq!(HostBatch::packed(&refs, PADDING).unwrap().image_index, [0, 1, 0]);
}

#[test]
fn a_batch_without_pairs_is_an_error() {
    assert!(HostBatch::stacked(&[], PADDING).unwrap_err().to_string().contains("no pairs"));
    let pairs = pairs();
    let zero = Padding { multiple_of: 0, ..PADDING };
    assert!(HostBatch::packed(&[&pairs[0]], zero).unwrap_err().to_string().contains("pad_to_multiple_of"));
}

fn preprocessed_images_become_one_tensor<B: Backend>() {
    let device = B::Device::default();
    let pixels = pixel_tensor::<B>(&[vec![1.0; 12], vec![2.0; 12]], 2, &device).unwrap();
    assert_eq!(pixels.dims(), [2, 3, 2, 2]);
    let values: Vec<f32> = pixels.into_data().iter::<f32>().collect();
    assert_eq!(values, [[1.0; 12], [2.0; 12]].concat());
    assert!(pixel_tensor::<B>(&[vec![1.0; 11]], 2, &device).is_err());
    assert!(pixel_tensor::<B>(&[], 2, &device).is_err());
}

macro_rules! on_backend {
    ($name:ident, $backend:ty) => {
        mod $name {
            #[test]
            fn preprocessed_images_become_one_tensor() {
                super::preprocessed_images_become_one_tensor::<$backend>();
            }
        }
    };
}

on_backend!(flex, burn_flex::Flex);
on_backend!(ndarray, burn_ndarray::NdArray);
