//! What is kept in `cache_dir`: a run with it is the run without.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use aspo_data::{ImageSource, OnFault, Source, Sources};
use aspo_train::{MixStrategy, TrainConfig};
use base64::Engine as _;
use burn::tensor::backend::Backend;
use burn_flex::Flex;
use serde_json::json;

use crate::support::{World, on_backends, whole_run};

on_backends!(
    a_run_with_pairs_in_files_is_the_run_with_pairs_in_memory,
    features_on_disk_train_as_those_in_memory_do
);

fn losses<B: Backend>(config: &TrainConfig) -> Vec<f64> {
    let mut losses = Vec::new();
    whole_run::<B>(config, false, |step| losses.push(step.values.values["loss"]), |_| ()).unwrap();
    losses
}

/// When each file of a folder was written, by the beginning of its name.
fn written(folder: &Path) -> BTreeMap<String, SystemTime> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let known = files.map(|file| {
        let name = file.file_name().into_string().unwrap();
        let kind = name.split('-').next().unwrap().to_owned();
        assert!(name.ends_with(".records"), "{name}");
        (kind, file.metadata().unwrap().modified().unwrap())
    });
    known.collect()
}

/// To the bit: the same pairs in the same order, wherever they are read from.
fn a_run_with_pairs_in_files_is_the_run_with_pairs_in_memory<B: Backend>() {
    let world = World::new();
    let memory = TrainConfig { precompute_ref_log_probs: Some(true), ..world.config.clone() };
    let cache = world.folder.join("cache");
    let files = |name: &str| TrainConfig {
        cache_dir: Some(cache.clone()),
        output_dir: world.folder.join(name),
        ..memory.clone()
    };
    let wanted = losses::<B>(&memory);
    assert_eq!(losses::<B>(&files("first")), wanted);
    let first = written(&cache);
    assert_eq!(first.keys().collect::<Vec<_>>(), ["looked", "pairs", "reference"]);
    assert_eq!(losses::<B>(&files("second")), wanted);
    assert_eq!(written(&cache), first, "nothing is made twice");
}

#[test]
fn a_file_of_pairs_that_has_changed_is_encoded_anew_and_so_is_an_option_that_encoding_follows_from() {
    let world = World::new();
    let cache = Some(world.folder.join("cache"));
    let config = TrainConfig { cache_dir: cache, ..world.config.clone() };
    let pairs = |config: &TrainConfig| {
        let data = world.with(config).data();
        (data.pairs.len(), data.pairs.summary().longest)
    };
    let (count, longest) = pairs(&config);
    world.write_pairs(&[("A dot.", "Two dots."), ("A box.", "A line.")]);
    assert_eq!((count, pairs(&config).0), (10, 2));
    let short = TrainConfig { max_length: longest - 2, ..config };
    assert!(pairs(&short).1 < longest);
}

#[test]
fn a_picture_that_has_changed_is_looked_at_again() {
    let world = World::new();
    let config = TrainConfig { cache_dir: Some(world.folder.join("cache")), ..world.config.clone() };
    let look = || world.with(&config).data().pictures.unwrap();
    let before = look();
    assert_eq!(look(), before);
    std::fs::copy(config.images.join("1.png"), config.images.join("0.png")).unwrap();
    assert_ne!(look(), before);
}

/// A process killed in the first pass leaves a part, which is not taken for the whole.
#[test]
fn a_first_pass_that_was_broken_off_is_done_again_whole() {
    let world = World::new();
    let cache = world.folder.join("cache");
    let config = TrainConfig { cache_dir: Some(cache.clone()), ..world.config.clone() };
    let wanted = losses::<Flex>(&config);
    for entry in std::fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let part = format!("{}.part", path.display());
        std::fs::write(part, &bytes[..bytes.len() / 2]).unwrap();
        std::fs::remove_file(path).unwrap();
    }
    let again = TrainConfig { output_dir: world.folder.join("again"), ..config };
    assert_eq!(losses::<Flex>(&again), wanted);
    written(&cache);
}

#[test]
fn pictures_that_rows_carry_are_kept_once_and_train_as_files_do() {
    let world = World::new();
    let wanted = losses::<Flex>(&world.config);
    let text = std::fs::read_to_string(&world.config.data.0[0].path).unwrap();
    let mut rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    for row in &mut rows {
        let name = row["image_id"].take();
        let bytes = std::fs::read(world.config.images.join(name.as_str().unwrap())).unwrap();
        let data = base64::engine::general_purpose::STANDARD.encode(bytes);
        row["image"] = json!(format!("data:image/png;base64,{data}"));
        row.as_object_mut().unwrap().remove("image_id");
    }
    std::fs::write(&world.config.data.0[0].path, json!(rows).to_string()).unwrap();
    let config = TrainConfig { cache_dir: Some(world.folder.join("cache")), ..world.config.clone() };
    assert_eq!(
        losses::<Flex>(&TrainConfig { output_dir: world.folder.join("carried"), ..config.clone() }),
        wanted
    );
    assert!(written(&world.folder.join("cache")).contains_key("pictures"));
    let data = world.with(&config).data();
    let places: Vec<ImageSource> = data.pairs.iter().flat_map(|pair| pair.unwrap().images).collect();
    assert!(places.iter().all(|image| matches!(image, ImageSource::Place(_))), "{places:?}");
}

