//! Files that lie: errors by name, never a panic, never more memory than the file promises plus a constant.

use std::path::Path;

use aspo_models::lora::load_adapter;
use aspo_models::{
    Clip, GenerateConfig, InstructBlip, LanguageModel, Llama, Llava, LoadOptions, ModelInput, Pretrained,
    Result, generate,
};
use burn::tensor::Tensor;
use burn_flex::Flex;
use proptest::prelude::*;
use serde_json::Value;

use crate::memory::peak;
use crate::support::fixtures as fixture;

/// The promise: four times the folder's files (a tensor decoded, in transit and in place, and its list of names),
/// and 64 MB for a tree of at most 1024 layers a tower whose parameters are never allocated.
fn bound(folder: &Path) -> usize {
    let size = |e: std::io::Result<std::fs::DirEntry>| e.unwrap().metadata().unwrap().len() as usize;
    4 * std::fs::read_dir(folder).unwrap().map(size).sum::<usize>() + (64 << 20)
}

fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "expected.safetensors" {
            std::fs::copy(&path, to.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    to
}

/// Load whatever the folder claims to be and run it; the error's text, if any.
fn try_load(folder: &Path, kind: &str) -> Option<String> {
    fn load<M: Pretrained<Flex>>(folder: &Path) -> Result<M> {
        let load = || M::from_pretrained(folder, &LoadOptions::default(), &Default::default());
        let (loaded, held) = peak(load);
        assert!(held <= bound(folder), "{held} bytes were held, bound {}", bound(folder));
        Ok(loaded?.0)
    }
    fn text<M: Pretrained<Flex> + LanguageModel<Flex>>(folder: &Path) -> Result<()> {
        let input = ModelInput::from_rows(&[vec![1, 2, 3], vec![2]], 0, &Default::default());
        let config = GenerateConfig { max_new_tokens: 2, ..Default::default() };
        generate(&load::<M>(folder)?, &input, &config, |_, _| ()).map(|_| ())
    }
    let found = match kind {
        "clip" => load::<Clip<Flex>>(folder).and_then(|model| {
            let size = model.config().vision_config.image_size;
            let pixels = Tensor::zeros([1, 3, size, size], &Default::default());
            model.image_embeds(pixels).map(|_| ())
        }),
        "llava" | "llava_sharded" => text::<Llava<Flex>>(folder),
        "instructblip" => text::<InstructBlip<Flex>>(folder),
        _ => text::<Llama<Flex>>(folder),
    };
    found.err().map(|error| error.to_string())
}

#[derive(Debug, Clone)]
struct Damage {
    /// Places as a fraction of the length, and what is written there.
    bytes: Vec<(f64, u8)>,
    /// Fraction to keep.
    cut: Option<f64>,
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most places near the start, where the header is.
    let place = prop_oneof![3 => 0.0..0.05f64, 1 => 0.0..1.0f64];
    (prop::collection::vec((place, any::<u8>()), 0..6), prop::option::weighted(0.3, 0.0..1.0f64))
        .prop_map(|(bytes, cut)| Damage { bytes, cut })
}

fn apply(path: &Path, damage: &Damage) {
    let mut bytes = std::fs::read(path).unwrap();
    for &(at, byte) in &damage.bytes {
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] = byte;
    }
    if let Some(cut) = damage.cut {
        bytes.truncate((cut * bytes.len() as f64) as usize);
    }
    std::fs::write(path, bytes).unwrap();
}

fn lie() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        Just(Value::from(-1)),
        Just(Value::from(0)),
        Just(Value::from(3)),
        Just(Value::from(1u64 << 20)),
        Just(Value::from(u64::MAX)),
        Just(Value::from(1e300)),
        Just(Value::from("../../etc/passwd")),
        Just(Value::from("t5")),
        Just(serde_json::json!([1, 2, 3])),
        Just(serde_json::json!({})),
        Just(Value::Bool(true)),
    ]
}

