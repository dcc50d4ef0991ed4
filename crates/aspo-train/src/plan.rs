//! What a run will cost, before a weight is read.

use std::collections::HashSet;
use std::fmt;

use aspo_data::PairSet;
use aspo_kernels::on_cpu;
use aspo_loss::ChunkOptions;
use aspo_models::lora::Adapted;
use aspo_models::nn::{CHUNK_SCORES, Heads, has_kernels};
use aspo_models::{
    Decoder, DecoderShape, EachLinear, LanguageModel, ModelConfig, Pretrained, VisionLanguageModel,
};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::error::Result;
use crate::policy::targets;

/// Numbers and bytes of a run. Activations are what the kernels keep, or Burn's autodiff where there are none; all follows from
/// shapes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// Parameters of the base model.
    pub parameters: usize,
    /// Parameters that are trained.
    pub trainable: usize,
    /// Pairs.
    pub pairs: usize,
    /// Pairs of an optimiser step.
    pub global_batch: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of the longest row of a batch.
    pub longest_row: usize,
    /// Base weights.
    pub weight_bytes: usize,
    /// Adapter weights, f32.
    pub adapter_bytes: usize,
    /// Their gradients.
    pub gradient_bytes: usize,
    /// AdamW's two moments.
    pub optimizer_bytes: usize,
    /// Weights of `ref_model`; 0 without one.
    pub reference_bytes: usize,
    /// What forward and backward pass of a micro-batch hold at most, without recomputation of blocks.
    pub activation_bytes: usize,
    /// The same with it.
    pub recomputed_activation_bytes: usize,
    /// Logits at a time, within the activations: one tile, its exponentials, and the head's rows that make it.
    pub logit_bytes: usize,
    /// Floating-point operations of an optimiser step: policy forward and backward, and the reference's forward.
    pub step_flops: f64,
    /// Whether the config asks for recomputation.
    pub recompute: bool,
    /// Whether a step sums the gradients of several micro-batches.
    pub accumulated: bool,
    /// Whether `ref_model` is given back before the first step, its log-probabilities being known.
    pub precompute: bool,
}

impl Plan {
    /// The plan of a run of a model of this config.
    ///
    /// # Errors
    /// Target modules that match no layer or the vision tower, a `ref_model` without a config of this architecture.
    pub fn new<B: Backend, M: VisionLanguageModel<B> + Pretrained<B>>(
        config: &TrainConfig,
        model: &M::Config,
        pairs: &PairSet,
        device: &B::Device,
    ) -> Result<Self> {
        // Parameters are allocated on first use, and here none is used.
        let mut base = M::from_config(model, device);
        let parameters = count(&base);
        let adapted = targets(&mut base, &config.lora)?;
        let layers = sized(&mut base, adapted);
        let decoder = base.decoder().shape();
        let trainable = layers.iter().map(|layer| layer.rank * (layer.inputs + layer.outputs)).sum::<usize>();
        let reference = match &config.ref_model {
            Some(folder) => count(&M::from_config(&M::Config::load(folder)?, device)),
            None => 0,
        };
        let known = pairs.summary();
        let (longest, tokens) = match config.pair_packing {
            true => (known.longest_packed, known.tokens_packed),
            false => (known.longest, known.tokens),
        };
        // mDPO sees each pair a second time.
        let times = if config.objective()?.needs_corrupted() { 2 } else { 1 };
        let rows = times * config.per_device_train_batch_size * if config.pair_packing { 1 } else { 2 };
        let longest_row = longest.next_multiple_of(8);
        let mean_row = tokens as f64 / known.pairs.max(1) as f64;
        let answers = known.longest_answers;
        let bytes = if config.bf16 { 2 } else { 4 };
        let micro = MicroShape {
            decoder,
            rows,
            length: longest_row,
            answers: times * config.per_device_train_batch_size * answers,
            bytes,
            way: match has_kernels::<B>() {
                true if on_cpu::<B>(device) => Way::Cpu,
                true => Way::Gpu,
                false => Way::Burns,
            },
            chunk: ChunkOptions::of::<B>(device),
            adapters: Adapters::of(&layers, !config.bf16),
        };
        let (width, inner, layers) =
            (decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers);
        let per_row_pass = if config.pair_packing { 1.0 } else { 2.0 };
        let step_tokens = (times * config.global_batch()) as f64 * per_row_pass * mean_row;
        let block_parameters = (layers * (4 * width * width + (1 + micro.sides()) * width * inner)) as f64;
        // Forward 2, gradient of inputs 2, reference 2, adapters 6; recomputation another 2.
        let passes = 6.0 + if config.gradient_checkpointing { 2.0 } else { 0.0 };
        let attention = 4.0 * mean_row * width as f64 * layers as f64;
        let step_flops = step_tokens * (passes * block_parameters + 6.0 * trainable as f64 + 3.0 * attention);
        Ok(Self {
            parameters,
            trainable,
            pairs: pairs.len(),
            global_batch: config.global_batch(),
            steps: config.total_steps(pairs.len()),
            longest_row,
            weight_bytes: bytes * parameters,
            adapter_bytes: 4 * trainable,
            gradient_bytes: 4 * trainable,
            optimizer_bytes: 8 * trainable,
            reference_bytes: bytes * reference,
            activation_bytes: micro.plain(),
            recomputed_activation_bytes: micro.recomputed(),
            logit_bytes: micro.logits(),
            step_flops,
            recompute: config.gradient_checkpointing,
            accumulated: config.gradient_accumulation_steps > 1,
            precompute: config.caches_reference(pairs.len()),
        })
    }

