//! SHR: the share of sentences in image descriptions that a judge finds hallucinated.
//!
//! Published files: `val_images_final.json`, `shr_factual_part1.jsonl`, `shr_factual_part2.jsonl` (SHR), `image_data.json`,
//! `region_descriptions.json` (Visual Genome), and `judgement.json`. Judged and scored as HA-DPO's `shr_eval` does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file::{self, Entries, Record};
use crate::judge::{Reply, Request};
use crate::question::{Id, Image, Question};
use crate::spread::{mean, spread};

const NAME: &str = "shr";
const PROMPT: &str = "Describe this image in detail.";
const IMAGES: [&str; 3] =
    ["val_images_final.json", "shr/val_images_final.json", "../shr/val_images_final.json"];
/// How often a reply without a judgement is asked for again (C); the published script never gives up.
const TRIES: usize = 5;
const JUDGE_PROMPT: &str = include_str!("shr_prompt.txt");

#[derive(Deserialize)]
struct ImageRow {
    #[serde(deserialize_with = "image_id")]
    image_id: u64,
}

/// A number, or the text of one.
fn image_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let id = Id::deserialize(deserializer)?;
    id.as_str().parse().map_err(|_| serde::de::Error::custom(format!("image_id {id} is no number")))
}

#[derive(Deserialize)]
struct ImageData {
    image_id: u64,
    width: f64,
    height: f64,
    url: String,
}

#[derive(Deserialize)]
struct Regions {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    image_id: u64,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    phrase: Option<String>,
}

/// SHR's files.
#[derive(Debug)]
pub struct Shr {
    folder: PathBuf,
    /// Image ids in the published order; `None` without `val_images_final.json`.
    ids: Option<Vec<u64>>,
}

/// The judgement of one description, with the fields of a published `judgement.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The judge's raw reply.
    pub raw_judgement: String,
    /// The description. (One of the published scripts writes `mode_response`.)
    #[serde(alias = "mode_response")]
    pub model_response: String,
    /// Sentence by sentence.
    #[serde(default)]
    pub judgement: Vec<SentenceJudgement>,
    /// The prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// The judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge_model: Option<String>,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
}

/// The judgement of one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentenceJudgement {
    /// The sentence, with its ".".
    pub model_response: String,
    /// What the judge wrote of it.
    pub judgement: Option<String>,
    /// The class in that, in lower case: hallucination, correct, cannot judge, or whatever else was there.
    pub classification: Option<String>,
}

/// The figures of one judge run. Ratios are fractions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ShrRunScores {
    /// Hallucinated sentences among those with one of the three classes, pooled over all images.
    pub hal_sents_ratio: f64,
    /// Words of hallucinated sentences among words of those with one of the three classes.
    pub hal_words_ratio: f64,
    /// Descriptions.
    pub num_images: usize,
    /// Sentences for each image.
    pub sents_per_image: f64,
    /// Words for each image.
    pub words_per_image: f64,
    /// Hallucinated sentences for each image.
    pub hal_sents_per_image: f64,
    /// Words of hallucinated sentences for each image.
    pub hal_words_per_image: f64,
    /// Sentences, of all classes and none.
    pub total: usize,
    /// Sentences found hallucinated.
    pub hallucination: usize,
    /// Sentences found correct.
    pub correct: usize,
    /// Sentences of which the judge could not tell.
    pub cannot_judge: usize,
    /// Sentences without one of the three classes; they are left out of the ratios.
    pub unreadable: usize,
}

/// SHR's figures over all judge runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShrScores {
    /// The headline, lower is better: the mean over the runs of hallucinated sentences, a fraction.
    pub mean_hal_ratio: f64,
    /// The standard deviation of that over the runs.
    pub spread: f64,
    /// The mean over the runs of words of hallucinated sentences, a fraction.
    pub mean_hal_words_ratio: f64,
    /// Sentences without a class, in all runs.
    pub unreadable: usize,
    /// Each run.
    pub runs: Vec<ShrRunScores>,
}

