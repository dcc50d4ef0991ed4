//! `aspo train` and `aspo plan`.

use std::path::Path;
use std::sync::Arc;

use aspo_data::Template;
use aspo_models::{Architecture, OnArchitecture, Pretrained, VisionLanguageModel, on_architecture};
use aspo_train::{
    Data, Finished, Output, Plan, Policy, Ranks, Report, Sight, TrainConfig, Trainer, check_ranks, human,
    peak_memory, read, score_on,
};
use burn::backend::Autodiff;
use burn::tensor::backend::Backend;

use crate::backend::OnBackend;
use crate::card;
use crate::checkpoint::{is_instruct_blip, template};
use crate::options::TrainArgs;
use crate::progress::{Progress, decoding, show_example};
use crate::report::{own_pictures, report};
use crate::together::{own_device, together};
use crate::{Failure, note, out, say};

/// Something that a program has around its trainings: of the model before, and beside it after. [`()`](unit) has nothing.
pub trait Around {
    /// Whether something would be added to a run that is finished and told in its report.
    fn is_wanting(&self, config: &TrainConfig) -> bool {
        let _ = config;
        false
    }

    /// Files in the output folder that a longer run makes again; what a shorter one has come to is kept under other names.
    fn files(&self) -> &'static [&'static str] {
        &[]
    }

    /// Before the first step, with the model that is to be trained.
    ///
    /// # Errors
    /// Whatever ends the run here.
    fn before<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        base: &M,
        data: &Data,
        config: &TrainConfig,
        device: &B::Device,
    ) -> Result<(), Failure> {
        let _ = (base, data, config, device);
        Ok(())
    }

    /// After the last step, with both models: what is found is added to the report.
    ///
    /// # Errors
    /// Whatever is told at the end of the run; its adapter is written.
    fn after<B: Backend, M: VisionLanguageModel<B>>(
        &mut self,
        [base, trained]: [&M; 2],
        data: &Data,
        config: &TrainConfig,
        device: &B::Device,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let _ = (base, trained, data, config, device, report);
        Ok(())
    }
}

impl Around for () {}

/// Trains as `args` say, or tells the plan of it.
///
/// # Errors
/// The first option, file, row, picture or number that is not as it should be, by name.
pub fn run(args: TrainArgs, around: &mut impl Around) -> Result<(), Failure> {
    let config = args.over(args.base("aspo")?, "aspo")?;
    run_config(args, config, around)
}

/// The same with options that were put together otherwise.
///
/// # Errors
/// As [`run`].
pub fn run_config(args: TrainArgs, config: TrainConfig, around: &mut impl Around) -> Result<(), Failure> {
    together(|ranks| on_rank(args, config, around, ranks))
}

fn on_rank(
    args: TrainArgs,
    config: TrainConfig,
    around: &mut impl Around,
    ranks: &Ranks,
) -> Result<(), Failure> {
    let device = args.device.unwrap_or_default();
    // What can be refused is refused before anything is computed.
    device.check()?;
    check_ranks(&config, ranks.size())?;
    let output = (!args.plan).then(|| Output::open_on(ranks, &config, args.resume)).transpose()?;
    device.run(Job { args, config, output, around, ranks })
}

struct Job<'a, A> {
    args: TrainArgs,
    config: TrainConfig,
    output: Option<Output>,
    around: &'a mut A,
    ranks: &'a Ranks,
}

impl<A: Around> OnBackend for Job<'_, A> {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        let folder = &self.config.model;
        if is_instruct_blip(folder)? && self.config.template != Template::InstructBlip {
            let (found, folder) = (self.config.template, folder.display());
            let told =
                format!("option `template`: {found}, but {folder} is an InstructBLIP; use instruct_blip");
            return Err(told.into());
        }
        let template = self.config.template;
        let own = self::template(folder).is_ok_and(|(own, _)| own == Template::Chat);
        if own && template != Template::Chat {
            let folder = folder.display();
            note!(
                "warning: template {template}, but {folder} was taught by a chat template of its own: `chat`"
            );
        }
        let device = own_device::<B>(device, self.ranks)?;
        on_architecture(folder.clone(), OnDevice::<B, A>(self, device))?
    }
}

struct OnDevice<'a, B: Backend, A>(Job<'a, A>, B::Device);

impl<B: Backend, R: Around> OnArchitecture for OnDevice<'_, B, R> {
    type Output = Result<(), Failure>;

    fn run<A: Architecture>(self, shape: A) -> Self::Output {
        let vocabulary = shape.text_config().vocab_size;
        self.0.train::<B, A::Trained<B>>(&shape, vocabulary, self.1)
    }
}

