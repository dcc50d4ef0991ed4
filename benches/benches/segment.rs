//! The splitter and the aligner, in bytes a second, on one thread.
//!
//! Texts are made, not read, so that the figures are of the code alone: an English answer of plain prose, one with as many
//! lists, quotations and abbreviations as it can hold, and a Chinese one.

use std::hint::black_box;

use aspo_segment::{Rules, SplitOptions, align, split};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const PROSE: &str = "The image features a man sitting on a surfboard in the ocean, wearing a wetsuit. He is skillfully \
    navigating the waves and appears to be waiting for the next wave to come. The surfer is the main focal point of the \
    scene, occupying a significant portion of the image.\n\nThere are also several smaller figures in the background. ";

const DENSE: &str = "A man, approx. 1.8 m tall, sits there. There are:\n1. A dog (brown).\n2. Two people, e.g. a surfer \
    and Mr. Smith.\n\n\"What a day!\" he said. The U.S. flag waves... It is 5 p.m. Monday.They leave. ";

const CHINESE: &str = "图中有一只猫，它在睡觉。旁边有两只狗吗？没有！她说：“你好。”然后走了。";

fn splitting(c: &mut Criterion) {
    let mut group = c.benchmark_group("split");
    for (name, text) in [("prose", PROSE), ("dense", DENSE), ("chinese", CHINESE)] {
        let text = text.repeat(1_000_000 / text.len());
        group.throughput(Throughput::Bytes(text.len() as u64));
        for (kind, rules) in [("answer", Rules::Answer), ("period", Rules::Period)] {
            let options = SplitOptions { rules, ..Default::default() };
            group.bench_function(format!("{name}/{kind}"), |b| {
                b.iter(|| split(black_box(&text), &options).count())
            });
        }
    }
}

fn aligning(c: &mut Criterion) {
    let text = DENSE.repeat(20);
    let spans: Vec<_> = split(&text, &SplitOptions::default()).collect();
    let starts: Vec<usize> = (0..text.len()).step_by(4).chain([text.len()]).collect();
    let offsets: Vec<_> = starts.windows(2).map(|pair| (pair[0], pair[1])).collect();
    let mut group = c.benchmark_group("align");
    group.throughput(Throughput::Elements(offsets.len() as u64));
    group.bench_function("tokens", |b| b.iter(|| align(black_box(&text), &spans, &offsets)));
}

criterion_group!(benches, splitting, aligning);
criterion_main!(benches);
