//! What a run says while it goes on: one pair as the model sees it, then a line of figures.

use std::io::IsTerminal;

use aspo_train::{Callback, Control, Data, StepReport, TrainConfig, human, peak_memory};

use crate::{Failure, out, say};

/// One pair as the model sees it: tokens that count, sentences, scores.
///
/// # Errors
/// A tokenizer without `<image>`.
pub fn show_example(data: &Data, config: &TrainConfig) -> Result<(), Failure> {
    let pair = &data.pairs.get(0)?;
    let image = data.encoder.tokenizer.image()?;
    let mut shown = pair.prompt_ids.clone();
    shown.dedup_by(|a, b| a == b && *a == image);
    say!("one pair, {} of {}", pair.id, config.data);
    say!("  prompt    {:?}", data.encoder.tokenizer.decode(&shown, false)?);
    let images: usize = pair.image_spans.iter().map(|span| span.len()).sum();
    say!(
        "            {} tokens, {images} of them image; none of them counts in the loss",
        pair.prompt_ids.len()
    );
    for (name, answer) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
        say!(
            "  {name:<9} {} tokens in {} sentences, all of them count",
            answer.ids.len(),
            answer.sentence_count()
        );
        for (index, text) in answer.sentence_texts().enumerate() {
            let tokens = answer.sentences.iter().filter(|&&sentence| sentence as usize == index).count();
            let similarity =
                answer.similarity.get(index).map_or("     ".into(), |score| format!("{score:+.2}"));
            say!("    {index:>2} {tokens:>3} tokens  {similarity}  {}", text.trim());
        }
    }
    say!();
    Ok(())
}

/// How far the look at all pictures is, a line every few seconds; nothing where it is over sooner.
pub fn decoding() -> impl FnMut(usize, usize) {
    const EVERY: std::time::Duration = std::time::Duration::from_secs(5);
    let mut last = std::time::Instant::now();
    move |done, of| {
        if last.elapsed() >= EVERY {
            last = std::time::Instant::now();
            say!("the pictures of {done} of {of} pairs can be decoded …");
        }
    }
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

    fn line(&mut self, report: &StepReport) {
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
            out::print(format_args!("\r\x1b[2K{line}"));
            self.open = true;
        } else {
            say!("{line}");
        }
    }
}

impl Callback for Progress {
    /// Stops the run where somebody asked for it: Ctrl-C, a closed pipe, `q` on the dashboard.
    fn on_step_end(&mut self, step: &StepReport, control: &mut Control) {
        #[cfg(feature = "tui")]
        match &mut self.dashboard {
            Some(dashboard) => dashboard.on_step_end(step, control),
            None => self.line(step),
        }
        #[cfg(not(feature = "tui"))]
        self.line(step);
        control.should_training_stop |= out::asked_to_stop();
    }
}

impl Drop for Progress {
    /// After the last step, or a fault: what comes then begins a line of its own.
    fn drop(&mut self) {
        #[cfg(feature = "tui")]
        drop(self.dashboard.take());
        if self.open {
            say!();
        }
    }
}
