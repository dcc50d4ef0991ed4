//! From a pair to token ids: prompt with image tokens, two answers, one sentence id per answer token.
//!
//! Which tokens are the answer follows from character offsets: prompt and answer are tokenised together, and the
//! answer's tokens are those that start where the prompt ends or later. No string is searched for.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use aspo_segment::SplitOptions;
use serde::{Deserialize, Serialize};

use crate::chat::ChatTemplate;
use crate::error::{Error, PairFault, Result};
use crate::image::{ImageLoader, ImageShape};
use crate::pair::{AnswerLogps, IMAGE_TAG, ImageSource, Pair, PairLogps};
use crate::prompt::{Rendered, Template};
use crate::tokenizer::{Tokenizer, Tokens};

/// Changes whenever the same pair is encoded otherwise: what is kept of encoded pairs is keyed by it.
const ENCODING_RULES: &str = "encoding 2";

/// One answer of a pair, encoded.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncodedAnswer {
    /// Token ids, closed by the end token unless the answer was truncated. Never empty.
    pub ids: Vec<u32>,
    /// Sentence of each token: starts at 0, rises by at most 1 from token to token.
    pub sentences: Vec<u32>,
    /// The answer's text.
    pub text: String,
    /// Bytes of `text` that each sentence spans; they tile the part of the text that was kept.
    pub spans: Vec<Range<usize>>,
    /// Cosine of each sentence with the image, unscaled; empty where it was not computed
    /// ([`crate::similarity`] does).
    pub similarity: Vec<f32>,
    /// Log-probability of each token under the reference; empty where the file does not say
    /// ([`Source::logps`](crate::Source::logps)).
    pub reference: Vec<f32>,
    /// The end of the answer did not fit in `max_length`.
    pub truncated: bool,
}

impl EncodedAnswer {
    /// Number of sentences.
    pub fn sentence_count(&self) -> usize {
        self.spans.len()
    }

    /// The text of each sentence.
    pub fn sentence_texts(&self) -> impl Iterator<Item = &str> {
        self.spans.iter().map(|span| &self.text[span.clone()])
    }

    /// Keeps the first `count` tokens, at least one.
    fn truncate(&mut self, count: usize, ends: &[usize]) {
        self.ids.truncate(count);
        self.reference.truncate(count);
        self.sentences.truncate(count);
        self.truncated = true;
        let sentences = self.sentences.last().map_or(0, |last| *last as usize + 1);
        self.spans.truncate(sentences);
        // Bytes of a cut character do not make a sentence text: back to the last whole character.
        let end = ends[..count].iter().copied().max().unwrap_or(0);
        let end = (0..=end).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0);
        if let Some(last) = self.spans.last_mut() {
            last.end = last.end.min(end).max(last.start);
        }
    }
}

/// A pair ready for batching. The sequence of a side is `prompt_ids` followed by that answer's `ids`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct EncodedPair {
    /// [`Pair::id`].
    pub id: String,
    /// The file and the row in it that the pair is of, where a file was read.
    pub origin: Option<(PathBuf, usize)>,
    /// The pair's images.
    pub images: Vec<ImageSource>,
    /// [`Pair::rejected_images`].
    pub rejected_images: Vec<ImageSource>,
    /// Prompt, image tokens expanded, `<s>` included.
    pub prompt_ids: Vec<u32>,
    /// Where in `prompt_ids` the tokens of each image are, with the tags of its tiles.
    pub image_spans: Vec<Range<usize>>,
    /// The question for InstructBLIP's Q-Former; empty for other models.
    pub instruction_ids: Vec<u32>,
    /// The preferred answer.
    pub chosen: EncodedAnswer,
    /// The dispreferred answer.
    pub rejected: EncodedAnswer,
}

impl EncodedPair {
    /// Tokens of the longer of the two sequences: what the pair costs in a batch.
    pub fn length(&self) -> usize {
        self.prompt_ids.len() + self.chosen.ids.len().max(self.rejected.ids.len())
    }
}