    /// Everything that is held at the peak. Activations go as gradients come, so the larger of the two counts; the sum
    /// of earlier micro-batches' gradients is there all the time.
    pub fn total_bytes(&self) -> usize {
        let activations =
            if self.recompute { self.recomputed_activation_bytes } else { self.activation_bytes };
        let summed = if self.accumulated { self.gradient_bytes } else { 0 };
        let base = self.weight_bytes + self.adapter_bytes;
        let training = self.optimizer_bytes + summed + activations.max(self.gradient_bytes);
        match self.precompute {
            true => base + training.max(self.reference_bytes),
            false => base + training + self.reference_bytes,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.trainable as f64 / self.parameters as f64;
        writeln!(f, "  parameters        {:>12}", grouped(self.parameters))?;
        writeln!(f, "  trainable (LoRA)  {:>12}  {share:.2}%", grouped(self.trainable))?;
        let (pairs, batch, steps) = (self.pairs, self.global_batch, self.steps);
        writeln!(
            f,
            "  pairs             {pairs:>12}  {steps} steps of {batch}, rows up to {} tokens",
            self.longest_row
        )?;
        let before =
            if self.precompute && self.reference_bytes > 0 { "  (before the first step)" } else { "" };
        let chosen = |recompute| if self.recompute == recompute { "" } else { "  (not chosen)" };
        for (name, bytes, note) in [
            ("base weights", self.weight_bytes, ""),
            ("adapter", self.adapter_bytes, ""),
            ("gradients", self.gradient_bytes, ""),
            ("optimiser", self.optimizer_bytes, ""),
            ("reference", self.reference_bytes, before),
            ("activations", self.activation_bytes, chosen(false)),
            ("  recomputed", self.recomputed_activation_bytes, chosen(true)),
            ("logits", self.logit_bytes, ""),
            ("at the peak", self.total_bytes(), ""),
        ] {
            if name == "reference" && bytes == 0 {
                continue;
            }
            writeln!(f, "  {name:<17} {:>12}{note}", human(bytes))?;
        }
        write!(f, "  operations        {:>12}  a step", format!("{:.2e}", self.step_flops))
    }
}

/// An adapted layer.
struct Layer {
    path: String,
    inputs: usize,
    outputs: usize,
    rank: usize,
    /// It is in a block of the decoder, so it reads every token.
    decoders: bool,
}

/// The layers with their widths.
fn sized<B: Backend>(model: &mut impl LanguageModel<B>, adapted: Vec<Adapted>) -> Vec<Layer> {
    let mut own = HashSet::<ParamId>::new();
    model.decoder().clone().each_linear("", &mut |_, linear| {
        own.insert(linear.weight.id);
    });
    let mut layers = Vec::with_capacity(adapted.len());
    // Both are in the model's order.
    let mut adapted = adapted.into_iter().peekable();
    model.each_linear("", &mut |path, linear| {
        if let Some(Adapted { path, rank, .. }) = adapted.next_if(|layer| layer.path == path) {
            let [outputs, inputs] = linear.weight.lazy_shape().dims();
            let decoders = own.contains(&linear.weight.id);
            layers.push(Layer { path, inputs, outputs, rank, decoders });
        }
    });
    layers
}

/// What the adapted layers of the decoder keep of a token.
struct Adapters {
    /// Values of the inputs of `A`, over all layers.
    inputs: usize,
    /// Values between `A` and `B`, over all layers.
    middle: usize,
    /// The output head is adapted: its weight is made anew in `f32`, and has a gradient.
    head: bool,
}

impl Adapters {
    /// With `shared`, layers that read the same values keep them once; else each keeps an f32 copy of its own.
    fn of(layers: &[Layer], shared: bool) -> Self {
        let (mut seen, mut inputs, mut middle, mut head) = (HashSet::new(), 0, 0, false);
        for Layer { path, inputs: width, rank, decoders, .. } in layers {
            if path.ends_with("lm_head") {
                head = true;
            }
            if !decoders {
                continue;
            }
            middle += rank;
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
            let reads = match name {
                "q_proj" | "k_proj" | "v_proj" if shared => "attention",
                "gate_proj" | "up_proj" if shared => "mlp",
                other => other,
            };
            if seen.insert(format!("{parent}.{reads}")) {
                inputs += width;
            }
        }
        Self { inputs, middle, head }
    }
}

/// Whose operations the layers are.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// Burn's own.
    Burns,
    /// aspo-kernels' on a CPU, on f32 values whatever the base is.
    Cpu,
    /// aspo-kernels' around Burn's products, on values of the type of the base.
    Gpu,
}

