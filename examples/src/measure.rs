//! A model measured on scenes it never saw: POPE, hallucinated sentences, described share.

use std::path::Path;

use aspo_data::scenes::{PopeKind, Split, Verdict, judge, load, pope};
use aspo_data::{Encoder, ImageLoader, ImageProcessor, ImageSource};
use aspo_models::VisionLanguageModel;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::Failure;
use crate::answer::{Asked, answer};
use crate::pretrain::corpus::{INSTRUCTIONS, SHORT};

/// One split of POPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pope {
    /// Share of right answers.
    pub accuracy: f64,
    /// Harmonic mean of precision and recall of "yes".
    pub f1: f64,
    /// Share of "yes".
    pub yes_ratio: f64,
}

/// What a model does on held-out scenes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Random, popular, adversarial.
    pub pope: [Pope; 3],
    /// Sentences of all descriptions that are false, as a share of all sentences.
    pub hallucinated: f64,
    /// Sentences that claim nothing that can be checked, as a share.
    pub unreadable: f64,
    /// Descriptions with at least one false sentence, as a share.
    pub spoiled: f64,
    /// Objects named rightly, as a share of the objects there are.
    pub described: f64,
    /// Sentences a description.
    pub sentences: f64,
    /// The descriptions, scene by scene.
    #[serde(skip)]
    pub texts: Vec<String>,
    /// What was counted, scene by scene.
    #[serde(skip)]
    pub tallies: Vec<Tally>,
}

/// What was counted on one scene.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Sentences of the description, and those of them that are false.
    pub sentences: [usize; 2],
    /// Objects of the scene, and those of them named rightly.
    pub objects: [usize; 2],
    /// POPE's questions of all three splits, and those answered rightly.
    pub questions: [usize; 2],
}

impl Measured {
    /// Mean accuracy of the three splits.
    pub fn pope_accuracy(&self) -> f64 {
        self.pope.iter().map(|split| split.accuracy).sum::<f64>() / 3.0
    }
}

/// Describes the first `scenes` scenes of a split and answers POPE's questions about them.
///
/// # Errors
/// A world that is not there, pictures that cannot be read.
pub fn measure<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    world: &Path,
    split: Split,
    scenes: usize,
    device: &B::Device,
) -> Result<Measured, Failure> {
    let mut written = load(world, split)?;
    written.truncate(scenes);
    let loader = ImageLoader::new(world, ImageProcessor::clip(model.image_size() as u32))?;
    let sources: Vec<ImageSource> = written.iter().map(|line| line.image.as_str().into()).collect();
    let pixels = loader.load_all(&sources).into_iter().collect::<Result<Vec<_>, _>>()?;

    let mut measured = Measured::default();
    let asked: Vec<Asked> =
        pixels.iter().map(|pixels| Asked { question: INSTRUCTIONS[0], pixels: Some(pixels) }).collect();
    measured.texts = answer(model, encoder, &asked, 64, 160, device)?;
    let (mut unreadable, mut spoiled) = (0, 0);
    for (line, text) in written.iter().zip(&measured.texts) {
        let judgement = judge(&line.scene, text);
        unreadable +=
            judgement.sentences.iter().filter(|(_, verdict)| *verdict == Verdict::Unreadable).count();
        spoiled += usize::from(judgement.hallucinated() > 0);
        measured.tallies.push(Tally {
            sentences: [judgement.sentences.len(), judgement.hallucinated()],
            objects: [judgement.objects, judgement.described],
            questions: [0, 0],
        });
    }
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let sum = |of: fn(&Tally) -> usize| measured.tallies.iter().map(of).sum::<usize>();
    let sentences = sum(|tally| tally.sentences[0]);
    let (wrong, objects) = (sum(|tally| tally.sentences[1]), sum(|tally| tally.objects[0]));
    let described = sum(|tally| tally.objects[1]);
    measured.hallucinated = share(wrong, sentences);
    measured.unreadable = share(unreadable, sentences);
    measured.spoiled = share(spoiled, written.len());
    measured.described = share(described, objects);
    measured.sentences = share(sentences, written.len());

    for (slot, kind) in measured.pope.iter_mut().zip(PopeKind::ALL) {
        let questions: Vec<(usize, String, bool)> = written
            .iter()
            .enumerate()
            .flat_map(|(index, line)| {
                pope(&line.scene, kind, index as u64)
                    .into_iter()
                    .map(move |question| (index, question.text + SHORT, question.label))
            })
            .collect();
        let asked: Vec<Asked> = questions
            .iter()
            .map(|(index, question, _)| Asked { question, pixels: Some(&pixels[*index]) })
            .collect();
        let said: Vec<bool> = answer(model, encoder, &asked, 128, 4, device)?
            .iter()
            .map(|text| aspo_eval::pope::says_yes(text))
            .collect();
        for ((index, _, truth), said) in questions.iter().zip(&said) {
            let [asked, right] = &mut measured.tallies[*index].questions;
            *asked += 1;
            *right += usize::from(said == truth);
        }
        let count = |yes: bool, label: bool| {
            questions
                .iter()
                .zip(&said)
                .filter(|((_, _, truth), said)| **said == yes && *truth == label)
                .count()
        };
        let (hits, false_yes, misses) = (count(true, true), count(true, false), count(false, true));
        *slot = Pope {
            accuracy: share(hits + count(false, false), questions.len()),
            f1: share(2 * hits, 2 * hits + false_yes + misses),
            yes_ratio: share(hits + false_yes, questions.len()),
        };
    }
    Ok(measured)
}