/// What an image becomes in a prompt.
#[derive(Debug, Clone)]
pub enum ImageTokens {
    /// As many image tokens, whatever its size: 576 for LLaVA-1.5, 32 for InstructBLIP.
    Fixed(usize),
    /// As many as its size says, which is read from the head of its file.
    Sized(SizedTokens),
}

/// Tokens of an image by its size.
#[derive(Clone)]
pub struct SizedTokens {
    /// Finds the images, and knows the checkpoint's processor.
    pub images: Arc<ImageLoader>,
    /// How many tokens the model has for an image of this shape.
    pub count: Arc<dyn Fn(&ImageShape) -> usize + Send + Sync>,
    /// Tiles are told by tags around them, as Idefics3 and SmolVLM were taught.
    pub tags: bool,
}

impl std::fmt::Debug for SizedTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SizedTokens")
            .field("images", &self.images)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl SizedTokens {
    /// The text that stands for an image.
    fn text(&self, shape: &ImageShape, image: &str) -> String {
        let tokens = (self.count)(shape);
        if !self.tags {
            return image.repeat(tokens);
        }
        let tile = image.repeat(tokens / shape.tiles());
        let around = "<fake_token_around_image>";
        let [rows, columns] = shape.grid;
        let mut text = String::new();
        for row in 1..=rows {
            for column in 1..=columns {
                text += &format!("{around}<row_{row}_col_{column}>{tile}");
            }
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text + &format!("{around}<global-img>{tile}{around}")
    }
}

/// What goes into encoding, beside the pair.
#[derive(Debug, Clone)]
pub struct Encoder {
    /// The language model's tokenizer.
    pub tokenizer: Tokenizer,
    /// How prompts are written. Default [`Template::VicunaV1`].
    pub template: Template,
    /// What an image becomes in the prompt.
    pub images: ImageTokens,
    /// The checkpoint's own chat template, for [`Template::Chat`].
    pub chat: Option<ChatTemplate>,
    /// Longest sequence, prompt and answer together. Longer answers lose their end; prompts are never cut, so neither
    /// are images. `None`: no limit. Default 2048, SeVa's.
    pub max_length: Option<usize>,
    /// How answers are split into sentences.
    pub split: SplitOptions,
    /// The Q-Former's own tokenizer (InstructBLIP): fills [`EncodedPair::instruction_ids`].
    pub instruction: Option<Tokenizer>,
}

impl Encoder {
    /// An encoder with the defaults named at the fields.
    pub fn new(tokenizer: Tokenizer, template: Template, image_tokens: usize) -> Self {
        let split = SplitOptions::default();
        let images = ImageTokens::Fixed(image_tokens);
        Self { tokenizer, template, images, chat: None, max_length: Some(2048), split, instruction: None }
    }

    /// A text that names everything that encoding follows from, but how many tokens a picture of a size has.
    pub fn fingerprint(&self) -> String {
        let Self { tokenizer, template, images, chat, max_length, split, instruction } = self;
        let hash = |tokenizer: &Tokenizer| format!("{:x?}", tokenizer.content_hash());
        let images = match images {
            ImageTokens::Fixed(tokens) => tokens.to_string(),
            ImageTokens::Sized(sized) => format!("{:?} tags {}", sized.images.processor(), sized.tags),
        };
        let chat = chat.as_ref().map(ChatTemplate::source);
        let instruction = instruction.as_ref().map(hash);
        format!(
            "{ENCODING_RULES} {} {} {template} {images} {chat:?} {max_length:?} {split:?} {instruction:?}",
            hash(tokenizer),
            aspo_segment::VERSION
        )
    }

    /// Encodes one pair.
    ///
    /// # Errors
    /// [`Error::Pair`] when the pair cannot be used: an empty answer, answers that are equal once cut
    /// ([`PairFault::Equal`]), a text that spells out a special token, tags that are not as many as the images, a prompt
    /// that leaves no room ([`PairFault::NoRoom`]), a conversation that the checkpoint's template refuses.
    /// [`Error::Tokenizer`] when the tokenizer lacks a token that is needed; [`Error::Image`] for an image whose size is needed and
    /// cannot be had.
    pub fn encode(&self, pair: &Pair) -> Result<EncodedPair> {
        self.check(pair)?;
        let (rendered, spans) = self.render(pair, None)?;
        let prompt = self.tokenizer.encode(&rendered.prompt, !rendered.own)?;
        let chosen = self.encode_answer(&rendered, &prompt.ids, &pair.chosen)?;
        let rejected = self.encode_answer(&rendered, &prompt.ids, &pair.rejected)?;
        let (prompt_ids, image_spans) = self.expand_images(pair, &rendered, prompt, spans)?;
        let room = self.max_length.map(|max_length| {
            let fault = PairFault::NoRoom { prompt: prompt_ids.len(), max_length };
            max_length
                .checked_sub(prompt_ids.len())
                .filter(|room| *room > 0)
                .ok_or(Error::pair(&pair.id, fault))
        });
        let room = room.transpose()?.unwrap_or(usize::MAX);
        let instruction_ids = match &self.instruction {
            Some(tokenizer) => tokenizer.encode(&pair.prompt, true)?.ids,
            None => Vec::new(),
        };
        let known = |side: fn(&PairLogps) -> &AnswerLogps| pair.logps.as_ref().map(side);
        let chosen = self.answer(&pair.id, &pair.chosen, chosen, known(|of| &of.chosen), room)?;
        let rejected = self.answer(&pair.id, &pair.rejected, rejected, known(|of| &of.rejected), room)?;
        if chosen.ids == rejected.ids {
            return Err(Error::pair(&pair.id, PairFault::Equal));
        }
        let (id, images, rejected_images) =
            (pair.id.clone(), pair.images.clone(), pair.rejected_images.clone());
        Ok(EncodedPair {
            id,
            origin: None,
            images,
            rejected_images,
            prompt_ids,
            image_spans,
            instruction_ids,
            chosen,
            rejected,
        })
    }

    /// Prompt ids for generation, image tokens expanded: what [`Encoder::encode`] puts before the answer.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_prompt(&self, pair: &Pair) -> Result<Vec<u32>> {
        self.prompt(pair, None)
    }

    /// The same with the shapes of the pair's images, which are then looked for nowhere.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    pub fn encode_prompt_of(&self, pair: &Pair, shapes: &[ImageShape]) -> Result<Vec<u32>> {
        self.prompt(pair, Some(shapes))
    }

    fn prompt(&self, pair: &Pair, shapes: Option<&[ImageShape]>) -> Result<Vec<u32>> {
        self.check_prompt(pair)?;
        let (rendered, spans) = self.render(pair, shapes)?;
        let prompt = self.tokenizer.encode(&rendered.prompt, !rendered.own)?;
        Ok(self.expand_images(pair, &rendered, prompt, spans)?.0)
    }

    /// The prompt, and the bytes of each image in it. Where images are of one length they are written as one token each, and
    /// there are no bytes.
    fn render(
        &self,
        pair: &Pair,
        shapes: Option<&[ImageShape]>,
    ) -> Result<(Rendered, Option<Vec<Range<usize>>>)> {
        let names = self.tokenizer.names();
        let mut rendered = match (self.template, &self.chat) {
            (Template::Chat, Some(chat)) => chat.render(pair, names)?,
            (Template::Chat, None) => {
                let remedy = "give a checkpoint that has a chat template, or another template";
                return Err(Error::Option { name: "template", found: "chat".to_owned(), remedy });
            }
            (template, _) => template.render(pair, names),
        };
        let ImageTokens::Sized(sized) = &self.images else { return Ok((rendered, None)) };
        if !pair.images.is_empty() {
            // A text that is no token would be spelled out, letter by letter.
            self.tokenizer.image()?;
        }
        let shapes = match shapes {
            Some(shapes) => shapes.to_vec(),
            None => {
                let alone = pair.images.len() == 1;
                pair.images.iter().map(|image| sized.images.shape(image, alone)).collect::<Result<_>>()?
            }
        };
        let mut parts = rendered.prompt.split(names.image.as_str());
        let mut prompt = parts.next().unwrap_or_default().to_owned();
        let mut spans = Vec::with_capacity(shapes.len());
        // Shapes first: a part that has none is still there to be told of.
        for (shape, part) in shapes.iter().zip(parts.by_ref()) {
            let start = prompt.len();
            prompt += &sized.text(shape, &names.image);
            spans.push(start..prompt.len());
            prompt += part;
        }
        if spans.len() != shapes.len() || parts.next().is_some() {
            let fault = PairFault::ImageCount {
                tags: rendered.prompt.matches(&names.image).count(),
                images: shapes.len(),
            };
            return Err(Error::pair(&pair.id, fault));
        }
        rendered.prompt = prompt;
        Ok((rendered, Some(spans)))
    }

    fn check(&self, pair: &Pair) -> Result<()> {
        self.check_prompt(pair)?;
        for (side, place, text) in
            [("chosen", "chosen answer", &pair.chosen), ("rejected", "rejected answer", &pair.rejected)]
        {
            if text.trim().is_empty() {
                return Err(Error::pair(&pair.id, PairFault::Empty { side }));
            }
            self.check_special(pair, place, text)?;
        }
        Ok(())
    }

    fn check_prompt(&self, pair: &Pair) -> Result<()> {
        let (tags, images) = (pair.tags(), pair.images.len());
        if tags > 0 && tags != images {
            return Err(Error::pair(&pair.id, PairFault::ImageCount { tags, images }));
        }
        if tags > 0 && self.template == Template::InstructBlip {
            return Err(Error::pair(&pair.id, PairFault::Placed { template: self.template }));
        }
        if self.template == Template::LlavaLlama2 && !pair.history.is_empty() {
            self.tokenizer.bos()?;
        }
        // The tags become image tokens; nothing else may become a token with a meaning of its own.
        let bare = |text: &str| text.replace(IMAGE_TAG, " ");
        self.check_special(pair, "prompt", &bare(&pair.prompt))?;
        self.check_special(pair, "system message", pair.system.as_deref().unwrap_or_default())?;
        for turn in &pair.history {
            self.check_special(pair, "earlier question", &bare(&turn.user))?;
            self.check_special(pair, "earlier answer", &turn.assistant)?;
        }
        Ok(())
    }

    fn check_special(&self, pair: &Pair, place: &'static str, text: &str) -> Result<()> {
        match self.tokenizer.special_in(text) {
            Some(token) => {
                Err(Error::pair(&pair.id, PairFault::SpecialToken { place, token: token.to_owned() }))
            }
            None => Ok(()),
        }
    }

    /// The tokens of an answer behind a prompt whose own tokens are `prompt`.
    fn encode_answer(&self, rendered: &Rendered, prompt: &[u32], answer: &str) -> Result<Side> {
        let eos = &self.tokenizer.names().eos;
        let (text, proper) = rendered.with_answer(answer, eos);
        let whole = self.tokenizer.encode(&text, !rendered.own)?;
        let start = response_start(&whole, rendered.prompt.len());
        if whole.ids[..start] == *prompt {
            let offsets = relative(&whole.offsets[start..], &proper);
            return Ok(Side { ids: whole.ids[start..].to_vec(), offsets });
        }
        // A token runs across the border (or the tokenizer looks ahead): the prompt must be the same for both answers and
        // at generation, so prompt and answer are tokenised apart.
        let eos = if rendered.own { "" } else { eos };
        let tail = [answer, &rendered.after, eos].concat();
        let tail = self.tokenizer.encode(&tail, false)?;
        Ok(Side { offsets: relative(&tail.offsets, &(0..answer.len())), ids: tail.ids })
    }

    /// Ids of the prompt with its images, and where they are. `written` are the bytes of images that are written out already.
    fn expand_images(
        &self,
        pair: &Pair,
        rendered: &Rendered,
        prompt: Tokens,
        written: Option<Vec<Range<usize>>>,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        if pair.images.is_empty() {
            return Ok((prompt.ids, Vec::new()));
        }
        let ImageTokens::Fixed(tokens) = self.images else {
            let first =
                |at: usize| prompt.offsets.iter().position(|&(start, end)| start < end && start >= at);
            let place = |at: usize| first(at).unwrap_or(prompt.ids.len());
            let spans = written.unwrap_or_default();
            let spans = spans.into_iter().map(|bytes| place(bytes.start)..place(bytes.end)).collect();
            return Ok((prompt.ids, spans));
        };
        let image = self.tokenizer.image()?;
        let mut ids = Vec::with_capacity(prompt.ids.len() + pair.images.len() * tokens);
        let mut spans = Vec::with_capacity(pair.images.len());
        let mut expand = |ids: &mut Vec<u32>| {
            let start = ids.len();
            ids.resize(start + tokens, image);
            spans.push(start..ids.len());
        };
        if rendered.images_before {
            pair.images.iter().for_each(|_| expand(&mut ids));
        }
        for id in prompt.ids {
            if id == image { expand(&mut ids) } else { ids.push(id) }
        }
        if spans.len() != pair.images.len() {
            let fault = PairFault::ImageCount { tags: spans.len(), images: pair.images.len() };
            return Err(Error::pair(&pair.id, fault));
        }
        Ok((ids, spans))
    }

    fn answer(
        &self,
        id: &str,
        text: &str,
        side: Side,
        known: Option<&AnswerLogps>,
        room: usize,
    ) -> Result<EncodedAnswer> {
        let fail = |error: aspo_segment::Error| Error::pair(id, PairFault::Sentences(error.to_string()));
        let spans: Vec<Range<usize>> = aspo_segment::split(text, &self.split).collect();
        let sentences = aspo_segment::align(text, &spans, &side.offsets).map_err(fail)?;
        let (sentences, spans) = close_ranks(&sentences, &spans);
        let ends: Vec<usize> = side.offsets.iter().map(|offset| offset.1).collect();
        let reference = match known {
            None => Vec::new(),
            Some(known) if known.tokens == side.ids.len() => {
                known.values[known.values.len().saturating_sub(known.tokens)..].to_vec()
            }
            Some(known) => {
                let fault = PairFault::Logps { known: known.tokens, tokens: side.ids.len() };
                return Err(Error::pair(id, fault));
            }
        };
        let mut answer = EncodedAnswer {
            ids: side.ids,
            sentences,
            text: text.to_owned(),
            spans,
            similarity: Vec::new(),
            reference,
            truncated: false,
        };
        if answer.ids.len() > room {
            answer.truncate(room, &ends);
        }
        Ok(answer)
    }
}

