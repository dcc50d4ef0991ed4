//! What a run says while it goes on: one pair as the model sees it, then a line of figures.

use std::io::{IsTerminal, Write};

use aspo_train::{Data, StepReport, TrainConfig, human, peak_memory};

use crate::Failure;

/// One pair as the model sees it: tokens that count, sentences, scores.
///
/// # Errors
/// A tokenizer without `<image>`.
pub fn show_example(data: &Data, config: &TrainConfig) -> Result<(), Failure> {
    let pair = &data.pairs[0];
    let image = data.encoder.tokenizer.image()?;
    let mut shown = pair.prompt_ids.clone();
    shown.dedup_by(|a, b| a == b && *a == image);
    println!("one pair, {} of {}", pair.id, config.data.display());
    println!("  prompt    {:?}", data.encoder.tokenizer.decode(&shown, false)?);
    let images: usize = pair.image_spans.iter().map(|span| span.len()).sum();
    println!(
        "            {} tokens, {images} of them image; none of them counts in the loss",
        pair.prompt_ids.len()
    );
    for (name, answer) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        println!(
            "  {name:<9} {} tokens in {} sentences, all of them count",
            answer.ids.len(),
            answer.sentence_count()
        );
        for (index, text) in answer.sentence_texts().enumerate() {
            let tokens = answer.sentences.iter().filter(|&&sentence| sentence as usize == index).count();
            let similarity =
                answer.similarity.get(index).map_or("     ".into(), |score| format!("{score:+.2}"));
            println!("    {index:>2} {tokens:>3} tokens  {similarity}  {}", text.trim());
        }
    }
    println!();
    Ok(())
}

/// A line that is written over while it goes to a terminal, else one line every few steps.
#[derive(Default)]
pub struct Progress {
    pairs: usize,
    tokens: usize,
    open: bool,
    #[cfg(feature = "tui")]
    dashboard: Option<aspo_train::Dashboard>,
}

impl Progress {
    /// Shows burn-train's dashboard from here on, in place of the line. Standard output must be a terminal.
    #[cfg(feature = "tui")]
    pub fn open_dashboard(&mut self) {
        self.dashboard = Some(aspo_train::Dashboard::new());
    }

    /// After a step.
    pub fn show(&mut self, report: &StepReport) {
        #[cfg(feature = "tui")]
        if let Some(dashboard) = &mut self.dashboard {
            dashboard.show(report);
            if dashboard.stopped() {
                // Dropped first: the terminal is itself again.
                self.dashboard = None;
                println!(
                    "stopped after step {}: --resume goes on from the newest checkpoint, if one is written",
                    report.step
                );
                std::process::exit(1);
            }
            return;
        }
        self.pairs += report.pairs;
        self.tokens += report.tokens;
        let terminal = std::io::stdout().is_terminal();
        let (step, total) = (report.step, report.total);
        if !terminal && step % 10 != 0 && step != total && report.done_here != 1 {
            return;
        }
        let value = |name: &str| report.values.values.get(name).copied().unwrap_or(f64::NAN);
        let left = report.seconds / report.done_here as f64 * (total - step) as f64;
        let memory = peak_memory().map_or(String::new(), |bytes| format!("  {}", human(bytes)));
        let line = format!(
            "step {step:>4}/{total}  loss {:.4}  margin {:+.3}  accuracy {:.2}  {:.1} pairs/s  {:.0} tokens/s{memory}  {left:.0} s left",
            value("loss"),
            value("rewards/margins"),
            value("rewards/accuracies"),
            self.pairs as f64 / report.seconds,
            self.tokens as f64 / report.seconds,
        );
        if terminal {
            print!("\r\x1b[2K{line}");
            let _ = std::io::stdout().flush();
            self.open = true;
        } else {
            println!("{line}");
        }
    }

    /// After the last.
    pub fn end(&mut self) {
        #[cfg(feature = "tui")]
        drop(self.dashboard.take());
        if std::mem::take(&mut self.open) {
            println!();
        }
    }
}
