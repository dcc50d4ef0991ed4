//! Log-probabilities with their gradient: dense against chunked, over (N, D, V, chunk), head frozen and trained.
//!
//! ```sh
//! cargo bench -p aspo-benches --bench loss                # criterion
//! cargo bench -p aspo-benches --bench loss -- --table     # the table of benches/results/loss.md
//! LOSS_BENCH_SIZES=1024x512x32000 LOSS_BENCH_ROUNDS=3 cargo bench -p aspo-benches --bench loss -- --table
//! ```
//!
//! The table alternates the ways within one process, several rounds, and reports medians and the median of the paired
//! ratios; the peak memory of each is that of a child process that runs it alone (VmHWM less its value before the call).

use std::time::{Duration, Instant};

use aspo_benches::{peak, serve, served};
use aspo_loss::{ChunkOptions, LmHead, chunked_log_probs};
use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::Distribution;
use burn::tensor::activation::log_softmax;
use burn_flex::Flex;
use criterion::{BenchmarkId, Criterion, SamplingMode};

type A = Autodiff<Flex>;

/// One way through one size.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Case {
    tokens: usize,
    features: usize,
    vocab: usize,
    trained: bool,
    way: Way,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// Product, `log_softmax`, `gather`: what one writes without this crate.
    Dense,
    /// `chunked_log_probs` with a budget in KiB of logits.
    Chunked(usize),
}

const SIZES: [(usize, usize, usize); 5] =
    [(1024, 512, 32_000), (4096, 512, 32_000), (256, 2048, 32_000), (1024, 512, 4_096), (64, 64, 512)];
const BUDGETS: [usize; 4] = [2 << 10, 8 << 10, 32 << 10, 128 << 10];

impl Case {
    fn options(self) -> ChunkOptions {
        match self.way {
            Way::Dense => ChunkOptions::default(),
            Way::Chunked(kib) => ChunkOptions { byte_budget: kib << 10, rows: None },
        }
    }

    fn problem(self) -> Problem {
        let device = Default::default();
        Flex::seed(&device, 1);
        let labels: Vec<i32> = (0..self.tokens).map(|i| ((i * 7919) % self.vocab) as i32).collect();
        Problem {
            hidden: Tensor::random([self.tokens, self.features], Distribution::Normal(0.0, 1.0), &device),
            head: Tensor::random([self.vocab, self.features], Distribution::Normal(0.0, 0.04), &device),
            labels: Tensor::from_data(TensorData::new(labels, [self.tokens]), &device),
        }
    }

    /// Forward and backward of the mean log-probability.
    fn run(self, problem: &Problem) {
        let hidden = Tensor::<A, 2>::from_inner(problem.hidden.clone()).require_grad();
        let head = Tensor::<A, 2>::from_inner(problem.head.clone()).set_require_grad(self.trained);
        let labels = Tensor::<A, 1, Int>::from_inner(problem.labels.clone());
        let log_probs = match self.way {
            Way::Dense => {
                let logits = hidden.clone().matmul(head.clone().transpose());
                log_softmax(logits, 1).gather(1, labels.unsqueeze_dim(1)).flatten(0, 1)
            }
            Way::Chunked(_) => {
                let head = LmHead::hugging_face(head.clone());
                chunked_log_probs(hidden.clone(), &head, labels, &self.options()).expect("the sizes fit")
            }
        };
        let grads = log_probs.mean().backward();
        std::hint::black_box((hidden.grad(&grads), head.grad(&grads)));
    }

    fn seconds(self, problem: &Problem) -> f64 {
        let start = Instant::now();
        self.run(problem);
        start.elapsed().as_secs_f64()
    }

    fn name(self) -> String {
        match self.way {
            Way::Dense => "dense".into(),
            Way::Chunked(kib) => format!("chunked {} MiB", kib >> 10),
        }
    }

    fn parse(text: &str) -> Self {
        let n: Vec<usize> = text.split(',').map(|n| n.parse().expect("five numbers")).collect();
        let way = if n[4] == 0 { Way::Dense } else { Way::Chunked(n[4]) };
        Self { tokens: n[0], features: n[1], vocab: n[2], trained: n[3] == 1, way }
    }