/// Replace the value at a place among all values of the file.
fn tell(path: &Path, at: f64, lie: Value) {
    fn walk(value: &mut Value, out: &mut Vec<*mut Value>) {
        out.push(value);
        match value {
            Value::Object(map) => map.values_mut().for_each(|v| walk(v, out)),
            Value::Array(list) => list.iter_mut().for_each(|v| walk(v, out)),
            _ => {}
        }
    }
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut places = Vec::new();
    walk(&mut json, &mut places);
    let place = places[(at * places.len() as f64) as usize];
    // SAFETY: the pointer is into `json`, which has not changed since.
    unsafe { *place = lie };
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

const KINDS: &[&str] = &["clip", "llama_gqa_tied", "llava", "instructblip"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_weights_are_other_weights_and_cut_ones_errors(
        kind in prop::sample::select(KINDS),
        damage in damage(),
    ) {
        let folder = copy(&fixture("models").join(kind));
        let file = folder.path().join("model.safetensors");
        let whole = std::fs::metadata(&file).unwrap().len();
        apply(&file, &damage);
        let cut = std::fs::metadata(&file).unwrap().len() < whole;
        let told = try_load(folder.path(), kind);
        prop_assert!(!cut || told.is_some_and(|told| told.contains("model.safetensors")), "a cut file was loaded");
    }

    #[test]
    fn damaged_configs_are_errors(kind in prop::sample::select(KINDS), damage in damage()) {
        let folder = copy(&fixture("models").join(kind));
        apply(&folder.path().join("config.json"), &damage);
        try_load(folder.path(), kind);
    }

    #[test]
    fn lying_configs_are_errors(
        kind in prop::sample::select(KINDS),
        lies in prop::collection::vec((0.0..1.0f64, lie()), 1..4),
    ) {
        let folder = copy(&fixture("models").join(kind));
        for (at, lie) in lies {
            tell(&folder.path().join("config.json"), at, lie);
        }
        try_load(folder.path(), kind);
    }

    #[test]
    fn damaged_and_lying_indices_are_errors(damage in damage(), at in 0.0..1.0f64, lie in lie()) {
        let index = "model.safetensors.index.json";
        let folder = copy(&fixture("models/llava_sharded"));
        tell(&folder.path().join(index), at, lie);
        try_load(folder.path(), "llava_sharded");
        apply(&folder.path().join(index), &damage);
        try_load(folder.path(), "llava_sharded");
    }

    #[test]
    fn damaged_and_lying_adapters_are_errors(
        weights in damage(),
        config in damage(),
        at in 0.0..1.0f64,
        lie in lie(),
        which in 0..3,
    ) {
        let folder = copy(&fixture("trajectories/dpo/adapter_final"));
        match which {
            0 => apply(&folder.path().join("adapter_model.safetensors"), &weights),
            1 => apply(&folder.path().join("adapter_config.json"), &config),
            _ => tell(&folder.path().join("adapter_config.json"), at, lie),
        }
        let base = fixture("models/llava");
        let model = Llava::<Flex>::from_pretrained(base, &LoadOptions::default(), &Default::default()).unwrap().0;
        let (loaded, held) = peak(|| load_adapter(model, folder.path()));
        prop_assert!(held <= bound(folder.path()), "{held} bytes were held");
        if let Ok((model, _)) = loaded {
            let input = ModelInput::from_rows(&[vec![1, 2, 3]], 0, &Default::default());
            prop_assert!(model.logits(&input).is_ok());
        }
    }
}

#[test]
fn each_lie_about_a_header_is_named() {
    type Lie = fn(&mut Vec<u8>);
    let cases: Vec<(&str, Lie)> = vec![
        ("empty", |b| b.clear()),
        ("header", |b| b.truncate(5)),
        ("header", |b| b.truncate(100)),
        ("header", |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
        ("header", |b| b[..8].copy_from_slice(&(1u64 << 40).to_le_bytes())),
        ("safetensors", |b| b.truncate(b.len() - 1)),
        ("safetensors", |b| b.extend([0; 16])),
        ("safetensors", |b| {
            let text = String::from_utf8(b.split_off(8)[..200].to_vec()).unwrap();
            *b = [&200u64.to_le_bytes()[..], text.replace("F32", "F99").as_bytes()].concat();
        }),
    ];
    for (word, lie) in cases {
        let folder = copy(&fixture("models/llama"));
        let path = folder.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        lie(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        let error = try_load(folder.path(), "llama").expect("must be refused");
        assert!(error.to_lowercase().contains(word), "{error}");
        assert!(error.contains("model.safetensors"), "the file is named: {error}");
    }
}
