//! The image tower: a ViT over pictures of any size, with rotary positions of two axes; in Qwen2.5-VL most blocks attend
//! within windows (Bai et al. 2025, arXiv 2502.13923, §2.1.1).

use aspo_kernels::{Before, BlockMask, Heads, Rotary, linear};
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};

use super::config::{FRAMES, Generation, QwenVisionConfig};
use crate::error::{Error, Result};
use crate::nn::{Activation, Context, Linear, attention, each_linear, normal, ones, project, wide, zeros};

/// Epsilon of the tower's norms, fixed in both generations.
const EPS: f64 = 1e-6;

/// A layer norm where it has a bias (Qwen2-VL), an RMS norm where it has none (Qwen2.5-VL).
#[derive(Module, Debug)]
pub struct QwenNorm<B: Backend> {
    weight: Param<Tensor<B, 1>>,
    bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> QwenNorm<B> {
    fn new(width: usize, generation: Generation, device: &B::Device) -> Self {
        let bias = (generation == Generation::Two).then(|| zeros([width], device));
        Self { weight: ones([width], device), bias }
    }

    fn before(&self) -> Before<B> {
        let weight = self.weight.val();
        match &self.bias {
            Some(bias) => Before::LayerNorm { weight, bias: bias.val(), eps: EPS },
            None => Before::RmsNorm { weight, eps: EPS },
        }
    }

    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.bias {
            Some(bias) => aspo_kernels::layer_norm(x, self.weight.val(), bias.val(), EPS),
            None => aspo_kernels::rms_norm(x, self.weight.val(), EPS),
        }
    }
}

/// Self-attention with one layer for queries, keys and values.
#[derive(Module, Debug)]
pub struct QwenAttention<B: Backend> {
    qkv: Linear<B>,
    proj: Linear<B>,
}
each_linear!(QwenAttention: qkv, proj);

/// `fc2(act(fc1(x)))` (Qwen2-VL) or `down(act(gate(x)) · up(x))` (Qwen2.5-VL), all with biases.
#[derive(Module, Debug)]
pub struct QwenMlp<B: Backend> {
    fc1: Option<Linear<B>>,
    fc2: Option<Linear<B>>,
    gate_proj: Option<Linear<B>>,
    up_proj: Option<Linear<B>>,
    down_proj: Option<Linear<B>>,
    #[module(skip)]
    act: Activation,
}
each_linear!(QwenMlp: fc1, fc2, gate_proj, up_proj, down_proj);

impl<B: Backend> QwenMlp<B> {
    fn new(c: &QwenVisionConfig, generation: Generation, device: &B::Device) -> Self {
        let (width, inner) = (c.width(generation), c.inner(generation));
        let layer =
            |of: Generation, from, to| (of == generation).then(|| Linear::new(from, to, true, device));
        Self {
            fc1: layer(Generation::Two, width, inner),
            fc2: layer(Generation::Two, inner, width),
            gate_proj: layer(Generation::TwoAndAHalf, width, inner),
            up_proj: layer(Generation::TwoAndAHalf, width, inner),
            down_proj: layer(Generation::TwoAndAHalf, inner, width),
            act: c.act(generation),
        }
    }

    fn add_to(&self, x: Tensor<B, 3>, norm: Before<B>) -> Tensor<B, 3> {
        let act = self.act.into();
        let first: Vec<_> =
            [&self.fc1, &self.gate_proj, &self.up_proj].into_iter().flatten().map(Linear::layer).collect();
        let last = self.fc2.as_ref().or(self.down_proj.as_ref()).expect("one of the two kinds").layer();
        let before = if first.len() == 1 { Before::Activation(act) } else { Before::Gated(act) };
        linear(linear(x.clone(), norm, &first, None), before, &[last], Some(x))
    }
}

/// A pre-norm transformer block.
#[derive(Module, Debug)]
pub struct QwenBlock<B: Backend> {
    norm1: QwenNorm<B>,
    norm2: QwenNorm<B>,
    attn: QwenAttention<B>,
    mlp: QwenMlp<B>,
}
each_linear!(QwenBlock: attn, mlp);

