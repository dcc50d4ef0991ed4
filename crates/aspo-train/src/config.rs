//! The options of a run, with TRL's and PEFT's names, read from TOML.

use std::path::{Path, PathBuf};

use aspo_data::{OnFault, Sources, Template};
use aspo_loss::{FDivergence, LossType, Objective, RewardScaling, Weigh};
use aspo_models::lora::LoraConfig;
use aspo_models::{LoadOptions, Precision};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::mix::MixStrategy;
use crate::schedule::Schedule;
use crate::tidy::tidy;

/// One run. Every key may be left out of the file; a key that does not exist is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Folder of the model to train: `config.json`, safetensors, `tokenizer.json`, as on the Hugging Face hub.
    pub model: PathBuf,
    /// `tokenizer.json` of the model; left out, the one in its folder.
    pub tokenizer: Option<PathBuf>,
    /// Folder of another checkpoint of the same architecture and tokenizer that is the reference (TRL's `ref_model`);
    /// left out, the reference is `model` without adapter, which takes no memory of its own.
    pub ref_model: Option<PathBuf>,
    /// Folder of the CLIP that scores sentences, with its `tokenizer.json`; needed by ASPO unless `alpha` is 0.
    pub clip: Option<PathBuf>,
    /// The pairs, in any format that `aspo-data` reads: a file, a folder of files, or a pattern (`train-*-of-*.parquet`), gzip and
    /// zstd too; or a list of them, or of tables ([`Source`](aspo_data::Source)) that also say `columns`, `format`, `weight`,
    /// `pairing`, `min_margin`.
    pub data: Sources,
    /// How several sources become one set: `concat` (default), or by their weights `interleave_under` (until one is used up) or
    /// `interleave_over` (until all are).
    pub mix_strategy: MixStrategy,
    /// Pairs held out from training, given as `data` is, their pictures in `images` too: every `eval_steps` their loss and
    /// rewards are told under `eval_`.
    pub eval_data: Option<Sources>,
    /// Share of the pairs to hold out in place of `eval_data`, 0 to below 1: by a hash of their picture, so that pairs about one
    /// picture stay together, and the same ones are held out in every run. Default 0.
    pub val_size: f64,
    /// Folder that the pairs' image paths are relative to.
    pub images: PathBuf,
    /// Where checkpoints, metrics, adapter and report go.
    pub output_dir: PathBuf,
    /// Where encoded pairs, scores of sentences and the reference's log-probabilities are kept from run to run, by what they
    /// follow from; it may be deleted at any time. Left out, pairs are held in memory, and the others are kept in `output_dir`.
    /// Programs give it [`user_cache`](crate::user_cache).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// How prompts are written; default `vicuna_v1`, SeVa's. Checkpoints of `llava-hf` were made for `llava_hf`; `chat` is the
    /// chat template in the checkpoint's own folder.
    pub template: Template,
    /// Longest sequence in tokens, prompt with image and answer; longer answers lose their end. Default 2048 (SeVa).
    pub max_length: usize,

    /// Losses by TRL's names (`dpo` is `sigmoid`), and `aspo`; one, or a list that is summed with `loss_weights`. Default
    /// `["aspo"]`. mDPO is `["sigmoid", "mdpo_conditional", "mdpo_anchor"]`; it sees each chosen answer a second time beside a
    /// random piece of its picture, 1% to 20% of the area.
    #[serde(deserialize_with = "one_or_several")]
    pub loss_type: Vec<String>,
    /// Weights of the losses, 0 or more; left out, 1 each.
    pub loss_weights: Option<Vec<f64>>,
    /// DPO's temperature, above 0. Default 0.1.
    pub beta: f64,
    /// ASPO's share of similarity against perplexity, 0 to 1. Default 0.5.
    pub alpha: f64,
    /// ASPO's ρ: `total_weight` (default), `token_weight`, `reward_ratio` or `none`.
    pub reward_scaling: String,
    /// ASPO weighs sentences of `chosen` (default) or of `both` answers (an extension).
    pub weigh: String,
    /// Chance that a preference is the wrong way round, 0 to 0.5; for `cdpo`, `robust`, `aot`, `aot_unpaired`, `simpo` and
    /// `exo_pair` (which needs more than 0). As in TRL, `sigmoid` has none: `cdpo` is it with smoothing. Left out, 0 (`cdpo`
    /// 0.1, `exo_pair` 1e-3).
    pub label_smoothing: Option<f64>,
    /// LD-DPO's weight, 0 to 1, of tokens beyond the length of the pair's shorter answer; left out, 1.
    pub ld_alpha: Option<f64>,
    /// f-DPO's divergence: `reverse_kl` (default), `forward_kl`, `js_divergence` or `alpha_divergence`; another than the first
    /// only with losses of a score difference.
    pub f_divergence_type: String,
    /// α of `alpha_divergence`; left out, 0.5.
    pub f_alpha_divergence_coef: Option<f64>,
    /// WPO: weigh each pair by how likely the policy would have written it. Default false.
    pub use_weighting: bool,
    /// DiscoPOP's temperature, above 0, at most 1; left out, 0.05.
    pub discopop_tau: Option<f64>,
    /// SimPO's target margin; left out, 0.5.
    pub simpo_gamma: Option<f64>,
    /// DDPO's weight of the tokens that a correction changed, above 0; left out, 3.
    pub ddpo_gamma: Option<f64>,
    /// BCO's shift of the rewards; left out, 0.
    pub bco_shift: Option<f64>,
    /// The anchor of `mdpo_anchor`; left out, 0.
    pub anchor: Option<f64>,

    /// Peak learning rate. Default 1e-5, TRL's advice for LoRA; SeVa's recipe has 2e-6.
    pub learning_rate: f64,
    /// `cosine` (default), `linear`, `constant_with_warmup`, or `constant`, which takes no notice of `warmup_ratio`.
    pub lr_scheduler_type: Schedule,
    /// Share of the steps over which the rate rises. Default 0.03.
    pub warmup_ratio: f64,
    /// Pairs of a forward pass. Default 8.
    pub per_device_train_batch_size: usize,
    /// Forward passes of an optimiser step, those of all devices together. Default 1.
    pub gradient_accumulation_steps: usize,
    /// Limit of the gradients' global norm; 0 is none. Default 1.
    pub max_grad_norm: f64,
    /// Passes over the pairs. Default 1.
    pub num_train_epochs: f64,
    /// Optimiser steps, in place of `num_train_epochs`; -1 is none given. Default -1.
    pub max_steps: i64,
    /// AdamW's β₁. Default 0.9.
    pub adam_beta1: f64,
    /// AdamW's β₂. Default 0.999.
    pub adam_beta2: f64,
    /// AdamW's ε. Default 1e-8.
    pub adam_epsilon: f64,
    /// AdamW's decay. Default 0.
    pub weight_decay: f64,
    /// Seed of the order of pairs, of the adapter's start and of dropout. Default 42.
    pub seed: u64,

    /// Compute the reference's log-probabilities of all pairs first and keep them in a file. Left out, this is done where a
    /// pair is seen more than once ([`caches_reference`](Self::caches_reference)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precompute_ref_log_probs: Option<bool>,
    /// Recompute each block in the backward pass: much less memory, about a third more time. Default false.
    pub gradient_checkpointing: bool,
    /// One row a pair (`prompt ‖ chosen ‖ rejected`) instead of two, so that image and prompt are computed once.
    /// Default true.
    pub pair_packing: bool,
    /// Keep the base weights in bf16; adapters, moments and loss stay in f32. Not on ndarray and wgpu. Default false.
    pub bf16: bool,
    /// What the adapter's products are done in: `f32` (default), or `bf16` as by torch's autocast, for GPUs with `bf16 = true`. Its
    /// factors and moments are f32.
    pub lora_dtype: LoraDtype,

    /// Compute what the vision tower sees in every picture first and keep it in `cache_dir`, in bf16, in place of computing it in
    /// every epoch and run. Default false.
    pub cache_vision_features: bool,

    /// Steps between two lines of metrics. Default 10.
    pub logging_steps: usize,
    /// Steps between two evaluations: what the model answers to the first three prompts (`samples.jsonl`), and the loss of
    /// `eval_data`; 0 is never. Default 0.
    pub eval_steps: usize,
    /// Steps between two checkpoints; 0 is none but the last. Default 500.
    pub save_steps: usize,
    /// Checkpoints kept; 0 keeps all. Default 2.
    pub save_total_limit: usize,
    /// Turn pictures as their orientation tag (EXIF) says, as `datasets` and transformers' `load_image` do. Default true;
    /// LLaVA's own loader does not.
    pub exif_orientation: bool,
    /// A row that is no pair, or a picture that is not there or cannot be decoded: `stop` before the first step (default), or
    /// `skip` the pair and count it.
    pub on_fault: OnFault,
    /// A loss that is not finite: `stop` the run (default), or `skip` the step and count it.
    pub on_non_finite: OnNonFinite,

    /// The adapter, by PEFT's options: `r` (default 128), `lora_alpha` (256), `lora_dropout` (0), `target_modules` (names,
    /// one regular expression, or `all-linear`; default: every linear layer of the language model, as SeVa has it),
    /// `exclude_modules`, `rank_pattern` and `alpha_pattern` (the first that matches counts), `layers_to_transform`,
    /// `layers_pattern`, `use_rslora`, `init_lora_weights` (`true` or `"gaussian"`).
    #[serde(with = "crate::lora")]
    pub lora: LoraConfig,
}