    fn arguments(self) -> String {
        let way = if let Way::Chunked(kib) = self.way { kib } else { 0 };
        format!("{},{},{},{},{way}", self.tokens, self.features, self.vocab, usize::from(self.trained))
    }

    /// Extra peak memory, MB, of a child process that runs this case alone, once.
    fn memory(self) -> f64 {
        let exe = std::env::current_exe().expect("a path");
        let out = std::process::Command::new(exe)
            .env("LOSS_BENCH_CASE", self.arguments())
            .output()
            .expect("a child");
        String::from_utf8_lossy(&out.stdout).trim().parse().unwrap_or(f64::NAN)
    }
}

struct Problem {
    hidden: Tensor<Flex, 2>,
    head: Tensor<Flex, 2>,
    labels: Tensor<Flex, 1, Int>,
}

fn ways() -> impl Iterator<Item = Way> {
    std::iter::once(Way::Dense).chain(BUDGETS.map(Way::Chunked))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The sizes, or those that the environment variable `LOSS_BENCH_SIZES` names.
fn sizes() -> Vec<(usize, usize, usize)> {
    let only = std::env::var("LOSS_BENCH_SIZES").ok();
    let named = |(n, d, v): &(usize, usize, usize)| {
        only.as_ref().is_none_or(|only| only.split(',').any(|size| size == format!("{n}x{d}x{v}")))
    };
    SIZES.into_iter().filter(named).collect()
}

fn table(rounds: usize) {
    println!("| N | D | V | head | way | seconds | of dense | extra MB | of dense |");
    println!("|--:|--:|--:|---|---|--:|--:|--:|--:|");
    for (tokens, features, vocab) in sizes() {
        for trained in [false, true] {
            let cases: Vec<Case> = ways().map(|way| Case { tokens, features, vocab, trained, way }).collect();
            let problem = cases[0].problem();
            cases.iter().for_each(|case| case.run(&problem));
            let mut seconds = vec![Vec::new(); cases.len()];
            for _ in 0..rounds {
                for (case, seconds) in cases.iter().zip(&mut seconds) {
                    seconds.push(case.seconds(&problem));
                }
            }
            drop(problem);
            let dense = cases[0].memory();
            for (case, own) in cases.iter().zip(&seconds) {
                let ratio = median(own.iter().zip(&seconds[0]).map(|(a, b)| a / b).collect());
                let memory = case.memory();
                println!(
                    "| {tokens} | {features} | {vocab} | {} | {} | {:.4} | {ratio:.2} | {memory:.0} | {:.2} |",
                    if trained { "trained" } else { "frozen" },
                    case.name(),
                    median(own.clone()),
                    memory / dense,
                );
            }
        }
    }
}

fn criterion() {
    let mut criterion = Criterion::default().configure_from_args();
    for (tokens, features, vocab) in sizes() {
        let mut group = criterion.benchmark_group(format!("log_probs/{tokens}x{features}x{vocab}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(5));
        for trained in [false, true] {
            for way in ways() {
                let case = Case { tokens, features, vocab, trained, way };
                let problem = case.problem();
                let head = if trained { "trained" } else { "frozen" };
                group.bench_with_input(BenchmarkId::new(head, case.name()), &problem, |b, p| {
                    b.iter(|| case.run(p))
                });
            }
        }
        group.finish();
    }
    criterion.final_summary();
}

fn main() {
    if let Some(head) = served() {
        let before = peak();
        let way = Way::Chunked(ChunkOptions::default().byte_budget >> 10);
        let case = Case { tokens: 1024, features: 512, vocab: 32_000, trained: head == "trained", way };
        let problem = case.problem();
        serve(before, || case.run(&problem));
    } else if let Ok(case) = std::env::var("LOSS_BENCH_CASE") {
        let case = Case::parse(&case);
        let problem = case.problem();
        let before = peak();
        case.run(&problem);
        println!("{}", peak() - before);
    } else if std::env::args().any(|a| a == "--table") {
        table(std::env::var("LOSS_BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(7));
    } else {
        criterion();
    }
}
