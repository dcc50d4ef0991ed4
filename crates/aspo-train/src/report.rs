//! `report.html`: one file that shows a run, with nothing to load from elsewhere.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine;

use crate::error::Result;
use crate::metric::MetricLine;
use crate::weigh::WeighedSentence;

/// What a report shows.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The heading.
    pub title: String,
    /// Facts above the curves: name and value.
    pub facts: Vec<(String, String)>,
    /// Lines of `metrics.jsonl`.
    pub metrics: Vec<MetricLine>,
    /// Tables: heading, then rows; the first row is the header.
    pub tables: Vec<(String, Vec<Vec<String>>)>,
    /// Pictures with what was said about them: heading, then the pictures.
    pub pictures: Vec<(String, Vec<Picture>)>,
}

/// A question about a picture or several, and answers to it.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// The encoded files (PNG, JPEG, …) of what was asked about.
    pub images: Vec<Vec<u8>>,
    /// What was asked.
    pub question: String,
    /// Answers by name (`base`, `trained`), sentence by sentence.
    pub answers: Vec<(String, Vec<MarkedSentence>)>,
}

/// A sentence with what is known of it.
#[derive(Clone, Debug)]
pub struct MarkedSentence {
    /// Text, perplexity, similarity, weight.
    pub sentence: WeighedSentence,
    /// Whether it is false, where somebody can tell.
    pub hallucinated: bool,
}

