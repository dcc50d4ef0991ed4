//! What a run will cost, before a weight is read.

use std::fmt;

use aspo_data::EncodedPair;
use aspo_models::llama::LlamaConfig;
use aspo_models::lora::attach;
use aspo_models::{EachLinear, Pretrained};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::Serialize;

use crate::config::TrainConfig;
use crate::error::Result;

/// Numbers and bytes of a run. Activations are an estimate; everything else follows from shapes.
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
    /// What the backward pass of a micro-batch keeps, without recomputation of blocks.
    pub activation_bytes: usize,
    /// The same with it.
    pub recomputed_activation_bytes: usize,
    /// Logits at a time: one chunk and its exponentials.
    pub logit_bytes: usize,
    /// Floating-point operations of an optimiser step: policy forward and backward, and the reference's forward.
    pub step_flops: f64,
    /// Whether the config asks for recomputation.
    pub recompute: bool,
}

impl Plan {
    /// The plan of a run of a model of this config.
    ///
    /// # Errors
    /// Target modules that match no layer.
    pub fn new<B: Backend, M: Pretrained<B> + EachLinear<B>>(
        config: &TrainConfig,
        model: &M::Config,
        decoder: &LlamaConfig,
        pairs: &[EncodedPair],
        device: &B::Device,
    ) -> Result<Self> {
        // Parameters are allocated on first use, and here none is used.
        let base = M::from_config(model, device);
        let parameters = count(&base);
        // Factors of rank 1 tell the size of all ranks without taking its memory.
        let mut lora = config.lora_config();
        lora.r = 1;
        let trainable = (count(&attach(base, &lora, config.seed)?) - parameters) * config.lora.r;
        let row = |pair: &EncodedPair| match config.pair_packing {
            true => pair.prompt_ids.len() + pair.chosen.ids.len() + pair.rejected.ids.len(),
            false => pair.length(),
        };
        let rows = config.per_device_train_batch_size * if config.pair_packing { 1 } else { 2 };
        let longest_row = pairs.iter().map(row).max().unwrap_or(0).next_multiple_of(8);
        let mean_row = pairs.iter().map(row).sum::<usize>() as f64 / pairs.len().max(1) as f64;
        let tokens = rows * longest_row;
        let (width, inner, layers) =
            (decoder.hidden_size, decoder.intermediate_size, decoder.num_hidden_layers);
        let scores = rows * decoder.num_attention_heads * longest_row * longest_row;
        // Of a layer: inputs and outputs of norms, projections, rotation and residuals (about 18 rows of the model's
        // width), of the gated product (5 of the inner width), and two copies of the attention scores.
        let layer = 4 * (tokens * (18 * width + 5 * inner) + 2 * scores);
        let bytes = if config.bf16 { 2 } else { 4 };
        let answers =
            pairs.iter().map(|pair| pair.chosen.ids.len() + pair.rejected.ids.len()).max().unwrap_or(0);
        let logits = 4 * config.per_device_train_batch_size * answers * decoder.vocab_size;
        let per_row_pass = if config.pair_packing { 1.0 } else { 2.0 };
        let step_tokens = config.global_batch() as f64 * per_row_pass * mean_row;
        let block_parameters = (layers * (4 * width * width + 3 * width * inner)) as f64;
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
            activation_bytes: layers * layer,
            recomputed_activation_bytes: layer + 4 * layers * tokens * width,
            logit_bytes: 2 * logits.min(aspo_loss::ChunkOptions::default().byte_budget),
            step_flops,
            recompute: config.gradient_checkpointing,
        })
    }

    /// Everything that is held at the peak.
    pub fn total_bytes(&self) -> usize {
        let activations =
            if self.recompute { self.recomputed_activation_bytes } else { self.activation_bytes };
        self.weight_bytes
            + self.adapter_bytes
            + self.gradient_bytes
            + self.optimizer_bytes
            + activations
            + self.logit_bytes
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
        let chosen = |recompute| if self.recompute == recompute { "" } else { "  (not chosen)" };
        for (name, bytes, note) in [
            ("base weights", self.weight_bytes, ""),
            ("adapter", self.adapter_bytes, ""),
            ("gradients", self.gradient_bytes, ""),
            ("optimiser", self.optimizer_bytes, ""),
            ("activations", self.activation_bytes, chosen(false)),
            ("  recomputed", self.recomputed_activation_bytes, chosen(true)),
            ("logits", self.logit_bytes, ""),
            ("at the peak", self.total_bytes(), ""),
        ] {
            writeln!(f, "  {name:<17} {:>12}{note}", human(bytes))?;
        }
        write!(f, "  operations        {:>12}  a step", format!("{:.2e}", self.step_flops))
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
