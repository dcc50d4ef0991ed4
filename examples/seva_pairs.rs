//! Makes preference pairs by SeVa's recipe from a model's own answers: clean picture against noised picture.
//!
//! `cargo run --example seva_pairs -- --count 20` tries it on drawn scenes; the committed pairs were made by
//! `cargo run --release --example seva_pairs -- --out examples/assets`. `--questions` asks about pictures of your own.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aspo_data::read::read_conversations;
use aspo_data::seva::{
    GenerateOptions, Newlines, OnCut, Progress, Provenance, Request, check_output, generate,
};
use aspo_data::{Encoder, ImageLoader, OnFault, Pair, Template, Tokenizer};
use aspo_examples::answer::{Asked, replies};
use aspo_examples::backend::{Device, OnBackend, exit_on_error};
use aspo_examples::checkpoint::{check_processor, template};
use aspo_examples::pretrain::corpus::{INSTRUCTIONS, SHORT};
use aspo_examples::{Failure, note, out, say};
use aspo_models::{
    Architecture, InstructBlipConfig, LoadOptions, ModelConfig, OnArchitecture, PictureShape, Precision,
    Pretrained, VisionLanguageModel, on_architecture,
};
use aspo_scenes::{Split, questions, write};
use aspo_train::{folder_hash, processor, qformer_tokenizer};
use burn::tensor::backend::Backend;
use clap::{Parser, ValueEnum};
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

#[derive(Parser, Clone)]
#[command(about = "Make preference pairs by SeVa's recipe, on the scenes world or on pictures of your own")]
struct Args {
    /// Checkpoint folder of the answering model, LLaVA or InstructBLIP [default: the committed tiny LLaVA]
    #[arg(long)]
    model: Option<PathBuf>,
    /// How prompts are written [default: as the checkpoint's chat template says, else instruct_blip or llava_hf]
    #[arg(long)]
    template: Option<Template>,
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
    #[arg(long, default_value_t = 3200, value_parser = at_least_one)]
    count: usize,
    /// Of each drawn scene, also ask this many times whether some thing is there
    #[arg(long, default_value_t = 0, conflicts_with = "questions")]
    presence: usize,
    /// Rows and pictures that cannot be used
    #[arg(long, value_enum, default_value = "skip")]
    on_fault: Fault,
    /// Pairs with an answer that --max-new-tokens cuts: written with a mark, or left out
    #[arg(long, value_enum, default_value = "mark")]
    on_cut: Cut,
    /// Leave pictures as they are stored, whatever their orientation tag (EXIF) says
    #[arg(long)]
    ignore_orientation: bool,
    /// Step of the diffusion noise, 0 to 999; ASPO's is 500
    #[arg(long, default_value_t = 700)]
    noise_step: usize,
    /// Seed of noise and scenes
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 160, value_parser = at_least_one)]
    max_new_tokens: usize,
    /// Questions answered at a time [default: 64 with the committed model, else 8]
    #[arg(long, value_parser = at_least_one)]
    batch: Option<usize>,
    /// Precision of the weights [default: bf16 on cuda, else f32]
    #[arg(long, value_enum)]
    precision: Option<Weights>,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("use 1 or more".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Fault {
    /// End at the first
    Stop,
    /// Leave them out and count them
    Skip,
}

#[derive(Clone, Copy, ValueEnum)]
enum Cut {
    Mark,
    Drop,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    F32,
    Bf16,
    F16,
}

fn main() -> ExitCode {
    let args = Args::parse();
    exit_on_error(args.device.unwrap_or_default().run(Job(args)))
}

struct Job(Args);

impl OnBackend for Job {
    type Output = Result<ExitCode, Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let args = self.0;
        let assets = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("assets/llava");
        let folder = args.model.clone().unwrap_or(assets);
        check_processor(&folder)?;
        let template = match args.template {
            Some(template) => template,
            None => template(&folder)?.0,
        };
        on_architecture(&folder, Make::<B> { args: &args, folder: &folder, template, device })?
    }
}

struct Make<'a, B: Backend> {
    args: &'a Args,
    folder: &'a Path,
    template: Template,
    device: B::Device,
}

impl<B: Backend> OnArchitecture for Make<'_, B> {
    type Output = Result<ExitCode, Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        make::<B, A::Model<B>>(self.args, self.folder, self.template, self.device)
    }
}