/// The folder in which programs of this user keep what may be made again: `ASPO_CACHE`, else `aspo` in `XDG_CACHE_HOME` or
/// `~/.cache`. None where there is no home, or it cannot be written.
pub fn user_cache() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
    let folder = path("ASPO_CACHE").or_else(|| Some(cache()?.join("aspo")))?;
    std::fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder)).ok().map(|_| folder)
}

/// `"sigmoid"` is `["sigmoid"]`.
fn one_or_several<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "the name of a loss, or a list of names")]
    enum OneOrSeveral {
        One(String),
        Several(Vec<String>),
    }
    Ok(match OneOrSeveral::deserialize(value)? {
        OneOrSeveral::One(name) => vec![name],
        OneOrSeveral::Several(names) => names,
    })
}

/// What the products of an adapter are done in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraDtype {
    /// 32 bits.
    #[default]
    #[serde(alias = "float32")]
    F32,
    /// bfloat16.
    #[serde(alias = "bfloat16")]
    Bf16,
}

/// What to do about a loss or a gradient that is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// End the run with an error that names step, pairs and the last good checkpoint.
    #[default]
    Stop,
    /// Leave the step out and count it under `aspo/skipped_steps`.
    Skip,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            tokenizer: None,
            ref_model: None,
            clip: None,
            data: Sources::default(),
            mix_strategy: MixStrategy::default(),
            eval_data: None,
            val_size: 0.0,
            images: PathBuf::new(),
            output_dir: PathBuf::new(),
            cache_dir: None,
            template: Template::VicunaV1,
            max_length: 2048,
            loss_type: vec!["aspo".into()],
            loss_weights: None,
            beta: 0.1,
            alpha: 0.5,
            reward_scaling: RewardScaling::default().to_string(),
            weigh: Weigh::default().to_string(),
            label_smoothing: None,
            ld_alpha: None,
            f_divergence_type: FDivergence::default().to_string(),
            f_alpha_divergence_coef: None,
            use_weighting: false,
            discopop_tau: None,
            simpo_gamma: None,
            ddpo_gamma: None,
            bco_shift: None,
            anchor: None,
            learning_rate: 1e-5,
            lr_scheduler_type: Schedule::Cosine,
            warmup_ratio: 0.03,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_grad_norm: 1.0,
            num_train_epochs: 1.0,
            max_steps: -1,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            seed: 42,
            precompute_ref_log_probs: None,
            gradient_checkpointing: false,
            pair_packing: true,
            bf16: false,
            lora_dtype: LoraDtype::F32,
            cache_vision_features: false,
            logging_steps: 10,
            eval_steps: 0,
            save_steps: 500,
            save_total_limit: 2,
            exif_orientation: true,
            on_fault: OnFault::Stop,
            on_non_finite: OnNonFinite::Stop,
            lora: crate::lora::default(),
        }
    }
}

