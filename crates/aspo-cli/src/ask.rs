//! A model's answers to a benchmark's questions.

use std::path::{Path, PathBuf};

use aspo_data::{Encoder, Fit, ImageLoader, ImageProcessor, ImageSource, Pixels, Template};
use aspo_eval::ask::partial;
use aspo_eval::{Answer, AnswerError, Answers, Benchmark, Image, Question, Said, Settings, answered, ask};
use aspo_models::{
    Architecture, LoadOptions, OnArchitecture, Precision, Pretrained, VisionLanguageModel, lora,
    on_architecture,
};
use aspo_train::{HandOut, Ranks, folder_hash, processor};
use burn::tensor::backend::Backend;
use clap::{Args, ValueEnum};

use crate::answer::{Asked, encoder, replies};
use crate::backend::{Device, OnBackend};
use crate::checkpoint::{Known, asked_by, check_processor, is_instruct_blip, run_name};
use crate::together::own_device;
use crate::{Failure, note, out};

/// A model on this machine that is asked.
#[derive(Args)]
pub struct ModelArgs {
    /// Where its images are, if not where it publishes them.
    #[arg(long)]
    pub(crate) images: Option<PathBuf>,
    /// A Hugging Face folder of a vision-language model, to answer the questions.
    #[arg(long, requires = "out")]
    pub(crate) model: Option<PathBuf>,
    /// A PEFT adapter for the model.
    #[arg(long, requires = "model")]
    pub(crate) adapter: Option<PathBuf>,
    /// Where the model's answers are written. A run that was stopped goes on there, a finished one is not asked again.
    #[arg(long, requires = "model")]
    pub(crate) out: Option<PathBuf>,
    /// How the question is wrapped [default: as the adapter was trained, else by the model's chat template].
    #[arg(long, requires = "model")]
    pub(crate) template: Option<Template>,
    /// Leave pictures as they are stored, whatever their orientation tag (EXIF) says.
    #[arg(long)]
    pub(crate) ignore_orientation: bool,
    /// How pictures become square [default: as in training, by the model's processor file].
    #[arg(long, value_enum, requires = "model")]
    pub(crate) fit: Option<Square>,
    /// Questions answered at once.
    #[arg(long, default_value_t = 8, requires = "model")]
    pub(crate) batch: usize,
    /// The model's name in answers and tables [default: the one the files tell, or the folder of the run or model].
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Backend of the model, among those compiled in.
    #[arg(long, requires = "model")]
    pub(crate) device: Option<Device>,
}

/// How a picture becomes square.
#[derive(Clone, Copy, ValueEnum)]
pub enum Square {
    /// LLaVA's own way: set on a square of the mean colour.
    Pad,
    /// The way of `llava-hf`: the centre.
    Crop,
    /// Both sides resized.
    Squash,
}

/// Has a model answer every question, and writes the answers to `out`. What can be refused is refused before weights are
/// read.
pub(crate) fn answer_with_model(
    args: &ModelArgs,
    benchmark: Benchmark,
    data: &Path,
    folder: &Path,
    out: &Path,
    ranks: &Ranks,
) -> Result<Option<Answers>, Failure> {
    let questions = benchmark.questions(data, args.images.as_deref())?;
    let is_missing = |image: &&Image| matches!(image, Image::Path(path) if !path.is_file());
    let missing: Vec<&Image> = questions.iter().filter_map(|q| q.image.as_ref()).filter(is_missing).collect();
    if let Some(Image::Path(first)) = missing.first() {
        let (missing, all) = (missing.len(), questions.len());
        let first = first.display();
        return Err(format!(
            "{missing} of {all} pictures are not there, the first is {first}; give --images"
        )
        .into());
    }
    let asking = Asking::new(args, benchmark, folder, &questions, out, ranks)?;
    let done = ranks.of_first(answered(out, &questions, &asking.name, &asking.settings)?);
    let answers = if done == questions.len() {
        note!("all {done} questions are answered in {}: not asked again", out.display());
        ranks.is_first().then(|| Answers::read(out)).transpose()?
    } else {
        let device = args.device.unwrap_or_default();
        device.check()?;
        device.run(asking)?
    };
    if let Some(cut @ 1..) = answers.as_ref().map(Answers::cut) {
        let (all, most) = (questions.len(), benchmark.max_new_tokens());
        note!("{cut} of {all} answers were cut at {most} tokens");
    }
    Ok(answers)
}

