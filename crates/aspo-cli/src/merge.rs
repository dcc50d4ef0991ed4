//! `aspo merge`: a model with its adapter merged in, as a Hugging Face folder.

use std::path::{Path, PathBuf};

use aspo_models::lora::{load_adapter, merge, without_adapters};
use aspo_models::{
    Architecture, LoadOptions, OnArchitecture, Precision, Pretrained, SaveOptions, on_architecture,
};
use burn::tensor::backend::Backend;
use clap::{Parser, ValueEnum};

use crate::backend::{Device, OnBackend};
use crate::{Failure, note, say};

/// Writes a model with its adapter merged in, as a folder that transformers and this program load.
#[derive(Parser)]
pub struct MergeArgs {
    /// Checkpoint folder of the base model
    #[arg(long)]
    model: PathBuf,
    /// Folder of the PEFT adapter
    #[arg(long)]
    adapter: PathBuf,
    /// Folder that the merged model is written to; it must not be there, or be empty
    #[arg(long, aliases = ["output-dir", "output_dir"])]
    out: PathBuf,
    /// Precision of the merged weights: as the base's are stored, or another
    #[arg(long, value_enum, default_value = "keep")]
    precision: Weights,
    /// Backend, among those compiled in
    #[arg(long)]
    device: Option<Device>,
}

/// Precision of weights.
#[derive(Clone, Copy, ValueEnum)]
enum Weights {
    Keep,
    F32,
    Bf16,
    F16,
}

/// Merges, and writes the folder whole or not at all.
///
/// # Errors
/// A folder that holds something; a base or adapter that cannot be read or do not fit; a full disk.
pub fn run(args: &MergeArgs) -> Result<(), Failure> {
    let out = &args.out;
    if out.is_file() || out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(format!("option `out`: {} is there already; name another folder", out.display()).into());
    }
    let device = args.device.unwrap_or_default();
    device.check()?;
    device.run(Job(args))
}

struct Job<'a>(&'a MergeArgs);

impl OnBackend for Job<'_> {
    type Output = Result<(), Failure>;

    fn run<B: Backend>(self, device: B::Device) -> Self::Output {
        on_architecture(&self.0.model, JobOn::<B>(self.0, device))?
    }
}

struct JobOn<'a, B: Backend>(&'a MergeArgs, B::Device);

impl<B: Backend> OnArchitecture for JobOn<'_, B> {
    type Output = Result<(), Failure>;

    fn run<A: Architecture>(self, _: A) -> Self::Output {
        let Self(MergeArgs { model: base, adapter, out, precision, .. }, device) = self;
        // The product is added in f32, and rounded once, where it is written.
        let options = LoadOptions { precision: Precision::F32, ..Default::default() };
        let (model, report) = A::Model::<B>::from_pretrained(base, &options, &device)?;
        let (model, told) = load_adapter(model, adapter)?;
        told.warnings.iter().for_each(|warning| note!("warning: {warning}"));
        let precision = match precision {
            Weights::Keep => stored(base)?,
            Weights::F32 => Precision::F32,
            Weights::Bf16 => Precision::Bf16,
            Weights::F16 => Precision::F16,
        };
        let merged = without_adapters(&merge(model));
        let scratch = scratch(out)?;
        let save = SaveOptions { precision, layout: Some(report.layout), ..SaveOptions::default() };
        let written = merged.save_pretrained(&scratch, &save).map_err(Failure::from);
        let whole = written.and_then(|()| copy_files(base, &scratch)).and_then(|()| {
            if out.exists() {
                std::fs::remove_dir(out)?;
            }
            Ok(std::fs::rename(&scratch, out)?)
        });
        if whole.is_err() {
            // A full disk is not to stay so.
            let _ = std::fs::remove_dir_all(&scratch);
        }
        whole?;
        say!("merged   {}", out.display());
        Ok(())
    }
}

/// The folder's name while it is written.
fn scratch(out: &Path) -> Result<PathBuf, Failure> {
    let whole = std::path::absolute(out)?;
    let name = whole.file_name().ok_or_else(|| format!("option `out`: {} has no name", out.display()))?;
    let scratch = whole.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let told = |error: std::io::Error| format!("{}: {error}", scratch.display());
    if scratch.exists() {
        std::fs::remove_dir_all(&scratch).map_err(told)?;
    }
    std::fs::create_dir_all(&scratch).map_err(told)?;
    Ok(scratch)
}

/// The precision that most of a checkpoint's tensors are stored in.
fn stored(folder: &Path) -> Result<Precision, Failure> {
    use burn::tensor::DType;
    let checkpoint = aspo_models::Checkpoint::open(folder)?;
    let count = |dtype| checkpoint.names().filter(|name| checkpoint.dtype(name) == Some(dtype)).count();
    let kinds = [(DType::F32, Precision::F32), (DType::BF16, Precision::Bf16), (DType::F16, Precision::F16)];
    Ok(kinds.into_iter().max_by_key(|(dtype, _)| count(*dtype)).map_or(Precision::F32, |(_, kind)| kind))
}

/// Everything of the base beside weights and config: tokenizer, processor, template, generation.
fn copy_files(base: &Path, target: &Path) -> Result<(), Failure> {
    for entry in base.read_dir()? {
        let path = entry?.path();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let kind = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let goes = ["json", "jinja", "txt", "model"].contains(&kind.as_str())
            && name != "config.json"
            && !name.ends_with(".index.json");
        if goes && path.is_file() {
            std::fs::copy(&path, target.join(&name))
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(())
}
