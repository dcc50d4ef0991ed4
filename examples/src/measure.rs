//! A model measured on scenes it never saw: POPE, hallucinated sentences, described share.

use std::path::Path;

use aspo_cli::Failure;
use aspo_cli::answer::{Asked, answer};
use aspo_data::{Encoder, ImageLoader, ImageProcessor, ImageSource};
use aspo_models::VisionLanguageModel;
use aspo_scenes::{PopeKind, Split, Verdict, judge, load, pope};
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

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
    pub tallies: Vec<Tally>,
}

/// What was counted on one scene.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// Scenes that no model has seen.
#[derive(Clone, Copy, Debug)]
pub struct HeldOut<'a> {
    /// The folder of the world.
    pub world: &'a Path,
    /// Which of its splits.
    pub split: Split,
    /// How many of its scenes, from the first.
    pub scenes: usize,
    /// Batches answered at a time. It changes no answer.
    pub at_a_time: usize,
}

/// Describes held-out scenes and answers POPE's questions about them.
///
/// # Errors
/// A world that is not there, pictures that cannot be read.
pub fn measure<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    held_out: HeldOut,
    device: &B::Device,
) -> Result<Measured, Failure> {
    let HeldOut { world, split, scenes, at_a_time } = held_out;
    let mut written = load(world, split)?;
    written.truncate(scenes);
    let loader = ImageLoader::new(world, ImageProcessor::clip(model.image_size() as u32))?;
    let sources: Vec<ImageSource> = written.iter().map(|line| line.image.as_str().into()).collect();
    let sources: Vec<_> = sources.iter().map(|source| (source, true)).collect();
    let pixels = loader.pixels_of_all(&sources).into_iter().collect::<Result<Vec<_>, _>>()?;

    let mut measured = Measured::default();
    let asked: Vec<Asked> = pixels
        .iter()
        .map(|pixels| Asked { question: INSTRUCTIONS[0], pictures: std::slice::from_ref(pixels) })
        .collect();
    measured.texts = answer_at_once(model, encoder, &asked, [64, 160], at_a_time, device)?;
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
            .map(|(index, question, _)| Asked { question, pictures: std::slice::from_ref(&pixels[*index]) })
            .collect();
        let said: Vec<bool> = answer_at_once(model, encoder, &asked, [128, 4], at_a_time, device)?
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

/// [`answer`] on several threads, whole batches each.
fn answer_at_once<B: Backend, M: VisionLanguageModel<B>>(
    model: &M,
    encoder: &Encoder,
    asked: &[Asked],
    [batch, max_new_tokens]: [usize; 2],
    at_a_time: usize,
    device: &B::Device,
) -> Result<Vec<String>, Failure> {
    let batches = asked.len().div_ceil(batch).div_ceil(at_a_time.max(1));
    std::thread::scope(|scope| {
        let part = |part| {
            let model = model.clone();
            scope.spawn(move || answer(&model, encoder, part, batch, max_new_tokens, device))
        };
        let threads: Vec<_> = asked.chunks((batches * batch).max(1)).map(part).collect();
        let mut answers = Vec::with_capacity(asked.len());
        for thread in threads {
            answers.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(answers)
    })
}
