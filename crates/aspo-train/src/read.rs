//! From the files that a config names to encoded pairs whose pictures can be decoded.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aspo_data::similarity::SimilarityReport;
use aspo_data::{
    ChatTemplate, EncodedPair, Encoder, ImageLoader, ImageProcessor, ImageSource, Pair, PairFault,
    SpecialTokens, Template, Tokenizer,
};
use aspo_models::{InstructBlipConfig, ModelConfig};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::account::{Account, none_left};
use crate::config::TrainConfig;
use crate::error::{Error, Result};
use crate::sight::Sight;

/// What to do about a faulty row.
const MEND: &str = "mend the row, or leave it out (`on_fault = \"skip\"`)";
/// Rows that are encoded before the next are read.
const ROWS_AT_A_TIME: usize = 256;
/// Pictures decoded between two calls of whoever watches.
const AT_A_TIME: usize = 64;

/// Everything that a run reads but the model.
#[derive(Debug)]
pub struct Data {
    /// Turns pairs into tokens.
    pub encoder: Encoder,
    /// The pairs, scored if the loss asks for it.
    pub pairs: Vec<EncodedPair>,
    /// Those of `eval_data`.
    pub held_out: Vec<EncodedPair>,
    /// What was left out or cut.
    pub account: Account,
    /// What scoring did.
    pub similarity: SimilarityReport,
    /// Hash of the tokens and sentences of `pairs`, in order.
    pub hash: String,
    /// Hash of what is in the pictures' files, once [`decode_pictures`](Self::decode_pictures) has looked at them.
    pub pictures: Option<String>,
    /// Where each pair is from: of `pairs`, of `held_out`.
    rows: [Vec<Place>; 2],
}

/// Reads and encodes the pairs for a model that sees by `sight`. Pictures must be there; of models whose pictures keep their shape
/// the head of each file is read, else they are not looked at: see [`Data::decode_pictures`].
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
    let tokenizer = Tokenizer::for_checkpoint(&tokenizer_path(config), &config.model, sight.image_token)?;
    same_tokens(config, &tokenizer)?;
    let mut encoder = Encoder::new(tokenizer, config.template, fixed.unwrap_or_default());
    encoder.images = sight.image_tokens(&config.images)?;
    if config.template == Template::Chat {
        encoder.chat = ChatTemplate::of_checkpoint(&config.model)?;
    }
    encoder.max_length = Some(config.max_length);
    let objective = config.objective()?;
    if objective.needs_corrupted() && fixed.is_none() {
        let remedy =
            "leave out `mdpo_conditional`: a piece of such a picture would take other tokens than the whole";
        let found = format!("{}, with a model whose pictures keep their shape", config.loss_type.join(" + "));
        return Err(Error::option("loss_type", found, remedy));
    }
    let (scored, corrupted) = (objective.needs_similarity(), objective.needs_corrupted());
    let mut reader = Reader { config, encoder: &mut encoder, question: None, scored, corrupted };
    if config.template == Template::InstructBlip {
        reader.encoder.instruction = Some(qformer_tokenizer(&config.model)?);
        let qformer = InstructBlipConfig::load(&config.model)?.qformer_config;
        reader.question = Some(qformer.max_position_embeddings);
    }
    let mut account = Account::default();
    let (pairs, rows) = reader.file("data", &config.data, &mut account)?;
    let (held_out, held_out_rows) = match &config.eval_data {
        Some(file) => reader.file("eval_data", file, &mut account)?,
        None => Default::default(),
    };
    let mut data = Data::new(encoder, pairs, held_out);
    data.account = account;
    data.rows = [rows, held_out_rows];
    Ok(data)
}

/// A file, and a row in it.
type Place = (Arc<Path>, usize);

struct Reader<'a> {
    config: &'a TrainConfig,
    encoder: &'a mut Encoder,
    /// Most tokens of a question that InstructBLIP's Q-Former reads.
    question: Option<usize>,
    /// Sentences are weighed by similarity with a picture.
    scored: bool,
    /// Answers are seen beside a corrupted picture, too.
    corrupted: bool,
}

