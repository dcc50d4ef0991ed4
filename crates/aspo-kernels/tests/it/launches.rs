//! How many kernels a LLaMA block with adapters launches on wgpu, counted by CubeCL's own log.
//!
//! The log belongs to a process, whose other tests launch kernels too: the count is done by a process of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aspo_kernels::adamw::{AdamW, Slot, adamw, scaled, squares};
use aspo_kernels::{
    Activation, Before, BlockMask, Context, Factors, Heads, Layer, Rotary, attention, linear,
};
use burn::backend::{Autodiff, Wgpu};
use burn::optim::{AdamWConfig, AdamWState, AdaptiveMomentumState, SimpleOptimizer};
use burn::tensor::{Distribution, Tensor};

use crate::support::{leaf, noise, tensor};

type B = Autodiff<Wgpu>;

/// Tells the process that counts where its log lies.
const FOLDER: &str = "ASPO_TEST_LAUNCHES";

/// Random numbers are drawn between the parts that are counted, and nowhere else.
const MARK: &str = "prng";

struct Shape {
    name: &'static str,
    rows: usize,
    tokens: usize,
    width: usize,
    inner: usize,
    heads: Heads,
    /// Kernels forward and backward, at most.
    most: [usize; 2],
}

const SHAPES: [Shape; 2] = [
    Shape {
        name: "tiny LLaVA, two packed pairs of 64",
        rows: 2,
        tokens: 64,
        width: 128,
        inner: 352,
        heads: Heads { heads: 4, groups: 4, dim: 32 },
        most: [38, 56],
    },
    Shape {
        name: "width 512, one packed pair of 288, grouped queries",
        rows: 1,
        tokens: 288,
        width: 512,
        inner: 1376,
        heads: Heads { heads: 8, groups: 4, dim: 64 },
        most: [38, 56],
    },
];

#[test]
fn a_block_launches_no_more_kernels_than_this() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return count(Path::new(&folder));
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("launches-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cubecl.toml"), "[profiling.logger]\nlevel = \"minimal\"\nfile = \"log\"\n")
        .unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["launches::a_block_launches_no_more_kernels_than_this", "--exact", "--nocapture"])
        .env(FOLDER, &folder)
        .current_dir(&folder)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    println!("{said}");
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("1 passed"), "the process that counts found its test");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn count(folder: &Path) {
    let mut log = Log { path: folder.join("log"), read: 0 };
    for shape in SHAPES {
        let block = Block::new(&shape);
        let pull = |y: Tensor<B, 3>| drop((y * block.grad.clone()).sum().backward());
        // What a pass makes once (tables, masks) is made before.
        pull(block.forward());
        mark();
        log.parts(1);
        let y = block.forward();
        mark();
        pull(y);
        mark();
        // What begins the backward pass is none of the block's.
        pull(block.x.clone());
        mark();
        let [forward, backward, begin] = log.parts(3).try_into().unwrap();
        let backward = &backward[begin.len().min(backward.len())..];
        println!("{}: {} forward, {} backward", shape.name, forward.len(), backward.len());
        for (what, names, most) in
            [("forward", &forward[..], shape.most[0]), ("backward", backward, shape.most[1])]
        {
            println!("  {what}: {}", families(names));
            assert!(names.len() <= most, "{} kernels {what}, {most} at most", names.len());
        }
    }
    of_all_factors(&mut log);
}

/// What happens once a step to a block's fourteen factors, by Burn's operations and all at once.
fn of_all_factors(log: &mut Log) {
    let values = |seed| tensor::<Wgpu, 1>(&noise(1024, seed), [1024]);
    let moments = || [values(2), values(3).square()];
    let slot = || Slot { value: values(0), gradient: values(1), moments: moments(), time: 2 };
    let mut slots: Vec<Slot<Wgpu>> = (0..14).map(|_| slot()).collect();
    let gradients: Vec<Tensor<Wgpu, 1>> = slots.iter().map(|slot| slot.gradient.clone()).collect();
    let states = (0..14).map(|_| {
        let [moment_1, moment_2] = moments();
        AdamWState { momentum: AdaptiveMomentumState { time: 1, moment_1, moment_2, max_moment_2: None } }
    });
    let states: Vec<_> =
        slots.iter().map(|slot| (slot.value.clone(), slot.gradient.clone())).zip(states).collect();
    let (step, burns) = (
        AdamW { rate: 1e-3, beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01 },
        AdamWConfig::new().with_weight_decay(0.01).build(),
    );
    mark();
    log.parts(1);
    for ((value, gradient), state) in states {
        drop(burns.step(1e-3, value, gradient, Some(state)));
    }
    mark();
    drop(gradients.iter().map(|one| one.clone().square().sum()).reduce(|a, b| a + b));
    mark();
    drop(gradients.iter().map(|one| one.clone().mul_scalar(0.5)).collect::<Vec<_>>());
    mark();
    assert!(adamw(&mut slots, &step));
    mark();
    drop(squares(&gradients));
    mark();
    drop(scaled(&gradients, 0.5));
    mark();
    let counts: Vec<usize> = log.parts(6).iter().map(Vec::len).collect();
    println!("AdamW, squares, factor of fourteen tensors, by Burn and at once: {counts:?}");
    assert_eq!(counts[3..], [3, 2, 1]);
}