impl Shr {
    /// Reads a folder (SHR's files in it or in `shr/`, Visual Genome's in it or in `VG/`), or `val_images_final.json`.
    /// A folder without that file can score recorded judgements, of whatever images they are.
    ///
    /// # Errors
    /// A file that is malformed, an image twice.
    pub fn open(data: impl AsRef<Path>) -> Result<Self> {
        let data = data.as_ref();
        let folder = file::folder(NAME, data)?;
        let path = if data.is_file() { Some(data.to_path_buf()) } else { file::find(&folder, &IMAGES) };
        let Some(path) = path else { return Ok(Self { folder, ids: None }) };
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        for Record { row, value } in file::records::<ImageRow>(&path)? {
            if !seen.insert(value.image_id) {
                return Err(Error::DuplicateId { path, row, id: value.image_id.to_string() });
            }
            ids.push(value.image_id);
        }
        Ok(Self { folder, ids: Some(ids) })
    }

    fn ids(&self) -> Result<&[u64]> {
        match &self.ids {
            Some(ids) => Ok(ids),
            None => file::find_or(NAME, &self.folder, &IMAGES).map(|_| [].as_slice()),
        }
    }

    /// Asks for a description of every image; images below `images`, else in `VG/` or the folder itself, under the two
    /// last parts of their address in `image_data.json` (`VG_100K/1.jpg`).
    ///
    /// # Errors
    /// `image_data.json` missing, malformed, or without one of the images.
    pub fn questions(&self, images: Option<&Path>) -> Result<Vec<Question>> {
        let ids = self.ids()?;
        let (path, data) = self.image_data(ids)?;
        let questions = ids
            .iter()
            .map(|id| {
                let parts: Vec<&str> = data[id].url.rsplitn(3, '/').take(2).collect();
                let name = parts.into_iter().rev().collect::<Vec<_>>().join("/");
                Ok(Question::new(Id::number(*id), Some(file::image_name(&path, &name)?), PROMPT.into()))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(file::placed(&questions, images, &self.folder, &["VG", "../VG", "."]))
    }

    /// What a judge is asked about these descriptions, `runs` times over: regions, human facts, numbered sentences.
    ///
    /// # Errors
    /// Published files missing or malformed; descriptions that are missing or unknown.
    pub fn requests(&self, answers: &Answers, runs: usize) -> Result<Vec<Request>> {
        let ids = self.ids()?;
        let matched = answers.matched(&self.plain_questions(ids), |_| false)?;
        let (_, data) = self.image_data(ids)?;
        let regions = self.regions(ids)?;
        let facts = self.facts()?;
        let mut requests = Vec::new();
        for run in 1..=runs {
            for (id, answer) in ids.iter().zip(&matched) {
                let described = describe(&regions[id], &data[id]);
                let fact: String =
                    facts.get(&id.to_string()).into_iter().flatten().map(|f| format!("{f}\n")).collect();
                let numbered: String = sentences(&answer.text)
                    .iter()
                    .enumerate()
                    .map(|(at, s)| format!("{}. {}\n", at + 1, s.trim_end_matches('.')))
                    .collect();
                let parts: Vec<&str> = JUDGE_PROMPT.split("{}").collect();
                let prompt = [parts[0], &described, parts[1], &fact, parts[2], &numbered, parts[3]].concat();
                let tries = vec![(prompt, 0.7); TRIES];
                let id = id.to_string();
                requests.push(Request { id, run, system: None, tries, max_tokens: 800, stop: Some("###") });
            }
        }
        Ok(requests)
    }

    /// A judge's replies as a judgement file: `{"run1": {image id: …}, …}`.
    pub fn judgements(
        &self,
        answers: &Answers,
        replies: &[Reply],
    ) -> BTreeMap<String, BTreeMap<String, Judgement>> {
        let mut runs: BTreeMap<String, BTreeMap<String, Judgement>> = BTreeMap::new();
        for reply in replies {
            let response = answers.get(&Id::text(&reply.id)).map_or("", |row| row.text.as_str());
            let judgement = Judgement {
                raw_judgement: reply.text().to_owned(),
                model_response: response.to_owned(),
                judgement: classify(reply.text(), response),
                prompt: Some(reply.prompt.clone()),
                judge_model: Some(reply.judge_model.clone()),
                date: Some(reply.date.clone()),
            };
            runs.entry(format!("run{}", reply.run)).or_default().insert(reply.id.clone(), judgement);
        }
        runs
    }

    /// Reads judgement files, each with one or more runs, and scores all runs. With `answers`, each judgement must be of
    /// these descriptions.
    ///
    /// # Errors
    /// Judgements that are malformed, missing, unknown, double, or of another description.
    pub fn score(&self, files: &[PathBuf], answers: Option<&Answers>) -> Result<ShrScores> {
        if files.is_empty() {
            return Err(Error::Option("no judge runs: give at least one judgement file".into()));
        }
        let mut runs = Vec::new();
        for path in files {
            for (_, Entries(of_run)) in file::entries::<Entries<Judgement>>(path)? {
                file::unique(path, &of_run)?;
                if let Some(ids) = &self.ids {
                    check_ids(path, &of_run, ids)?;
                }
                for (at, (id, judgement)) in of_run.iter().enumerate() {
                    let answer = answers.and_then(|all| all.get(&Id::text(id)));
                    if let Some(answer) = answer.filter(|a| a.text != judgement.model_response) {
                        return Err(Error::OtherOrder {
                            path: path.clone(),
                            row: at + 1,
                            id: quote(id),
                            found: quote(&judgement.model_response),
                            expected: quote(&answer.text),
                        });
                    }
                }
                runs.push(score_run(of_run.iter().map(|(_, judgement)| judgement)));
            }
        }
        let of = |figure: fn(&ShrRunScores) -> f64| runs.iter().map(figure).collect::<Vec<_>>();
        Ok(ShrScores {
            mean_hal_ratio: mean(&of(|run| run.hal_sents_ratio)),
            spread: spread(&of(|run| run.hal_sents_ratio)),
            mean_hal_words_ratio: mean(&of(|run| run.hal_words_ratio)),
            unreadable: runs.iter().map(|run| run.unreadable).sum(),
            runs,
        })
    }

    fn plain_questions(&self, ids: &[u64]) -> Vec<Question> {
        let image = || Some(Image::Path(PathBuf::new()));
        ids.iter().map(|id| Question::new(Id::number(*id), image(), PROMPT.into())).collect()
    }

    fn image_data(&self, ids: &[u64]) -> Result<(PathBuf, HashMap<u64, ImageData>)> {
        let names = ["image_data.json", "VG/image_data.json", "../VG/image_data.json"];
        let path = file::find_or(NAME, &self.folder, &names)?;
        let rows: Vec<ImageData> = file::document(&path)?;
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        let found: HashMap<u64, ImageData> = rows
            .into_iter()
            .filter(|row| wanted.contains(&row.image_id))
            .map(|row| (row.image_id, row))
            .collect();
        all_there(&path, ids, |id| found.contains_key(&id))?;
        Ok((path, found))
    }

    fn regions(&self, ids: &[u64]) -> Result<HashMap<u64, Vec<Region>>> {
        let names =
            ["region_descriptions.json", "VG/region_descriptions.json", "../VG/region_descriptions.json"];
        let path = file::find_or(NAME, &self.folder, &names)?;
        let wanted: HashSet<u64> = ids.iter().copied().collect();
        let rows: Vec<Regions> = file::document(&path)?;
        let found: HashMap<u64, Vec<Region>> = rows
            .into_iter()
            .filter_map(|row| Some((row.regions.first()?.image_id, row.regions)))
            .filter(|(id, _)| wanted.contains(id))
            .collect();
        all_there(&path, ids, |id| found.contains_key(&id))?;
        Ok(found)
    }

    /// Human facts by image; an image may have none.
    fn facts(&self) -> Result<HashMap<String, Vec<String>>> {
        let mut facts = HashMap::new();
        for name in ["shr_factual_part1.jsonl", "shr_factual_part2.jsonl"] {
            let places = [name.to_owned(), format!("shr/{name}"), format!("../shr/{name}")];
            let places: Vec<&str> = places.iter().map(String::as_str).collect();
            let path = file::find_or(NAME, &self.folder, &places)?;
            for Record { value: Entries(entries), .. } in file::records::<Entries<Vec<String>>>(&path)? {
                facts.extend(entries.into_iter().take(1));
            }
        }
        Ok(facts)
    }
}

/// A description's sentences as SHR cuts them: at every ".", without those that are part of an earlier one, each with a
/// "." behind it.
pub fn sentences(description: &str) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for piece in description.split('.') {
        let sentence = piece.trim();
        if !sentence.is_empty() && !kept.iter().any(|earlier| earlier.contains(sentence)) {
            kept.push(format!("{sentence}."));
        }
    }
    kept
}

/// The judge's reply, sentence by sentence. The lines after the one with `Judgement:` must be as many as the sentences;
/// otherwise no sentence gets a class, as published.
pub fn classify(reply: &str, description: &str) -> Vec<SentenceJudgement> {
    let sentences = sentences(description);
    let lines: Vec<&str> = reply.split('\n').filter(|line| !line.is_empty()).collect();
    let verdicts: Vec<String> = match lines.iter().position(|line| line.contains("Judgement:")) {
        Some(at) => lines[at + 1..]
            .iter()
            .map(|line| line.split_once(' ').map_or("", |(_, rest)| rest).trim().to_owned())
            .filter(|verdict| !verdict.is_empty())
            .collect(),
        None => Vec::new(),
    };
    let matches = verdicts.len() == sentences.len();
    let mut verdicts = verdicts.into_iter();
    sentences
        .into_iter()
        .map(|sentence| {
            let verdict = if matches { verdicts.next() } else { None };
            let class = verdict.as_ref().map(|v| v.split(':').next().unwrap_or_default().to_lowercase());
            SentenceJudgement { model_response: sentence, judgement: verdict, classification: class }
        })
        .collect()
}

/// Whether a judge's reply has a judgement in it at all.
pub fn has_judgement(reply: &str) -> bool {
    reply.contains("Judgement:")
}

fn score_run<'a>(judgements: impl Iterator<Item = &'a Judgement>) -> ShrRunScores {
    let mut s = ShrRunScores::default();
    let (mut words, mut judged_words, mut hal_words) = (0, 0, 0);
    for judgement in judgements {
        s.num_images += 1;
        let own;
        let sentences = if judgement.judgement.is_empty() {
            own = classify(&judgement.raw_judgement, &judgement.model_response);
            &own
        } else {
            &judgement.judgement
        };
        for sentence in sentences {
            let length = sentence.model_response.split(' ').count();
            s.total += 1;
            words += length;
            match sentence.classification.as_deref() {
                Some("hallucination") => {
                    s.hallucination += 1;
                    hal_words += length;
                }
                Some("correct") => s.correct += 1,
                Some("cannot judge") => s.cannot_judge += 1,
                _ => {
                    s.unreadable += 1;
                    continue;
                }
            }
            judged_words += length;
        }
    }
    let share = |part: usize, whole: usize| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
    s.hal_sents_ratio = share(s.hallucination, s.hallucination + s.correct + s.cannot_judge);
    s.hal_words_ratio = share(hal_words, judged_words);
    s.sents_per_image = share(s.total, s.num_images);
    s.words_per_image = share(words, s.num_images);
    s.hal_sents_per_image = share(s.hallucination, s.num_images);
    s.hal_words_per_image = share(hal_words, s.num_images);
    s
}

