//! What the benchmarks share: a process that does one piece of work whenever it is told to, so that ours and another
//! library's can be timed in turn (`benches/peers`).

use std::io::{BufRead, Write};
use std::time::Instant;

/// What `--serve WORK` asks for.
pub fn served() -> Option<String> {
    std::env::args().skip_while(|argument| argument != "--serve").nth(1)
}

/// Does `work` once, says `ready`, then does it again for each line of standard input and answers with its seconds and the
/// growth of the peak of resident memory since `before`, in MB.
///
/// # Panics
/// If nobody reads the answers.
pub fn serve(before: f64, mut work: impl FnMut()) {
    let mut out = std::io::stdout();
    let mut say = |line: String| writeln!(out, "{line}").and_then(|()| out.flush()).expect("somebody reads");
    work();
    say("ready".into());
    for _ in std::io::stdin().lock().lines() {
        let start = Instant::now();
        work();
        say(format!("{} {}", start.elapsed().as_secs_f64(), peak() - before));
    }
}

/// The process's peak resident memory in MB (Linux).
pub fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0 / 1e6
}