/// Questions to the model of a folder.
struct Asking<'a> {
    args: &'a ModelArgs,
    folder: &'a Path,
    questions: &'a [Question],
    out: &'a Path,
    name: String,
    template: Template,
    processor: ImageProcessor,
    precision: Precision,
    max_new_tokens: usize,
    settings: Settings,
    ranks: &'a Ranks,
}

impl<'a> Asking<'a> {
    fn new(
        args: &'a ModelArgs,
        benchmark: Benchmark,
        folder: &'a Path,
        questions: &'a [Question],
        out: &'a Path,
        ranks: &'a Ranks,
    ) -> Result<Self, Failure> {
        let known_model = Known::of(folder)?;
        let (template, known) = match args.template {
            Some(template) => (template, "as given".into()),
            None => asked_by(folder, args.adapter.as_deref())?,
        };
        if is_instruct_blip(folder)? != (template == Template::InstructBlip) {
            return Err(format!(
                "option `template`: {template} does not fit the model in {}",
                folder.display()
            )
            .into());
        }
        check_processor(folder)?;
        let mut processor = processor(folder, known_model.image_size)?;
        processor.decode.exif_orientation = !args.ignore_orientation;
        if let Some(square) = args.fit {
            if !processor.is_square() {
                let folder = folder.display();
                let remedy = "leave it out";
                return Err(
                    format!("option `fit`: the pictures of {folder} keep their shape; {remedy}").into()
                );
            }
            processor = processor.with_fit(match square {
                Square::Pad => Fit::Pad,
                Square::Crop => Fit::Crop,
                Square::Squash => Fit::Squash,
            });
        }
        let fit = format!("{:?}", processor.fit).to_lowercase();
        note!("template {template} ({known}), pictures: {fit}, {} pixels", processor.size);
        let keep = args.device.unwrap_or_default().keeps_precision();
        let precision = if keep { Precision::Keep } else { Precision::F32 };
        let max_new_tokens = benchmark.max_new_tokens();
        let mut settings = Settings::from([
            ("model".into(), folder_hash(folder)?),
            ("template".into(), template.to_string()),
            ("fit".into(), fit),
            ("pictures".into(), processor.rules()),
            ("precision".into(), if keep { "as stored" } else { "f32" }.into()),
            ("max_new_tokens".into(), max_new_tokens.to_string()),
        ]);
        if let Some(adapter) = &args.adapter {
            settings.insert("adapter".into(), folder_hash(adapter)?);
        }
        let name = match &args.name {
            Some(name) => name.clone(),
            None => run_name(args.adapter.as_deref().unwrap_or(folder))?,
        };
        Ok(Self {
            args,
            folder,
            questions,
            out,
            name,
            template,
            processor,
            precision,
            max_new_tokens,
            settings,
            ranks,
        })
    }

