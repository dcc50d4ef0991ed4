//! `report.html`: one file that shows a run, with nothing to load from elsewhere.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::MetricLine;
use crate::page::{chart, embedded, escape, page, table};
use crate::recorder::MetricFile;
use crate::weigh::WeighedSentence;

/// What a report shows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// Facts above the curves: name and value.
    pub facts: Vec<(String, String)>,
    /// Lines of `metrics.jsonl`.
    #[serde(skip)]
    pub metrics: Vec<MetricLine>,
    /// Tables: heading, then rows; the first row is the header.
    pub tables: Vec<(String, Vec<Vec<String>>)>,
    /// Pictures with what was said about them: heading, then the pictures.
    pub pictures: Vec<(String, Vec<Picture>)>,
    /// What was counted item by item, by which two runs are compared.
    pub counts: Vec<Counts>,
}

/// A share of the trained model, counted on each item (scene, question) of a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// What the share is of.
    pub name: String,
    /// Which items: runs whose words here are equal were measured on the same ones, in the same order.
    pub items: String,
    /// The whole and the part of each item.
    pub counts: Vec<[usize; 2]>,
}

/// A question about a picture or several, and answers to it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Picture {
    /// The encoded files (PNG, JPEG, …) of what was asked about.
    #[serde(with = "encoded")]
    pub images: Vec<Vec<u8>>,
    /// What was asked.
    pub question: String,
    /// Answers by name (`base`, `trained`), sentence by sentence.
    pub answers: Vec<(String, Vec<MarkedSentence>)>,
}

/// A sentence with what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MarkedSentence {
    /// Text, perplexity, similarity, weight.
    pub sentence: WeighedSentence,
    /// Whether it is false, where somebody can tell.
    pub hallucinated: bool,
}

/// Name of the file beside `metrics.jsonl` that a page can be made from again.
const FILE: &str = "report.json";

/// Curves drawn together: heading, and the metrics in it.
pub const CURVES: [(&str, &[&str]); 7] = [
    ("Loss", &["loss", "eval_loss"]),
    ("Reward margin", &["rewards/margins", "eval_rewards/margins"]),
    ("Reward accuracy", &["rewards/accuracies", "eval_rewards/accuracies"]),
    ("Rewards", &["rewards/chosen", "rewards/rejected"]),
    ("Log-probabilities of the answers (displacement: both fall)", &["logps/chosen", "logps/rejected"]),
    ("Gradient norm", &["grad_norm"]),
    ("Sentence weights", &["aspo/weight_mean", "aspo/scale"]),
];

impl Report {
    /// Writes the page: to a temporary name, then renamed.
    ///
    /// # Errors
    /// A disk that is full or read-only.
    pub fn write(&self, path: &Path) -> Result<()> {
        let html = self.html();
        Ok(aspo_data::files::write_atomic(path, |file| {
            file.write_all(html.as_bytes())
                .map_err(|source| aspo_data::Error::Io { path: path.into(), source })
        })?)
    }

    /// Writes `report.json` into a run's folder: what the page shows but the metrics, for [`Report::read`].
    ///
    /// # Errors
    /// A disk that is full or read-only.
    pub fn keep(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let json = serde_json::to_vec(self).map_err(|error| Error::stored(&path, error.to_string()))?;
        Ok(aspo_data::files::write_atomic(&path, |file| {
            file.write_all(&json).map_err(|source| aspo_data::Error::Io { path: path.clone(), source })
        })?)
    }

