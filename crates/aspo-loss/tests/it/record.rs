//! Records refuse what does not fit, naming record, row and remedy.

use aspo_loss::{
    Aspo, ChunkOptions, Error, LossType, Objective, PairMap, PolicyScores, PreferenceBatch, ReferenceScores,
    RewardScaling, SentenceMap, Similarity, TokenStats, Weigh, chunked_log_probs_forward, dense_log_probs,
};
use burn::prelude::*;

use crate::common::{ints, on_every_backend, tensor, values};

on_every_backend!(
    scores_have_one_value_per_response_token,
    padded_joined_flat_and_host_scores_are_the_same,
    only_response_positions_are_selected,
    an_objective_names_the_record_it_lacks,
    a_score_that_is_not_finite_is_named,
    labels_outside_the_vocabulary_are_an_error,
);

#[test]
fn a_row_without_response_tokens_is_an_error() {
    let error = PairMap::new(&[vec![0, 0], vec![-1, -1]], &[[0, 0], [0, 0]]).unwrap_err();
    assert_eq!(error, Error::NoResponse { what: "chosen sentence ids".into(), row: 1 });
    assert!(error.to_string().contains("row 1"), "{error}");
    assert!(matches!(SentenceMap::new::<[i64; 0]>(&[]), Err(Error::Empty { .. })));
    assert!(matches!(SentenceMap::whole(&[3, 0]), Err(Error::NoResponse { row: 1, .. })));
}

#[test]
fn sentence_ids_count_from_zero_without_gaps() {
    let gap = SentenceMap::new(&[[-1, 0, 2, 2]]).unwrap_err();
    assert_eq!(gap, Error::EmptySentence { what: "sentence ids".into(), row: 0, sentence: 1, sentences: 3 });
    let odd = SentenceMap::new(&[vec![0], vec![0, -100]]).unwrap_err();
    assert_eq!(odd, Error::SentenceId { what: "sentence ids".into(), row: 1, position: 1, found: -100 });
    // An id that no row of this length can reach is refused before anything of its size is made.
    assert!(matches!(SentenceMap::new(&[[0, i64::MAX]]), Err(Error::SentenceId { position: 1, .. })));
}

#[test]
fn a_sentence_map_is_ragged() {
    let map = SentenceMap::new(&[vec![-1, 0, 0, 1], vec![0, 1, 1, 2, -1, 2, -1]]).unwrap();
    assert_eq!((map.batch_size(), map.num_tokens(), map.max_sentences(), map.width()), (2, 8, 3, 7));
    assert_eq!((map.counts(0), map.counts(1)), (&[2, 1][..], &[1, 2, 2][..]));
    assert_eq!(map.range(1), 3..8);
    assert_eq!(map.flat_positions(7), [1, 2, 3, 7, 8, 9, 10, 12]);
}

#[test]
fn both_sides_have_the_same_rows() {
    let error = PairMap::new(&[[0], [0]], &[[0]]).unwrap_err();
    assert!(error.to_string().starts_with("rejected sentence ids: found 1, expected 2"), "{error}");
}

#[test]
fn similarities_are_finite_and_fit_their_counts() {
    let error = Similarity::new(&[vec![0.1], vec![0.2, f32::NAN]]).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 1, element: 1, .. }), "{error}");
    assert!(Similarity::padded(&[[0.1, 0.2]], &[3]).is_err());
    assert_eq!(Similarity::padded(&[[0.1, 9.0]], &[1]).unwrap(), Similarity::new(&[[0.1]]).unwrap());
}

#[test]
fn names_are_read_as_they_are_written() {
    for loss in LossType::ALL {
        assert_eq!(loss.to_string().parse::<LossType>().unwrap(), loss);
    }
    for scaling in RewardScaling::ALL {
        assert_eq!(scaling.to_string().parse::<RewardScaling>().unwrap(), scaling);
    }
    let error = "dpo".parse::<LossType>().unwrap_err().to_string();
    assert!(error.contains("`dpo`") && error.contains("sigmoid"), "{error}");
    assert_eq!("both".parse::<Weigh>().unwrap(), Weigh::Both);
}

