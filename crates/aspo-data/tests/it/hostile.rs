//! Damaged files of every kind: errors, never a panic, never without end.
//!
//! Each target mutates sound files with a seeded generator. `ASPO_FUZZ_SECONDS` lengthens a run; whatever once failed is
//! kept in `tests/fixtures/hostile` and read first.

use std::path::Path;
use std::time::{Duration, Instant};

use aspo_data::image::{Fit, ImageProcessor, decode};
use aspo_data::read::read_conversations;
use aspo_data::write::{write_llama_factory, write_seva, write_trl_jsonl};
use aspo_data::{Format, Pair, Turn, read_pairs_as};
use image::{DynamicImage, ImageFormat};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::encode;

/// Runs `check` on mutations of `seeds` for as long as asked, by default for a fixed number of rounds.
fn mutate(name: &str, seeds: &[Vec<u8>], rounds: usize, mut check: impl FnMut(&[u8])) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hostile").join(name);
    for entry in std::fs::read_dir(kept).into_iter().flatten() {
        check(&std::fs::read(entry.unwrap().path()).unwrap());
    }
    let asked =
        std::env::var("ASPO_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).map(Duration::from_secs);
    let start = Instant::now();
    let mut random = ChaCha8Rng::seed_from_u64(5);
    let mut round = 0;
    while asked.map_or(round < rounds, |asked| start.elapsed() < asked) {
        round += 1;
        let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
        for _ in 0..random.random_range(1..6) {
            if bytes.is_empty() {
                break;
            }
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..7) {
                0 => bytes[at] ^= 1 << random.random_range(0..8),
                1 => bytes[at] = random.random(),
                2 => bytes.truncate(at),
                3 => drop(bytes.drain(at..(at + random.random_range(1..20)).min(bytes.len()))),
                4 => bytes.insert(at, *b"{}[]\",:\\\n\0\xFF<"[..].get(random.random_range(0..12)).unwrap()),
                5 => {
                    let end = (at + random.random_range(1..30)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    let to = random.random_range(0..=bytes.len());
                    bytes.splice(to..to, part);
                }
                _ => {
                    let end = (at + 4).min(bytes.len());
                    bytes[at..end].fill([0, 0x7F, 0xFF][random.random_range(0..3)]);
                }
            }
        }
        // What is being tried is on disk before it is tried: a crash leaves it there.
        if asked.is_some() {
            std::fs::write(std::env::temp_dir().join(format!("aspo-hostile-{name}")), &bytes).unwrap();
        }
        check(&bytes);
    }
    println!("{name}: {round} rounds");
}

fn pairs() -> Vec<Pair> {
    let mut turns = Pair::new("1", "Why?", "Because \"so\".\nYes.", "猫 No").with_image("a/b.jpg");
    turns.history.push(Turn { user: "A".into(), assistant: "B".into() });
    vec![Pair::new("1", "What?", "A dog. It runs.", "No é").with_image("a.jpg"), turns]
}

fn written(write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    write(&path);
    std::fs::read(path).unwrap()
}

fn read_to_end(bytes: &[u8], path: &Path) {
    std::fs::write(path, bytes).unwrap();
    for format in [Format::Trl, Format::Seva, Format::RlaifV, Format::LlamaFactory] {
        if let Ok(pairs) = read_pairs_as(path, format) {
            assert!(pairs.take(10_000).count() < 10_000, "the reader does not end");
        }
    }
    if let Ok(conversations) = read_conversations(path) {
        assert!(conversations.take(10_000).count() < 10_000);
    }
}

#[test]
fn damaged_json_of_every_format_is_an_error() {
    let pairs = pairs();
    let seeds = vec![
        written(|path| write_seva(path, &pairs[..1]).unwrap()),
        written(|path| write_trl_jsonl(path, &pairs).unwrap()),
        written(|path| write_llama_factory(path, &pairs).unwrap()),
        br#"[{"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nA"}, {"from": "gpt", "value": "B"}]}]"#.to_vec(),
        br#"{"text": "{\"question\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}", "image_path": "a.jpg"}"#.to_vec(),
        br#"[{"instruction": "i", "input": "x", "chosen": "a", "rejected": "b", "history": [["u", "v"]]}]"#.to_vec(),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    mutate("json", &seeds, 3000, |bytes| read_to_end(bytes, &path));
}

#[cfg(feature = "parquet")]
#[test]
fn damaged_tables_are_errors() {
    let sound: Vec<Pair> = (0..20)
        .map(|i| Pair::new(format!("{i}"), "q", format!("a {i}"), "b").with_image(vec![7; 40]))
        .collect();
    let seeds = vec![
        written(|path| aspo_data::write::write_trl_parquet(path, &sound).unwrap()),
        written(|path| aspo_data::write::write_rlaif_parquet(path, &sound).unwrap()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    mutate("parquet", &seeds, 1000, |bytes| read_to_end(bytes, &path));
}

#[test]
fn damaged_pictures_are_errors_or_pictures() {
    let picture =
        image::RgbImage::from_fn(23, 17, |x, y| image::Rgb([(x * 11) as u8, (y * 15) as u8, (x * y) as u8]));
    let picture = DynamicImage::ImageRgb8(picture);
    let seeds = vec![
        encode(picture.clone(), ImageFormat::Png),
        encode(picture.clone(), ImageFormat::Jpeg),
        encode(picture.clone(), ImageFormat::WebP),
        encode(DynamicImage::ImageLuma16(picture.to_luma16()), ImageFormat::Png),
    ];
    let processor = ImageProcessor::clip(8);
    mutate("image", &seeds, 1500, |bytes| {
        if let Ok(image) = decode(bytes) {
            assert_eq!(image.pixels.len(), image.width as usize * image.height as usize * 3);
            for fit in [Fit::Crop, Fit::Pad, Fit::Squash] {
                assert_eq!(processor.clone().with_fit(fit).preprocess(&image).len(), 3 * 8 * 8);
            }
        }
    });
}