    /// What a run's folder holds; of a run that was not finished, or has no `report.json`, its metrics alone.
    ///
    /// # Errors
    /// A folder without `metrics.jsonl`; files that hold something else.
    pub fn read(folder: &Path) -> Result<Self> {
        let metrics = MetricFile::read(folder)?;
        let path = folder.join(FILE);
        let report = match std::fs::read(&path) {
            Ok(json) => {
                serde_json::from_slice(&json).map_err(|error| Error::stored(&path, error.to_string()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(source) => return Err(Error::io(&path, source)),
        };
        Ok(Self { metrics, ..report })
    }

    fn html(&self) -> String {
        let mut html = String::from("<table class=facts>");
        for (name, value) in &self.facts {
            let _ = write!(html, "<tr><td>{}<td>{}", escape(name), escape(value));
        }
        html += "</table>";
        self.tables.iter().for_each(|(heading, rows)| html += &table(heading, rows));
        if !self.metrics.is_empty() {
            html += "<h2>Training</h2>";
        }
        html += "<div class=curves>";
        for (heading, names) in CURVES {
            let lines = names.iter().map(|name| ((*name).to_owned(), self.series(name)));
            let lines: Vec<_> = lines.filter(|(_, line)| line.len() > 1).collect();
            if !lines.is_empty() {
                html += &chart(heading, &lines);
            }
        }
        html += "</div>";
        for (heading, pictures) in self.pictures.iter().filter(|(_, pictures)| !pictures.is_empty()) {
            html += &gallery(heading, pictures.iter());
            pictures.iter().for_each(|picture| html += &picture.html(|_, _| false));
        }
        page(&self.title, &html)
    }

    /// A metric by step, where it is a number.
    pub fn series(&self, name: &str) -> Vec<(f64, f64)> {
        let point = |line: &MetricLine| Some((line.step as f64, *line.values.get(name)?));
        self.metrics.iter().filter_map(point).filter(|(_, value)| value.is_finite()).collect()
    }
}

/// The heading of some pictures, and what their colours mean.
pub fn gallery<'a>(heading: &str, pictures: impl Iterator<Item = &'a Picture>) -> String {
    let mut html = format!(
        "<h2>{}</h2><p class=key>The greener a sentence, the larger its weight (similarity to the picture and \
         fluency, min-max within the answer).",
        escape(heading)
    );
    let mut sentences = pictures.flat_map(|picture| &picture.answers).flat_map(|(_, sentences)| sentences);
    if sentences.any(|sentence| sentence.hallucinated) {
        html += " <span class=bad>Underlined in red</span>: false.";
    }
    html + " Point at a sentence for its numbers.</p>"
}

impl Picture {
    /// The pictures, the question, and the answers, their sentences shaded by weight; `changed` tells of the answer and the
    /// sentence with these numbers whether it is outlined.
    pub fn html(&self, changed: impl Fn(usize, usize) -> bool) -> String {
        let mut any = false;
        let mut said = String::new();
        for (row, (name, sentences)) in self.answers.iter().enumerate() {
            let _ = write!(said, "<p class=said><b>{}</b>", escape(name));
            for (index, MarkedSentence { sentence, hallucinated }) in sentences.iter().enumerate() {
                let similarity =
                    sentence.similarity.map_or(String::new(), |score| format!(", similarity {score:.3}"));
                let outlined = changed(row, index);
                any |= outlined;
                let _ = write!(
                    said,
                    "<span class=\"s{}{}\" style=\"background:rgba(60,170,90,{:.2})\" title=\"weight {:.2}{similarity}, perplexity {:.2}\">{}</span> ",
                    if *hallucinated { " bad" } else { "" },
                    if outlined { " changed" } else { "" },
                    0.08 + 0.6 * sentence.weight,
                    sentence.weight,
                    sentence.perplexity,
                    escape(sentence.text.trim())
                );
            }
            said += "</p>";
        }
        let class = if any { "picture" } else { "picture same" };
        let images: String = self.images.iter().map(|image| embedded(image)).collect();
        let question = escape(&self.question);
        format!("<div class=\"{class}\"><div>{images}</div><div><i>{question}</i>{said}</div></div>")
    }
}

/// Files of pictures in JSON: base64.
mod encoded {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(images: &[Vec<u8>], to: S) -> Result<S::Ok, S::Error> {
        images.iter().map(|image| STANDARD.encode(image)).collect::<Vec<_>>().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let images = Vec::<String>::deserialize(from)?;
        images.iter().map(|image| STANDARD.decode(image).map_err(D::Error::custom)).collect()
    }
}
