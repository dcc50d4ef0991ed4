//! What a run has done on the scenes world: the table of base and trained model, and pictures for the report.

use std::path::Path;

use aspo_cli::{Failure, say};
use aspo_data::{EncodedPair, Encoder, ImageLoader, Pair};
use aspo_models::VisionLanguageModel;
use aspo_scenes::{Split, Verdict, judge, load};
use aspo_train::{
    Counts, Data, MarkedSentence, Picture, TrainConfig, VisionFeatures, WeighedSentence, processor, score,
    weigh,
};
use burn::tensor::backend::Backend;

use crate::measure::{Measured, Tally};
use crate::pretrain::corpus::INSTRUCTIONS;
use aspo_eval::interval::share_change;

/// Both models' figures and the change of each. What is a share of counts over scenes has the change's 95% interval.
pub fn table(before: &Measured, after: &Measured) -> Vec<Vec<String>> {
    type Counts = fn(&Tally) -> [usize; 2];
    let row = |name: &str, of: &dyn Fn(&Measured) -> f64, counts: Option<Counts>| {
        let percent = |value: f64| format!("{:.1}", 100.0 * value);
        let (a, b) = (of(before), of(after));
        let change = counts.map_or_else(
            || format!("{:+.1}", 100.0 * (b - a)),
            |counts| {
                let tallied = |of: &Measured| of.tallies.iter().map(counts).collect::<Vec<_>>();
                share_change(&tallied(before), &tallied(after)).scaled(100.0).to_string()
            },
        );
        vec![name.to_owned(), percent(a), percent(b), change]
    };
    let mut table = vec![["", "base", "trained", "change [95% over scenes]"].map(String::from).to_vec()];
    table.push(row("hallucinated sentences, %", &|m| m.hallucinated, Some(|t| t.sentences)));
    table.push(row("descriptions with a false sentence, %", &|m| m.spoiled, None));
    table.push(row("unreadable sentences, %", &|m| m.unreadable, None));
    table.push(row("objects described rightly, %", &|m| m.described, Some(|t| t.objects)));
    let [a, b] = [before.sentences, after.sentences];
    let length = [format!("{a:.2}"), format!("{b:.2}"), format!("{:+.2}", b - a)];
    table.push([vec!["sentences a description".into()], length.to_vec()].concat());
    for (index, name) in ["random", "popular", "adversarial"].iter().enumerate() {
        table.push(row(&format!("POPE {name}: accuracy, %"), &|m| m.pope[index].accuracy, None));
        table.push(row(&format!("POPE {name}: F1, %"), &|m| m.pope[index].f1, None));
        table.push(row(&format!("POPE {name}: yes-ratio, %"), &|m| m.pope[index].yes_ratio, None));
    }
    table.push(row("POPE mean accuracy, %", &Measured::pope_accuracy, Some(|t| t.questions)));
    table
}

/// What was counted of a model, scene by scene; `items` says which scenes.
pub fn counts(measured: &Measured, items: String) -> Vec<Counts> {
    let of = |name: &str, counts: fn(&Tally) -> [usize; 2]| Counts {
        name: name.to_owned(),
        items: items.clone(),
        counts: measured.tallies.iter().map(counts).collect(),
    };
    vec![
        of("hallucinated sentences", |tally| tally.sentences),
        of("objects described rightly", |tally| tally.objects),
        of("POPE mean accuracy", |tally| tally.questions),
    ]
}

/// On a terminal.
pub fn print_table(table: &[Vec<String>]) {
    say!();
    for row in table {
        say!("{:<38}{:>9}{:>9}  {}", row[0], row[1], row[2], row[3]);
    }
}

/// A few held-out scenes with both models' descriptions, every sentence weighed and judged.
///
/// # Errors
/// Scenes that cannot be read.
pub fn pictures<B: Backend, M: VisionLanguageModel<B>>(
    config: &TrainConfig,
    encoder: &Encoder,
    models: [(&str, &M, &Measured); 2],
    world: &Path,
    split: Split,
    device: &B::Device,
) -> Result<Vec<Picture>, Failure> {
    const SHOWN: usize = 6;
    let mut scenes = load(world, split)?;
    scenes.truncate(SHOWN);
    let mut pictures = Vec::new();
    for line in &scenes {
        let path = world.join(&line.image);
        let image = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let question = INSTRUCTIONS[0].to_owned();
        pictures.push(Picture { images: vec![image], question, answers: Vec::new() });
    }
    let here = TrainConfig { images: world.into(), ..config.clone() };
    for (name, model, measured) in models {
        // Empty answers have no sentences to show.
        let told: Vec<usize> =
            (0..scenes.len()).filter(|&index| !measured.texts[index].trim().is_empty()).collect();
        let pairs = told
            .iter()
            .map(|&index| {
                let text = &measured.texts[index];
                // The other answer is not looked at, but may not be the same.
                let other = if text.trim() == "." { "-" } else { "." };
                let pair = Pair::new(index.to_string(), INSTRUCTIONS[0], text, other);
                encoder.encode(&pair.with_image(scenes[index].image.as_str()))
            })
            .collect::<Result<Vec<EncodedPair>, _>>()?;
        let mut data = Data::new(encoder.clone(), pairs, Vec::new());
        if config.clip.is_some() && !data.pairs.is_empty() {
            score::<B>(&here, &mut data, false, device)?;
        }
        let images = ImageLoader::new(world, processor(&config.model, model.image_size())?)?;
        let mut features = VisionFeatures::new(images);
        let pairs: Vec<EncodedPair> = data.pairs.iter().collect::<Result<_, _>>()?;
        let rows: Vec<&EncodedPair> = pairs.iter().collect();
        let alpha = if config.clip.is_some() { config.alpha } else { 0.0 };
        let weighed = weigh(model, &rows, &mut features, alpha, encoder.tokenizer.pad(), device)?;
        for (&index, sentences) in told.iter().zip(weighed) {
            let mark = |sentence: WeighedSentence| {
                let verdicts = judge(&scenes[index].scene, &sentence.text).sentences;
                let hallucinated = verdicts.iter().any(|(_, verdict)| *verdict == Verdict::False);
                MarkedSentence { sentence, hallucinated }
            };
            pictures[index].answers.push((name.to_owned(), sentences.into_iter().map(mark).collect()));
        }
    }
    Ok(pictures)
}