/// `[x1, y1, x2, y2]: phrase` for each region, in shares of the image's size to two digits.
fn describe(regions: &[Region], image: &ImageData) -> String {
    let mut text = String::new();
    for r in regions {
        let Some(phrase) = r.phrase.as_deref().filter(|phrase| !phrase.is_empty()) else { continue };
        let corners = [
            r.x / image.width,
            r.y / image.height,
            (r.x + r.width) / image.width,
            (r.y + r.height) / image.height,
        ];
        let corners = corners.map(|c| format!("{:?}", format!("{c:.2}").parse::<f64>().unwrap_or(c)));
        let _ = writeln!(text, "[{}]: {phrase}", corners.join(", "));
    }
    text
}

fn all_there(path: &Path, ids: &[u64], has: impl Fn(u64) -> bool) -> Result<()> {
    let missing: Vec<u64> = ids.iter().copied().filter(|id| !has(*id)).collect();
    match missing.first() {
        Some(first) => Err(Error::Missing {
            path: path.into(),
            missing: missing.len(),
            total: ids.len(),
            first: first.to_string(),
        }),
        None => Ok(()),
    }
}

fn check_ids(path: &Path, of_run: &[(String, Judgement)], ids: &[u64]) -> Result<()> {
    let judged: HashSet<&str> = of_run.iter().map(|(id, _)| id.as_str()).collect();
    let known: HashSet<String> = ids.iter().map(u64::to_string).collect();
    if let Some(at) = of_run.iter().position(|(id, _)| !known.contains(id)) {
        return Err(Error::UnknownId { path: path.into(), row: at + 1, id: quote(&of_run[at].0) });
    }
    all_there(path, ids, |id| judged.contains(id.to_string().as_str()))
}