/// `linear_2(gelu(linear_1(x)))` over squares of patches.
#[derive(Module, Debug)]
pub struct QwenMerger<B: Backend> {
    ln_q: QwenNorm<B>,
    linear_1: Linear<B>,
    linear_2: Linear<B>,
}
each_linear!(QwenMerger: linear_1, linear_2);

/// Patches of two frames into vectors.
#[derive(Module, Debug)]
pub struct QwenPatchEmbed<B: Backend> {
    proj: PatchWeight<B>,
}

/// The convolution's weight, `[width, 3, 2, patch, patch]`, without bias.
#[derive(Module, Debug)]
pub struct PatchWeight<B: Backend> {
    weight: Param<Tensor<B, 5>>,
}

/// The image tower with its merger.
#[derive(Module, Debug)]
pub struct QwenVision<B: Backend> {
    patch_embed: QwenPatchEmbed<B>,
    blocks: Vec<QwenBlock<B>>,
    merger: QwenMerger<B>,
    #[module(skip)]
    config: QwenVisionConfig,
    #[module(skip)]
    generation: Generation,
}
each_linear!(QwenVision: blocks, merger);

/// In which order the tower sees the patches of a picture, and which of them see each other.
///
/// Squares of patches that become one image token stay together; in Qwen2.5-VL so do the squares of a window. Windows are
/// taken row by row, those at the right and bottom edge are smaller.
struct Order {
    /// Patches of the picture, counted row by row.
    patches: Vec<[usize; 2]>,
    /// Window of each patch.
    windows: Vec<i64>,
    /// Where each image token, counted row by row, stands.
    back: Vec<i64>,
}

impl Order {
    fn new([rows, columns]: [usize; 2], merge: usize, window: Option<usize>) -> Self {
        let [units_down, units_across] = [rows / merge, columns / merge];
        let [down, across] = window.map_or([units_down, units_across], |edge| [edge; 2]);
        let (mut patches, mut windows) = (Vec::new(), Vec::new());
        let mut back = vec![0; units_down * units_across];
        let mut number = 0;
        for top in (0..units_down).step_by(down.max(1)) {
            for left in (0..units_across).step_by(across.max(1)) {
                for row in top..(top + down).min(units_down) {
                    for column in left..(left + across).min(units_across) {
                        back[row * units_across + column] = (patches.len() / (merge * merge)) as i64;
                        let square = (0..merge).flat_map(|y| (0..merge).map(move |x| [y, x]));
                        patches.extend(square.map(|[y, x]| [row * merge + y, column * merge + x]));
                        windows.extend(std::iter::repeat_n(number, merge * merge));
                    }
                }
                number += 1;
            }
        }
        Self { patches, windows, back }
    }
}

impl<B: Backend> QwenVision<B> {
    pub(super) fn new(c: &QwenVisionConfig, generation: Generation, device: &B::Device) -> Self {
        let width = c.width(generation);
        let wide = width * c.spatial_merge_size * c.spatial_merge_size;
        let norm = || QwenNorm::new(width, generation, device);
        let block = |_| QwenBlock {
            norm1: norm(),
            norm2: norm(),
            attn: QwenAttention {
                qkv: Linear::new(width, 3 * width, true, device),
                proj: Linear::new(width, width, true, device),
            },
            mlp: QwenMlp::new(c, generation, device),
        };
        Self {
            patch_embed: QwenPatchEmbed {
                proj: PatchWeight { weight: normal([width, 3, FRAMES, c.patch_size, c.patch_size], device) },
            },
            blocks: (0..c.depth).map(block).collect(),
            merger: QwenMerger {
                ln_q: norm(),
                linear_1: Linear::new(wide, wide, true, device),
                linear_2: Linear::new(wide, c.output(generation), true, device),
            },
            config: c.clone(),
            generation,
        }
    }