impl TrainConfig {
    /// Reads a TOML file. What it reads from is relative to the folder of the file, `output_dir` to the folder in which
    /// the program runs.
    ///
    /// # Errors
    /// A file that is not there or not TOML, a key that does not exist, a value of another type.
    pub fn from_toml(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| {
            // One line: the message, then where it is.
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            let why = error.message().lines().collect::<Vec<_>>().join(" ");
            Error::ConfigFile { path: path.into(), why: format!("line {line}: {why}") }
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for input in config.inputs_mut() {
            // An id of a hub is no path.
            if !input.starts_with("hf:") {
                *input = tidy(&folder.join(&*input));
            }
        }
        Ok(config)
    }

    /// The paths that a run reads from, those that are given.
    pub(crate) fn inputs_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let optional = [&mut self.tokenizer, &mut self.ref_model, &mut self.clip];
        [&mut self.model, &mut self.images]
            .into_iter()
            .chain(optional.into_iter().flatten())
            .chain(self.data.paths_mut())
            .chain(self.eval_data.iter_mut().flat_map(Sources::paths_mut))
            .filter(|path| !path.as_os_str().is_empty())
    }

    /// The same with paths that mean the same in any working folder.
    pub(crate) fn absolute(&self) -> Result<Self> {
        let mut config = self.clone();
        let absolute = |path: &Path| std::path::absolute(path).map_err(|source| Error::io(path, source));
        config.output_dir = absolute(&config.output_dir)?;
        config.cache_dir = config.cache_dir.as_deref().map(absolute).transpose()?;
        for path in config.inputs_mut() {
            *path = absolute(path)?;
        }
        Ok(config)
    }

