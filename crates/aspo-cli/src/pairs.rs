//! `aspo pairs`: preference pairs by SeVa's recipe from a model's own answers, clean picture against noised picture.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aspo_data::read::read_conversations;
use aspo_data::seva::{
    GenerateOptions, Newlines, OnCut, Progress, Provenance, Request, check_output, generate,
};
use aspo_data::{ImageLoader, ImageShape, OnFault, Pair, Pixels, Template};
use aspo_models::{
    Architecture, InstructBlipConfig, LoadOptions, ModelConfig, OnArchitecture, Precision, Pretrained,
    VisionLanguageModel, on_architecture,
};
use aspo_train::{Ranks, folder_hash, processor};
use burn::tensor::backend::Backend;
use clap::{Args, Parser, ValueEnum};

use crate::answer::{Asked, encoder, replies};
use crate::backend::{Device, OnBackend};
use crate::checkpoint::{check_processor, template};
use crate::together::{own_device, together};
use crate::{Failure, note, out, say};

/// Makes preference pairs by SeVa's recipe: a model's answer about each picture is chosen, its answer about the noised
/// picture rejected.
#[derive(Parser)]
pub struct PairsArgs {
    /// Checkpoint folder of the answering model
    #[arg(long)]
    model: PathBuf,
    /// A file of LLaVA's instructions: the first question of each row is asked
    #[arg(long)]
    questions: PathBuf,
    /// Folder that the image paths of `--questions` are relative to
    #[arg(long)]
    images: PathBuf,
    #[command(flatten)]
    options: PairOptions,
}

/// Options of any questions.
#[derive(Args, Clone)]
pub struct PairOptions {
    /// How prompts are written [default: as the checkpoint's chat template says, else instruct_blip or llava_hf]
    #[arg(long)]
    pub template: Option<Template>,
    /// Where `pairs.json` is written
    #[arg(long, alias = "output-dir", default_value = "out/seva_pairs")]
    pub out: PathBuf,
    /// Questions at most
    #[arg(long, default_value_t = 3200, value_parser = at_least_one)]
    pub count: usize,
    /// Rows and pictures that cannot be used
    #[arg(long, value_enum, default_value = "skip")]
    pub on_fault: Fault,
    /// Pairs with an answer that --max-new-tokens cuts
    #[arg(long, value_enum, default_value = "mark")]
    pub on_cut: Cut,
    /// Leave pictures as they are stored, whatever their orientation tag (EXIF) says
    #[arg(long)]
    pub ignore_orientation: bool,
    /// Step of the diffusion noise, 0 to 999; ASPO's is 500
    #[arg(long, default_value_t = 700)]
    pub noise_step: usize,
    /// Seed of the noise
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 160, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Questions answered at a time
    #[arg(long, value_parser = at_least_one, default_value_t = 8)]
    pub batch: usize,
    /// Precision of the weights [default: bf16 on cuda, else f32]
    #[arg(long, value_enum)]
    pub precision: Option<Weights>,
    /// Backend, among those compiled in
    #[arg(long)]
    pub device: Option<Device>,
}

/// A number above 0.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("use 1 or more".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

/// What to do about rows and pictures that cannot be used.
#[derive(Clone, Copy, ValueEnum)]
pub enum Fault {
    /// End at the first
    Stop,
    /// Leave them out and count them
    Skip,
}

/// What to do about pairs with a cut answer.
#[derive(Clone, Copy, ValueEnum)]
pub enum Cut {
    /// Write them with a mark
    Mark,
    /// Leave them out
    Drop,
}

/// Precision of the weights.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Weights {
    /// 32 bits
    F32,
    /// bfloat16
    Bf16,
    /// Half precision
    F16,
}

/// What is asked.
pub struct Questions {
    /// Folder of the pictures.
    pub images: PathBuf,
    /// A pair each, without answers.
    pub pairs: Vec<Pair>,
    /// Rows that could not be asked.
    pub left_out: usize,
}

/// Asks the questions of a file.
///
/// # Errors
/// As [`make`].
pub fn run(args: &PairsArgs) -> Result<ExitCode, Failure> {
    let PairsArgs { model, questions, images, options } = args;
    make(model, options, |on_fault| asked(questions, images.clone(), options.count, on_fault))
}

/// Asks `questions`, which are made once the options have been found sound.
///
/// # Errors
/// An option that cannot be honoured; a model, question or picture that cannot be had; a full disk.
pub fn make(
    model: &Path,
    options: &PairOptions,
    questions: impl FnOnce(OnFault) -> Result<Questions, Failure>,
) -> Result<ExitCode, Failure> {
    check_processor(model)?;
    let template = match options.template {
        Some(template) => template,
        None => template(model)?.0,
    };
    check_output(&options.out.join(FILE))?;
    let on_fault = match options.on_fault {
        Fault::Stop => OnFault::Stop,
        Fault::Skip => OnFault::Skip,
    };
    let device = options.device.unwrap_or_default();
    device.check()?;
    together(|ranks| {
        let questions = questions(on_fault)?;
        device.run(Make { options, folder: model, template, on_fault, questions, ranks })
    })
}

/// Name of the file of pairs.
const FILE: &str = "pairs.json";

struct Make<'a> {
    options: &'a PairOptions,
    folder: &'a Path,
    template: Template,
    on_fault: OnFault,
    questions: Questions,
    ranks: &'a Ranks,
}

