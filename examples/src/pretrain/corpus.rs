//! What the base models are taught: scenes with what is said about them.

use aspo_scenes::{Question, Scene, Split, describe, questions, scene};

/// LLaVA's suffix for short answers.
pub const SHORT: &str = "\nAnswer the question using a single word or phrase.";

/// The ways in which a description is asked for.
pub const INSTRUCTIONS: [&str; 4] = [
    "Describe this image in detail.",
    "What do you see in this image?",
    "Write a description of the picture.",
    "Please describe the image.",
];

/// LLaVA-1.5's prompt as its Hugging Face chat template writes it.
pub fn prompt(question: &str) -> String {
    format!("USER: <image>\n{question} ASSISTANT:")
}

/// A scene, two wordings of its description, and questions about it.
pub struct Lesson {
    /// The truth.
    pub scene: Scene,
    /// True descriptions.
    pub descriptions: [String; 2],
    /// True short answers.
    pub questions: Vec<Question>,
}

/// The first `count` lessons of the training split.
pub fn lessons(seed: u64, count: usize) -> Vec<Lesson> {
    (0..count)
        .map(|index| {
            let scene = scene(seed, Split::Train, index);
            let wording = seed.wrapping_add(2 * index as u64);
            let descriptions = [describe(&scene, wording), describe(&scene, wording + 1)];
            let questions = questions(&scene, wording);
            Lesson { scene, descriptions, questions }
        })
        .collect()
}

/// How many objects a picture may have at a moment of a training, 0 to 1: one first, since what an object looks like is
/// learned much sooner there; then two; then any number.
pub fn most_objects(moment: f64) -> usize {
    match moment {
        ..0.4 => 1,
        ..0.6 => 2,
        _ => usize::MAX,
    }
}

/// Every text that a tokenizer must know.
pub fn texts(lessons: &[Lesson]) -> Vec<String> {
    let instructions = INSTRUCTIONS.iter().map(|text| prompt(text));
    let said = lessons.iter().flat_map(|lesson| {
        let asked =
            lesson.questions.iter().flat_map(|q| [prompt(&(q.question.clone() + SHORT)), q.answer.clone()]);
        lesson.descriptions.iter().cloned().chain(asked)
    });
    instructions.chain(said).map(|text| text.replace("<image>", "")).collect()
}
