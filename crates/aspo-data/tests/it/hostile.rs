//! Damaged files of every kind: errors, never a panic, never without end.
//!
//! Each target mutates sound files with a seeded generator; `ASPO_FUZZ_SECONDS` lengthens a run. The fuzz targets in
//! `fuzz/` go further, and `corpora` replays what they found.

use std::path::Path;
use std::time::{Duration, Instant};

use aspo_data::image::{Fit, ImageProcessor, decode};
use aspo_data::read::read_conversations;
use aspo_data::write::{write_llama_factory, write_seva, write_trl_jsonl};
use aspo_data::{Format, Pair, Turn, read_pairs_as};
use image::{DynamicImage, ImageFormat};
#[cfg(target_os = "linux")]
use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::support::encode;

/// Runs `check` on mutations of `seeds` for as long as asked, by default for a fixed number of rounds.
fn mutate(name: &str, seeds: &[Vec<u8>], rounds: usize, mut check: impl FnMut(&[u8])) {
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
    for format in Format::ALL.iter().copied().filter(|format| *format != Format::Llava) {
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
        br#"{"1": {"chosen": ["a", "b"], "rejected": ["c"]}, "2": {"chosen": ["a"], "rejected": ["c"]}}"#.to_vec(),
        br#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,AAAA"}]}, {"role": "assistant", "content": "b"}], "rejected_response": "c"}"#.to_vec(),
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

/// A table of `groups` groups one in another around a number, the outermost with `children` parts, in the bytes of
/// Thrift's compact protocol.
#[cfg(feature = "parquet")]
fn nested_table(groups: usize, children: i64) -> Vec<u8> {
    let varint = |mut value: u64| {
        let mut bytes = Vec::new();
        while value > 0x7F {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    };
    let number = |value: i64| varint(((value << 1) ^ (value >> 63)) as u64);
    // Repetition 1, the name "a", the number of children; the root has no repetition, a leaf a type and no children.
    let root = [&b"\x48\x01a\x15"[..], &number(children), b"\0"].concat();
    let group = [&b"\x35\x02\x18\x01a\x15"[..], &number(1), b"\0"].concat();
    let columns = [root, group.repeat(groups - 1), b"\x15\x02\x25\x02\x18\x01a\0".to_vec()].concat();
    let count = varint(groups as u64 + 1);
    let footer = [&b"\x15\x02\x19\xFC"[..], &count, &columns, b"\x16\0\x19\x0C\0"].concat();
    [&b"PAR1"[..], &footer, &(footer.len() as u32).to_le_bytes(), b"PAR1"].concat()
}

#[cfg(feature = "parquet")]
#[test]
fn a_table_of_nested_columns_is_refused_before_it_fills_the_stack() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let read = |table: Vec<u8>| {
        std::fs::write(&path, table).unwrap();
        read_pairs_as(&path, Format::Trl).map(|pairs| pairs.count()).map_err(|error| error.to_string())
    };
    assert_eq!(read(nested_table(8, 1)), Ok(0));
    let deep = read(nested_table(300_000, 1)).unwrap_err();
    assert!(deep.contains("nested"), "{deep}");
    for children in [i64::from(i32::MAX), -1] {
        let wide = read(nested_table(8, children)).unwrap_err();
        assert!(wide.contains("claims"), "{wide}");
    }
}

/// A file of some hundred kilobytes must not take the memory that it says it unpacks to: the test runs itself again with
/// less memory than the profile has.
#[cfg(target_os = "linux")]
#[test]
fn a_colour_profile_is_not_unpacked_beyond_a_limit() {
    const FILE: &str = "ASPO_TEST_PROFILE";
    if let Some(path) = std::env::var_os(FILE) {
        assert_eq!(decode(&std::fs::read(path).unwrap()).unwrap().pixels, [9, 8, 7]);
        return;
    }
    let mut bomb = Vec::new();
    let mut encoder = PngEncoder::new(&mut bomb);
    encoder.set_icc_profile(vec![0; 700 << 20]).unwrap();
    encoder.write_image(&[9, 8, 7], 1, 1, ExtendedColorType::Rgb8).unwrap();
    assert!(bomb.len() < 8 << 20, "{}", bomb.len());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.png");
    std::fs::write(&path, bomb).unwrap();
    let name = "hostile::a_colour_profile_is_not_unpacked_beyond_a_limit";
    let output = std::process::Command::new("sh")
        .args(["-c", "ulimit -v 700000 && exec \"$0\" --exact --test-threads 1 \"$1\""])
        .arg(std::env::current_exe().unwrap())
        .arg(name)
        .env(FILE, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
                assert_eq!(processor.clone().with_fit(fit).preprocess(&image).unwrap().len(), 3 * 8 * 8);
            }
        }
    });
}