/// Tokens of one answer, offsets in bytes of its text.
struct Side {
    ids: Vec<u32>,
    offsets: Vec<(usize, usize)>,
}

/// Index of the first token that starts at byte `prompt` or later; tokens of no width (`<s>`) belong to the prompt.
pub fn response_start(tokens: &Tokens, prompt: usize) -> usize {
    tokens.offsets.iter().position(|&(start, end)| start < end && start >= prompt).unwrap_or(tokens.ids.len())
}

/// Offsets within the answer; what lies around it (the space before, the end token) has no width there.
fn relative(offsets: &[(usize, usize)], proper: &Range<usize>) -> Vec<(usize, usize)> {
    let clamp = |at: usize| at.clamp(proper.start, proper.end) - proper.start;
    offsets.iter().map(|&(start, end)| (clamp(start), clamp(end))).collect()
}

/// Sentences without a token of their own join the one before, so that every sentence has one and ids have no gaps.
fn close_ranks(sentences: &[usize], spans: &[Range<usize>]) -> (Vec<u32>, Vec<Range<usize>>) {
    let mut kept: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    let mut ids = Vec::with_capacity(sentences.len());
    let mut last = None;
    for &sentence in sentences {
        if last != Some(sentence) {
            kept.push(spans[sentence].clone());
            last = Some(sentence);
        }
        ids.push((kept.len() - 1) as u32);
    }
    // Tile again: each span runs up to the next one's start, the first from 0, the last to the end of the text.
    let end = spans.last().map_or(0, |span| span.end);
    for index in 0..kept.len() {
        kept[index].end = kept.get(index + 1).map_or(end, |next| next.start);
    }
    if let Some(first) = kept.first_mut() {
        first.start = 0;
    }
    (ids, kept)
}