impl OnBackend for Make<'_> {
    type Output = Result<ExitCode, Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let device = own_device::<B>(device, self.ranks)?;
        on_architecture(self.folder, MakeOn::<B>(self, device))?
    }
}

struct MakeOn<'a, B: Backend>(Make<'a>, B::Device);

impl<B: Backend> OnArchitecture for MakeOn<'_, B> {
    type Output = Result<ExitCode, Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        self.0.make::<B, A::Model<B>>(self.1)
    }
}

impl Make<'_> {
    fn make<B: Backend, M: Pretrained<B> + VisionLanguageModel<B>>(
        self,
        device: B::Device,
    ) -> Result<ExitCode, Failure> {
        let Self { options, folder, template, on_fault, questions, ranks } = self;
        let Questions { images: world, pairs: mut questions, mut left_out } = questions;
        let output = options.out.join(FILE);
        let cuda = options.device.unwrap_or_default().keeps_precision();
        let weights = options.precision.unwrap_or(if cuda { Weights::Bf16 } else { Weights::F32 });
        let precision = match weights {
            Weights::F32 => Precision::F32,
            Weights::Bf16 => Precision::Bf16,
            Weights::F16 => Precision::F16,
        };
        let (model, _) =
            M::from_pretrained(folder, &LoadOptions { precision, ..Default::default() }, &device)?;
        let mut processor = processor(folder, model.image_size())?;
        processor.decode.exif_orientation = !options.ignore_orientation;
        let encoder = encoder(&model, folder, template, &processor)?;
        let mut longest = usize::MAX;
        if template == Template::InstructBlip {
            longest = InstructBlipConfig::load(folder)?.qformer_config.max_position_embeddings;
        }
        let images = ImageLoader::new(&world, processor)?;
        // Of pictures that keep their shape a token each will do: whether the text can be encoded is what is asked.
        let square = ImageShape { tile: [1, 1], grid: [0, 0], size: [1, 1] };
        left_out += sift(&mut questions, on_fault, |pair| {
            let shapes: Vec<_> = pair.images.iter().map(|_| square).collect();
            encoder.encode_prompt_of(pair, &shapes)?;
            if let Some(tokenizer) = &encoder.instruction {
                let found = tokenizer.encode(&pair.prompt, true)?.ids.len();
                if found > longest {
                    return Err(format!(
                        "question {:?}: {found} tokens, the Q-Former reads {longest}",
                        pair.id
                    )
                    .into());
                }
            }
            Ok(())
        })?;
        let provenance = Provenance {
            model: folder.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned()),
            weights: folder_hash(folder)?,
            decoding: format!("greedy, {} new tokens, {weights:?}", options.max_new_tokens).to_lowercase(),
            template,
            noise_step: options.noise_step,
            seed: options.seed,
            newlines: Newlines::Keep,
        };
        let reply = |part: Vec<(String, Vec<Pixels>)>| {
            let asked = part.iter().map(|(question, pictures)| Asked { question, pictures });
            let asked: Vec<Asked> = asked.collect();
            replies(&model, &encoder, &asked, asked.len().max(1), options.max_new_tokens, &device)
        };
        let asking = GenerateOptions {
            batch: options.batch * ranks.size(),
            on_fault,
            on_cut: match options.on_cut {
                Cut::Mark => OnCut::Mark,
                Cut::Drop => OnCut::Drop,
            },
        };
        out::keep_on()?;
        let mut told = Instant::now();
        let done = ranks.lead(reply, |hand_out| {
            let mut answer = |requests: &[Request]| {
                let request = |one: &Request| (one.pair.prompt.clone(), one.pixels.clone());
                let parts = requests.chunks(options.batch).map(|part| part.iter().map(request).collect());
                let done = hand_out(parts.collect());
                done.map(|replies| replies.concat()).map_err(|error| error.to_string())
            };
            Ok(generate(&questions, &output, &images, &provenance, &asking, &mut answer, &mut |progress| {
                if progress.done == 0 || progress.finished || told.elapsed() > Duration::from_secs(5) {
                    told = Instant::now();
                    let Progress { done, questions, pairs, equal, .. } = progress;
                    say!("{done} of {questions} questions, {pairs} pairs, {equal} equal");
                }
                if out::asked_to_stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?)
        })?;
        let Some(done) = done else { return Ok(ExitCode::SUCCESS) };
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
        tell(&done, left_out, &output, options);
        Ok(ExitCode::SUCCESS)
    }
}

/// The account at the end. `left_out` rows and questions were never asked.
fn tell(done: &Progress, left_out: usize, output: &Path, options: &PairOptions) {
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
        let what = match options.on_cut {
            Cut::Mark => "are marked `cut`, drop them with --on-cut drop",
            Cut::Drop => "were dropped",
        };
        say!(
            "{} pairs have an answer that ends in mid-sentence after --max-new-tokens {}: they {what}, or raise it",
            done.cut,
            options.max_new_tokens
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

/// The first question of each of the first `count` rows of a file of LLaVA's instructions, whose pictures are in `images`.
///
/// # Errors
/// A file that cannot be read, or holds no question; a faulty row, unless such are skipped.
pub fn asked(file: &Path, images: PathBuf, count: usize, on_fault: OnFault) -> Result<Questions, Failure> {
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
        false => Ok(Questions { images, pairs: asked, left_out }),
    }
}