/// How many of each kernel, by the first word of its name.
fn families(names: &[String]) -> String {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.split_whitespace().next().unwrap_or_default()).or_insert(0) += 1;
    }
    counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
}

/// Ends a part of the log.
fn mark() {
    let drawn = Tensor::<Wgpu, 1>::random([1], Distribution::Default, &Default::default());
    drop(drawn.into_data());
}

struct Log {
    path: PathBuf,
    read: usize,
}

impl Log {
    /// The kernels of this many further parts, once they have ended.
    fn parts(&mut self, count: usize) -> Vec<Vec<String>> {
        let begin = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.path).unwrap_or_default();
            let mut parts = vec![Vec::new()];
            for line in text.lines() {
                let Some((_, name)) = line.split_once("Executing ") else { continue };
                match name.to_lowercase().contains(MARK) {
                    true => parts.push(Vec::new()),
                    false => parts.last_mut().unwrap().push(name.to_owned()),
                }
            }
            if parts.len() > self.read + count {
                let found = parts[self.read..][..count].to_vec();
                self.read += count;
                return found;
            }
            assert!(begin.elapsed() < Duration::from_secs(300), "CubeCL writes what it launches: {text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A frozen block with adapters on all seven layers.
struct Block {
    x: Tensor<B, 3>,
    grad: Tensor<B, 3>,
    norms: [Tensor<B, 1>; 2],
    qkv: [Layer<B>; 3],
    o: [Layer<B>; 1],
    gate_up: [Layer<B>; 2],
    down: [Layer<B>; 1],
    heads: Heads,
    context: Context<B>,
}

impl Block {
    fn new(shape: &Shape) -> Self {
        let &Shape { rows, tokens, width, inner, heads, .. } = shape;
        let values = |n: usize| noise(n, n as u64);
        let layer = |inputs: usize, out: usize| Layer {
            weight: tensor(&values(out * inputs), [out, inputs]),
            bias: None,
            lora: Some(Factors {
                a: leaf(&values(8 * inputs), [8, inputs]),
                b: leaf(&values(out * 8), [out, 8]),
                scale: 0.5,
                dropout: 0.0,
            }),
        };
        let (queries, keys) = (heads.heads * heads.dim, heads.groups * heads.dim);
        let segments: Vec<i64> = (0..tokens).map(|i| (3 * i / tokens) as i64).collect();
        let positions: Vec<i64> = (0..tokens as i64).collect();
        let rotary = Rotary::new(&positions.repeat(rows), heads.dim, 10_000.0, 1.0);
        let mask = BlockMask::causal(rows, tokens, &segments.repeat(rows));
        let size = rows * tokens * width;
        Self {
            x: leaf(&values(size), [rows, tokens, width]),
            grad: tensor(&values(size + 1)[1..], [rows, tokens, width]),
            norms: [0, 1].map(|_| tensor(&values(width), [width])),
            qkv: [layer(width, queries), layer(width, keys), layer(width, keys)],
            o: [layer(queries, width)],
            gate_up: [layer(width, inner), layer(width, inner)],
            down: [layer(inner, width)],
            heads,
            context: Context::new(mask, Some(rotary), &Default::default()),
        }
    }

    fn forward(&self) -> Tensor<B, 3> {
        let norm = |i: usize| Before::RmsNorm { weight: self.norms[i].clone(), eps: 1e-5 };
        let qkv = linear(self.x.clone(), norm(0), &self.qkv, None);
        let mixed = attention(qkv, self.heads, &self.context);
        let h = linear(mixed, Before::Nothing, &self.o, Some(self.x.clone()));
        let wide = linear(h.clone(), norm(1), &self.gate_up, None);
        linear(wide, Before::Gated(Activation::Silu), &self.down, Some(h))
    }
}
