//! The page of `aspo validate`: what is in the files, and pairs as the model sees them.

use std::fmt::Write as _;
use std::path::Path;

use aspo_data::validate::{Report, Sample, Spread};
use aspo_data::{EncodedAnswer, Encoder, ImageLoader, ImageProcessor};
use aspo_train::{embedded, escape};

use crate::Failure;
use crate::report::shown;

/// Writes the page: to a temporary name, then renamed.
///
/// # Errors
/// A picture that cannot be read; a full disk.
pub fn write(
    path: &Path,
    reports: &[Report],
    encoder: Option<&Encoder>,
    images: Option<&Path>,
) -> Result<(), Failure> {
    let mut html = String::new();
    let loader = ImageLoader::new(images.unwrap_or(Path::new("")), ImageProcessor::default())?;
    for report in reports {
        let _ = write!(html, "<h2>{}</h2>", escape(&report.path.display().to_string()));
        html += &account(report);
        if report.samples.is_empty() {
            continue;
        }
        html += match encoder {
            Some(_) => {
                "<p class=note>Grey: what the model reads and is not trained on, each picture as one tag. Coloured: the tokens \
                 that count in the loss, sentence by sentence; point at one for its tokens.</p>"
            }
            None => {
                "<p class=note>Sentence by sentence. With --model or --tokenizer, in the tokens of a model.</p>"
            }
        };
        for sample in &report.samples {
            html += &pair(sample, encoder, &loader, images.is_some())?;
        }
    }
    let html = aspo_train::page("Preference pairs", &html);
    aspo_data::files::write_atomic(path, |file| {
        file.write_all(html.as_bytes()).map_err(|source| aspo_data::Error::Io { path: path.into(), source })
    })?;
    Ok(())
}

fn account(report: &Report) -> String {
    let mut html = String::from("<table>");
    let mut fact = |name: &str, value: String| {
        let _ = write!(html, "<tr><td>{name}<td>{}", escape(&value));
    };
    fact("format", report.format.clone());
    fact("rows", report.rows.to_string());
    fact("sound", report.sound.to_string());
    fact("faulty", report.faulty().to_string());
    for (name, count) in [
        ("equal answers, dropped", report.dropped.equal),
        ("marked correct, dropped", report.dropped.correct),
        ("no score is higher, dropped", report.dropped.tied),
        ("no room for an answer, dropped", report.no_room),
        ("answers that lose their end", report.truncated),
        ("duplicates", report.duplicates),
        ("repeated questions", report.repeated_questions),
        ("rows without a picture", report.without_image),
        ("pictures", report.images),
    ] {
        if count > 0 {
            fact(name, count.to_string());
        }
    }
    if !report.unread.is_empty() {
        fact("columns not read", report.unread.join(", "));
    }
    html += "</table>";
    if let Some(broken) = &report.broken {
        let _ = write!(html, "<p class=fault>Not read to its end: {}</p>", escape(broken));
    }
    for (kind, fault) in &report.faults {
        let _ = write!(html, "<p class=fault><b>{kind}</b> {} rows, such as</p><ul>", fault.count);
        fault.examples.iter().for_each(|example| html += &format!("<li>{}", escape(example)));
        html += "</ul>";
    }
    html += "<div class=wide><table><tr><th><th>min<th>mean<th>median<th>95%<th>max";
    let mut row = |name: &str, spread: &Spread| {
        let Spread { min, mean, median, p95, max } = spread;
        let _ = write!(html, "<tr><td>{name}<td>{min}<td>{mean:.1}<td>{median}<td>{p95}<td>{max}");
    };
    row("characters of the prompt", &report.prompt_chars);
    row("characters, chosen", &report.chosen_chars);
    row("characters, rejected", &report.rejected_chars);
    row("sentences, chosen", &report.chosen_sentences);
    row("sentences, rejected", &report.rejected_sentences);
    for (name, spread) in [
        ("tokens of the pair", &report.tokens),
        ("tokens of its pictures", &report.image_tokens),
        ("width of a picture", &report.image_width),
        ("height of a picture", &report.image_height),
    ] {
        spread.iter().for_each(|spread| row(name, spread));
    }
    html + "</table></div>"
}

fn pair(
    sample: &Sample,
    encoder: Option<&Encoder>,
    loader: &ImageLoader,
    with_images: bool,
) -> Result<String, Failure> {
    let Sample { path, row, pair, encoded } = sample;
    let mut html = String::from("<div class=picture>");
    if with_images && !pair.images.is_empty() {
        html += "<div>";
        for image in &pair.images {
            html += &embedded(&shown(loader.bytes(image)?.into_owned())?);
        }
        html += "</div>";
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let _ = write!(html, "<div><p class=note>{}, row {row}, pair {}</p>", escape(&name), escape(&pair.id));
    match (encoded, encoder) {
        (Some(encoded), Some(encoder)) => {
            let prompt = encoded.prompt_ids.iter().enumerate();
            // Of each picture its first token.
            let inside =
                |at: &usize| encoded.image_spans.iter().any(|span| span.start < *at && *at < span.end);
            let ids: Vec<u32> = prompt.filter(|(at, _)| !inside(at)).map(|(_, id)| *id).collect();
            let images: usize = encoded.image_spans.iter().map(ExactSizeIterator::len).sum();
            let _ = write!(
                html,
                "<p class=masked>{}</p><p class=note>{} tokens, {images} of them of pictures</p>",
                escape(&encoder.tokenizer.decode(&ids, false)?),
                encoded.prompt_ids.len()
            );
            html += &answer("chosen", &encoded.chosen);
            html += &answer("rejected", &encoded.rejected);
        }
        _ => {
            let _ = write!(html, "<p class=masked>{}</p>", escape(&pair.prompt));
            for (name, text) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
                let spans: Vec<_> = aspo_segment::split(text, &Default::default()).collect();
                let sentences = spans.into_iter().map(|span| (&text[span], String::new()));
                html += &sentences_of(name, sentences, "");
            }
        }
    }
    Ok(html + "</div></div>")
}

fn answer(name: &str, answer: &EncodedAnswer) -> String {
    let tokens =
        |index: usize| answer.sentences.iter().filter(|&&sentence| sentence as usize == index).count();
    let sentences =
        answer.sentence_texts().enumerate().map(|(index, text)| (text, format!("{} tokens", tokens(index))));
    let cut = if answer.truncated { " … cut by max_length" } else { "" };
    sentences_of(name, sentences, &format!("{} tokens{cut}", answer.ids.len()))
}

fn sentences_of<'a>(name: &str, sentences: impl Iterator<Item = (&'a str, String)>, note: &str) -> String {
    let mut html = format!("<p class=said><b>{name}</b>");
    for (index, (text, told)) in sentences.enumerate() {
        let class = if index % 2 == 0 { "a" } else { "b" };
        let _ = write!(html, "<span class={class} title=\"{told}\">{}</span> ", escape(text.trim()));
    }
    html + &format!("<span class=note>{note}</span></p>")
}
