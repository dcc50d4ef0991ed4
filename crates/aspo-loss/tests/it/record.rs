//! Records refuse what does not fit, naming record, row and remedy.

use aspo_loss::stats::{TokenStats, TokenValues};
use aspo_loss::{
    Aspo, ChunkOptions, Error, FDivergence, LmHead, Logps, LossType, Objective, PairLayout, PreferenceBatch,
    ResponseLayout, RewardScaling, Similarity, Weigh, chunked_log_probs_forward, dense_log_probs,
};
use burn::prelude::*;

use crate::common::{ints, on_every_backend, tensor, values};

on_every_backend!(
    scores_have_one_value_per_response_token,
    padded_joined_flat_and_host_scores_are_the_same,
    only_response_positions_are_selected,
    a_layout_of_tokens_makes_the_shift_itself,
    log_probabilities_of_another_layout_are_refused,
    an_objective_names_the_record_it_lacks,
    a_score_that_is_not_finite_is_named,
    a_statistic_that_is_no_number_is_told_by_side_row_and_element,
    labels_outside_the_vocabulary_are_an_error,
);

#[test]
fn a_row_without_response_tokens_is_an_error() {
    let error = PairLayout::from_labels(&[vec![0, 0], vec![-1, -1]], &[[0, 0], [0, 0]]).unwrap_err();
    assert_eq!(error, Error::NoResponse { what: "chosen sentence ids".into(), row: 1 });
    assert!(error.to_string().contains("row 1"), "{error}");
    assert!(matches!(ResponseLayout::from_labels::<[i64; 0]>(&[]), Err(Error::Empty { .. })));
}

#[test]
fn sentence_ids_count_from_zero_without_gaps() {
    let gap = ResponseLayout::from_labels(&[[-1, 0, 2, 2]]).unwrap_err();
    assert_eq!(gap, Error::EmptySentence { what: "sentence ids".into(), row: 0, sentence: 1, sentences: 3 });
    let odd = ResponseLayout::from_labels(&[vec![0], vec![0, -100]]).unwrap_err();
    assert_eq!(odd, Error::SentenceId { what: "sentence ids".into(), row: 1, position: 1, found: -100 });
    // An id that no row of this length can reach is refused before anything of its size is made.
    assert!(matches!(
        ResponseLayout::from_labels(&[[0, i64::MAX]]),
        Err(Error::SentenceId { position: 1, .. })
    ));
}

#[test]
fn a_layout_is_ragged() {
    let map = ResponseLayout::from_labels(&[vec![-1, 0, 0, 1], vec![0, 1, 1, 2, -1, 2, -1]]).unwrap();
    assert_eq!((map.batch_size(), map.num_tokens(), map.max_sentences(), map.width()), (2, 8, 3, 7));
    assert_eq!((map.counts(0), map.counts(1)), (&[2, 1][..], &[1, 2, 2][..]));
    assert_eq!(map.range(1), 3..8);
    assert_eq!(map.flat_positions(7), [1, 2, 3, 7, 8, 9, 10, 12]);
}

#[test]
fn both_sides_have_the_same_rows() {
    let error = PairLayout::from_labels(&[[0], [0]], &[[0]]).unwrap_err();
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
    for &loss in LossType::ALL {
        assert_eq!(loss.to_string().parse::<LossType>().unwrap(), loss);
        assert_eq!(loss.name().to_uppercase().parse::<LossType>().unwrap(), loss);
    }
    for scaling in RewardScaling::ALL {
        assert_eq!(scaling.to_string().parse::<RewardScaling>().unwrap(), scaling);
    }
    assert_eq!("Both".parse::<Weigh>().unwrap(), Weigh::Both);
    // What everybody calls it.
    assert_eq!("DPO".parse::<LossType>().unwrap(), LossType::Sigmoid);
    assert_eq!("dpo".parse::<Objective>().unwrap(), Objective::new(LossType::Sigmoid));
    let error = "dop".parse::<Objective>().unwrap_err().to_string();
    assert!(
        error.contains("`dop`") && error.contains("dpo (sigmoid)") && error.contains("sppo_hard"),
        "{error}"
    );
}