impl Reader<'_> {
    /// The pairs of a file that can be used, and their rows.
    fn file(
        &self,
        option: &'static str,
        file: &Path,
        account: &mut Account,
    ) -> Result<(Vec<EncodedPair>, Vec<Place>)> {
        let (mut pairs, mut rows) = (Vec::new(), Vec::new());
        let mut read = aspo_data::read_pairs(file)?;
        loop {
            let part: Vec<_> =
                std::iter::from_fn(|| read.next().map(|pair| ((read.path().clone(), read.row()), pair)))
                    .take(ROWS_AT_A_TIME)
                    .collect();
            if part.is_empty() {
                break;
            }
            let encode = |(place, pair): (Place, _)| {
                let encoded = match pair {
                    Ok(pair) => self.pair(option, &place.0, place.1, &pair),
                    Err(error) if aspo_data::Error::is_one_row(&error) => {
                        Err(Error::option(option, error, MEND))
                    }
                    Err(error) => return Err(Error::from(error)),
                };
                Ok((place, encoded))
            };
            // On all cores; looked at in the order of the rows, so that the first fault told is the first of the file.
            for encoded in part.into_par_iter().map(encode).collect::<Vec<_>>() {
                account.rows += 1;
                match encoded? {
                    (place, Ok(encoded)) => {
                        pairs.push(encoded);
                        rows.push(place);
                    }
                    (_, Err(Error::Data(aspo_data::Error::Pair { fault: PairFault::NoRoom { .. }, .. }))) => {
                        account.no_room += 1;
                    }
                    (_, Err(Error::Data(aspo_data::Error::Pair { fault: PairFault::Equal, .. }))) => {
                        account.equal += 1;
                    }
                    (_, Err(fault)) => account.skip(fault, self.config.on_fault)?,
                }
            }
        }
        let dropped = read.dropped();
        account.rows += dropped.equal + dropped.correct;
        account.equal += dropped.equal;
        account.correct += dropped.correct;
        account.unread.extend(read.unread().map(str::to_owned));
        account.count_cut(&pairs);
        none_left(option, file, &pairs, account)?;
        Ok((pairs, rows))
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
        for image in &pair.images {
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
    pub fn new(encoder: Encoder, pairs: Vec<EncodedPair>, held_out: Vec<EncodedPair>) -> Self {
        let hash = hash(&pairs);
        Self {
            encoder,
            rows: [Vec::new(), Vec::new()],
            pairs,
            held_out,
            account: Account::default(),
            similarity: SimilarityReport::default(),
            hash,
            pictures: None,
        }
    }

    /// Decodes every picture once, on all cores, so that none is found broken in the middle of a run. `progress` is told
    /// how many of how many are done.
    ///
    /// # Errors
    /// A picture that cannot be decoded, with the row that names it; with `on_fault = "skip"` its pairs are left out and
    /// counted instead.
    pub fn decode_pictures(
        &mut self,
        config: &TrainConfig,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        // Nothing is preprocessed: any processor will do.
        let loader = ImageLoader::new(&config.images, ImageProcessor::clip(224))?;
        let mut distinct: Vec<&ImageSource> = Vec::new();
        let mut index: HashMap<&ImageSource, usize> = HashMap::new();
        for image in self.pairs.iter().chain(&self.held_out).flat_map(|pair| &pair.images) {
            index.entry(image).or_insert_with(|| {
                distinct.push(image);
                distinct.len() - 1
            });
        }
        let mut found = Vec::with_capacity(distinct.len());
        for part in distinct.chunks(AT_A_TIME) {
            found.par_extend(part.par_iter().map(|image| loader.check(image)));
            progress(found.len(), distinct.len());
        }
        let broken = |pair: &EncodedPair| {
            pair.images.iter().find_map(|image| found[index[image]].as_ref().err().map(ToString::to_string))
        };
        let files = [Some(&config.data), config.eval_data.as_ref()];
        let mut kept: [Vec<bool>; 2] = Default::default();
        for (at, pairs) in [&self.pairs, &self.held_out].into_iter().enumerate() {
            for (number, pair) in pairs.iter().enumerate() {
                let fault = broken(pair);
                kept[at].push(fault.is_none());
                let Some(fault) = fault else { continue };
                let file = files[at].unwrap_or(&config.data).display();
                let place = self.rows[at].get(number);
                let place =
                    place.map_or(format!("{file}:"), |(file, row)| format!("{}: row {row}:", file.display()));
                let found = format!("{place} pair {:?}: {fault} ({})", pair.id, config.images.display());
                let remedy = "mend the picture, or leave the row out (`on_fault = \"skip\"`)";
                self.account.skip(Error::option("images", found, remedy), config.on_fault)?;
            }
        }
        let mut pictures = Sha256::new();
        for pair in self.pairs.iter().zip(&kept[0]).filter_map(|(pair, kept)| kept.then_some(pair)) {
            for hash in pair.images.iter().filter_map(|image| found[index[image]].as_ref().ok()) {
                pictures.update(hash);
            }
        }
        self.pictures = Some(format!("{:x}", pictures.finalize()));
        if kept.iter().flatten().all(|kept| *kept) {
            return Ok(());
        }
        let only = |pairs: &mut Vec<EncodedPair>, rows: &mut Vec<Place>, kept: &[bool]| {
            let mut at = kept.iter();
            pairs.retain(|_| at.next().is_none_or(|kept| *kept));
            let mut at = kept.iter();
            rows.retain(|_| at.next().is_none_or(|kept| *kept));
        };
        only(&mut self.pairs, &mut self.rows[0], &kept[0]);
        only(&mut self.held_out, &mut self.rows[1], &kept[1]);
        (self.account.cut_chosen, self.account.cut_rejected) = (0, 0);
        self.account.count_cut(&self.pairs);
        self.account.count_cut(&self.held_out);
        self.hash = hash(&self.pairs);
        none_left("data", &config.data, &self.pairs, &self.account)?;
        match &config.eval_data {
            Some(file) => none_left("eval_data", file, &self.held_out, &self.account),
            None => Ok(()),
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

/// Of tokens and sentences. Pictures have a hash of their own; scores have none: they follow from pairs, pictures and CLIP,
/// and their last bits from the device.
fn hash(pairs: &[EncodedPair]) -> String {
    let mut hash = Sha256::new();
    for pair in pairs {
        hash.update((pair.prompt_ids.len() as u64).to_le_bytes());
        pair.instruction_ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        for side in [&pair.chosen, &pair.rejected] {
            hash.update((side.ids.len() as u64).to_le_bytes());
            pair.prompt_ids
                .iter()
                .chain(&side.ids)
                .chain(&side.sentences)
                .for_each(|id| hash.update(id.to_le_bytes()));
        }
    }
    format!("{:x}", hash.finalize())
}