    /// Pairs of an optimiser step.
    pub fn global_batch(&self) -> usize {
        self.per_device_train_batch_size.saturating_mul(self.gradient_accumulation_steps)
    }

    /// Optimiser steps of a run over `pairs` pairs. One step of an epoch may be smaller than the others.
    pub fn total_steps(&self, pairs: usize) -> usize {
        match usize::try_from(self.max_steps) {
            Ok(steps) if steps > 0 => steps,
            _ => (pairs.div_ceil(self.global_batch()) as f64 * self.num_train_epochs).ceil() as usize,
        }
    }

    /// Whether the reference's log-probabilities come from a file, in a run over `pairs` pairs: as `precompute_ref_log_probs`
    /// says, else where the loss has a reference that the data do not bring, no corrupted pictures, and some pair is seen twice.
    pub fn caches_reference(&self, pairs: usize) -> bool {
        self.precompute_ref_log_probs.unwrap_or_else(|| {
            let objective = self.objective();
            let can = objective.is_ok_and(|loss| loss.needs_reference() && !loss.needs_corrupted());
            can && !self.gives_reference()
                && self.total_steps(pairs) * self.global_batch() >= pairs + self.global_batch()
        })
    }

    /// The loss that the options describe.
    ///
    /// # Errors
    /// A loss, scaling or side that does not exist; a number outside its range.
    pub fn objective(&self) -> Result<Objective> {
        let mut losses =
            self.loss_type.iter().map(|name| name.parse()).collect::<Result<Vec<LossType>, _>>()?;
        let weights = self.loss_weights.clone().unwrap_or_else(|| vec![1.0; losses.len()]);
        if weights.len() != losses.len() {
            let found = format!("{} weights for {} losses", weights.len(), losses.len());
            return Err(Error::option(
                "loss_weights",
                found,
                "give one weight for each entry of `loss_type`",
            ));
        }
        self.set_options(&mut losses)?;
        let mut f_divergence: FDivergence = self.f_divergence_type.parse()?;
        if let Some(coef) = self.f_alpha_divergence_coef {
            f_divergence = f_divergence.with_coef(coef)?;
        }
        let objective = Objective {
            terms: losses.into_iter().zip(weights).collect(),
            beta: self.beta,
            f_divergence,
            ld_alpha: self.ld_alpha,
            use_weighting: self.use_weighting,
        };
        objective.validate()?;
        Ok(objective)
    }

    /// Gives each loss the options that are its own, and refuses one that no loss has.
    fn set_options(&self, losses: &mut [LossType]) -> Result<()> {
        let default = Self::default();
        let changed = |value: String, default: String| (value != default).then_some(value);
        let number = |value: Option<f64>| value.map(|value| value.to_string());
        let options = [
            ("alpha", changed(self.alpha.to_string(), default.alpha.to_string())),
            ("reward_scaling", changed(self.reward_scaling.clone(), default.reward_scaling)),
            ("weigh", changed(self.weigh.clone(), default.weigh)),
            ("label_smoothing", number(self.label_smoothing)),
            ("discopop_tau", number(self.discopop_tau)),
            ("simpo_gamma", number(self.simpo_gamma)),
            ("ddpo_gamma", number(self.ddpo_gamma)),
            ("bco_shift", number(self.bco_shift)),
            ("anchor", number(self.anchor)),
        ];
        for (option, value) in options {
            let Some(value) = value else { continue };
            let mut honoured = false;
            for loss in losses.iter_mut() {
                honoured |= loss.set(option, &value)?;
            }
            if !honoured {
                let having: Vec<&str> = LossType::ALL
                    .iter()
                    .filter(|&&(mut loss)| loss.set(option, &value).unwrap_or(false))
                    .map(|loss| loss.name())
                    .collect();
                let found = format!("{value}, but {} does not honour it", self.loss_type.join(" + "));
                let remedy = format!("leave it out, or choose a loss that does: `{}`", having.join("`, `"));
                return Err(Error::option(option, found, remedy));
            }
        }
        Ok(())
    }

