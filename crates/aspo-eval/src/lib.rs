//! The ten benchmarks of the ASPO paper: published files in, published metrics out.
//!
//! A benchmark is a folder of published files. Its module reads them, gives the questions, and scores answers:
//!
//! | module | benchmark | scored by |
//! |---|---|---|
//! | [`pope`] | POPE, three splits | yes or no |
//! | [`gqa`] | GQA test-dev | exact match |
//! | [`science_qa`] | ScienceQA-IMG | option letter |
//! | [`seed_bench`] | SEED-Bench, image part | option letter |
//! | [`mmbench`] | MMBench dev and test, MMBench-CN | option letter in every rotation |
//! | [`llava_bench`] | LLaVA-Bench (In-the-Wild) | a judge, beside GPT-4's answers |
//! | [`mm_vet`] | MM-Vet | a judge, 0 to 1 |
//! | [`shr`] | SHR | a judge, sentence by sentence |
//!
//! Whatever answers implements [`Answer`]: a loaded model, a file of recorded [`Answers`], the toy below.
//! [`ask()`] has it answer and writes LLaVA's answer file; a run that was stopped goes on where it was.
//!
//! ```
//! use aspo_eval::{Answer, AnswerError, Benchmark, Question, Said, ask};
//!
//! /// Sees dogs everywhere.
//! struct DogLover;
//!
//! impl Answer for DogLover {
//!     fn model_id(&self) -> String {
//!         "dog-lover".into()
//!     }
//!
//!     fn answer(&mut self, batch: &[Question]) -> Result<Vec<Said>, AnswerError> {
//!         Ok(batch.iter().map(|q| if q.prompt.contains("dog") { "Yes" } else { "No" }.into()).collect())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A folder as POPE publishes it, here with two questions about one image.
//! let folder = tempfile::tempdir()?;
//! std::fs::write(
//!     folder.path().join("coco_pope_random.json"),
//!     r#"{"question_id": 1, "image": "1.jpg", "text": "Is there a dog in the image?", "label": "yes"}
//! {"question_id": 2, "image": "1.jpg", "text": "Is there a cat in the image?", "label": "yes"}
//! "#,
//! )?;
//!
//! let questions = Benchmark::Pope.questions(folder.path(), None)?;
//! assert_eq!(questions[0].prompt, "Is there a dog in the image?\nAnswer the question using a single word or phrase.");
//!
//! let answers = ask(&mut DogLover, &questions, &folder.path().join("answers.jsonl"), 8, |_done| ())?;
//! let report = Benchmark::Pope.score(folder.path(), &answers)?;
//!
//! // Every figure under its name, and the column of the paper's table.
//! assert_eq!(report.figures["random"]["precision"], 1.0);
//! assert_eq!(report.figures["random"]["recall"], 0.5);
//! assert_eq!(report.headlines[0].column, "POPE");
//! assert!((report.headlines[0].percent.unwrap() - 66.7).abs() < 0.05);
//! # Ok(())
//! # }
//! ```
//!
//! The modules themselves give typed scores ([`pope::PopeScores`] and its like). Where a judge is needed, [`judge::Judge`]
//! asks any OpenAI-compatible endpoint, [`Benchmark::judge`] writes prompts, raw replies and judgements, and
//! [`Benchmark::score_judgements`] scores those, or published ones. [`table::Table`] puts several models side by side.
//!
//! Whatever is wrong with a file is an [`Error`] that names the file, the row and the remedy. Answers are matched to
//! questions by id, never by position alone.

pub mod answer;
pub mod ask;
pub mod benchmark;
pub mod choice;
mod error;
mod file;
pub mod gqa;
pub mod interval;
pub mod judge;
pub mod llava_bench;
pub mod mm_vet;
pub mod mmbench;
pub mod option;
pub mod pope;
pub mod question;
mod reply;
pub mod science_qa;
pub mod seed_bench;
pub mod share;
pub mod shr;
pub mod spread;
pub mod table;

pub use answer::{AnswerRow, Answers};
pub use ask::{Answer, Said, Settings, answered, ask};
pub use benchmark::{Benchmark, Headline, Report};
pub use error::{AnswerError, Error, Result};
pub use question::{Id, Image, Question};
