//! Images per second against a plain resize of the `image` crate, and pairs encoded per second.
//!
//! `cargo bench -p aspo-benches --bench data`

use std::hint::black_box;
use std::io::Cursor;

use aspo_benches::{peak, serve, served};
use aspo_data::image::decode;
use aspo_data::{Encoder, Fit, HostBatch, ImageProcessor, Padding, Pair, SpecialTokens, Template, Tokenizer};
use criterion::{Criterion, Throughput, criterion_group};
use image::imageops::FilterType;
use image::{DynamicImage, ImageFormat, RgbImage};
use rayon::prelude::*;

/// A JPEG of COCO's usual size with some structure in it.
fn photo() -> Vec<u8> {
    let picture = RgbImage::from_fn(640, 427, |x, y| {
        let wave = ((f64::from(x) / 9.0).sin() * (f64::from(y) / 13.0).cos() * 60.0 + 128.0) as u8;
        image::Rgb([wave, (x / 3) as u8, (y / 2) as u8])
    });
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, ImageFormat::Jpeg).expect("in memory");
    bytes.into_inner()
}

fn images(criterion: &mut Criterion) {
    let bytes = photo();
    let decoded = decode(&bytes).expect("a sound picture");
    let plain = image::load_from_memory(&bytes).expect("a sound picture");
    let mut group = criterion.benchmark_group("images");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode", |b| b.iter(|| decode(black_box(&bytes))));
    for fit in [Fit::Crop, Fit::Pad] {
        let processor = ImageProcessor::clip(336).with_fit(fit);
        group.bench_function(format!("preprocess 336 {fit:?}"), |b| {
            b.iter(|| processor.preprocess(black_box(&decoded)))
        });
    }
    // What a reader of `image`'s front page would write: resize, crop, to f32.
    group.bench_function("plain image crate 336 Crop", |b| {
        b.iter(|| {
            let resized = black_box(&plain).resize_to_fill(336, 336, FilterType::CatmullRom).into_rgb8();
            let processor = ImageProcessor::clip(336);
            let mut values = vec![0.0_f32; 3 * 336 * 336];
            for (index, pixel) in resized.pixels().enumerate() {
                for channel in 0..3 {
                    values[channel * 336 * 336 + index] = (f32::from(pixel[channel]) / 255.0
                        - processor.mean[channel])
                        / processor.std[channel];
                }
            }
            values
        });
    });
    group.finish();
}

/// A byte-level LLaMA-style tokenizer: every letter a token, so that the texts below have about as many tokens as words
/// would have in a real one four times as long.
fn tokenizer() -> Tokenizer {
    let mut vocabulary = serde_json::Map::new();
    let mut add = |token: String| {
        let id = vocabulary.len();
        vocabulary.entry(token).or_insert_with(|| id.into());
    };
    ["<unk>", "<s>", "</s>", "<image>", "<pad>"].iter().for_each(|token| add((*token).to_owned()));
    (0..=255).for_each(|byte| add(format!("<0x{byte:02X}>")));
    add("▁".to_owned());
    ('!'..='~').for_each(|letter| add(letter.to_string()));
    let special: Vec<_> = ["<unk>", "<s>", "</s>", "<image>", "<pad>"]
        .iter()
        .enumerate()
        .map(|(id, token)| {
            serde_json::json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                               "normalized": false, "special": true})
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocabulary, "merges": []},
    });
    let bytes = serde_json::to_vec(&json).expect("plain data");
    Tokenizer::from_bytes(&bytes, "bench", SpecialTokens::default()).expect("a sound tokenizer")
}

fn pairs(criterion: &mut Criterion) {
    // With LLaVA's own tokenizer where its file is given, else with the small one.
    let tokenizer = match std::env::var_os("ASPO_BENCH_TOKENIZER") {
        Some(path) => {
            Tokenizer::from_file(path.as_ref()).expect("ASPO_BENCH_TOKENIZER names a tokenizer.json")
        }
        None => tokenizer(),
    };
    let answer = |what: &str| {
        format!("The image features {what} in a wide field. There are several people nearby, watching it closely. The scene is calm. ").repeat(3)
    };
    let pairs: Vec<Pair> = (0..64)
        .map(|row| {
            Pair::new(
                row.to_string(),
                "Describe this image in detail.",
                answer("a red kite"),
                answer("two grey horses"),
            )
            .with_image(format!("{row}.jpg").as_str())
        })
        .collect();
    let encoder = Encoder::new(tokenizer, Template::VicunaV1, 576);
    let mut group = criterion.benchmark_group("pairs");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |b| b.iter(|| encoder.encode(black_box(&pairs[0]))));
    let encoded: Vec<_> =
        pairs[..16].iter().map(|pair| encoder.encode(pair).expect("a sound pair")).collect();
    let refs: Vec<_> = encoded.iter().collect();
    let padding = Padding { id: encoder.tokenizer.pad(), multiple_of: 64 };
    group.throughput(Throughput::Elements(16));
    group
        .bench_function("batch of 16, stacked", |b| b.iter(|| HostBatch::stacked(black_box(&refs), padding)));
    group.bench_function("batch of 16, packed", |b| b.iter(|| HostBatch::packed(black_box(&refs), padding)));
    group.finish();
}

criterion_group! {
    name = data;
    config = Criterion::default().sample_size(20);
    targets = images, pairs
}
/// Pictures a call of the work below.
const PICTURES: usize = 32;

/// `decode,FILE` or `preprocess,FILE`, on all cores.
fn pictures(work: &str) {
    let before = peak();
    let (work, file) = work.split_once(',').expect("WORK,FILE");
    let bytes = std::fs::read(file).expect("a JPEG");
    let decoded = decode(&bytes).expect("a sound picture");
    let processor = ImageProcessor::clip(336);
    let each = |_: usize| match work {
        "decode" => {
            black_box(decode(black_box(&bytes)).expect("a sound picture"));
        }
        "preprocess" => {
            black_box(processor.preprocess(black_box(&decoded)).expect("a sound picture"));
        }
        other => panic!("no work `{other}`"),
    };
    serve(before, || (0..PICTURES).into_par_iter().for_each(each));
}

fn main() {
    match served() {
        Some(work) => pictures(&work),
        None => data(),
    }
}
