//! What the plan says a run holds, beside what it holds.

use std::path::Path;
use std::process::Command;

use aspo_models::LoraConfig;
use aspo_models::{Llava, LlavaConfig, ModelConfig, Pretrained, SaveOptions};
use aspo_train::{Plan, StepReport, TrainConfig};
use burn::backend::Autodiff;
use burn_flex::Flex;
use peak_alloc::PeakAlloc;

use crate::support::{World, sight, whole_run};

/// Counts the bytes that this process holds, and the most it held.
#[global_allocator]
static HELD: PeakAlloc = PeakAlloc;

const FOLDER: &str = "ASPO_TEST_HOLD_IN";

fn config(folder: &Path, way: &str) -> TrainConfig {
    TrainConfig {
        model: folder.join("model"),
        output_dir: folder.join(way),
        per_device_train_batch_size: 5,
        gradient_accumulation_steps: 2,
        pair_packing: !way.contains("unpacked"),
        gradient_checkpointing: way.contains("recompute"),
        max_steps: 2,
        lora: LoraConfig { r: 16, lora_alpha: 32.0, ..TrainConfig::default().lora },
        ..World::at(folder).config
    }
}

/// A run in a process of its own, whose bytes are nobody else's; does nothing unless it is told where.
#[test]
fn process_that_holds() {
    let Some(told) = std::env::var_os(FOLDER) else { return };
    let told = Path::new(&told);
    let (folder, way) = (told.parent().unwrap(), told.file_name().unwrap().to_str().unwrap());
    let before = HELD.current_usage();
    // From the second step on: reading the model is over, the optimiser has its moments.
    let watch = |done: &StepReport| {
        if done.step == 1 {
            HELD.reset_peak_usage();
        }
    };
    whole_run::<Flex>(&config(folder, way), false, watch, |_| ()).unwrap();
    println!("\nheld {}", HELD.peak_usage() - before);
}

/// Answers are of one length, since the plan takes all rows for the longest. The model is as large as keeps what no plan
/// counts (the tape itself, buffers: some 4 to 7 MB) well below that.
#[test]
fn the_plan_is_within_fifteen_percent_of_the_bytes_held() {
    let world = World::new();
    let (folder, device) = (world.folder.as_path(), Default::default());
    let mut shape = LlavaConfig::load(&world.config.model).unwrap();
    shape.text_config.hidden_size = 192;
    shape.text_config.intermediate_size = 512;
    shape.text_config.num_hidden_layers = 4;
    shape.text_config.num_attention_heads = 4;
    shape.text_config.num_key_value_heads = None;
    shape.text_config.head_dim = None;
    shape
        .init_seeded::<Flex>(1, &device)
        .save_pretrained(folder.join("model"), &SaveOptions::default())
        .unwrap();
    let (chosen, rejected) = ("It is so. ".repeat(10), "It is no. ".repeat(10));
    world.write_pairs(&[(chosen.trim(), rejected.trim()); 10]);
    for way in ["packed", "unpacked", "packed-recompute", "unpacked-recompute"] {
        let config = config(folder, way);
        let pairs = aspo_train::read(&config, &sight(&config, &shape)).unwrap().pairs;
        let plan = Plan::new::<Autodiff<Flex>, Llava<Autodiff<Flex>>>(&config, &shape, &pairs, &device);
        let planned = plan.unwrap().total_bytes() as f64;
        let out = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "plan::process_that_holds", "--nocapture", "--test-threads", "1"])
            .env(FOLDER, folder.join(way))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let held = text.lines().find_map(|line| line.strip_prefix("held ")?.parse::<f64>().ok());
        let held = held.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&out.stderr)));
        let ratio = planned / held;
        println!("{way}: {:.1} MB planned, {:.1} held, {ratio:.2}", planned / 1e6, held / 1e6);
        assert!((0.85..1.15).contains(&ratio), "{way}: {planned:.0} bytes planned, {held:.0} held");
    }
}