fn make<B: Backend, M: Pretrained<B> + VisionLanguageModel<B>>(
    args: &Args,
    folder: &Path,
    template: Template,
    device: B::Device,
) -> Result<ExitCode, Failure> {
    let output = args.out.join("pairs.json");
    // All that can be refused is refused before weights are read.
    check_output(&output)?;
    let on_fault = match args.on_fault {
        Fault::Stop => OnFault::Stop,
        Fault::Skip => OnFault::Skip,
    };
    let mut left_out = 0;
    let (world, mut questions) = match (&args.questions, &args.images) {
        (Some(file), Some(images)) => {
            let (asked, faulty) = asked(file, args.count, on_fault)?;
            left_out = faulty;
            (images.clone(), asked)
        }
        _ => drawn(args.out.join("scenes"), args.seed, args.count, args.presence)?,
    };
    let cuda = args.device.unwrap_or_default().keeps_precision();
    let weights = args.precision.unwrap_or(if cuda { Weights::Bf16 } else { Weights::F32 });
    let precision = match weights {
        Weights::F32 => Precision::F32,
        Weights::Bf16 => Precision::Bf16,
        Weights::F16 => Precision::F16,
    };
    let (model, _) = M::from_pretrained(folder, &LoadOptions { precision, ..Default::default() }, &device)?;
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json"))?;
    let mut encoder =
        Encoder::new(tokenizer, template, model.tokens(&PictureShape::whole([model.image_size(); 2])));
    let mut longest = usize::MAX;
    if template == Template::InstructBlip {
        encoder.instruction = Some(qformer_tokenizer(folder)?);
        longest = InstructBlipConfig::load(folder)?.qformer_config.max_position_embeddings;
    }
    left_out += sift(&mut questions, on_fault, |pair| {
        encoder.encode_prompt(pair)?;
        if let Some(tokenizer) = &encoder.instruction {
            let found = tokenizer.encode(&pair.prompt, true)?.ids.len();
            if found > longest {
                return Err(
                    format!("question {:?}: {found} tokens, the Q-Former reads {longest}", pair.id).into()
                );
            }
        }
        Ok(())
    })?;
    let mut processor = processor(folder, model.image_size())?;
    processor.decode.exif_orientation = !args.ignore_orientation;
    let images = ImageLoader::new(&world, processor)?;
    let provenance = Provenance {
        model: folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned()),
        weights: folder_hash(folder)?,
        decoding: format!("greedy, {} new tokens, {weights:?}", args.max_new_tokens).to_lowercase(),
        template,
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
        replies(&model, &encoder, &asked, asked.len().max(1), args.max_new_tokens, &device)
            .map_err(|error| error.to_string())
    };
    let options = GenerateOptions {
        batch: args.batch.unwrap_or(if args.model.is_none() { 64 } else { 8 }),
        on_fault,
        on_cut: match args.on_cut {
            Cut::Mark => OnCut::Mark,
            Cut::Drop => OnCut::Drop,
        },
    };
    out::keep_on()?;
    let mut told = Instant::now();
    let done = generate(&questions, &output, &images, &provenance, &options, &mut reply, &mut |progress| {
        if progress.done == 0 || progress.finished || told.elapsed() > Duration::from_secs(5) {
            told = Instant::now();
            let Progress { done, questions, pairs, equal, .. } = progress;
            say!("{done} of {questions} questions, {pairs} pairs, {equal} equal");
        }
        if out::asked_to_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if !done.finished {
        if out::interrupted() {
            note!(
                "stopped: {} of {} questions are done, and their answers kept in {}.journal; the same command goes on",
                done.done,
                done.questions,
                output.display()
            );
            return Ok(ExitCode::from(out::INTERRUPTED_CODE as u8));
        }
        return Ok(ExitCode::SUCCESS);
    }
    tell(&done, left_out, &output, args);
    Ok(ExitCode::SUCCESS)
}

/// The account at the end. `left_out` rows and questions were never asked.
fn tell(done: &Progress, left_out: usize, output: &Path, args: &Args) {
    if done.resumed + done.faulty == done.questions {
        say!("nothing to ask: all answers were there already");
    } else if done.resumed > 0 {
        say!("{} answers were there already", done.resumed);
    }
    say!("{} pairs in {}; {} equal answers dropped", done.pairs, output.display(), done.equal);
    if done.empty > 0 {
        say!("{} pairs with an empty answer dropped", done.empty);
    }
    if done.cut > 0 {
        let what = match args.on_cut {
            Cut::Mark => "are marked `cut`, drop them with --on-cut drop",
            Cut::Drop => "were dropped",
        };
        say!(
            "{} pairs have an answer that ends in mid-sentence after --max-new-tokens {}: they {what}, or raise it",
            done.cut,
            args.max_new_tokens
        );
    }
    done.faults.iter().for_each(|fault| say!("left out: {fault}"));
    if done.faulty + left_out > 0 {
        say!("{} of {} questions could not be used", done.faulty + left_out, done.questions + left_out);
    }
}

/// Leaves out, with a line each, the questions that are found wanting, and tells how many; or ends at the first.
fn sift(
    questions: &mut Vec<Pair>,
    on_fault: OnFault,
    check: impl Fn(&Pair) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let count = questions.len();
    let mut sound = Vec::with_capacity(count);
    for question in questions.drain(..) {
        match check(&question) {
            Ok(()) => sound.push(question),
            Err(error) if on_fault == OnFault::Skip => note!("left out: {error}"),
            Err(error) => return Err(error),
        }
    }
    *questions = sound;
    Ok(count - questions.len())
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

/// The first question of each of the first rows of a file of LLaVA's instructions, and how many rows were left out.
fn asked(file: &Path, count: usize, on_fault: OnFault) -> Result<(Vec<Pair>, usize), Failure> {
    let (mut asked, mut left_out) = (Vec::new(), 0);
    for row in read_conversations(file)?.take(count) {
        match row {
            Ok(row) => asked.extend(row.question(0)),
            Err(error) if on_fault == OnFault::Skip && error.is_one_row() => {
                note!("left out: {error}");
                left_out += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
    match asked.is_empty() {
        true => {
            Err(format!("option `questions`: {} holds no question that can be asked", file.display()).into())
        }
        false => Ok((asked, left_out)),
    }
}