    /// The image tokens of a picture `[1, 3, height, width]`, row by row: `[tokens, output width]`.
    ///
    /// # Errors
    /// Edges that are no multiples of `patch_size · spatial_merge_size`.
    pub fn forward(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 2>> {
        let (hidden, order) = self.run(pixels)?;
        let [_, patches, width] = hidden.dims();
        let square = self.config.spatial_merge_size.pow(2);
        let merged = self.merger.ln_q.forward(hidden).reshape([patches / square, square * width]);
        let merged = self.merger.linear_1.forward(merged);
        let merged = self.merger.linear_2.forward(Activation::Gelu.forward(merged));
        let back = TensorData::new(order.back, [patches / square]);
        let device = merged.device();
        Ok(merged.select(0, Tensor::<B, 1, Int>::from_data(back, &device)))
    }

    /// What the merger reads, `[patches, width]`, in the tower's order: squares of patches stay together, and squares of a
    /// window.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn hidden(&self, pixels: Tensor<B, 4>) -> Result<Tensor<B, 2>> {
        Ok(self.run(pixels)?.0.squeeze_dim(0))
    }

    fn run(&self, pixels: Tensor<B, 4>) -> Result<(Tensor<B, 3>, Order)> {
        let (c, generation) = (&self.config, self.generation);
        let [pictures, channels, height, width] = pixels.dims();
        let factor = c.factor();
        if pictures != 1 || channels != 3 || height == 0 || width == 0 || height % factor + width % factor > 0
        {
            let reason =
                format!("shape {:?}, expected [1, 3, height, width] of multiples of {factor}", pixels.dims());
            return Err(Error::input("pixels", reason));
        }
        let [rows, columns] = [height / c.patch_size, width / c.patch_size];
        let order = Order::new([rows, columns], c.spatial_merge_size, c.window(generation));
        let heads = c.num_heads;
        let dim = c.width(generation) / heads;
        let device = pixels.device();
        let mut x = wide(self.embed(pixels, &order, columns));

        let rotary = rotary(&order.patches, dim, c.theta());
        let count = order.patches.len();
        let context = |mask| Context::<B>::new(mask, Some(rotary.clone()), &device);
        let whole = context(BlockMask::full(1, count, &vec![true; count]));
        let within = context(BlockMask::within(1, count, &order.windows));
        let heads = Heads { heads, groups: heads, dim };
        for (index, block) in self.blocks.iter().enumerate() {
            let context = if c.is_full(generation, index) { &whole } else { &within };
            let qkv = linear(x.clone(), block.norm1.before(), &[block.attn.qkv.layer()], None);
            let mixed = attention(qkv, heads, context);
            x = linear(mixed, Before::Nothing, &[block.attn.proj.layer()], Some(x));
            x = block.mlp.add_to(x, block.norm2.before());
        }
        Ok((x, order))
    }

    /// Vectors of the patches in this order, `[1, patches, width]`. Both frames show the same.
    fn embed(&self, pixels: Tensor<B, 4>, order: &Order, columns: usize) -> Tensor<B, 3> {
        let patch = self.config.patch_size;
        let [_, channels, height, _] = pixels.dims();
        let [rows, values] = [height / patch, channels * patch * patch];
        let picked: Vec<i64> =
            order.patches.iter().map(|[row, column]| (row * columns + column) as i64).collect();
        let count = picked.len();
        let picked = Tensor::<B, 1, Int>::from_data(TensorData::new(picked, [count]), &pixels.device());
        let frame = pixels
            .reshape([channels, rows, patch, columns, patch])
            .permute([1, 3, 0, 2, 4])
            .reshape([rows * columns, values])
            .select(0, picked)
            .reshape([count, channels, 1, patch * patch]);
        let patches = aspo_kernels::cat(vec![frame; FRAMES], 2).reshape([1, count, values * FRAMES]);
        let weight = self.patch_embed.proj.weight.val();
        let out = weight.dims()[0];
        project(patches, weight.reshape([out, values * FRAMES]))
    }
}

/// Angles of the patches: one half of the pairs turns by the row, the other by the column.
fn rotary(patches: &[[usize; 2]], dim: usize, theta: f64) -> Rotary {
    let pairs = dim / 4;
    let turns: Vec<f32> = (0..pairs).map(|i| (1.0 / theta.powf(i as f64 / pairs as f64)) as f32).collect();
    let turns = &turns;
    let angles = patches
        .iter()
        .flat_map(|at| at.iter().flat_map(move |&place| turns.iter().map(move |turn| place as f32 * turn)));
    Rotary::from_angles(&angles.collect::<Vec<f32>>(), dim / 2)
}