    /// Log-probabilities that the data bring are those of all pairs, and the only ones.
    fn validate_logps(&self, objective: &Objective) -> Result<()> {
        let refuse = |found: String, remedy: &str| Err(Error::option("data", found, remedy));
        let Some(with) = self.data.0.iter().find(|source| source.logps) else { return Ok(()) };
        let named = format!("{} with `logps`", with.path.display());
        if let Some(without) = self.data.0.iter().find(|source| !source.logps) {
            let found = format!("{named}, {} without", without.path.display());
            return refuse(found, "set it for all sources or for none");
        }
        if !objective.needs_reference() || objective.needs_corrupted() {
            let found = format!("{named}, but the loss is {}", self.loss_type.join(" + "));
            return refuse(
                found,
                "leave it out: only losses with a reference, beside whole pictures, look at it",
            );
        }
        if self.precompute_ref_log_probs == Some(true) {
            let found = "true, but the data bring them (`logps`)";
            return Err(Error::option("precompute_ref_log_probs", found, "leave one of them out"));
        }
        Ok(())
    }

    /// Whether the data bring the reference's log-probabilities.
    pub(crate) fn gives_reference(&self) -> bool {
        self.data.0.iter().any(|source| source.logps)
    }

    fn validate_sources(&self) -> Result<()> {
        if let (Some(sources), 0) = (&self.eval_data, self.eval_steps) {
            let found = format!("{sources}, but eval_steps is 0");
            return Err(Error::option("eval_data", found, "set eval_steps, or leave it out"));
        }
        if !(0.0..1.0).contains(&self.val_size) {
            return Err(Error::option("val_size", self.val_size, "use 0 or more, below 1"));
        }
        if self.val_size > 0.0 && self.eval_steps == 0 {
            let found = format!("{}, but eval_steps is 0", self.val_size);
            return Err(Error::option("val_size", found, "set eval_steps, or leave it out"));
        }
        if self.val_size > 0.0 && self.eval_data.is_some() {
            return Err(Error::option("val_size", "given beside eval_data", "give one of them"));
        }
        for source in self.data.0.iter().chain(self.eval_data.iter().flat_map(|sources| &sources.0)) {
            let at = |found: String| format!("{}: {found}", source.path.display());
            match source.weight {
                Some(weight) if !(weight > 0.0 && weight.is_finite()) => {
                    let found = at(format!("weight {weight}"));
                    return Err(Error::option("data", found, "use a number above 0"));
                }
                Some(weight) if self.mix_strategy == MixStrategy::Concat => {
                    let found = at(format!("weight {weight}, but mix_strategy is concat"));
                    let remedy =
                        "set mix_strategy to interleave_under or interleave_over, or leave the weight out";
                    return Err(Error::option("data", found, remedy));
                }
                _ => {}
            }
            if !(source.min_margin >= 0.0 && source.min_margin.is_finite()) {
                let found = at(format!("min_margin {}", source.min_margin));
                return Err(Error::option("data", found, "use 0 or more"));
            }
        }
        Ok(())
    }

    /// How the model is loaded: in the precision of `bf16`.
    pub fn load_options(&self) -> LoadOptions {
        let precision = if self.bf16 { Precision::Bf16 } else { Precision::F32 };
        LoadOptions { precision, ..LoadOptions::default() }
    }

    /// The adapter's config, as PEFT writes it.
    pub fn lora_config(&self) -> LoraConfig {
        let mut lora = self.lora.clone();
        let base = self.model.to_string_lossy().into_owned();
        lora.extra.insert("base_model_name_or_path".into(), base.into());
        lora
    }