/// Shapes of a micro-batch in the decoder, and the bytes that follow. Of Burn's operations, read off its autodiff: what the backward
/// pass of each asks for.
struct MicroShape {
    decoder: DecoderShape,
    rows: usize,
    length: usize,
    /// Tokens of the answers.
    answers: usize,
    /// Of a value of the base.
    bytes: usize,
    way: Way,
    /// How the head's logits are cut.
    chunk: ChunkOptions,
    adapters: Adapters,
}

impl MicroShape {
    fn tokens(&self) -> usize {
        self.rows * self.length
    }

    /// Widths of queries, and of keys or values.
    fn heads(&self) -> (usize, usize) {
        let Heads { heads, groups, dim } = self.decoder.heads;
        (heads * dim, groups * dim)
    }

    /// Layers that widen the values in an MLP: two where one gates the other.
    fn sides(&self) -> usize {
        1 + usize::from(self.decoder.gated)
    }

    fn scores(&self) -> usize {
        self.decoder.heads.heads * self.rows * self.length * self.length
    }

    /// Bytes of a token between the inputs of the two norms of a layer, without the adapters: input of a norm in f32,
    /// scaled queries, keys, values, and the mixed values in f32.
    fn attention(&self) -> usize {
        let (queries, keys) = self.heads();
        4 * self.decoder.hidden_size + self.bytes * (queries + 2 * keys) + 4 * queries
    }

    /// The other half: input of a norm in f32, and gate, its sigmoid, their product, and the value it gates; without a gate,
    /// the activation's input and result.
    fn gated(&self) -> usize {
        4 * self.decoder.hidden_size + 2 * self.sides() * self.bytes * self.decoder.intermediate_size
    }

    /// Of a token, the inputs and middles of a layer's adapters.
    fn adapted(&self) -> usize {
        4 * (self.adapters.inputs + self.adapters.middle) / self.decoder.num_hidden_layers.max(1)
    }

    /// What all layers share: rotary tables, and the mask.
    fn shared(&self) -> usize {
        8 * self.tokens() * self.decoder.heads.dim + self.scores()
    }

    fn logits(&self) -> usize {
        let vocabulary = self.decoder.vocab_size;
        let (rows, columns) = self.chunk.tile(self.answers, vocabulary).unwrap_or_default();
        // The product of an adapted head's factors, the weight with it, and that weight's gradient.
        let head = if self.adapters.head { 3 * vocabulary * self.decoder.hidden_size } else { 0 };
        4 * (2 * rows * columns
            + columns * self.decoder.hidden_size
            + 3 * rows * self.decoder.hidden_size
            + head)
    }

    /// Bytes of a value between the kernels.
    fn value(&self) -> usize {
        if self.way == Way::Cpu { 4 } else { self.bytes }
    }

    /// Bytes that the kernels keep of a token in a layer: inputs of both norms, queries, keys, values and their mix, gate
    /// and up; in f32, a number for each head and what stands between the factors of the adapters.
    fn kept(&self) -> usize {
        let (queries, keys) = self.heads();
        let middle = self.adapters.middle / self.decoder.num_hidden_layers.max(1);
        let values = 2 * (self.decoder.hidden_size + queries + keys);
        self.value() * (values + self.sides() * self.decoder.intermediate_size)
            + 4 * (self.decoder.heads.heads + middle)
    }

