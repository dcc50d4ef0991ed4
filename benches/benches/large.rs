//! Data that do not fit in memory: a million rows about 100,000 pictures, from nothing to the first step, and again.
//!
//! `cargo bench --profile dev -p aspo-benches --bench large` prints the table of `benches/results/large.md`;
//! `ASPO_BENCH_ROWS` gives another number of rows, a tenth as many pictures. Every way runs in a process of its own, whose peak
//! is the system's count.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_data::records::{Records, key_of};
use aspo_data::write::write_rlaif_parquet;
use aspo_data::{ImageLoader, ImageProcessor, ImageSource, Pair, read_pairs};
use aspo_models::{Llava, LlavaConfig, LoadOptions, ModelConfig, Pretrained};
use aspo_train::{Output, Sight, StepReport, TrainConfig, Trainer, peak_memory, read};
use burn::backend::Autodiff;
use burn_flex::Flex;

fn rows() -> usize {
    std::env::var("ASPO_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(1_000_000)
}

/// Rows as SeVa has them, and pictures of 24 by 24 pixels: decoding is not what is measured here.
fn make(folder: &Path) {
    let pictures = rows() / 10;
    std::fs::create_dir_all(folder.join("images")).expect("a folder");
    for index in 0..pictures {
        let colour = |x: u32, y: u32| image::Rgb([(index % 251) as u8, (index / 251) as u8, (x * y) as u8]);
        let picture = image::RgbImage::from_fn(24, 24, colour);
        picture.save(folder.join(format!("images/{index}.png"))).expect("a picture");
    }
    let file = std::fs::File::create(folder.join("pairs.jsonl")).expect("a file");
    let mut file = std::io::BufWriter::new(file);
    let (shapes, colours) = (["circle", "square", "triangle", "cross"], ["red", "green", "blue", "yellow"]);
    for index in 0..rows() {
        let say = |seed: usize| {
            let (shape, colour) = (shapes[seed % 4], colours[seed / 4 % 4]);
            format!("A small {colour} {shape} is on the left.")
        };
        let sentences = |seed: usize| {
            (0..2 + seed % 4).map(|sentence| say(seed / 3 + 5 * sentence)).collect::<Vec<_>>().join(" ")
        };
        let row = serde_json::json!({
            "id": index, "prompt": "Describe this image in detail.", "chosen": sentences(index),
            "rejected": sentences(index + 7), "images": [format!("{}.png", index % pictures)],
        });
        writeln!(file, "{row}").expect("a full disk");
    }
    file.flush().expect("a full disk");
}

/// From the paths of a config to the end of the first step.
fn start(folder: &Path, name: &str) {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/assets");
    let config = TrainConfig {
        model: assets.join("llava"),
        data: folder.join("pairs.jsonl").into(),
        images: folder.join("images"),
        output_dir: folder.join(name),
        cache_dir: Some(folder.join("cache")),
        max_length: 512,
        alpha: 0.0,
        max_steps: 1,
        ..TrainConfig::default()
    };
    let begin = Instant::now();
    let device = Default::default();
    let shape = LlavaConfig::load(&config.model).expect("a config");
    let mut data = read(&config, &Sight::of(&config, &shape.init::<Flex>(&device)).expect("a processor"))
        .expect("pairs");
    let encoded = begin.elapsed().as_secs_f64();
    data.decode_pictures(&config, |_, _| ()).expect("pictures");
    let looked = begin.elapsed().as_secs_f64();
    let (pairs, output) = (data.pairs.len(), Output::open(&config, false).expect("a folder"));
    let options = LoadOptions::default();
    let model =
        Llava::<Autodiff<Flex>>::from_pretrained(&config.model, &options, &device).expect("a model").0;
    let mut first = 0.0;
    let watch = |_: &StepReport| {
        first = begin.elapsed().as_secs_f64();
        ControlFlow::Continue(())
    };
    Trainer::<Flex, _>::new(config, model, data, output, device)
        .with_callback(watch)
        .train()
        .expect("a step");
    println!(
        "| {name} | {encoded:.1} | {:.1} | {first:.1} | {:.0} | {:.0} |",
        looked - encoded,
        pairs as f64 / encoded,
        peak_memory().unwrap_or(0) as f64 / f64::from(1 << 20)
    );
}

/// Pictures by reference, in a random order: from files, from a table, from records.
fn pictures(folder: &Path) {
    const COUNT: usize = 2000;
    let photo = |index: usize| {
        let picture = image::RgbImage::from_fn(640, 427, |x, y| {
            let wave = ((f64::from(x) / 9.0).sin() * (f64::from(y + index as u32) / 13.0).cos() * 60.0
                + 128.0) as u8;
            image::Rgb([wave, (x / 3) as u8, (y / 2) as u8])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::ImageRgb8(picture)
            .write_to(&mut bytes, image::ImageFormat::Jpeg)
            .expect("in memory");
        bytes.into_inner()
    };
    let (table, records) = (folder.join("photos.parquet"), folder.join("photos.records"));
    let key = key_of("photos");
    Records::open_or(&records, &key, |writer| {
        for index in 0..COUNT {
            let bytes = photo(index);
            std::fs::write(folder.join(format!("images/photo-{index}.jpg")), &bytes).expect("a full disk");
            writer.push(0, &bytes)?;
        }
        Ok::<_, aspo_data::Error>(Vec::new())
    })
    .expect("records");
    let files: Vec<ImageSource> =
        (0..COUNT).map(|index| format!("photo-{index}.jpg").as_str().into()).collect();
    let loader = ImageLoader::new(folder.join("images"), ImageProcessor::clip(336)).expect("a loader");
    let pair = |index: usize| {
        let bytes = loader.bytes(&files[index]).expect("a file").into_owned();
        Pair::new(index.to_string(), "q", "a", "b").with_image(bytes)
    };
    write_rlaif_parquet(&table, (0..COUNT).map(pair)).expect("a table");
    let mut rows: Vec<ImageSource> = Vec::new();
    for pair in read_pairs(&table).expect("a table") {
        let ImageSource::Bytes(bytes) = pair.expect("a row").images.remove(0) else {
            unreachable!("bytes were written")
        };
        rows.push(ImageSource::Place(bytes.place().expect("a row of a table")));
    }
    let mut placed = rows.clone();
    for (index, source) in placed.iter_mut().enumerate() {
        if let ImageSource::Place(place) = source {
            (place.file, place.at) = (records.clone(), aspo_data::PlaceInFile::Record(index as u64));
        }
    }
    let order = aspo_data::order::permutation(COUNT, 1);
    for (name, sources) in [("files", &files), ("a table, by row", &rows), ("records", &placed)] {
        let begin = Instant::now();
        order.iter().for_each(|index| drop(loader.bytes(&sources[*index]).expect("bytes")));
        let read = begin.elapsed().as_secs_f64();
        let sources: Vec<ImageSource> = order.iter().map(|index| sources[*index].clone()).collect();
        let begin = Instant::now();
        for part in sources.chunks(64) {
            assert!(loader.load_all(part).iter().all(Result::is_ok));
        }
        let whole = begin.elapsed().as_secs_f64();
        println!("| {name} | {:.2} | {:.0} |", 1000.0 * read / COUNT as f64, COUNT as f64 / whole);
    }
}

/// The same program again, for one part.
fn child(part: &str, folder: &Path) {
    let exe = std::env::current_exe().expect("a path");
    let done = std::process::Command::new(exe).args(["--part", part]).arg(folder).status().expect("a child");
    assert!(done.success(), "{part}");
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--part") {
        let folder = PathBuf::from(&arguments[at + 2]);
        match arguments[at + 1].as_str() {
            "pictures" => pictures(&folder),
            name => start(&folder, name),
        }
        return;
    }
    // Whoever only wants to see that it compiles (`cargo test --benches`) gets nothing made.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    make(folder.path());
    println!("{} rows, {} pictures\n", rows(), rows() / 10);
    println!(
        "| start | encoded s | pictures s | first step s | rows/s | peak MiB |\n|---|--:|--:|--:|--:|--:|"
    );
    child("first", folder.path());
    child("second", folder.path());
    println!(
        "\n| 2,000 JPEGs of 640 x 427, at random, from | read ms | to tensors, pictures/s |\n|---|--:|--:|"
    );
    child("pictures", folder.path());
}
