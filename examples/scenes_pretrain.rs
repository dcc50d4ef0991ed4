//! Makes the tiny CLIP and the tiny LLaVA of the scenes world from a seed.
//!
//! `cargo run --release --example scenes_pretrain -- --out examples/assets`

use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_data::image::RgbImage;
use aspo_data::scenes::{SIDE, render};
use aspo_data::{Encoder, ImageProcessor, SpecialTokens, Template, Tokenizer};
use aspo_examples::pretrain::{clip, corpus, llava, llava::Failure, llava::Stage, tokenizer};
use aspo_models::{Clip, Pretrained, SaveOptions, VisionLanguageModel};
use burn_flex::Flex;
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Where the models are written.
    #[arg(long)]
    out: PathBuf,
    /// Seed of everything.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Scenes that are learned from.
    #[arg(long, default_value_t = 8000)]
    scenes: usize,
    /// Steps of CLIP's training; 0 takes the CLIP that lies in `out` already.
    #[arg(long, default_value_t = 3000)]
    clip_steps: usize,
    /// Steps of the decoder's training on text, of the projector's, and of both together.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 50, 1900])]
    llava_steps: Vec<usize>,
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    let device = Default::default();
    let lessons = corpus::lessons(args.seed, args.scenes);
    let texts = corpus::texts(&lessons);
    let processor = ImageProcessor::clip(SIDE);
    let pixels: Vec<Vec<f32>> = lessons
        .iter()
        .map(|lesson| {
            let pixels = render(&lesson.scene).into_raw();
            processor.preprocess(&RgbImage { width: SIDE, height: SIDE, pixels })
        })
        .collect();
    println!("{} scenes, {} texts", lessons.len(), texts.len());

    let clip_folder = args.out.join("clip");
    let clip: Clip<Flex> = if args.clip_steps == 0 {
        Clip::from_pretrained(&clip_folder, &Default::default(), &device)?.0
    } else {
        let tokenizer = tokenizer::clip(&texts)?;
        let settings = clip::Settings { steps: args.clip_steps, batch: 64, rate: 1e-3, seed: args.seed };
        let mut progress = Progress::new("clip", args.clip_steps);
        let clip =
            clip::train::<Flex>(&tokenizer, &lessons, &pixels, &settings, &device, |step, loss, right| {
                progress.show(step, &format!("loss {loss:.3}, own sentence first {right:.2}"));
            })?;
        save(&clip, &tokenizer, &clip_folder)?;
        clip
    };

    let json = tokenizer::llava(&texts)?;
    let tokenizer =
        Tokenizer::from_bytes(json.to_string(false)?.as_bytes(), "LLaVA", SpecialTokens::default())?;
    let config = llava::config(clip.config(), &tokenizer)?;
    let mut model = llava::start::<Flex>(&config, &clip, args.seed, &device);
    let encoder = Encoder::new(tokenizer, Template::LlavaHf, model.tokens_per_image());
    let features = llava::features(&model, &pixels, &device)?;
    let [text, projector, both] = args.llava_steps[..] else {
        return Err("--llava-steps takes three numbers".into());
    };
    let stages = [
        Stage { name: "text", steps: text, batch: 16, rate: 3e-3, pictures: false, decoder: true },
        Stage { name: "projector", steps: projector, batch: 16, rate: 3e-3, pictures: true, decoder: false },
        Stage { name: "both", steps: both, batch: 14, rate: 1.5e-3, pictures: true, decoder: true },
    ];
    for (index, stage) in stages.iter().enumerate() {
        let mut progress = Progress::new(stage.name, stage.steps);
        let seed = args.seed + index as u64;
        model = llava::train(model, &lessons, &features, &encoder, stage, seed, &device, |step, loss| {
            progress.show(step, &format!("loss {loss:.3}"));
        })?;
        save(&model, &json, &args.out.join("llava"))?;
    }
    Ok(())
}

/// Weights in half precision, as the hub has them, with the tokenizer beside.
fn save<M: Pretrained<Flex>>(
    model: &M,
    tokenizer: &tokenizers::Tokenizer,
    folder: &Path,
) -> Result<(), Failure> {
    let options = SaveOptions { precision: aspo_models::Precision::F16, ..Default::default() };
    model.save_pretrained(folder, &options)?;
    tokenizer.save(folder.join("tokenizer.json"), false)?;
    Ok(())
}

/// A line every hundred steps.
struct Progress {
    name: &'static str,
    steps: usize,
    begin: Instant,
}

impl Progress {
    fn new(name: &'static str, steps: usize) -> Self {
        Self { name, steps, begin: Instant::now() }
    }

    fn show(&mut self, step: usize, what: &str) {
        if step.is_multiple_of(50) || step + 1 == self.steps {
            println!(
                "{} {}/{}: {what}, {:.0} s",
                self.name,
                step + 1,
                self.steps,
                self.begin.elapsed().as_secs_f64()
            );
        }
    }
}