    /// Bytes of a token's gradients under way in a layer: of its result, and of gate and up from that of their product; on a
    /// GPU also the gated product made again, and the share of it that comes from the adapter, in f32.
    fn flow(&self) -> usize {
        let inner = self.decoder.intermediate_size;
        let own = self.value() * (self.decoder.hidden_size + (1 + self.sides()) * inner);
        if self.way == Way::Gpu { own + (self.value() + 4) * inner } else { own }
    }

    /// What all layers share on a GPU (rotary tables, and a mask for all heads, four bytes a pair of tokens), and a chunk of
    /// scores with their gradients.
    fn on_gpu(&self) -> usize {
        if self.way != Way::Gpu {
            return 0;
        }
        let shared = 8 * self.tokens() * self.decoder.heads.dim + 4 * self.tokens() * self.length;
        shared + 2 * self.value() * self.scores().min(CHUNK_SCORES)
    }

    /// All layers' values. The last layer's MLP runs for the answers alone; the peak is at the loss, or where the backward
    /// pass enters the MLP of the last layer, or of the last but one.
    fn plain_by_kernels(&self) -> usize {
        let end = self.last_by_kernels().max(self.tokens() * self.flow());
        self.tokens() * (self.decoder.num_hidden_layers - 1) * self.kept() + end + self.on_gpu()
    }

    /// The last layer's values, with those of the loss or of the backward pass of its MLP.
    fn last_by_kernels(&self) -> usize {
        let (value, width) = (self.value(), self.decoder.hidden_size);
        let (queries, keys) = self.heads();
        let last = value * self.tokens() * (width + 2 * queries + 2 * keys);
        last + self.answers * (self.kept() + 2 * value * width)
            + self.logits().max(self.answers * self.flow())
    }

    /// The input of each layer, and the last layer at the loss, or one of the others with the gradients under way.
    fn recomputed_by_kernels(&self) -> usize {
        let inputs = self.value() * self.tokens() * self.decoder.hidden_size;
        let layer = self.tokens() * (self.kept() + self.flow()) + inputs;
        inputs * (self.decoder.num_hidden_layers + 1) + layer.max(self.last_by_kernels()) + self.on_gpu()
    }

    /// All layers' values, and at the last layer, where the backward pass begins, the gradients under way: those of the
    /// gated product, or, once that is gone, those of the scores.
    fn plain(&self) -> usize {
        if self.way != Way::Burns {
            return self.plain_by_kernels();
        }
        let (tokens, width, scores) = (self.tokens(), self.decoder.hidden_size, self.scores());
        // The scores, and their exponentials in the type of the values.
        let layer = tokens * (self.attention() + self.gated() + self.adapted()) + (4 + self.bytes) * scores;
        let kept =
            self.decoder.num_hidden_layers * layer + 4 * width * (tokens + self.answers) + self.shared();
        let gated = tokens * self.bytes * ((1 + self.sides()) * self.decoder.intermediate_size + width);
        let mixed = (8 * scores).saturating_sub(tokens * self.gated());
        kept + self.logits().max(gated).max(mixed)
    }

    /// The input of each layer, and the values of one layer in turn with the gradients under way.
    fn recomputed(&self) -> usize {
        if self.way != Way::Burns {
            return self.recomputed_by_kernels();
        }
        let (tokens, width) = (self.tokens(), self.decoder.hidden_size);
        let (queries, keys) = self.heads();
        let inputs = self.bytes * width * tokens * (self.decoder.num_hidden_layers + 2) + self.shared();
        let projected = tokens * (4 * width + self.bytes * (2 * queries + 3 * keys));
        let gated = tokens
            * (self.gated()
                + self.adapted()
                + self.bytes * ((1 + self.sides()) * self.decoder.intermediate_size + 2 * width));
        // Of the scores of a chunk, five at once: the exponentials, their gradients from the product and from the
        // normaliser, the sum of these, and what goes on to the scores.
        let mixed =
            tokens * self.bytes * (2 * queries + 2 * keys + width) + 20 * self.scores().min(CHUNK_SCORES);
        inputs + self.logits().max(projected + gated.max(mixed))
    }
}

/// `1,234,567`.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Bytes in MiB or GiB.
pub fn human(bytes: usize) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

fn count<B: Backend, M: Module<B>>(module: &M) -> usize {
    struct Count(usize);
    impl<B: Backend> ModuleVisitor<B> for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0 += param.lazy_shape().num_elements();
        }
    }
    let mut count = Count(0);
    module.visit(&mut count);
    count.0
}

/// The most memory that this process has held so far, in bytes, where the system tells (Linux).
pub fn peak_memory() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kib| 1024 * kib)
}
