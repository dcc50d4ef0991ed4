//! From the files that a config names to encoded pairs whose pictures can be decoded.

use std::path::{Path, PathBuf};

use aspo_data::read::Source;
use aspo_data::set::{PairHash, push_pair, to_bytes};
use aspo_data::similarity::SimilarityReport;
use aspo_data::{
    ChatTemplate, EncodedPair, Encoder, ImageSource, ImageTokens, Pair, PairFault, PairSet, Records,
    SpecialTokens, Template, Tokenizer, records,
};
use aspo_models::{InstructBlipConfig, ModelConfig};
use rayon::prelude::*;

use crate::account::{Account, none_left};
use crate::config::TrainConfig;
use crate::content::file_hash;
use crate::error::{Error, Result};
use crate::mix::{held_out, mixed};
use crate::place::Carried;
use crate::sight::Sight;

/// What to do about a faulty row.
const MEND: &str = "mend the row, or leave it out (`on_fault = \"skip\"`)";
/// Rows that are encoded before the next are read.
const ROWS_AT_A_TIME: usize = 256;

/// Everything that a run reads but the model.
#[derive(Debug)]
pub struct Data {
    /// Turns pairs into tokens.
    pub encoder: Encoder,
    /// The pairs, scored if the loss asks for it.
    pub pairs: PairSet,
    /// Those of `eval_data`, or the share of `val_size`.
    pub held_out: PairSet,
    /// What was left out or cut.
    pub account: Account,
    /// What scoring did.
    pub similarity: SimilarityReport,
    /// Hash of what is in the pictures' files, of the pairs and of those held out, once
    /// [`decode_pictures`](Self::decode_pictures) has looked at them.
    pub pictures: Option<[String; 2]>,
}

/// Reads and encodes the pairs for a model that sees by `sight`. Pictures must be there; of models whose pictures keep their shape
/// the head of each file is read, else they are not looked at: see [`Data::decode_pictures`].
///
/// With `cache_dir`, pairs are encoded once and kept there in files of records, by the files that they are from (path, length
/// and time of change) and everything that encoding follows from; memory does not grow with them. Without it they are held in
/// memory.
///
/// A row that cannot be used is an error that names it, or, with `on_fault = "skip"`, left out and counted. A prompt that
/// leaves no room for an answer, and two answers that are the same, are left out and counted always.
///
/// # Errors
/// A row that is not a pair, an empty answer, a picture that is not there, a pair without picture whose sentences are to be
/// weighed by similarity; for InstructBLIP a pair without picture or with two, and a question longer than its Q-Former
/// reads: all name file and row. A tokenizer of `ref_model` that reads other ids; a `max_length` that a picture fills.
pub fn read(config: &TrainConfig, sight: &Sight) -> Result<Data> {
    let fixed = sight.fixed();
    if let Some(image_tokens) = fixed.filter(|tokens| config.max_length <= *tokens) {
        let found = format!("{}, but a picture takes {image_tokens} tokens", config.max_length);
        let remedy = format!("leave room for prompt and answer: {} or more", image_tokens + 448);
        return Err(Error::option("max_length", found, remedy));
    }
    let objective = config.objective()?;
    if objective.needs_corrupted() && fixed.is_none() {
        let remedy =
            "leave out `mdpo_conditional`: a piece of such a picture would take other tokens than the whole";
        let found = format!("{}, with a model whose pictures keep their shape", config.loss_type.join(" + "));
        return Err(Error::option("loss_type", found, remedy));
    }
    let encoder = encoder(config, sight)?;
    same_tokens(config, &encoder.tokenizer)?;
    let (scored, corrupted) = (objective.needs_similarity(), objective.needs_corrupted());
    let mut reader = Reader { config, encoder: &encoder, question: None, scored, corrupted };
    if config.template == Template::InstructBlip {
        let qformer = InstructBlipConfig::load(&config.model)?.qformer_config;
        reader.question = Some(qformer.max_position_embeddings);
    }
    let mut account = Account::default();
    let mut sets = |option, sources: &[Source]| -> Result<Vec<PairSet>> {
        sources.iter().map(|source| reader.source(option, source, &mut account)).collect()
    };
    let sets_of_data = sets("data", &config.data.0)?;
    let mut apart = match &config.eval_data {
        Some(sources) => sets("eval_data", &sources.0)?,
        None => Vec::new(),
    };
    let sets_of_data = held_out(config.val_size, sets_of_data, &mut apart);
    let (pairs, apart) = (mixed(config, sets_of_data)?, PairSet::concat(apart));
    none_left("data", &config.data, pairs.len(), &account)?;
    if let Some(sources) = &config.eval_data {
        none_left("eval_data", sources, apart.len(), &account)?;
    }
    if config.val_size > 0.0 && apart.is_empty() {
        let found = format!("{}, which is the share of no picture", config.val_size);
        return Err(Error::option("val_size", found, "raise it, or name pairs with `eval_data`"));
    }
    let mut data = Data::new(encoder, pairs, apart);
    data.account = account;
    Ok(data)
}

