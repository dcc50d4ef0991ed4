//! How a step is computed does not change what it computes.

use aspo_data::EncodedPair;
use aspo_models::lora::without_adapters;
use aspo_train::{MicroBatch, Reference, ReferenceRow, TrainConfig, accumulate, totals};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;

use crate::support::{World, apart, flat, on_backends, trained_policy, whole_run};

on_backends!(
    packed_pairs_give_the_loss_and_gradients_of_rows_apart,
    recomputation_gives_the_gradients_of_the_plain_pass,
    one_batch_of_eight_is_eight_of_one_is_four_of_two,
    corrupted_pictures_are_seen_beside_the_chosen_answers,
    pictures_that_data_bring_are_those_that_mdpo_compares_with,
    clipping_leaves_at_most_the_limit,
    cached_reference_rows_train_as_live_ones_do,
    kept_reference_rows_are_finished_where_they_were_left_and_made_anew_for_other_pictures,
);

/// Loss, norm and gradients of eight pairs in parts.
fn step<B: Backend>(config: &TrainConfig, part: usize) -> (f64, f64, Vec<f64>) {
    let done = step_on::<B>(config, part, |_, _| ());
    assert!(done.2.iter().any(|gradient| gradient.abs() > 1e-3), "gradients that could differ");
    done
}

/// The same with pairs that `edit` has had a look at.
fn step_on<B: Backend>(
    config: &TrainConfig,
    part: usize,
    edit: impl Fn(&World, &mut EncodedPair),
) -> (f64, f64, Vec<f64>) {
    let world = World::new();
    let data = world.data();
    let mut pairs = data.pairs.get_all(0..8).unwrap();
    for pair in &mut pairs {
        edit(&world, pair);
        // Scores as a CLIP might give them, unlike from sentence to sentence.
        let count = pair.chosen.sentence_count();
        pair.chosen.similarity = (0..count).map(|sentence| 0.2 + 0.03 * (sentence * 7 % 5) as f32).collect();
    }
    let config = TrainConfig { clip: Some("not read".into()), ..config.clone() };
    let objective = config.objective().unwrap();
    let policy = trained_policy::<B>();
    let plain = policy.valid();
    let reference = without_adapters(&plain);
    let mut features = world.features();
    let pairs: Vec<&EncodedPair> = pairs.iter().collect();
    let pad = data.encoder.tokenizer.pad();
    let device = B::Device::default();
    let step_totals = totals(pairs.iter().copied());
    let batches = pairs.chunks(part).map(|rows| {
        let seed = objective.needs_corrupted().then_some(7);
        let packed = config.pair_packing;
        let batch = MicroBatch::with_corrupted(rows, packed, pad, seed, &mut features, &plain, &device)?;
        let rows: Vec<ReferenceRow> = batch.reference(&reference, &Default::default())?;
        Ok((batch, Some(Reference::Rows(rows))))
    });
    let done = accumulate(&policy, batches, step_totals, &config, &objective, 1, "none").unwrap();
    let gradients = flat::<Autodiff<B>, _>(&policy, &done.gradients);
    (done.metrics.get("loss").unwrap(), done.norm, gradients)
}

fn unclipped() -> TrainConfig {
    TrainConfig { max_grad_norm: 0.0, ..TrainConfig::default() }
}

/// Sums in another order differ by rounding: a few units of 1e-7 on numbers of order one.
const ROUNDING: f64 = 1e-5;

fn assert_same(a: (f64, f64, Vec<f64>), b: (f64, f64, Vec<f64>)) {
    assert!((a.0 - b.0).abs() < ROUNDING, "losses {} and {}", a.0, b.0);
    let apart = apart(&a.2, &b.2);
    assert!(apart < ROUNDING, "gradients are {apart:.1e} apart");
}

fn packed_pairs_give_the_loss_and_gradients_of_rows_apart<B: Backend>() {
    let apart = TrainConfig { pair_packing: false, ..unclipped() };
    assert_same(step::<B>(&unclipped(), 8), step::<B>(&apart, 8));
}

fn recomputation_gives_the_gradients_of_the_plain_pass<B: Backend>() {
    let recompute = TrainConfig { gradient_checkpointing: true, ..unclipped() };
    assert_same(step::<B>(&unclipped(), 4), step::<B>(&recompute, 4));
}

fn one_batch_of_eight_is_eight_of_one_is_four_of_two<B: Backend>() {
    let whole = step::<B>(&unclipped(), 8);
    for part in [1, 2, 3] {
        assert_same(whole.clone(), step::<B>(&unclipped(), part));
    }
    // Likelihoods are over the tokens of the whole step; statistics and changed tokens are those of each pair.
    for losses in ["sigmoid bco_pair sft", "orpo", "ddpo", "wpo"] {
        let config = match losses {
            "wpo" => TrainConfig { loss_type: vec!["dpo".into()], use_weighting: true, ..unclipped() },
            _ => TrainConfig { loss_type: losses.split(' ').map(String::from).collect(), ..unclipped() },
        };
        let whole = step::<B>(&config, 8);
        for part in [1, 3] {
            assert_same(whole.clone(), step::<B>(&config, part));
        }
    }
}

