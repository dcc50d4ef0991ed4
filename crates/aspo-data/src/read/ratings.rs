//! Several answers to one question, each with a score, as VLFeedback and UltraFeedback have them: `completions`, a list of
//! objects or an object of lists, with `response` and `annotations` of aspects and their `Rating`, or a score of its own
//! (`overall_score`, `score`, `rating`, `reward`); or `responses` beside `scores`, `ratings`, `rewards` or `ranks`, of which a
//! lower rank is better.

use serde_json::{Map, Value};

use super::{Pairing, Row, chat, wrong};
use crate::error::RowFault;
use crate::pair::Pair;

/// Most answers of a row: all against all are half its square.
const MAX_ANSWERS: usize = 64;
const TEXTS: [&str; 5] = ["response", "text", "content", "answer", "completion"];
const SCORES: [&str; 4] = ["overall_score", "score", "rating", "reward"];
/// Lists of scores, and whether the highest is the best.
const LISTS: [(&str, bool); 4] = [("scores", true), ("ratings", true), ("rewards", true), ("ranks", false)];

/// The pairs of a row: none where no two scores are as far apart as asked.
pub(super) fn pairs(row: &mut Row, pairing: Pairing, min_margin: f64) -> Result<Vec<Pair>, RowFault> {
    let mut pair = Pair::new(row.id(), "", "", "");
    let images = row.take_images()?;
    let key = ["prompt", "question", "instruction"].into_iter().find(|key| row.has(key)).unwrap_or("prompt");
    match row.take(key)? {
        Value::String(text) => (pair.prompt, pair.images) = (text, images),
        messages => chat::set_prompt(&mut pair, chat::messages(key, &messages)?, images)?,
    }
    let answers = answers(row)?;
    if answers.len() > MAX_ANSWERS {
        let found = Value::Array(vec![Value::Null; answers.len()]);
        return Err(wrong("completions", "at most 64 answers", &found));
    }
    // The best first; of equal ones the order of the row.
    let mut order: Vec<usize> = (0..answers.len()).collect();
    order.sort_by(|&a, &b| answers[b].1.total_cmp(&answers[a].1));
    let far = |&(better, worse): &(usize, usize)| {
        let margin = answers[better].1 - answers[worse].1;
        margin > 0.0 && margin >= min_margin
    };
    let ends = || Some((*order.first()?, *order.last()?));
    let chosen: Vec<(usize, usize)> = match pairing {
        Pairing::BestWorst => ends().into_iter().filter(far).collect(),
        Pairing::All => {
            let all =
                order.iter().enumerate().flat_map(|(at, &a)| order[at + 1..].iter().map(move |&b| (a, b)));
            all.filter(far).collect()
        }
    };
    let one = chosen.len() == 1 && pairing == Pairing::BestWorst;
    let pair = |(number, (better, worse)): (usize, (usize, usize))| Pair {
        id: if one { pair.id.clone() } else { format!("{}-{}", pair.id, number + 1) },
        chosen: answers[better].0.clone(),
        rejected: answers[worse].0.clone(),
        ..pair.clone()
    };
    Ok(chosen.into_iter().enumerate().map(pair).collect())
}

/// Texts and scores; the highest is the best.
fn answers(row: &mut Row) -> Result<Vec<(String, f64)>, RowFault> {
    match row.take_optional("completions") {
        Some(Value::Array(items)) => items.iter().map(answer).collect(),
        Some(Value::Object(lists)) => rows_of(&lists)?.iter().map(answer).collect(),
        Some(other) => Err(wrong("completions", "a list of answers with scores", &other)),
        None => {
            let texts = row.take("responses")?;
            let list = LISTS.into_iter().find(|(key, _)| row.has(key));
            let (key, up) = list.ok_or_else(|| row.missing("scores"))?;
            let scores = row.take(key)?;
            let both = (texts.as_array(), scores.as_array());
            let (Some(texts), Some(scores)) = both else {
                return Err(wrong(key, "a list of numbers", &scores));
            };
            if texts.len() != scores.len() {
                let what = format!("{} `responses` and {} `{key}`", texts.len(), scores.len());
                return Err(RowFault::Turns(what));
            }
            let one = |(text, score): (&Value, &Value)| {
                let text = text.as_str().ok_or_else(|| wrong("responses", "a list of texts", text))?;
                let score = number(score).ok_or_else(|| wrong(key, "a list of numbers", score))?;
                Ok((text.to_owned(), if up { score } else { -score }))
            };
            texts.iter().zip(scores).map(one).collect()
        }
    }
}

fn answer(item: &Value) -> Result<(String, f64), RowFault> {
    let text = TEXTS.iter().find_map(|key| item.get(key)?.as_str());
    let text = text.ok_or_else(|| wrong("completions", "objects with a text in `response`", item))?;
    let own = SCORES.iter().find_map(|key| number(item.get(key)?));
    let score = own.or_else(|| mean_rating(item.get("annotations")?));
    let score =
        score.ok_or_else(|| wrong("completions", "a score, or `annotations` with a `Rating` each", item))?;
    Ok((text.to_owned(), score))
}

/// The mean over the aspects that have a rating.
fn mean_rating(annotations: &Value) -> Option<f64> {
    let aspects: Vec<&Value> = match annotations {
        Value::Object(aspects) => aspects.values().collect(),
        Value::Array(aspects) => aspects.iter().collect(),
        _ => return None,
    };
    let rating =
        |aspect: &&Value| ["Rating", "rating", "score"].iter().find_map(|key| number(aspect.get(key)?));
    let ratings: Vec<f64> = aspects.iter().filter_map(rating).collect();
    (!ratings.is_empty()).then(|| ratings.iter().sum::<f64>() / ratings.len() as f64)
}

/// A number, or a text that is one.
fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    number.is_finite().then_some(number)
}

/// The objects of an object of lists, as `datasets` stores a list of objects.
fn rows_of(lists: &Map<String, Value>) -> Result<Vec<Value>, RowFault> {
    let count = lists.values().find_map(|list| Some(list.as_array()?.len())).unwrap_or(0);
    if let Some((key, list)) =
        lists.iter().find(|(_, list)| list.as_array().is_none_or(|list| list.len() != count))
    {
        return Err(wrong(key, "as long a list as the others in `completions`", list));
    }
    let at = |index: usize| lists.iter().map(|(key, list)| (key.clone(), list[index].clone())).collect();
    Ok((0..count).map(|index| Value::Object(at(index))).collect())
}