/// What turns the config's pairs into tokens, for a model that sees by `sight`.
///
/// # Errors
/// A tokenizer, a chat template or an image processor that cannot be had or honoured.
pub fn encoder(config: &TrainConfig, sight: &Sight) -> Result<Encoder> {
    let tokenizer = Tokenizer::for_checkpoint(&tokenizer_path(config), &config.model, sight.image_token)?;
    let mut encoder = Encoder::new(tokenizer, config.template, sight.fixed().unwrap_or_default());
    encoder.images = sight.image_tokens(&config.images)?;
    if config.template == Template::Chat {
        encoder.chat = ChatTemplate::of_checkpoint(&config.model)?;
    }
    encoder.max_length = Some(config.max_length);
    if config.template == Template::InstructBlip {
        encoder.instruction = Some(qformer_tokenizer(&config.model)?);
    }
    Ok(encoder)
}

struct Reader<'a> {
    config: &'a TrainConfig,
    encoder: &'a Encoder,
    /// Most tokens of a question that InstructBLIP's Q-Former reads.
    question: Option<usize>,
    /// Sentences are weighed by similarity with a picture.
    scored: bool,
    /// Answers are seen beside a corrupted picture, too.
    corrupted: bool,
}

impl Reader<'_> {
    /// The pairs of a source that can be used; what became of its rows is added to `account`.
    fn source(&self, option: &'static str, source: &Source, account: &mut Account) -> Result<PairSet> {
        let Some(folder) = &self.config.cache_dir else {
            let mut pairs = Vec::new();
            let part = self.pass(option, source, |pair| {
                pairs.push(pair);
                Ok(())
            })?;
            account.add(part);
            return Ok(pairs.into());
        };
        let key = self.key(source)?;
        let path = |kind: &str| folder.join(format!("{kind}-{key:.16}.records"));
        let records = Records::open_or(&path("pairs"), &key, |writer| {
            // Where in its files an ended process stopped is not known.
            writer.clear()?;
            let mut carried = Carried::new(path("pictures"), key.clone());
            let mut hash = PairHash::default();
            let part = self.pass(option, source, |mut pair| {
                carried.keep(&mut pair.images)?;
                carried.keep(&mut pair.rejected_images)?;
                hash.add(&pair);
                Ok(push_pair(writer, &pair)?)
            })?;
            carried.finish()?;
            let part =
                serde_json::to_string(&part).map_err(|error| Error::stored(folder, error.to_string()))?;
            Ok::<_, Error>(to_bytes(&hash.note(part)))
        })?;
        let (set, part) = PairSet::from_records(records)?;
        account.add(serde_json::from_str(&part).map_err(|error| Error::stored(folder, error.to_string()))?);
        Ok(set)
    }

    /// Everything that the encoded pairs of a source, and what is told of them, follow from.
    fn key(&self, source: &Source) -> Result<String> {
        let mut files = Vec::new();
        for file in aspo_data::read::source_files(&source.path)? {
            let fail = |error| Error::io(&file, error);
            let known = std::fs::metadata(&file).map_err(fail)?;
            files.push(format!(
                "{:?} {} {:?}",
                std::path::absolute(&file).map_err(fail)?,
                known.len(),
                known.modified().ok()
            ));
        }
        let Source { path: _, format, columns, weight: _, pairing, min_margin, logps } = source;
        // How many tokens a picture has follows from the model's config.
        let sized = match self.encoder.images {
            ImageTokens::Fixed(_) => String::new(),
            ImageTokens::Sized(_) => file_hash(&self.config.model.join("config.json"))?,
        };
        let images = std::path::absolute(&self.config.images).unwrap_or_default();
        Ok(records::key_of(&format!(
            "pairs {files:?} {format:?} {columns:?} {pairing:?} {min_margin} {logps} {} {sized} {images:?} {} {} {:?} {:?}",
            self.encoder.fingerprint(),
            self.scored,
            self.corrupted,
            self.question,
            self.config.on_fault
        )))
    }

    /// Gives each pair that can be used to `sink`, in the order of the rows.
    fn pass(
        &self,
        option: &'static str,
        source: &Source,
        mut sink: impl FnMut(EncodedPair) -> Result<()>,
    ) -> Result<Account> {
        let mut account = Account::default();
        let mut read = aspo_data::read_source(source)?;
        loop {
            let part: Vec<_> =
                std::iter::from_fn(|| read.next().map(|pair| ((read.path().clone(), read.row()), pair)))
                    .take(ROWS_AT_A_TIME)
                    .collect();
            if part.is_empty() {
                break;
            }
            let encode = |((file, row), pair): ((std::sync::Arc<Path>, usize), _)| match pair {
                Ok(pair) => {
                    let mut encoded = self.pair(option, &file, row, &pair);
                    if let Ok(encoded) = &mut encoded {
                        encoded.origin = Some((file.to_path_buf(), row));
                    }
                    Ok(encoded)
                }
                Err(error) if aspo_data::Error::is_one_row(&error) => {
                    Ok(Err(Error::option(option, error, MEND)))
                }
                Err(error) => Err(Error::from(error)),
            };
            // On all cores; looked at in the order of the rows, so that the first fault told is the first of the file.
            for encoded in part.into_par_iter().map(encode).collect::<Vec<_>>() {
                account.rows += 1;
                match encoded? {
                    Ok(encoded) => {
                        account.count_cut(&encoded);
                        sink(encoded)?;
                    }
                    Err(Error::Data(aspo_data::Error::Pair { fault: PairFault::NoRoom { .. }, .. })) => {
                        account.no_room += 1;
                    }
                    Err(Error::Data(aspo_data::Error::Pair { fault: PairFault::Equal, .. })) => {
                        account.equal += 1;
                    }
                    Err(fault) => account.skip(fault, self.config.on_fault)?,
                }
            }
        }
        let dropped = read.dropped();
        account.rows += dropped.equal + dropped.correct + dropped.tied;
        account.equal += dropped.equal;
        account.correct += dropped.correct;
        account.tied += dropped.tied;
        account.unread.extend(read.unread().map(str::to_owned));
        Ok(account)
    }

    fn pair(&self, option: &'static str, file: &Path, row: usize, pair: &Pair) -> Result<EncodedPair> {
        let at = format!("{}: row {row}: pair {:?}", file.display(), pair.id);
        let refuse = |found: &str, remedy: &str| Err(Error::option(option, format!("{at} {found}"), remedy));
        if pair.images.is_empty() && self.scored {
            let remedy = "leave the row out, or set `alpha = 0` to weigh by perplexity alone";
            return refuse("has no picture", remedy);
        }
        if pair.images.is_empty() && self.corrupted {
            let remedy = "leave the row out, or `mdpo_conditional`, which compares with a corrupted picture";
            return refuse("has no picture", remedy);
        }
        if self.question.is_some() && pair.images.len() != 1 {
            let found = format!("has {} pictures, InstructBLIP reads one", pair.images.len());
            return refuse(&found, "leave the row out, or give it one picture");
        }
        if !pair.rejected_images.is_empty() && !self.corrupted {
            let remedy = "leave the column out, or choose `mdpo_conditional`, which compares with them";
            return refuse("has `rejected_images`, which this loss does not look at", remedy);
        }
        for image in pair.images.iter().chain(&pair.rejected_images) {
            if let ImageSource::Path(path) = image {
                aspo_data::files::resolve(&self.config.images, path).map_err(|error| {
                    let remedy = "put the picture there, or give another `images` folder";
                    Error::option("images", format!("{at}: {error}"), remedy)
                })?;
            }
        }
        let encoded = match self.encoder.encode(pair) {
            Err(
                error @ aspo_data::Error::Pair { fault: PairFault::NoRoom { .. } | PairFault::Equal, .. },
            ) => Err(error.into()),
            Err(error) => Err(Error::option(option, format!("{}: row {row}: {error}", file.display()), MEND)),
            Ok(encoded) => Ok(encoded),
        }?;
        let asked = encoded.instruction_ids.len();
        match self.question.filter(|limit| asked > *limit) {
            None => Ok(encoded),
            Some(limit) => {
                let found =
                    format!("has a question of {asked} tokens, InstructBLIP's Q-Former reads {limit}");
                refuse(&found, "shorten the question, or leave the row out")
            }
        }
    }
}

