//! Makes the tiny CLIP and the tiny LLaVA of the scenes world from a seed.
//!
//! `cargo run --release --example scenes_pretrain -- --out examples/assets`

use std::path::{Path, PathBuf};
use std::time::Instant;

use aspo_cli::say;
use aspo_data::image::{CLIP_MEAN, CLIP_STD, RgbImage};
use aspo_data::noise::add_noise;
use aspo_data::{Encoder, ImageProcessor, SpecialTokens, Template, Tokenizer};
use aspo_examples::pretrain::{clip, corpus, llava, llava::Failure, llava::Stage, tokenizer};
use aspo_models::{Clip, Llava, Pretrained, SaveOptions};
use aspo_scenes::{SIDE, render};
use burn_flex::Flex;
use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

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
    #[arg(long, default_value_t = 2400)]
    clip_steps: usize,
    /// Steps of the decoder's training on text, of the projector's, of both together, of both on pictures some of which
    /// are noised, and of short answers alone; with 0 for the first three the LLaVA that lies in `out` goes on
    #[arg(long, value_delimiter = ',', default_values_t = [100, 50, 5000, 3000, 100])]
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
        .collect::<Result<_, _>>()?;
    say!("{} scenes, {} texts", lessons.len(), texts.len());

    let clip_folder = args.out.join("clip");
    if args.clip_steps > 0 {
        let tokenizer = tokenizer::clip(&texts)?;
        let settings = clip::Settings { steps: args.clip_steps, batch: 64, rate: 1e-3, seed: args.seed };
        let mut progress = Progress::new("clip", args.clip_steps);
        let clip =
            clip::train::<Flex>(&tokenizer, &lessons, &pixels, &settings, &device, |step, loss, right| {
                progress.show(step, &format!("loss {loss:.3}, own sentence first {right:.2}"));
            })?;
        save(&clip, &tokenizer, &clip_folder)?;
    }
    // Each stage begins with the files of the one before, so that several sittings make what one does.
    let clip: Clip<Flex> = Clip::from_pretrained(&clip_folder, &Default::default(), &device)?.0;

    let json = tokenizer::llava(&texts)?;
    let tokenizer =
        Tokenizer::from_bytes(json.to_string(false)?.as_bytes(), "LLaVA", SpecialTokens::default())?;
    let config = llava::config(clip.config(), &tokenizer)?;
    let folder = args.out.join("llava");
    let [text, projector, both, noised, short] = args.llava_steps[..] else {
        return Err("--llava-steps takes five numbers".into());
    };
    let mut model = if text + projector + both == 0 {
        Llava::from_pretrained(&folder, &Default::default(), &device)?.0
    } else {
        llava::start::<Flex>(&config, &clip, args.seed, &device)
    };
    let encoder = Encoder::new(tokenizer, Template::LlavaHf, model.config().tokens_per_image());
    let mut looks = vec![llava::features(&model, &pixels, &device)?];
    let plain = Stage {
        name: "text",
        steps: text,
        batch: 16,
        rate: 3e-3,
        pictures: false,
        decoder: true,
        simple_first: true,
        descriptions: 2,
        yes: 0.5,
    };
    let pictures = Stage { name: "both", steps: both, batch: 14, rate: 1.5e-3, pictures: true, ..plain };
    let last = Stage { name: "noised", steps: noised, simple_first: false, descriptions: 3, ..pictures };
    // LLaVA-1.5's instruction data are mostly short answers, and say "yes" more often than "no". They leave it with poorer
    // descriptions and a leaning to "yes"; so does this stage.
    let short_answers = Stage { name: "short", steps: short, rate: 9e-4, descriptions: 0, yes: 0.8, ..last };
    let stages = [
        plain,
        Stage { name: "projector", steps: projector, pictures: true, decoder: false, ..plain },
        pictures,
        last,
        short_answers,
    ];
    for (index, stage) in stages.iter().enumerate().filter(|(_, stage)| stage.steps > 0) {
        if !stage.simple_first && looks.len() == 1 {
            for look in 0..2 {
                looks.push(llava::features(&model, &self::noised(&pixels, args.seed + look)?, &device)?);
            }
        }
        let mut progress = Progress::new(stage.name, stage.steps);
        let seed = args.seed + index as u64;
        model = llava::train(model, &lessons, &looks, &encoder, stage, seed, &device, |step, loss| {
            progress.show(step, &format!("loss {loss:.3}"));
        })?;
        save(&model, &json, &folder)?;
        model = Llava::from_pretrained(&folder, &Default::default(), &device)?.0;
    }
    Ok(())
}

/// The pictures, each with diffusion noise of some step.
fn noised(pixels: &[Vec<f32>], seed: u64) -> Result<Vec<Vec<f32>>, Failure> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut noised = pixels.to_vec();
    for (index, pixels) in noised.iter_mut().enumerate() {
        add_noise(pixels, seed, &index.to_string(), rng.random_range(200..800))?;
    }
    Ok(noised)
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
    let settings = json!({
        "image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": {"shortest_edge": SIDE},
        "do_center_crop": true, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3, "do_convert_rgb": true,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    });
    std::fs::write(folder.join("preprocessor_config.json"), serde_json::to_string_pretty(&settings)?)?;
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
            say!(
                "{} {}/{}: {what}, {:.0} s",
                self.name,
                step + 1,
                self.steps,
                self.begin.elapsed().as_secs_f64()
            );
        }
    }
}