#[test]
fn options_are_checked_before_use() {
    let bad = [
        (Objective { beta: 0.0, ..Objective::default() }, "beta"),
        (Objective { beta: f64::NAN, ..Objective::default() }, "beta"),
        (Objective { alpha: 1.5, ..Objective::default() }, "alpha"),
        (Objective { terms: vec![], ..Objective::default() }, "terms"),
        (Objective { terms: vec![(LossType::Sigmoid, f64::INFINITY)], ..Objective::default() }, "terms"),
        (Objective { label_smoothing: 0.1, ..Objective::default() }, "label_smoothing"),
        (Objective { label_smoothing: 0.5, ..Objective::new(LossType::Robust) }, "label_smoothing"),
        (Objective { label_smoothing: 0.0, ..Objective::new(LossType::ExoPair) }, "label_smoothing"),
        (Objective { discopop_tau: 0.0, ..Objective::new(LossType::Discopop) }, "discopop_tau"),
        (Objective { ddpo_gamma: -1.0, ..Objective::new(LossType::Ddpo) }, "ddpo_gamma"),
        (Objective { ld_alpha: Some(1.1), ..Objective::new(LossType::Sigmoid) }, "ld_alpha"),
        (Objective { ld_alpha: Some(0.5), ..Objective::new(LossType::Ddpo) }, "ld_alpha"),
        (Objective { ld_alpha: Some(0.5), ..Objective::new(LossType::MdpoConditional) }, "ld_alpha"),
    ];
    for (objective, name) in bad {
        match objective.validate() {
            Err(Error::Option { option, .. }) => assert_eq!(option, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    for loss in LossType::ALL {
        Objective::new(loss).validate().unwrap();
    }
}

#[test]
fn a_tile_stays_within_its_budget() {
    for (budget, tokens, vocab) in
        [(1, 5, 7), (4096, 100, 50), (8 << 20, 1024, 32_000), (8 << 20, 20_000, 128_000)]
    {
        let options = ChunkOptions { byte_budget: budget, rows: None };
        let (rows, columns) = options.tile(tokens, vocab).unwrap();
        assert!((1..=tokens).contains(&rows) && (1..=vocab).contains(&columns));
        assert!(rows * columns * 4 <= budget.max(4), "{rows} × {columns} of {budget} bytes");
    }
    assert!(ChunkOptions { byte_budget: 0, rows: None }.tile(1, 1).is_err());
    assert!(ChunkOptions { rows: Some(0), ..ChunkOptions::default() }.tile(1, 1).is_err());
}

fn map() -> PairMap {
    PairMap::new(&[vec![-1, 0, 1], vec![0]], &[vec![0, -1, 0], vec![-1, 0]]).unwrap()
}

fn batch<B: Backend>() -> PreferenceBatch<B> {
    let scores = tensor::<B, 1>(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], [6]);
    PreferenceBatch::new(map(), PolicyScores::joined(&map(), scores).unwrap()).unwrap()
}

fn scores_have_one_value_per_response_token<B: Backend>() {
    let three = || tensor::<B, 1>(&[-1.0; 3], [3]);
    assert!(PolicyScores::flat(&map(), three(), three()).is_ok());
    let error = PolicyScores::flat(&map(), three(), tensor(&[-1.0; 2], [2])).unwrap_err().to_string();
    assert!(error.contains("policy rejected log-probabilities: found 2, expected 3"), "{error}");
    assert!(ReferenceScores::joined(&map(), three()).is_err());
    let error =
        ReferenceScores::padded(&map(), tensor::<B, 2>(&[-1.0; 4], [2, 2]), tensor(&[-1.0; 6], [2, 3]));
    assert!(error.unwrap_err().to_string().contains("[2, at least 3, …]"));
    let rows = [vec![-1.0, -1.0], vec![-1.0, -1.0]];
    let error = PolicyScores::<B>::rows(&map(), &rows, &rows, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("policy chosen log-probabilities, row 1"), "{error}");
    let similarity = Similarity::new(&[[0.1], [0.2]]).unwrap();
    let error = batch::<B>().with_similarity(similarity).unwrap_err().to_string();
    assert!(error.contains("chosen similarity, row 0: found 1, expected 2"), "{error}");
    assert!(batch::<B>().with_changed(&[vec![true; 2], vec![]], &[vec![true; 2], vec![true]]).is_err());
    assert!(batch::<B>().with_corrupted(three(), tensor(&[-1.0], [1])).is_err());
    assert!(batch::<B>().with_stats(TokenStats::default(), TokenStats::default()).is_err());
}

fn padded_joined_flat_and_host_scores_are_the_same<B: Backend>() {
    let padded = |values: &[f32]| tensor::<B, 2>(values, [2, 3]);
    let both = |s: &PolicyScores<B>| [values(s.chosen()), values(s.rejected())].concat();
    // 9 stands where there is no response token.
    let (chosen, rejected) = ([9.0, -1.0, -2.0, -3.0, 9.0, 9.0], [-4.0, 9.0, -5.0, 9.0, -6.0, 9.0]);
    let from_padded = PolicyScores::padded(&map(), padded(&chosen), padded(&rejected)).unwrap();
    let rows = |a: &[f32], b: &[f32]| [a.to_vec(), b.to_vec()];
    let device = Default::default();
    let from_rows = PolicyScores::<B>::rows(
        &map(),
        &rows(&[-1.0, -2.0], &[-3.0]),
        &rows(&[-4.0, -5.0], &[-6.0]),
        &device,
    );
    let expected = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0];
    assert_eq!(both(&from_padded), expected);
    assert_eq!(both(&from_rows.unwrap()), expected);
    assert_eq!(both(batch::<B>().policy()), expected);
}

fn only_response_positions_are_selected<B: Backend>() {
    let map = map();
    let states: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let rows = map.chosen.select_rows(tensor::<B, 3>(&states, [2, 3, 2])).unwrap();
    assert_eq!(values(&rows), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let labels = map.chosen.select_labels(ints::<B, 2>(&[-100, 5, 6, 7, -100, -100], [2, 3])).unwrap();
    assert_eq!(labels.to_data().iter::<i64>().collect::<Vec<_>>(), [5, 6, 7]);
    let error = map.chosen.select_rows(tensor::<B, 3>(&[0.0; 6], [1, 3, 2])).unwrap_err();
    assert!(error.to_string().contains("states [B, T, D]"), "{error}");
}

fn an_objective_names_the_record_it_lacks<B: Backend>() {
    let lacks = |objective: Objective, method: &str| match objective.loss(&batch::<B>()) {
        Err(Error::Missing { method: found, .. }) => assert_eq!(found, method),
        other => panic!("{objective}: {:?}", other.map(|o| values(&o.loss))),
    };
    for loss in LossType::ALL {
        if loss.needs_reference() {
            lacks(Objective::new(loss), "with_reference");
        } else {
            assert!(Objective::new(loss).loss(&batch::<B>()).is_ok(), "{loss}");
        }
    }
    lacks(Objective { use_weighting: true, ..Objective::new(LossType::Sft) }, "with_stats");
    let both = || tensor::<B, 1>(&[-1.0; 6], [6]);
    let referenced =
        || batch::<B>().with_reference(ReferenceScores::joined(&map(), both()).unwrap()).unwrap();
    let method = |objective: Objective| match objective.loss(&referenced()) {
        Err(Error::Missing { method, .. }) => method,
        _ => "nothing",
    };
    assert_eq!(method(Objective::default()), "with_similarity");
    assert_eq!(method(Objective { alpha: 0.0, ..Objective::default() }), "nothing");
    assert_eq!(method(Objective::new(LossType::Ddpo)), "with_changed");
    assert_eq!(method(Objective::new(LossType::MdpoConditional)), "with_corrupted");
    let similarity = Similarity::new(&[vec![0.1, 0.2], vec![0.3]]).unwrap();
    let both = Aspo { weigh: Weigh::Both, ..Aspo::default() };
    let error = both.loss(&referenced().with_similarity(similarity).unwrap()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("with_rejected_similarity"), "{error}");
}

fn a_score_that_is_not_finite_is_named<B: Backend>() {
    let scores = tensor::<B, 1>(&[-1.0, f32::NAN, -3.0, -4.0, -5.0, -6.0], [6]);
    let batch = PreferenceBatch::new(map(), PolicyScores::joined(&map(), scores).unwrap()).unwrap();
    let reference = ReferenceScores::joined(&map(), tensor(&[-1.0; 6], [6])).unwrap();
    let batch = batch.with_reference(reference).unwrap();
    let error = Objective { alpha: 0.0, ..Objective::default() }.loss(&batch).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::NotFinite { row: 0, element: 1, .. }), "{error}");
}

fn labels_outside_the_vocabulary_are_an_error<B: Backend>() {
    let logits = || tensor::<B, 2>(&[0.0; 6], [2, 3]);
    for label in [3, -1, -100] {
        let targets = || ints::<B, 1>(&[1, label], [2]);
        let expected =
            |e: Error| matches!(e, Error::Label { position: 1, found, vocab: 3, .. } if found == label);
        assert!(expected(dense_log_probs(logits(), targets()).unwrap_err()));
        let head = Tensor::eye(3, &Default::default());
        let forward = chunked_log_probs_forward(logits(), head, targets(), &ChunkOptions::default());
        assert!(expected(forward.unwrap_err()));
    }
    assert!(matches!(dense_log_probs(logits(), ints(&[1], [1])), Err(Error::Shape { .. })));
    let narrow = tensor::<B, 2>(&[0.0; 4], [2, 2]);
    let error = chunked_log_probs_forward(logits(), narrow, ints(&[1, 1], [2]), &ChunkOptions::default());
    assert!(error.unwrap_err().to_string().starts_with("hidden states [N, D]: found 3, expected 2"));
}