impl Data {
    /// Pairs that were encoded elsewhere; nobody has looked at their pictures.
    pub fn new(encoder: Encoder, pairs: impl Into<PairSet>, held_out: impl Into<PairSet>) -> Self {
        Self {
            encoder,
            pairs: pairs.into(),
            held_out: held_out.into(),
            account: Account::default(),
            similarity: SimilarityReport::default(),
            pictures: None,
        }
    }
}

pub(crate) fn tokenizer_path(config: &TrainConfig) -> PathBuf {
    config.tokenizer.clone().unwrap_or_else(|| config.model.join("tokenizer.json"))
}

/// Where Hugging Face's InstructBLIP has the tokenizer of its Q-Former.
pub(crate) fn qformer_tokenizer_path(model: &Path) -> PathBuf {
    model.join("qformer_tokenizer").join("tokenizer.json")
}

/// The tokenizer of InstructBLIP's Q-Former, `qformer_tokenizer/tokenizer.json` in the model's folder.
///
/// # Errors
/// A file that is not there or no tokenizer of BERT's kind.
pub fn qformer_tokenizer(model: &Path) -> Result<Tokenizer> {
    let path = qformer_tokenizer_path(model);
    let bytes = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
    let names = SpecialTokens { eos: "[SEP]".into(), pad: "[PAD]".into(), ..SpecialTokens::default() };
    Ok(Tokenizer::from_bytes(&bytes, &path.display().to_string(), names)?)
}

/// Refuses a reference whose own tokenizer reads other ids than the model's.
fn same_tokens(config: &TrainConfig, tokenizer: &Tokenizer) -> Result<()> {
    let Some(path) = config.ref_model.as_ref().map(|folder| folder.join("tokenizer.json")) else {
        return Ok(());
    };
    if !path.exists() {
        return Ok(());
    }
    let other = Tokenizer::from_file(&path)?;
    if other.content_hash() == tokenizer.content_hash() {
        return Ok(());
    }
    let (ours, theirs) = (tokenizer.inner().get_vocab(true), other.inner().get_vocab(true));
    let unlike =
        ours.keys().chain(theirs.keys()).filter(|token| ours.get(*token) != theirs.get(*token)).min();
    match unlike {
        None => Ok(()),
        Some(token) => {
            let id = |of: &std::collections::HashMap<String, u32>| match of.get(token) {
                Some(id) => format!("the id {id}"),
                None => "no id".to_owned(),
            };
            let found = format!(
                "{} gives {token:?} {}, the model's tokenizer {}",
                path.display(),
                id(&theirs),
                id(&ours)
            );
            Err(Error::option("ref_model", found, "give a reference that reads the same tokens"))
        }
    }
}
