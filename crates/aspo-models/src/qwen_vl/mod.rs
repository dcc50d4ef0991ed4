//! Qwen2-VL and Qwen2.5-VL: pictures of any size, positions of three axes, Qwen2 (Wang et al. 2024, arXiv 2409.12191; Bai et
//! al. 2025, arXiv 2502.13923).

mod config;
mod position;
mod vision;

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};

use crate::checkpoint::{Prefix, Pretrained};
use crate::error::{Error, Result};
use crate::input::ModelInput;
use crate::llama::{LlamaModel, llama_init};
use crate::model::{LanguageModel, VisionLanguageModel, embed_with_images};
use crate::nn::{Init, Linear, each_linear, initialize};
use crate::picture::{ImageFeatures, Picture, PictureShape};
use crate::positions::Positions;

pub use config::{Generation, QwenVisionConfig, QwenVlConfig};
pub use vision::QwenVision;

/// The model, as Hugging Face's `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`.
#[derive(Module, Debug)]
pub struct QwenVl<B: Backend> {
    /// Tower and decoder.
    pub model: QwenVlModel<B>,
    /// `[vocabulary, hidden]`; `None` where the head is the token table.
    pub lm_head: Option<Linear<B>>,
    #[module(skip)]
    pub(crate) config: QwenVlConfig,
}
each_linear!(QwenVl: model, lm_head);

/// Tower and decoder.
#[derive(Module, Debug)]
pub struct QwenVlModel<B: Backend> {
    /// The image tower with its merger.
    pub visual: QwenVision<B>,
    /// The decoder.
    pub language_model: LlamaModel<B>,
}
each_linear!(QwenVlModel: visual, language_model);

impl<B: Backend> QwenVl<B> {
    /// The config this model was made from.
    pub fn config(&self) -> &QwenVlConfig {
        &self.config
    }
}

impl QwenVlConfig {
    /// A model whose parameters are allocated on first use; load a checkpoint into it.
    pub fn init<B: Backend>(&self, device: &B::Device) -> QwenVl<B> {
        QwenVl {
            model: QwenVlModel {
                visual: QwenVision::new(&self.vision_config, self.generation(), device),
                language_model: LlamaModel::new(&self.text_config, device),
            },
            lm_head: self.text_config.head(device),
            config: self.clone(),
        }
    }

    /// A model to train from nothing, the same on every backend.
    pub fn init_seeded<B: Backend>(&self, seed: u64, device: &B::Device) -> QwenVl<B> {
        initialize(self.init(device), seed, |path, _| {
            // Norms of the tower's merger are called `ln_q`.
            if path.ends_with("ln_q.weight") {
                Init::Constant(1.0)
            } else {
                llama_init(path, self.text_config.initializer_range)
            }
        })
    }
}

impl<B: Backend> Pretrained<B> for QwenVl<B> {
    type Config = QwenVlConfig;
    const PREFIXES: &'static [Prefix] = &[
        Prefix { module: "model.language_model.", files: &["model.", "model.language_model."] },
        Prefix { module: "model.visual.", files: &["visual.", "model.visual."] },
        Prefix {
            module: "model.visual.merger.linear_1.",
            files: &["visual.merger.mlp.0.", "model.visual.merger.mlp.0."],
        },
        Prefix {
            module: "model.visual.merger.linear_2.",
            files: &["visual.merger.mlp.2.", "model.visual.merger.mlp.2."],
        },
    ];

    fn from_config(config: &QwenVlConfig, device: &B::Device) -> Self {
        config.init(device)
    }

    fn model_config(&self) -> &QwenVlConfig {
        self.config()
    }
}

impl<B: Backend> LanguageModel<B> for QwenVl<B> {
    type Decoder = LlamaModel<B>;

    fn decoder(&self) -> &LlamaModel<B> {
        &self.model.language_model
    }

    fn head(&self) -> Tensor<B, 2> {
        self.model.language_model.head(self.lm_head.as_ref())
    }

    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let hidden = self.config.text_config.hidden_size;
        let values = ImageFeatures::ragged(&input.image_features, |shape| self.tokens(shape), hidden)?;
        embed_with_images(self.decoder(), input, self.image_token(), values)
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.config.text_config.eos()
    }

    /// Time, height and width (M-RoPE).
    fn positions(&self, input: &ModelInput<B>) -> Result<Positions> {
        let segments = input.segments()?;
        let [batch, tokens] = input.input_ids.dims();
        let mut pictures =
            input.image_features.iter().map(|picture| self.config.image_grid(picture.shape.tile));
        let mut axes = vec![Vec::new(); 3];
        let ids = input.input_ids.values();
        for (row, (ids, segments)) in ids.chunks(tokens).zip(segments.chunks(tokens)).enumerate() {
            let Some(row) = position::positions(ids, segments, self.image_token(), &mut pictures) else {
                let reason = format!("the runs of image tokens of row {row} are not those of its pictures");
                return Err(Error::input("image_features", reason));
            };
            for (axis, values) in axes.iter_mut().enumerate() {
                values.extend(row.iter().map(|position| position[axis]));
            }
        }
        Ok(Positions { batch, tokens, past: 0, axes, segments })
    }
}

impl<B: Backend> VisionLanguageModel<B> for QwenVl<B> {
    fn image_token(&self) -> u32 {
        self.config.image_token_id
    }

    fn tokens(&self, shape: &PictureShape) -> usize {
        let [rows, columns] = self.config.image_grid(shape.tile);
        rows * columns
    }

    /// The edge of the square that becomes one image token: edges of pictures are its multiples.
    fn image_size(&self) -> usize {
        self.config.image_size()
    }

    fn frozen(&self) -> &'static [&'static str] {
        &["model.visual"]
    }

    /// The image tokens themselves: the merger is the tower's last part.
    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        let see = |Picture { pixels, shape }: &Picture<B>| {
            if shape.grid != [0, 0] || pixels.dims()[2..] != shape.tile {
                let found = pixels.dims();
                let reason = format!("shape {found:?} for {shape:?}; this model sees a picture in one piece");
                return Err(Error::input("pixels", reason));
            }
            Ok(ImageFeatures { values: self.model.visual.forward(pixels.clone())?, shape: *shape })
        };
        pictures.iter().map(see).collect()
    }
}
