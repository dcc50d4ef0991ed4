//! SHR: the share of sentences in image descriptions that a judge finds hallucinated.
//!
//! Published files: `val_images_final.json`, `shr_factual_part1.jsonl`, `shr_factual_part2.jsonl` (SHR), `image_data.json`,
//! `region_descriptions.json` (Visual Genome), and `judgement.json`. Judged and scored as HA-DPO's `shr_eval` does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer};

use crate::answer::Answers;
use crate::error::{Error, Result, quote};
use crate::file::{self, Entries, Record};
use crate::judge::{Reply, Request};
use crate::question::{self, Id, Image, Question};
use crate::spread::{mean, spread};

mod genome;
mod judgement;

use genome::describe;
use judgement::score_run;
pub use judgement::{
    Judgement, SentenceJudgement, ShrRunScores, ShrScores, classify, has_judgement, sentences,
};

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

/// SHR's files.
#[derive(Debug)]
pub struct Shr {
    folder: PathBuf,
    /// Image ids in the published order; `None` without `val_images_final.json`.
    ids: Option<Vec<u64>>,
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
                Ok(Question::new(Id::number(*id), Some(question::image_name(&path, &name)?), PROMPT.into()))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(question::placed(&questions, images, &self.folder, &["VG", "../VG", "."]))
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
        let of =
            |figure: fn(&ShrRunScores) -> Option<f64>| runs.iter().filter_map(figure).collect::<Vec<_>>();
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
