//! Makes preference pairs by SeVa's recipe from a model's own answers: clean picture against noised picture.
//!
//! `cargo run --example seva_pairs -- --count 20` tries it on drawn scenes; the committed pairs were made by
//! `cargo run --release --example seva_pairs -- --out examples/assets`. `--questions` asks about pictures of your own.

use std::path::{Path, PathBuf};

use aspo_data::read::read_conversations;
use aspo_data::scenes::{Split, questions, write};
use aspo_data::seva::{GenerateOptions, Newlines, Provenance, Request, generate};
use aspo_data::{Encoder, ImageLoader, Pair, Template, Tokenizer};
use aspo_examples::Failure;
use aspo_examples::answer::{Asked, answer};
use aspo_examples::backend::{Device, OnBackend, exit_on_error};
use aspo_examples::pretrain::corpus::{INSTRUCTIONS, SHORT};
use aspo_models::{Llava, LoadOptions, Pretrained, VisionLanguageModel};
use aspo_train::processor;
use burn::tensor::backend::Backend;
use clap::Parser;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Parser, Clone)]
#[command(about = "Make preference pairs by SeVa's recipe, on the scenes world or on pictures of your own")]
struct Args {
    /// Checkpoint folder of the answering model [default: the committed tiny LLaVA]
    #[arg(long)]
    model: Option<PathBuf>,
    /// How prompts are written: llava_hf, vicuna_v1, llava_llama2 or plain
    #[arg(long, default_value_t = Template::LlavaHf)]
    template: Template,
    /// A file of LLaVA's instructions: the first question of each row is asked [default: scenes are drawn]
    #[arg(long, requires = "images")]
    questions: Option<PathBuf>,
    /// Folder that the image paths of `--questions` are relative to
    #[arg(long, requires = "questions")]
    images: Option<PathBuf>,
    /// Where `pairs.json` is written, and `scenes/` if they are drawn
    #[arg(long, default_value = "out/seva_pairs")]
    out: PathBuf,
    /// Questions at most: scenes of the split `pairs`, or the first rows of `--questions`
    #[arg(long, default_value_t = 3200)]
    count: usize,
    /// Of each drawn scene, also ask this many times whether some thing is there
    #[arg(long, default_value_t = 0, conflicts_with = "questions")]
    presence: usize,
    /// Step of the diffusion noise, 0 to 999; ASPO's is 500
    #[arg(long, default_value_t = 700)]
    noise_step: usize,
    /// Seed of noise and scenes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 160)]
    max_new_tokens: usize,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

fn main() {
    let args = Args::parse();
    exit_on_error(args.device.unwrap_or_default().run(Job(args)));
}

struct Job(Args);

impl OnBackend for Job {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let args = self.0;
        let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/llava");
        let folder = args.model.unwrap_or(assets);
        let model = Llava::<B>::from_pretrained(&folder, &LoadOptions::default(), &device)?.0;
        let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"))?;
        let encoder = Encoder::new(tokenizer, args.template, model.tokens_per_image());
        let (world, questions) = match (&args.questions, args.images) {
            (Some(file), Some(images)) => (images, asked(file, args.count)?),
            _ => drawn(args.out.join("scenes"), args.seed, args.count, args.presence)?,
        };
        let images = ImageLoader::new(&world, processor(&folder, model.image_size())?)?;
        let name = folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
        let provenance = Provenance {
            model: format!("{name}, greedy, {} new tokens", args.max_new_tokens),
            template: args.template,
            noise_step: args.noise_step,
            seed: args.seed,
            newlines: Newlines::Keep,
        };
        let mut reply = |requests: &[Request]| {
            let asked: Vec<Asked> = requests
                .iter()
                .map(|request| Asked {
                    question: &request.pair.prompt,
                    pixels: request.pixels.first().map(Vec::as_slice),
                })
                .collect();
            answer(&model, &encoder, &asked, asked.len().max(1), args.max_new_tokens, &device)
                .map_err(|error| error.to_string())
        };
        let options = GenerateOptions { batch: 64, ..GenerateOptions::default() };
        let output = args.out.join("pairs.json");
        let done =
            generate(&questions, &output, &images, &provenance, &options, &mut reply, &mut |progress| {
                println!(
                    "{} of {} questions, {} pairs, {} equal",
                    progress.done, progress.questions, progress.pairs, progress.equal
                );
            })?;
        println!("{} pairs in {}; {} equal answers dropped", done.pairs, output.display(), done.equal);
        Ok(())
    }
}

/// Scenes; of each a description is asked for, and `presence` times whether some thing is there.
fn drawn(world: PathBuf, seed: u64, count: usize, presence: usize) -> Result<(PathBuf, Vec<Pair>), Failure> {
    let mut asked = Vec::new();
    for (index, written) in write(&world, seed, Split::Pairs, count)?.into_iter().enumerate() {
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
            asked.push(Pair::new(id, prompt, "", "").with_image(written.image.as_str()));
        }
    }
    Ok((world, asked))
}

/// The first question of each of the first rows of a file of LLaVA's instructions.
fn asked(file: &Path, count: usize) -> Result<Vec<Pair>, Failure> {
    read_conversations(file)?
        .take(count)
        .filter_map(|row| row.map(|row| row.question(0)).transpose())
        .map(|question| Ok(question?))
        .collect()
}
