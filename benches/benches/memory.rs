//! Memory of a long run: 1,000 optimiser steps of the tiny LLaVA, with metrics, checkpoints and samples as a real run has
//! them. `cargo bench -p aspo-benches --bench memory` (or with `--profile dev`, which reuses the dependencies of
//! `cargo test`) writes `benches/results/memory.csv` and draws `docs/figures/memory.svg`.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::Path;

use aspo_models::{Llava, LlavaConfig, LoadOptions, ModelConfig, Pretrained};
use aspo_train::{Output, Sight, StepReport, TrainConfig, Trainer, read, score};
use burn::backend::Autodiff;
use burn_flex::Flex;
use peak_alloc::PeakAlloc;
use serde_json::Value;

/// Steps of the whole run, and between two readings.
const STEPS: usize = 1000;
const EVERY: usize = 10;
/// Steps that the slope leaves out: pools fill, pictures are seen for the first time.
const WARM_UP: usize = 200;
/// Pairs of the run, taken evenly from the file; steps are of two of them.
const PAIRS: usize = 32;

/// Counts the bytes held by the whole process, so that a peak can be told apart from what the allocator keeps.
#[global_allocator]
static HELD: PeakAlloc = PeakAlloc;

/// One reading after a step, in KiB.
struct Reading {
    step: usize,
    /// What the operating system counts as resident.
    resident: f64,
    /// What has been asked of the allocator and not given back.
    held: f64,
}

fn reading(step: usize) -> Reading {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let resident = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(f64::NAN);
    Reading { step, resident, held: HELD.current_usage() as f64 / 1024.0 }
}

fn run(steps: usize) -> Vec<Reading> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let assets = root.join("examples/assets");
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<Value> =
        serde_json::from_slice(&std::fs::read(assets.join("pairs.json")).unwrap()).unwrap();
    let some: Vec<&Value> = rows.iter().step_by(rows.len() / PAIRS).take(PAIRS).collect();
    let data = folder.path().join("pairs.json");
    std::fs::write(&data, serde_json::to_vec(&some).unwrap()).unwrap();
    let scenes = TrainConfig::from_toml(&root.join("examples/configs/scenes.toml")).unwrap();
    let config = TrainConfig {
        data: data.into(),
        output_dir: folder.path().join("out"),
        per_device_train_batch_size: 1,
        gradient_accumulation_steps: 2,
        max_steps: steps as i64,
        logging_steps: 10,
        eval_steps: 250,
        save_steps: 100,
        ..scenes
    };
    config.validate().unwrap();
    let device = Default::default();
    let shape = LlavaConfig::load(&config.model).unwrap();
    let mut data = read(&config, &Sight::of(&config, &shape.init::<Flex>(&device)).unwrap()).unwrap();
    data.decode_pictures(&config, |_, _| ()).unwrap();
    let output = Output::open(&config, false).unwrap();
    score::<Flex>(&config, &mut data, false, &device).unwrap();
    let options = LoadOptions::default();
    let model = Llava::<Autodiff<Flex>>::from_pretrained(&config.model, &options, &device).unwrap().0;
    let mut readings = Vec::with_capacity(steps / EVERY + 1);
    let watch = |step: &StepReport| {
        if step.step.is_multiple_of(EVERY) || step.step == 1 {
            readings.push(reading(step.step));
        }
        if step.step.is_multiple_of(100) {
            println!("step {:>4}  {:.0} s", step.step, step.seconds);
        }
        ControlFlow::Continue(())
    };
    Trainer::<Flex, _>::new(config, model, data, output, device).with_callback(watch).train().unwrap();
    readings
}

/// KiB a step, by least squares.
fn slope(readings: &[Reading], of: impl Fn(&Reading) -> f64) -> f64 {
    let late: Vec<(f64, f64)> =
        readings.iter().filter(|r| r.step > WARM_UP).map(|r| (r.step as f64, of(r))).collect();
    let n = late.len() as f64;
    let (x, y) = late.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / n, sum.1 + point.1 / n));
    let (over, under) = late.iter().fold((0.0, 0.0), |sum, point| {
        (sum.0 + (point.0 - x) * (point.1 - y), sum.1 + (point.0 - x).powi(2))
    });
    over / under
}

fn csv(readings: &[Reading]) -> String {
    let mut text = "step,resident_kib,held_kib\n".to_owned();
    for r in readings {
        let _ = writeln!(text, "{},{:.0},{:.0}", r.step, r.resident, r.held);
    }
    text
}

/// Both curves from 0, so that nothing looks steeper than it is.
fn svg(readings: &[Reading], slopes: [f64; 2]) -> String {
    let (left, top, width, height) = (60.0, 40.0, 620.0, 260.0);
    let most = readings.iter().map(|r| r.resident.max(r.held)).fold(0.0, f64::max) / 1024.0;
    let ceiling = (most / 50.0).ceil() * 50.0;
    let x = |step: usize| left + width * step as f64 / STEPS as f64;
    let y = |mib: f64| top + height * (1.0 - mib / ceiling);
    let mut page = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 350\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"720\" height=\"350\" fill=\"#fff\"/>\n<text x=\"{left}\" y=\"22\" font-size=\"14\">Memory over \
         {STEPS} optimiser steps (tiny LLaVA, flex), MiB</text>\n"
    );
    for line in 0..=5 {
        let mib = ceiling * f64::from(line) / 5.0;
        let (at, right) = (y(mib), left + width);
        let _ = writeln!(
            page,
            "<line x1=\"{left}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" \
             y=\"{:.1}\" text-anchor=\"end\">{mib:.0}</text>",
            left - 6.0,
            at + 4.0
        );
        let step = STEPS * line as usize / 5;
        let _ = writeln!(
            page,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            top + height + 18.0
        );
    }
    type Of = fn(&Reading) -> f64;
    let curves: [(&str, &str, Of); 2] =
        [("resident", "#1f6fb4", |r| r.resident), ("held by the program", "#d9662b", |r| r.held)];
    for (index, ((name, colour, of), slope)) in curves.into_iter().zip(slopes).enumerate() {
        let points: String =
            readings.iter().map(|r| format!("{:.1},{:.1} ", x(r.step), y(of(r) / 1024.0))).collect();
        let _ = writeln!(
            page,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\n<text x=\"{}\" \
             y=\"338\" fill=\"{colour}\">{name}: {slope:+.3} KiB a step after step {WARM_UP}</text>",
            points.trim_end(),
            left + 330.0 * index as f64
        );
    }
    page + "</svg>\n"
}

fn main() {
    // Whoever only wants to see that it runs (`cargo test --benches`) gets a few steps and no files.
    let whole = std::env::args().any(|argument| argument == "--bench");
    let readings = run(if whole { STEPS } else { 2 * EVERY });
    let slopes = [slope(&readings, |r| r.resident), slope(&readings, |r| r.held)];
    let (first, last) = (&readings[0], &readings[readings.len() - 1]);
    println!(
        "resident {:.0} KiB after step 1, {:.0} at the end; {:+.3} KiB a step after step {WARM_UP}",
        first.resident, last.resident, slopes[0]
    );
    println!(
        "held     {:.0} KiB after step 1, {:.0} at the end; {:+.3} KiB a step after step {WARM_UP}",
        first.held, last.held, slopes[1]
    );
    if whole {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        std::fs::write(root.join("results/memory.csv"), csv(&readings)).unwrap();
        let figures = root.join("../docs/figures");
        std::fs::create_dir_all(&figures).unwrap();
        std::fs::write(figures.join("memory.svg"), svg(&readings, slopes)).unwrap();
    }
}