/// mDPO sees the chosen answers a second time beside a piece of their pictures: however rows and steps are cut, and unlike
/// beside the whole picture, where the conditional term is log 2.
fn corrupted_pictures_are_seen_beside_the_chosen_answers<B: Backend>() {
    let losses = |names: &[&str]| TrainConfig {
        loss_type: names.iter().map(|name| name.to_string()).collect(),
        ..unclipped()
    };
    let config = losses(&["sigmoid", "mdpo_conditional", "mdpo_anchor"]);
    let whole = step::<B>(&config, 8);
    for part in [1, 3] {
        assert_same(whole.clone(), step::<B>(&config, part));
    }
    assert_same(whole.clone(), step::<B>(&TrainConfig { pair_packing: false, ..config.clone() }, 4));
    assert_same(whole, step::<B>(&TrainConfig { gradient_checkpointing: true, ..config }, 4));
    let (conditional, ..) = step::<B>(&losses(&["mdpo_conditional"]), 8);
    assert!((conditional - 2_f64.ln()).abs() > 1e-4, "pieces are unlike pictures: {conditional}");
}

/// A copy under another name is the whole picture: the conditional term is log 2. Another picture is another matter.
fn pictures_that_data_bring_are_those_that_mdpo_compares_with<B: Backend>() {
    let config = TrainConfig { loss_type: vec!["mdpo_conditional".into()], ..unclipped() };
    let loss = |to: &dyn Fn(&str) -> String| {
        let edit = |world: &World, pair: &mut EncodedPair| {
            let own = pair.images[0].key();
            let other = to(&own);
            let folder = &world.config.images;
            if !folder.join(&other).exists() {
                std::fs::copy(folder.join(own), folder.join(&other)).unwrap();
            }
            pair.rejected_images = vec![other.as_str().into()];
        };
        step_on::<B>(&config, 3, edit).0
    };
    let copied = loss(&|own| format!("copy-{own}"));
    // Sums of f32 of order one.
    assert!((copied - 2_f64.ln()).abs() < 1e-5, "{copied}");
    let other = loss(&|own| if own == "0.png" { "1.png".into() } else { "0.png".into() });
    assert!((other - 2_f64.ln()).abs() > 1e-4, "{other}");
}

fn clipping_leaves_at_most_the_limit<B: Backend>() {
    let (_, norm, free) = step::<B>(&unclipped(), 8);
    let limit = norm / 3.0;
    let (_, told, held) = step::<B>(&TrainConfig { max_grad_norm: limit, ..unclipped() }, 8);
    assert!((told - norm).abs() < 1e-6 * norm, "the norm told is that before clipping");
    let scaled: Vec<f64> = free.iter().map(|gradient| gradient * limit / (norm + 1e-6)).collect();
    assert!(apart(&scaled, &held) < 1e-6 * norm);
}

fn cached_reference_rows_train_as_live_ones_do<B: Backend>() {
    let world = World::new();
    let live = TrainConfig { max_steps: 4, ..world.config.clone() };
    let cached = TrainConfig {
        precompute_ref_log_probs: Some(true),
        output_dir: world.folder.join("cached"),
        ..live.clone()
    };
    let mut losses = [Vec::new(), Vec::new()];
    for (config, losses) in [&live, &cached].into_iter().zip(&mut losses) {
        whole_run::<B>(config, false, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    }
    // Cached rows come from batches of other pairs: padding differs, so the last bits may.
    assert!(apart(&losses[0], &losses[1]) < ROUNDING, "{losses:?}");
}

fn kept_reference_rows_are_finished_where_they_were_left_and_made_anew_for_other_pictures<B: Backend>() {
    let world = World::new();
    let config = TrainConfig { precompute_ref_log_probs: Some(true), max_steps: 1, ..world.config.clone() };
    whole_run::<B>(&config, false, |_| (), |_| ()).unwrap();
    let kept = |config: &TrainConfig| {
        let files = std::fs::read_dir(&config.output_dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|kind| kind == "records")).collect();
        assert_eq!(files.len(), 1, "one file of rows: {files:?}");
        files.remove(0)
    };
    let path = kept(&config);
    let whole = std::fs::read(&path).unwrap();

    // As a process killed in the middle leaves it: batches of two go on behind the whole rows.
    let again = TrainConfig { output_dir: world.folder.join("again"), ..config.clone() };
    std::fs::create_dir_all(&again.output_dir).unwrap();
    let part = again.output_dir.join(format!("{}.part", path.file_name().unwrap().to_str().unwrap()));
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    whole_run::<B>(&again, false, |_| (), |_| ()).unwrap();
    let mended = std::fs::read(kept(&again)).unwrap();
    assert_eq!(mended[..whole.len() / 2], whole[..whole.len() / 2], "whole rows are kept");
    assert_eq!(mended.len(), whole.len());
    assert!(!part.exists());

    // Another picture under the same name makes the rows another reference's.
    let other = TrainConfig { output_dir: world.folder.join("other"), ..config.clone() };
    std::fs::create_dir_all(&other.output_dir).unwrap();
    std::fs::copy(config.images.join("1.png"), config.images.join("0.png")).unwrap();
    whole_run::<B>(&other, false, |_| (), |_| ()).unwrap();
    assert_ne!(kept(&other).file_name(), path.file_name());
}