    /// Refuses what cannot be honoured, before anything is loaded.
    ///
    /// # Errors
    /// The first option that cannot, with the remedy.
    pub fn validate(&self) -> Result<()> {
        let objective = self.objective()?;
        let positive = |option, value: usize| match value {
            0 => Err(Error::option(option, 0, "use 1 or more")),
            _ => Ok(()),
        };
        positive("per_device_train_batch_size", self.per_device_train_batch_size)?;
        positive("gradient_accumulation_steps", self.gradient_accumulation_steps)?;
        positive("logging_steps", self.logging_steps)?;
        positive("max_length", self.max_length)?;
        positive("lora.r", self.lora.r)?;
        let within = |option, value: f64, range: std::ops::RangeInclusive<f64>, remedy: &str| {
            if range.contains(&value) { Ok(()) } else { Err(Error::option(option, value, remedy)) }
        };
        within(
            "learning_rate",
            self.learning_rate,
            f64::MIN_POSITIVE..=1.0,
            "use a number above 0, at most 1",
        )?;
        within("warmup_ratio", self.warmup_ratio, 0.0..=1.0, "use 0 to 1")?;
        within("max_grad_norm", self.max_grad_norm, 0.0..=f64::MAX, "use 0 (no limit) or more")?;
        within("adam_beta1", self.adam_beta1, 0.0..=0.999_999_9, "use 0 or more, below 1")?;
        within("adam_beta2", self.adam_beta2, 0.0..=0.999_999_9, "use 0 or more, below 1")?;
        within("adam_epsilon", self.adam_epsilon, 1e-30..=1.0, "use 1e-30 to 1")?;
        within("weight_decay", self.weight_decay, 0.0..=1.0, "use 0 to 1")?;
        // Above 0, and not infinite.
        within(
            "lora.lora_alpha",
            self.lora.lora_alpha,
            f64::MIN_POSITIVE..=f64::MAX,
            "use a number above 0",
        )?;
        within("lora.lora_dropout", self.lora.lora_dropout, 0.0..=0.999, "use 0 or more, below 1")?;
        if self.lora_dtype == LoraDtype::Bf16 && !self.bf16 {
            let found = "bf16, but bf16 is false";
            return Err(Error::option("lora_dtype", found, "set bf16 = true, or leave it out"));
        }
        self.lora.check_training().map_err(|error| {
            let found = error.to_string().trim_start_matches("adapter: ").to_owned();
            Error::option("lora", found, "see the options of `lora`")
        })?;
        if self.max_steps == 0 || self.max_steps < -1 {
            let remedy = "use 1 or more, or -1 to train for `num_train_epochs`";
            return Err(Error::option("max_steps", self.max_steps, remedy));
        }
        if self.max_steps < 0 {
            within(
                "num_train_epochs",
                self.num_train_epochs,
                f64::MIN_POSITIVE..=1e6,
                "use a number above 0",
            )?;
        }
        if objective.needs_similarity() && self.clip.is_none() {
            let remedy = "name the folder of a CLIP, or set `alpha = 0` to weigh by perplexity alone";
            return Err(Error::option("clip", "not given, but ASPO weighs sentences by similarity", remedy));
        }
        if objective.sorts() && self.per_device_train_batch_size == 1 {
            let found = format!("{} with per_device_train_batch_size 1", self.loss_type.join(" + "));
            let remedy = "it sorts the pairs of a forward pass: give 2 or more, better many";
            return Err(Error::option("loss_type", found, remedy));
        }
        if objective.needs_corrupted() && self.precompute_ref_log_probs == Some(true) {
            let found = "true, but its file holds nothing of mdpo_conditional's corrupted pictures";
            return Err(Error::option("precompute_ref_log_probs", found, "leave it out"));
        }
        if self.gradient_checkpointing && self.lora.lora_dropout > 0.0 {
            let found = "with lora.lora_dropout above 0, whose second run would draw another mask";
            return Err(Error::option("gradient_checkpointing", found, "set one of them to 0 or false"));
        }
        self.validate_sources()?;
        self.validate_logps(&objective)?;
        if self.cache_vision_features && self.cache_dir.is_none() {
            let found = "true, but there is no `cache_dir`";
            return Err(Error::option("cache_vision_features", found, "name a folder to keep them in"));
        }
        if !objective.needs_reference() {
            let remedy = "leave it out: this loss has no reference";
            if self.precompute_ref_log_probs == Some(true) {
                return Err(Error::option("precompute_ref_log_probs", true, remedy));
            }
            if let Some(folder) = &self.ref_model {
                return Err(Error::option("ref_model", folder.display(), remedy));
            }
        }
        Ok(())
    }
}