    fn ask<B: Backend, M: Pretrained<B> + VisionLanguageModel<B>>(
        self,
        device: B::Device,
    ) -> Result<Option<Answers>, Failure> {
        let Self { args, folder, questions, ranks, .. } = self;
        let options = LoadOptions { precision: self.precision, ..Default::default() };
        let (mut model, _) = M::from_pretrained(folder, &options, &device)?;
        if let Some(adapter) = &args.adapter {
            let (adapted, told) = lora::load_adapter(model, adapter)?;
            told.warnings.iter().for_each(|warning| note!("warning: {warning}"));
            model = adapted;
        }
        let encoder = encoder(&model, folder, self.template, &self.processor)?;
        let answerer = ModelAnswers {
            encoder,
            images: ImageLoader::new(".", self.processor)?,
            max_new_tokens: self.max_new_tokens,
            model,
            device,
        };
        let (count, mut kept) = (questions.len(), 0);
        out::keep_on()?;
        let asked = ranks.lead(
            |part| answerer.answer(part),
            |hand_out| {
                let mut shared =
                    Shared { name: self.name, settings: self.settings, batch: args.batch.max(1), hand_out };
                Ok(ask(&mut shared, questions, self.out, args.batch.max(1) * ranks.size(), |done| {
                    kept = done;
                    note!("{done} of {count} questions answered");
                })?)
            },
        );
        if out::interrupted() && asked.is_err() {
            let place = partial(self.out);
            note!(
                "stopped: {kept} of {count} answers are kept in {}; the same command goes on there",
                place.display()
            );
        }
        out::let_go();
        asked
    }
}

impl OnBackend for Asking<'_> {
    type Output = Result<Option<Answers>, Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let device = own_device::<B>(device, self.ranks)?;
        on_architecture(self.folder, AskOn::<B>(self, device))?
    }
}

/// Questions, on a device.
struct AskOn<'a, B: Backend>(Asking<'a>, B::Device);

impl<B: Backend> OnArchitecture for AskOn<'_, B> {
    type Output = Result<Option<Answers>, Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        self.0.ask::<B, A::Model<B>>(self.1)
    }
}

/// What a question asks: its id, its text and its picture.
type Part = Vec<(String, String, Option<Image>)>;

/// All processes behind the benchmarks' one interface.
struct Shared<'a, 'f> {
    name: String,
    settings: Settings,
    /// Questions that one of them answers at once.
    batch: usize,
    hand_out: &'a mut HandOut<'f, Part, Vec<Said>, Failure>,
}

impl Answer for Shared<'_, '_> {
    fn model_id(&self) -> String {
        self.name.clone()
    }

    fn settings(&self) -> Settings {
        self.settings.clone()
    }

    fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
        if out::interrupted() {
            return Err("stopped".into());
        }
        let one = |q: &Question| (q.id.to_string(), q.prompt.clone(), q.image.clone());
        let parts = batch.chunks(self.batch).map(|part| part.iter().map(one).collect());
        Ok((self.hand_out)(parts.collect())?.concat())
    }
}

/// A loaded model: greedy, one picture a question.
struct ModelAnswers<B: Backend, M> {
    model: M,
    encoder: Encoder,
    images: ImageLoader,
    max_new_tokens: usize,
    device: B::Device,
}

impl<B: Backend, M: VisionLanguageModel<B>> ModelAnswers<B, M> {
    fn answer(&self, part: Part) -> Result<Vec<Said>, Failure> {
        let pictures = part
            .iter()
            .map(|(id, _, image)| {
                let bytes = match image {
                    Some(Image::Path(path)) => {
                        std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?
                    }
                    Some(Image::Bytes(bytes)) => bytes.clone(),
                    None => return Ok(Vec::new()),
                };
                let place = || match image {
                    Some(Image::Path(path)) => path.display().to_string(),
                    _ => format!("picture of question {id}"),
                };
                let pixels = self.images.pixels(&ImageSource::from(bytes), true);
                Ok(vec![pixels.map_err(|error| format!("{}: {error}", place()))?])
            })
            .collect::<Result<Vec<Vec<Pixels>>, Failure>>()?;
        let asked: Vec<Asked> = part
            .iter()
            .zip(&pictures)
            .map(|((_, question, _), pictures)| Asked { question, pictures })
            .collect();
        let batch = asked.len().max(1);
        let said = replies(&self.model, &self.encoder, &asked, batch, self.max_new_tokens, &self.device)?;
        Ok(said.into_iter().map(|reply| Said { text: reply.text, cut: reply.cut }).collect())
    }
}