/// Curves drawn together: heading, and the metrics in it.
const CURVES: [(&str, &[&str]); 7] = [
    ("Loss", &["loss", "eval_loss"]),
    ("Reward margin", &["rewards/margins", "eval_rewards/margins"]),
    ("Reward accuracy", &["rewards/accuracies", "eval_rewards/accuracies"]),
    ("Rewards", &["rewards/chosen", "rewards/rejected"]),
    ("Log-probabilities of the answers (displacement: both fall)", &["logps/chosen", "logps/rejected"]),
    ("Gradient norm", &["grad_norm"]),
    ("Sentence weights", &["aspo/weight_mean", "aspo/scale"]),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid #ddd}table{border-collapse:collapse}\
td,th{padding:.25em .8em;border-bottom:1px solid #eee;text-align:right}td:first-child,th:first-child{text-align:left}\
.curves{display:flex;flex-wrap:wrap;gap:1em}.curves figure{margin:0}figcaption{font-size:.85em}\
.picture{display:flex;gap:1em;margin:1em 0;align-items:flex-start}.picture img{display:block;width:144px;\
margin-bottom:.5em;border:1px solid #ccc}.said{margin:.2em 0}.said b{display:inline-block;min-width:5em;margin-right:.4em}\
.s{padding:.1em .15em;border-radius:3px}.small{image-rendering:pixelated}.bad{text-decoration:underline wavy #c00}";

const COLOURS: [&str; 2] = ["#1f6fb4", "#d9662b"];

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

    fn html(&self) -> String {
        let mut html = String::new();
        let title = escape(&self.title);
        let _ = write!(
            html,
            "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style><h1>{title}</h1><table>"
        );
        for (name, value) in &self.facts {
            let _ = write!(html, "<tr><td>{}<td>{}", escape(name), escape(value));
        }
        html += "</table>";
        for (heading, rows) in &self.tables {
            let _ = write!(html, "<h2>{}</h2><table>", escape(heading));
            for (index, row) in rows.iter().enumerate() {
                html += "<tr>";
                let tag = if index == 0 { "th" } else { "td" };
                for cell in row {
                    let _ = write!(html, "<{tag}>{}", escape(cell));
                }
            }
            html += "</table>";
        }
        if !self.metrics.is_empty() {
            html += "<h2>Training</h2>";
        }
        html += "<div class=curves>";
        for (heading, names) in CURVES {
            let lines: Vec<(&str, Vec<(f64, f64)>)> = names
                .iter()
                .map(|name| (*name, self.series(name)))
                .filter(|(_, line)| line.len() > 1)
                .collect();
            if !lines.is_empty() {
                html += &chart(heading, &lines);
            }
        }
        html += "</div>";
        for (heading, pictures) in self.pictures.iter().filter(|(_, pictures)| !pictures.is_empty()) {
            let _ = write!(
                html,
                "<h2>{}</h2><p class=key>The greener a sentence, the larger its weight (similarity to the picture and \
                 fluency, min-max within the answer).",
                escape(heading)
            );
            let answers = || pictures.iter().flat_map(|picture| &picture.answers);
            if answers().flat_map(|(_, sentences)| sentences).any(|sentence| sentence.hallucinated) {
                html += " <span class=bad>Underlined in red</span>: false.";
            }
            html += " Point at a sentence for its numbers.</p>";
            pictures.iter().for_each(|picture| html += &picture.html());
        }
        html + "</html>\n"
    }

    fn series(&self, name: &str) -> Vec<(f64, f64)> {
        let point = |line: &MetricLine| Some((line.step as f64, *line.values.get(name)?));
        self.metrics.iter().filter_map(point).filter(|(_, value)| value.is_finite()).collect()
    }
}

impl Picture {
    fn html(&self) -> String {
        let mut html = String::from("<div class=picture><div>");
        self.images.iter().for_each(|image| html += &embedded(image));
        let _ = write!(html, "</div><div><i>{}</i>", escape(&self.question));
        for (name, sentences) in &self.answers {
            let _ = write!(html, "<p class=said><b>{}</b>", escape(name));
            for MarkedSentence { sentence, hallucinated } in sentences {
                let similarity =
                    sentence.similarity.map_or(String::new(), |score| format!(", similarity {score:.3}"));
                let _ = write!(
                    html,
                    "<span class=\"s{}\" style=\"background:rgba(60,170,90,{:.2})\" title=\"weight {:.2}{similarity}, perplexity {:.2}\">{}</span> ",
                    if *hallucinated { " bad" } else { "" },
                    0.08 + 0.6 * sentence.weight,
                    sentence.weight,
                    sentence.perplexity,
                    escape(sentence.text.trim())
                );
            }
            html += "</p>";
        }
        html + "</div></div>"
    }
}

/// An encoded picture as an element of a page.
pub fn embedded(image: &[u8]) -> String {
    let kind = match image.get(..4) {
        Some([0x89, b'P', b'N', b'G']) => "png",
        Some([0xff, 0xd8, ..]) => "jpeg",
        Some(b"GIF8") => "gif",
        Some([b'B', b'M', ..]) => "bmp",
        _ => "webp",
    };
    // Drawn ones: larger than life.
    let class = if image.len() < 4096 { "small" } else { "photo" };
    let data = base64::engine::general_purpose::STANDARD.encode(image);
    format!("<img class={class} alt=\"\" src=\"data:image/{kind};base64,{data}\">")
}

/// A line chart as inline SVG.
fn chart(heading: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> String {
    const WIDTH: f64 = 340.0;
    const HEIGHT: f64 = 180.0;
    const LEFT: f64 = 58.0;
    const BOTTOM: f64 = 22.0;
    let points = || lines.iter().flat_map(|(_, line)| line);
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (x0, x1) = range(&mut points().map(|p| p.0));
    let (mut y0, mut y1) = range(&mut points().map(|p| p.1));
    if y1 - y0 < 1e-9 {
        (y0, y1) = (y0 - 0.5, y1 + 0.5);
    }
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0).max(1e-9) * (WIDTH - LEFT - 8.0);
    let y = |v: f64| 8.0 + (y1 - v) / (y1 - y0) * (HEIGHT - BOTTOM - 8.0);
    let mut svg = format!("<figure><svg width={WIDTH} height={HEIGHT} font-size=10 fill=\"#666\">");
    for part in 0..=4 {
        let value = y0 + (y1 - y0) * f64::from(part) / 4.0;
        let at = y(value);
        let _ = write!(
            svg,
            "<line x1={LEFT} x2={WIDTH} y1={at:.1} y2={at:.1} stroke=\"#eee\"/><text x={:.0} y={:.1} text-anchor=end>{}</text>",
            LEFT - 4.0,
            at + 3.0,
            number(value)
        );
    }
    let foot = HEIGHT - 6.0;
    let _ = write!(
        svg,
        "<text x={LEFT} y={foot}>{x0:.0}</text><text x={WIDTH} y={foot} text-anchor=end>step {x1:.0}</text>"
    );
    let mut key = String::new();
    for ((name, line), colour) in lines.iter().zip(COLOURS) {
        let path: Vec<String> = line.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = write!(
            svg,
            "<polyline fill=none stroke=\"{colour}\" stroke-width=1.5 points=\"{}\"/>",
            path.join(" ")
        );
        let _ = write!(key, " <span style=\"color:{colour}\">{}</span>", escape(name));
    }
    svg + &format!("</svg><figcaption><b>{}</b>{key}</figcaption></figure>", escape(heading))
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// A text for a page.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
