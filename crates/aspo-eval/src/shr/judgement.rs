//! Judgements of descriptions: how they are read from a judge's reply, and what they add up to.

use serde::{Deserialize, Serialize};

use crate::reply::after_thinking;

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
    /// Hallucinated sentences among those with one of the three classes, pooled over all images; none if no sentence has.
    pub hal_sents_ratio: Option<f64>,
    /// Words of hallucinated sentences among words of those with one of the three classes.
    pub hal_words_ratio: Option<f64>,
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
    /// The headline, lower is better: the mean over the runs of hallucinated sentences, a fraction; none if no sentence
    /// has a class.
    pub mean_hal_ratio: Option<f64>,
    /// The standard deviation of that over the runs.
    pub spread: Option<f64>,
    /// The mean over the runs of words of hallucinated sentences, a fraction.
    pub mean_hal_words_ratio: Option<f64>,
    /// Sentences without a class, in all runs.
    pub unreadable: usize,
    /// Each run.
    pub runs: Vec<ShrRunScores>,
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
/// otherwise no sentence gets a class, as published. Thinking is passed over, and so are marks of emphasis.
pub fn classify(reply: &str, description: &str) -> Vec<SentenceJudgement> {
    let sentences = sentences(description);
    let lines: Vec<&str> = after_thinking(reply).split('\n').filter(|line| !line.is_empty()).collect();
    let verdicts: Vec<String> = match lines.iter().position(|line| is_title(line)) {
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
            let class = |v: &String| {
                v.split(':').next().unwrap_or_default().trim_matches(['*', '_', '`', ' ']).to_lowercase()
            };
            let class = verdict.as_ref().map(class);
            SentenceJudgement { model_response: sentence, judgement: verdict, classification: class }
        })
        .collect()
}

/// Whether a judge's reply has a judgement in it at all.
pub fn has_judgement(reply: &str) -> bool {
    after_thinking(reply).lines().any(is_title)
}

fn is_title(line: &str) -> bool {
    let line = line.replace('*', "");
    line.contains("Judgement:") || line.contains("Judgment:")
}

/// The figures of one run.
pub(super) fn score_run<'a>(judgements: impl Iterator<Item = &'a Judgement>) -> ShrRunScores {
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
    let ratio = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    s.hal_sents_ratio = ratio(s.hallucination, s.hallucination + s.correct + s.cannot_judge);
    s.hal_words_ratio = ratio(hal_words, judged_words);
    let share = |part: usize, whole: usize| ratio(part, whole).unwrap_or_default();
    s.sents_per_image = share(s.total, s.num_images);
    s.words_per_image = share(words, s.num_images);
    s.hal_sents_per_image = share(s.hallucination, s.num_images);
    s.hal_words_per_image = share(hal_words, s.num_images);
    s
}