impl<A: Around> Job<'_, A> {
    fn train<B: Backend, M: Policy<B>>(
        self,
        shape: &<M as Pretrained<Autodiff<B>>>::Config,
        vocabulary: usize,
        device: B::Device,
    ) -> Result<(), Failure> {
        #[cfg_attr(not(feature = "tui"), expect(unused_variables))]
        let Job { args, config, output, around, ranks } = self;
        // Nothing is allocated before it is used.
        let empty = M::from_config(shape, &device);
        let mut data = read(&config, &Sight::of(&config, &empty)?)?;
        check_vocabulary(&data, &config, vocabulary, empty.image_token() as usize)?;
        say!("{} from {}", config.loss_type.join(" + "), config.model.display());
        let tell = |data: &Data| data.account.lines(config.max_length).iter().for_each(|line| say!("{line}"));
        let Some(output) = output else {
            tell(&data);
            say!("plan\n{}\n", Plan::new::<Autodiff<B>, M>(&config, shape, &data.pairs, &device)?);
            return Ok(());
        };
        data.decode_pictures(&config, decoding())?;
        tell(&data);
        let report_file = config.output_dir.join("report.html");
        if is_done(&config, &data, &output, around)? {
            say!("report   {}", report_file.display());
            return Ok(());
        }
        let plan = Plan::new::<Autodiff<B>, M>(&config, shape, &data.pairs, &device)?;
        say!("plan\n{plan}\n");
        if config.clip.is_some() {
            // Plain DPO has no use for the scores, but its report shows them.
            let rejected = config.objective()?.needs_rejected_similarity();
            score_on::<B>(ranks, &config, &mut data, rejected, &device)?;
        }
        show_example(&data, &config)?;

        let (base, _) = M::from_pretrained(&config.model, &config.load_options(), &device)?;
        let plain = base.valid();
        if ranks.is_first() {
            around.before(&plain, &data, &config, &device)?;
        }
        #[cfg_attr(not(feature = "tui"), expect(unused_mut))]
        let mut progress = Progress::default();
        #[cfg(feature = "tui")]
        if args.tui {
            progress.open_dashboard();
        }
        let data = Arc::new(data);
        out::keep_on()?;
        let finished = Trainer::<B, M>::new(config.clone(), base, data.clone(), output, device.clone())
            .with_ranks(ranks)
            .with_callback(progress)
            .train()?;
        if finished.stopped() {
            // On standard error: standard output may be what was closed.
            let (step, total, kept) = (finished.steps, finished.total, finished.adapter.display());
            let folder = config.output_dir.display();
            note!("stopped after step {step} of {total}, kept in {kept}; go on with --out {folder} --resume");
            return Ok(());
        }
        out::let_go();
        if !ranks.is_first() {
            return Ok(());
        }
        let trained = finished.model.valid();
        tell_end(&finished, &plan);
        let mut report = report(&config, &plan, &data.account, finished.steps, finished.seconds)?;
        around.after([&plain, &trained], &data, &config, &device, &mut report)?;
        let own = own_pictures(&config, &data, &trained, &device)?;
        report.pictures.push(("Pairs of the training, their sentences by weight".into(), own));
        report.keep(&config.output_dir)?;
        report.write(&report_file)?;
        card::write(&finished.adapter, &config, &report)?;
        say!("\nadapter  {}", finished.adapter.display());
        say!("metrics  {}", config.output_dir.join("metrics.jsonl").display());
        say!("report   {}", report_file.display());
        Ok(())
    }
}

/// Whether nothing is left to do in the folder; else what is there is told, and moved aside if it will be made again.
fn is_done(
    config: &TrainConfig,
    data: &Data,
    output: &Output,
    around: &impl Around,
) -> Result<bool, Failure> {
    let longer = output.accept(config, data)?;
    output.notes().iter().for_each(|text| note!("warning: {text}"));
    let Some((checkpoint, step)) = output.resumed() else { return Ok(false) };
    let total = config.total_steps(data.pairs.len());
    let report = config.output_dir.join("report.html");
    if output.is_finished(config, data) && report.exists() && !around.is_wanting(config) {
        let checkpoint = checkpoint.display();
        say!("{checkpoint} is the end of this run, step {step} of {total}: nothing is left to do");
        return Ok(true);
    }
    say!("going on from {}, step {step} of {total}", checkpoint.display());
    longer.iter().for_each(|text| say!("{text}"));
    if step < total {
        for file in ["report.html", "report.json"].iter().chain(around.files()) {
            keep(&config.output_dir.join(file), step)?;
        }
    }
    Ok(false)
}

/// Gives what a shorter run has come to another name.
fn keep(file: &Path, step: usize) -> Result<(), Failure> {
    if file.exists() {
        let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let (name, kind) = (part(file.file_stem()), part(file.extension()));
        let kept = file.with_file_name(format!("{name}-{step:06}.{kind}"));
        std::fs::rename(file, &kept)?;
        say!("the {name} of the {step} steps so far is now {}", kept.display());
    }
    Ok(())
}

fn tell_end<M>(finished: &Finished<M>, plan: &Plan) {
    say!("\ntrained {} steps in {:.0} s", finished.steps, finished.seconds);
    if let Some(peak) = peak_memory() {
        let planned = human(plan.total_bytes());
        say!("memory: {planned} planned for training, {} at the peak of the whole process", human(peak));
    }
}

/// A tokenizer of another model writes ids that this one has no rows for, or another one where a picture goes.
fn check_vocabulary(
    data: &Data,
    config: &TrainConfig,
    vocabulary: usize,
    image: usize,
) -> Result<(), Failure> {
    let refuse = |found: String| {
        let model = config.model.display();
        let remedy = format!("give the tokenizer.json that belongs to {model}");
        Err(format!("option `tokenizer`: {found}; {remedy}").into())
    };
    let own = data.encoder.tokenizer.image()? as usize;
    if own != image {
        return refuse(format!("its <image> is token {own}, the model's is {image}"));
    }
    let held_out = config.eval_data.as_ref().unwrap_or(&config.data);
    for (set, sources) in [(&data.pairs, &config.data), (&data.held_out, held_out)] {
        // The image token may lie outside the table: its row is never looked at.
        let highest = set.summary().highest;
        if let Some((id, pair)) =
            highest.iter().find(|(id, _)| *id as usize >= vocabulary && *id as usize != image)
        {
            return refuse(format!(
                "pair {pair:?} of {sources} has the token id {id}, but the model has {vocabulary}"
            ));
        }
    }
    Ok(())
}