/// bf16 has 8 bits of fraction: features are off by 2⁻⁹ of themselves, losses near ln 2 by about as much.
fn features_on_disk_train_as_those_in_memory_do<B: Backend>() {
    let world = World::new();
    let wanted = losses::<B>(&world.config);
    let cache = world.folder.join("cache");
    let kept = |name: &str| TrainConfig {
        cache_dir: Some(cache.clone()),
        cache_vision_features: true,
        output_dir: world.folder.join(name),
        ..world.config.clone()
    };
    let first = losses::<B>(&kept("first"));
    let apart = first.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert_eq!(first.len(), wanted.len());
    assert!(apart > 0.0 && apart < 2e-3, "{apart}");
    let made = written(&cache)["features"];
    // They are read, not computed: the pictures may be gone.
    assert_eq!(losses::<B>(&kept("second")), first);
    assert_eq!(written(&cache)["features"], made);
}

fn ids(world: &World, config: &TrainConfig) -> [Vec<String>; 2] {
    let data = world.with(config).data();
    [data.pairs, data.held_out].map(|set| set.iter().map(|pair| pair.unwrap().chosen.text).collect())
}

#[test]
fn sources_are_mixed_by_their_weights() {
    let world = World::new();
    let other = world.folder.join("other.jsonl");
    let row = |index: usize| {
        json!({"prompt": "What?", "chosen": format!("New {index}."), "rejected": "No.", "images": ["0.png"]})
            .to_string()
            + "\n"
    };
    std::fs::write(&other, (0..4).map(row).collect::<String>()).unwrap();
    let source = |path: &Path, weight| Source { weight, ..path.into() };
    let mixed = |mix_strategy, weights: [Option<f64>; 2]| {
        let own = &world.config.data.0[0].path;
        let data = Sources(vec![source(own, weights[0]), source(&other, weights[1])]);
        let [pairs, _] = ids(&world, &TrainConfig { data, mix_strategy, ..world.config.clone() });
        let new = pairs.iter().filter(|text| text.starts_with("New")).count();
        (pairs.len() - new, new, pairs)
    };
    let (own, new, _) = mixed(MixStrategy::Concat, [None, None]);
    assert_eq!((own, new), (10, 4));
    let (own, new, pairs) = mixed(MixStrategy::InterleaveUnder, [Some(2.0), Some(1.0)]);
    assert_eq!((own, new), (8, 4));
    let distinct: std::collections::HashSet<_> = pairs.iter().collect();
    assert_eq!(distinct.len(), 12, "no pair comes twice");
    let (own, new, pairs) = mixed(MixStrategy::InterleaveOver, [None, None]);
    assert_eq!((own, new), (10, 10));
    assert_eq!(pairs, mixed(MixStrategy::InterleaveOver, [None, None]).2, "the seed says which");
    let refused = TrainConfig { data: Sources(vec![source(&other, Some(1.0))]), ..world.config.clone() };
    let told = refused.validate().unwrap_err().to_string();
    assert!(told.contains("`data`") && told.contains("mix_strategy"), "{told}");
}

#[test]
fn a_share_of_the_pictures_is_held_out_whatever_the_order_of_the_rows() {
    let world = World::new();
    let config =
        TrainConfig { val_size: 0.5, eval_steps: 1, on_fault: OnFault::Stop, ..world.config.clone() };
    config.validate().unwrap();
    let [pairs, mut held_out] = ids(&world, &config);
    assert_eq!(pairs.len() + held_out.len(), 10);
    assert!(!held_out.is_empty() && held_out.len() % 2 == 0, "two pairs about each picture: {held_out:?}");
    let text = std::fs::read_to_string(&config.data.0[0].path).unwrap();
    let mut rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    rows.reverse();
    std::fs::write(&config.data.0[0].path, json!(rows).to_string()).unwrap();
    let [_, mut again] = ids(&world, &config);
    held_out.sort();
    again.sort();
    assert_eq!(again, held_out);
    for (told, config) in [
        ("eval_steps is 0", TrainConfig { eval_steps: 0, ..config.clone() }),
        ("beside eval_data", TrainConfig { eval_data: Some(config.data.clone()), ..config.clone() }),
        ("below 1", TrainConfig { val_size: 1.0, ..config.clone() }),
    ] {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.contains("`val_size`") && message.contains(told), "{message}");
    }
}