/// Any objective is read back from what is written of it.
#[test]
fn objectives_are_read_as_they_are_written() {
    use proptest::prelude::*;
    let number = || (0..400_u32).prop_map(|n| f64::from(n) * 0.025);
    let share = || 1e-3..0.5_f64;
    let loss = (0..LossType::ALL.len(), share(), number(), prop::sample::select(RewardScaling::ALL.to_vec()));
    let loss = loss.prop_map(|(index, share, number, scaling)| {
        let mut loss = LossType::ALL[index];
        let given = [
            ("alpha", share.to_string()),
            ("reward_scaling", scaling.to_string()),
            ("weigh", "both".into()),
            ("label_smoothing", share.to_string()),
            ("simpo_gamma", number.to_string()),
            ("bco_shift", (-number).to_string()),
            ("discopop_tau", (2.0 * share).to_string()),
            ("ddpo_gamma", (1.0 + number).to_string()),
            ("anchor", (-number).to_string()),
        ];
        for (name, value) in &given {
            loss.set(name, value).unwrap();
        }
        loss
    });
    let divergence = (0..5_usize, number()).prop_map(|(kind, coef)| match kind {
        0 => FDivergence::ForwardKl,
        1 => FDivergence::JsDivergence,
        2 => FDivergence::AlphaDivergence { coef },
        _ => FDivergence::ReverseKl,
    });
    let terms = prop::collection::vec((loss, number()), 1..4);
    let shared = (0.01..3.0_f64, divergence, prop::option::of(0.0..=1.0_f64), any::<bool>());
    let seen = std::cell::Cell::new(0);
    aspo_loss::property::runner(2000)
        .run(&(terms, shared), |(terms, (beta, f_divergence, ld_alpha, use_weighting))| {
            let objective = Objective { terms, beta, f_divergence, ld_alpha, use_weighting };
            if objective.validate().is_ok() {
                let text = objective.to_string();
                prop_assert_eq!(text.parse::<Objective>().unwrap(), objective, "{}", text);
                seen.set(seen.get() + 1);
            }
            Ok(())
        })
        .unwrap();
    assert!(seen.get() > 200, "{} of 2000 could be honoured", seen.get());
    for (text, part) in [
        ("", "loss type"),
        ("sigmoid +", "loss type"),
        ("sigmoid(label_smoothing=0.1)", "sigmoid(label_smoothing)"),
        ("simpo(simpo_gamma=x)", "simpo_gamma"),
        ("simpo(1.4)", "name=value"),
        ("sigmoid; gamma=1", "beta, f_divergence_type"),
        ("sigmoid; f_alpha_divergence_coef=0.3", "f_alpha_divergence_coef"),
        ("-1 sigmoid", "loss_weights"),
        ("sigmoid; beta=0", "beta"),
    ] {
        let error = text.parse::<Objective>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_configuration_holds_an_objective_as_its_line() {
    use burn::config::Config;
    let objective: Objective = "0.8 dpo + aspo(alpha=0.7, weigh=both); beta=0.2".parse().unwrap();
    let text = serde_json::to_string(&objective).unwrap();
    assert_eq!(text, r#""0.8 sigmoid + aspo(alpha=0.7, weigh=both); beta=0.2""#);
    assert_eq!(serde_json::from_str::<Objective>(&text).unwrap(), objective);
    assert_eq!(Objective::load_binary(text.as_bytes()).unwrap(), objective);
    let error = serde_json::from_str::<Objective>(r#""dop""#).unwrap_err().to_string();
    assert!(error.contains("unknown loss type `dop`"), "{error}");
    let scaling: RewardScaling = serde_json::from_str(r#""none""#).unwrap();
    assert_eq!(scaling, RewardScaling::Off);
    let options: ChunkOptions = serde_json::from_str(r#"{"byte_budget": 4096}"#).unwrap();
    assert_eq!(options, ChunkOptions { byte_budget: 4096, rows: None });
    assert!(serde_json::from_str::<ChunkOptions>(r#"{"budget": 4096}"#).is_err());
}

#[test]
fn options_are_checked_before_use() {
    let weighed = |weight| Objective { terms: vec![(LossType::Sigmoid, weight)], ..Objective::default() };
    let with = |name: &str, option: &str, value: &str| {
        let mut loss: LossType = name.parse().unwrap();
        assert!(loss.set(option, value).unwrap(), "{name} has {option}");
        Objective::new(loss)
    };
    let named = |name: &str| Objective::new(name.parse::<LossType>().unwrap());
    let mut bad = vec![
        (Objective { beta: 0.0, ..Objective::default() }, "beta"),
        (Objective { beta: f64::NAN, ..Objective::default() }, "beta"),
        (Objective { terms: vec![], ..Objective::default() }, "terms"),
        (weighed(f64::INFINITY), "loss_weights"),
        (weighed(-1.0), "loss_weights"),
        (with("aspo", "alpha", "1.5"), "alpha"),
        (with("robust", "label_smoothing", "0.5"), "label_smoothing"),
        (with("exo_pair", "label_smoothing", "0"), "label_smoothing"),
        (with("simpo", "simpo_gamma", "NaN"), "simpo_gamma"),
        (with("bco_pair", "bco_shift", "inf"), "bco_shift"),
        (with("discopop", "discopop_tau", "0"), "discopop_tau"),
        (with("ddpo", "ddpo_gamma", "-1"), "ddpo_gamma"),
        (with("mdpo_anchor", "anchor", "inf"), "anchor"),
        (Objective { ld_alpha: Some(1.1), ..named("sigmoid") }, "ld_alpha"),
    ];
    for name in ["cdpo", "robust", "aot", "aot_unpaired", "simpo", "exo_pair"] {
        bad.push((with(name, "label_smoothing", "0.6"), "label_smoothing"));
        bad.push((with(name, "label_smoothing", "NaN"), "label_smoothing"));
    }
    // What a loss would pass over.
    for name in ["aspo", "simpo", "orpo", "ddpo", "mdpo_conditional"] {
        bad.push((Objective { ld_alpha: Some(0.5), ..named(name) }, "ld_alpha"));
    }
    for name in ["aot", "aot_unpaired", "sft", "orpo"] {
        bad.push((Objective { use_weighting: true, ..named(name) }, "use_weighting"));
    }
    for name in
        ["aspo", "aot", "simpo", "orpo", "apo_zero", "apo_down", "sppo_hard", "bco_pair", "nca_pair", "ddpo"]
    {
        let f_divergence = FDivergence::JsDivergence;
        bad.push((Objective { f_divergence, ..named(name) }, "f_divergence_type"));
    }
    for (objective, name) in bad {
        match objective.validate() {
            Err(Error::Option { option, .. }) => assert_eq!(option, name, "{objective}"),
            other => panic!("{objective}, {name}: {other:?}"),
        }
    }
    for &loss in LossType::ALL {
        Objective::new(loss).validate().unwrap();
        // As in TRL, which ignores it there: what is not honoured cannot be set.
        let smoothed = ["cdpo", "robust", "aot", "aot_unpaired", "simpo", "exo_pair"].contains(&loss.name());
        let mut same = loss;
        assert_eq!(same.set("label_smoothing", "0.1").unwrap(), smoothed, "{loss}");
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

fn map() -> PairLayout {
    PairLayout::from_labels(&[vec![-1, 0, 1], vec![0]], &[vec![0, -1, 0], vec![-1, 0]]).unwrap()
}

fn batch<B: Backend>() -> PreferenceBatch<B> {
    let scores = tensor::<B, 1>(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], [6]);
    PreferenceBatch::new(Logps::joined(&map(), scores).unwrap())
}

fn scores_have_one_value_per_response_token<B: Backend>() {
    let three = || tensor::<B, 1>(&[-1.0; 3], [3]);
    assert!(Logps::new(&map(), three(), three()).is_ok());
    let error = Logps::new(&map(), three(), tensor(&[-1.0; 2], [2])).unwrap_err().to_string();
    assert!(error.contains("rejected log-probabilities: found 2, expected 3"), "{error}");
    assert!(Logps::joined(&map(), three()).is_err());
    let error = Logps::padded(&map(), tensor::<B, 2>(&[-1.0; 4], [2, 2]), tensor(&[-1.0; 6], [2, 3]));
    assert!(error.unwrap_err().to_string().contains("[2, at least 3, …]"));
    let rows = [vec![-1.0, -1.0], vec![-1.0, -1.0]];
    let error = Logps::<B>::from_rows(&map(), &rows, &rows, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("chosen log-probabilities, row 1"), "{error}");
    let similarity = Similarity::new(&[[0.1], [0.2]]).unwrap();
    let error = batch::<B>().with_similarity(similarity).unwrap_err().to_string();
    assert!(error.contains("chosen similarity, row 0: found 1, expected 2"), "{error}");
    assert!(batch::<B>().with_changed(&[vec![true; 2], vec![]], &[vec![true; 2], vec![true]]).is_err());
    assert!(batch::<B>().with_corrupted(three(), tensor(&[-1.0], [1])).is_err());
    assert!(batch::<B>().with_stats(stats(2, 0.0), stats(3, 0.0)).is_err());
}

fn stats<B: Backend>(tokens: usize, entropy: f32) -> TokenStats<B> {
    let mut values = TokenValues {
        log_sum_sq_probs: vec![-1.0; tokens],
        entropy: vec![0.5; tokens],
        mean_logit: vec![0.0; tokens],
        is_argmax: vec![true; tokens],
    };
    values.entropy[tokens - 1] = entropy;
    TokenStats::new(&values, &Default::default()).unwrap()
}

fn a_statistic_that_is_no_number_is_told_by_side_row_and_element<B: Backend>() {
    let loss = |entropy: f32| {
        let batch = batch::<B>().with_stats(stats(3, 0.5), stats(3, entropy)).unwrap();
        Objective::new(LossType::Simpo { gamma: 0.5, label_smoothing: 0.0 }).forward(&batch).unwrap().read()
    };
    assert!(loss(0.5).is_ok());
    match loss(f32::NAN).unwrap_err() {
        Error::NotFinite { what, row, element, .. } => {
            assert_eq!((what.as_str(), row, element), ("rejected token statistics", 1, 0));
        }
        other => panic!("{other}"),
    }
}

fn padded_joined_flat_and_host_scores_are_the_same<B: Backend>() {
    let padded = |values: &[f32]| tensor::<B, 2>(values, [2, 3]);
    let both = |s: &Logps<B>| [values(s.chosen()), values(s.rejected())].concat();
    // 9 stands where there is no response token.
    let (chosen, rejected) = ([9.0, -1.0, -2.0, -3.0, 9.0, 9.0], [-4.0, 9.0, -5.0, 9.0, -6.0, 9.0]);
    let from_padded = Logps::padded(&map(), padded(&chosen), padded(&rejected)).unwrap();
    let rows = |a: &[f32], b: &[f32]| [a.to_vec(), b.to_vec()];
    let device = Default::default();
    let from_rows =
        Logps::<B>::from_rows(&map(), &rows(&[-1.0, -2.0], &[-3.0]), &rows(&[-4.0, -5.0], &[-6.0]), &device);
    let expected = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0];
    assert_eq!(both(&from_padded), expected);
    assert_eq!(both(&from_rows.unwrap()), expected);
    assert_eq!(both(batch::<B>().policy()), expected);
}

fn only_response_positions_are_selected<B: Backend>() {
    let map = map();
    let states: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let rows = map.chosen.select_hidden(tensor::<B, 3>(&states, [2, 3, 2])).unwrap();
    assert_eq!(values(&rows), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let labels = map.chosen.select_targets(ints::<B, 2>(&[-100, 5, 6, 7, -100, -100], [2, 3])).unwrap();
    assert_eq!(labels.to_data().iter::<i64>().collect::<Vec<_>>(), [5, 6, 7]);
    let error = map.chosen.select_hidden(tensor::<B, 3>(&[0.0; 6], [1, 3, 2])).unwrap_err();
    assert!(error.to_string().contains("hidden states [B, T, D]"), "{error}");
}

/// What the two alignments differ in: the same log-probabilities from ids as a model reads them and from shifted labels.
fn a_layout_of_tokens_makes_the_shift_itself<B: Backend>() {
    use burn::tensor::backend::AutodiffBackend;
    fn scores<A: AutodiffBackend>(layout: &PairLayout, hidden: &[f32], ids: [&[i64]; 2]) -> Vec<f64> {
        let hidden = || tensor::<A, 3>(hidden, [1, 5, 2]);
        let ids = ids.map(|row| ints::<A, 2>(row, [1, row.len()]));
        let head: Vec<f32> = (0..14).map(|i| (i as f32 * 0.7).cos()).collect();
        let head = LmHead::hugging_face(tensor(&head, [7, 2]));
        let options = ChunkOptions::default();
        let logps = Logps::chunked(layout, [hidden(), hidden()], ids, &head, &options).unwrap();
        [values(logps.chosen()), values(logps.rejected())].concat()
    }
    let hidden: Vec<f32> = (0..10).map(|i| (i as f32 * 1.3).sin()).collect();
    let tokens = PairLayout::from_tokens(&[[-1, -1, 0, 1, -1]], &[[-1, 0, 0, 0, 0]]).unwrap();
    let labels = PairLayout::from_labels(&[[-1, 0, 1, -1]], &[[0, 0, 0, 0]]).unwrap();
    assert_eq!((tokens.chosen.positions(0), tokens.rejected.width()), (&[1, 2][..], 4));
    let from_tokens =
        scores::<burn::backend::Autodiff<B>>(&tokens, &hidden, [&[5, 6, 1, 2, 0], &[5, 3, 4, 2, 1]]);
    // The last hidden state scores nothing.
    let from_labels =
        scores::<burn::backend::Autodiff<B>>(&labels, &hidden, [&[6, 1, 2, 0, -100], &[3, 4, 2, 1, -100]]);
    assert_eq!(from_tokens, from_labels);
    assert_eq!(from_tokens.len(), 6);

    let error = PairLayout::from_tokens(&[[-1, 0]], &[[0, 0]]).unwrap_err();
    assert_eq!(error, Error::FirstToken { what: "rejected sentence ids".into(), row: 0 });
    let error = tokens.chosen.select_targets(ints::<B, 2>(&[1, 2, 3, 4], [1, 4])).unwrap_err().to_string();
    assert!(error.contains("ids [B, T]: found [1, 4, …], expected [1, at least 5, …]"), "{error}");
}

fn log_probabilities_of_another_layout_are_refused<B: Backend>() {
    // As many tokens on either side, but in other rows.
    let other = PairLayout::from_labels(&[vec![0], vec![-1, 0, 1]], &[vec![0, 0], vec![0]]).unwrap();
    let scores = || tensor::<B, 1>(&[-1.0; 6], [6]);
    let error =
        batch::<B>().with_reference(Logps::joined(&other, scores()).unwrap()).unwrap_err().to_string();
    assert!(error.starts_with("layout of the reference log-probabilities"), "{error}");
    // The same layout, made again.
    assert!(batch::<B>().with_reference(Logps::joined(&map(), scores()).unwrap()).is_ok());
}

fn an_objective_names_the_record_it_lacks<B: Backend>() {
    let lacks = |objective: Objective, method: &str| match objective.loss(&batch::<B>()) {
        Err(Error::Missing { method: found, .. }) => assert_eq!(found, method),
        other => panic!("{objective}: {:?}", other.map(|o| values(&o.loss))),
    };
    for &loss in LossType::ALL {
        if loss.needs_reference() {
            lacks(Objective::new(loss), "with_reference");
        } else {
            assert!(Objective::new(loss).loss(&batch::<B>()).is_ok(), "{loss}");
        }
    }
    let simpo = LossType::Simpo { gamma: 0.5, label_smoothing: 0.0 };
    lacks(Objective { use_weighting: true, ..Objective::new(simpo) }, "with_stats");
    let both = || tensor::<B, 1>(&[-1.0; 6], [6]);
    let referenced = || batch::<B>().with_reference(Logps::joined(&map(), both()).unwrap()).unwrap();
    let method = |objective: Objective| match objective.loss(&referenced()) {
        Err(Error::Missing { method, .. }) => method,
        _ => "nothing",
    };
    assert_eq!(method(Objective::default()), "with_similarity");
    assert_eq!(method(Objective::new(Aspo { alpha: 0.0, ..Aspo::default() })), "nothing");
    assert_eq!(method(Objective::new(LossType::Ddpo { gamma: 3.0 })), "with_changed");
    assert_eq!(method(Objective::new(LossType::MdpoConditional)), "with_corrupted");
    let similarity = Similarity::new(&[vec![0.1, 0.2], vec![0.3]]).unwrap();
    let both = Objective::new(Aspo { weigh: Weigh::Both, ..Aspo::default() });
    let error = both.loss(&referenced().with_similarity(similarity).unwrap()).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("with_rejected_similarity"), "{error}");
}

/// Whatever the loss and whichever record it is in: a hinge would make 0 of it.
fn a_score_that_is_not_finite_is_named<B: Backend>() {
    let good = || tensor::<B, 1>(&[-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], [6]);
    let bad = |at: usize, value: f32| {
        let mut scores = [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0];
        scores[at] = value;
        tensor::<B, 1>(&scores, [6])
    };
    let error = |policy: Tensor<B, 1>, reference: Tensor<B, 1>| {
        let batch = PreferenceBatch::new(Logps::joined(&map(), policy).unwrap());
        let batch = batch.with_reference(Logps::joined(&map(), reference).unwrap()).unwrap();
        Objective::new(LossType::Hinge).loss(&batch).map(|_| ()).unwrap_err()
    };
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let found = error(bad(1, value), good());
        assert!(matches!(found, Error::NotFinite { row: 0, element: 1, .. }), "{found}");
        assert!(found.to_string().starts_with("policy chosen log-probabilities: row 0"), "{found}");
        // The rejected side of the second pair.
        let found = error(bad(5, value), good());
        assert!(
            found.to_string().starts_with("policy rejected log-probabilities: row 1, element 0"),
            "{found}"
        );
        let found = error(good(), bad(2, value));
        assert!(found.to_string().starts_with("reference chosen log-probabilities: row 1"), "{found}");
    }
    // Negative log-likelihoods.
    let found = error(bad(3, 2.5), good());
    assert!(matches!(found, Error::Positive { row: 0, element: 0, .. }), "{found}");
    assert!(found.to_string().contains("at most 0"), "{found}");
    // The rounding of a probability of 1 is none.
    let batch = PreferenceBatch::new(Logps::joined(&map(), bad(0, 1e-6)).unwrap());
    assert!(Objective::new(LossType::Sft).loss(&batch).is_ok());
    let rows = [vec![1.0, 2.0], vec![3.0]];
    let found = Logps::<B>::from_rows(&map(), &rows, &rows, &Default::default()).unwrap_err();
    assert!(matches!(found, Error::Positive { row: 0, element: 0, .. }), "{found}");
}

fn labels_outside_the_vocabulary_are_an_error<B: Backend>() {
    let logits = || tensor::<B, 2>(&[0.0; 6], [2, 3]);
    for label in [3, -1, -100] {
        let targets = || ints::<B, 1>(&[1, label], [2]);
        let expected =
            |e: Error| matches!(e, Error::Label { position: 1, found, vocab: 3, .. } if found == label);
        assert!(expected(dense_log_probs(logits(), targets()).unwrap_err()));
        let head = LmHead::hugging_face(Tensor::eye(3, &Default::default()));
        let forward = chunked_log_probs_forward(logits(), &head, targets(), &ChunkOptions::default());
        assert!(expected(forward.unwrap_err()));
    }
    assert!(matches!(dense_log_probs(logits(), ints(&[1], [1])), Err(Error::Shape { .. })));
    let narrow = LmHead::hugging_face(tensor::<B, 2>(&[0.0; 4], [2, 2]));
    let error = chunked_log_probs_forward(logits(), &narrow, ints(&[1, 1], [2]), &ChunkOptions::default());
    assert!(error.unwrap_err().to_string().starts_with("hidden states [N, D]: found 3, expected 2"));
}
