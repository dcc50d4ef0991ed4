//! Makes preference pairs by SeVa's recipe from a model's own answers: clean picture against noised picture.
//!
//! `cargo run --example seva_pairs -- --count 20` tries it on drawn scenes; the committed pairs were made by
//! `cargo run --release --example seva_pairs -- --batch 64 --out examples/assets`. With `--questions` and `--images` it asks about
//! pictures of your own, as `aspo pairs` does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use aspo_cli::Failure;
use aspo_cli::backend::exit_on_error;
use aspo_cli::pairs::{PairOptions, Questions, asked, make};
use aspo_data::Pair;
use aspo_examples::pretrain::corpus::{INSTRUCTIONS, SHORT};
use aspo_scenes::{Split, questions, write};
use clap::Parser;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Parser)]
#[command(
    about = "Make preference pairs by SeVa's recipe on drawn scenes, which are written to `scenes/` beside them"
)]
struct Args {
    /// Checkpoint folder of the answering model [default: the committed tiny LLaVA]
    #[arg(long)]
    model: Option<PathBuf>,
    /// A file of LLaVA's instructions, of each of which the first question is asked [default: descriptions of drawn scenes]
    #[arg(long, requires = "images")]
    questions: Option<PathBuf>,
    /// Folder that the image paths of --questions are relative to
    #[arg(long, requires = "questions")]
    images: Option<PathBuf>,
    /// Of each scene, also ask this many times whether some thing is there
    #[arg(long, default_value_t = 0)]
    presence: usize,
    #[command(flatten)]
    options: PairOptions,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let model = args.model.unwrap_or(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/llava"));
    let options = &args.options;
    exit_on_error(make(&model, options, |on_fault| match (&args.questions, args.images) {
        (Some(questions), Some(images)) => asked(questions, images, options.count, on_fault),
        _ => drawn(options, args.presence),
    }))
}

/// Scenes of the split `pairs`; of each a description is asked for, and `presence` times whether some thing is there.
fn drawn(options: &PairOptions, presence: usize) -> Result<Questions, Failure> {
    let (images, seed) = (options.out.join("scenes"), options.seed);
    let mut pairs = Vec::new();
    for (index, written) in write(&images, seed, Split::Pairs, options.count)?.into_iter().enumerate() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_add(index as u64));
        let about: Vec<String> = questions(&written.scene, index as u64)
            .into_iter()
            .filter(|question| matches!(question.answer.as_str(), "Yes" | "No"))
            .map(|question| question.question + SHORT)
            .collect();
        let drawn = about.choose_multiple(&mut rng, presence).cloned();
        let prompts = std::iter::once(INSTRUCTIONS[index % INSTRUCTIONS.len()].to_owned()).chain(drawn);
        for (number, prompt) in prompts.enumerate() {
            let id = if number == 0 { index.to_string() } else { format!("{index}-{number}") };
            pairs.push(Pair::new(id, prompt, "", "").with_image(written.image.as_str()));
        }
    }
    Ok(Questions { images, pairs, left_out: 0 })
}
