//! A vision-language model that no crate of this project holds, trained with ASPO (`cargo run --example own_model`): learned
//! positions, a GELU MLP, biases, a tower of one patch embedding. The book's page "A model of your own" walks through it.

use aspo_cli::Failure;
use aspo_examples::own::train_and_ask;
use aspo_models::prelude::*;
use burn::backend::Autodiff;
use burn::prelude::*;
use burn_flex::Flex;
use serde::{Deserialize, Serialize};

const HEADS: Heads = Heads { heads: 4, groups: 4, dim: 16 };
const WIDTH: usize = 64;
const IDS: usize = 552; // of the scenes world's tokenizer
const POSITIONS: usize = 512;
const SIZE: usize = 72; // pixels of a picture's edge: nine patches of 24 see it

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OwnConfig {
    model_type: String,
}

impl ModelConfig for OwnConfig {
    const MODEL_TYPE: &'static str = "own";
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norms: [LayerNorm<B>; 2],
    qkv: Linear<B>,
    out: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}
each_linear!(Block: qkv, out, up, down);

#[derive(Module, Debug)]
struct OwnDecoder<B: Backend> {
    tokens: Embedding<B>,
    positions: Embedding<B>,
    blocks: Vec<Block<B>>,
    norm: LayerNorm<B>,
}
each_linear!(OwnDecoder: tokens, blocks);

impl<B: Backend> Decoder<B> for OwnDecoder<B> {
    type Context = (CausalContext<B>, Tensor<B, 2, Int>);
    fn shape(&self) -> DecoderShape {
        DecoderShape {
            vocab_size: IDS,
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: self.blocks.len(),
            heads: HEADS,
            gated: false,
        }
    }
    fn context(&self, at: &Positions, device: &B::Device) -> Result<Self::Context> {
        Ok((CausalContext::new(at, None, device), at.lookup(POSITIONS, device)?))
    }
    fn embed_tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.tokens.forward(ids)
    }
    fn start(&self, x: Tensor<B, 3>, (_, places): &Self::Context) -> Tensor<B, 3> {
        x + self.positions.forward(places.clone())
    }
    fn block(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        (seen, _): &Self::Context,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        let Block { norms: [before, after], qkv, out, up, down } = &self.blocks[index];
        let qkv = linear(x.clone(), before.before(), &[qkv.layer()], None);
        let x = linear(seen.attention(qkv, HEADS, cache), Before::Nothing, &[out.layer()], Some(x));
        let wide = linear(x.clone(), after.before(), &[up.layer()], None);
        linear(wide, Before::Activation(Activation::Gelu.into()), &[down.layer()], Some(x))
    }
    fn finish(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.norm.forward(x)
    }
}

#[derive(Module, Debug)]
struct OwnModel<B: Backend> {
    patches: PatchEmbedding<B>,
    projector: Linear<B>,
    decoder: OwnDecoder<B>,
    #[module(skip)]
    config: OwnConfig,
}
each_linear!(OwnModel: projector, decoder);

impl<B: Backend> Pretrained<B> for OwnModel<B> {
    type Config = OwnConfig;
    fn from_config(config: &OwnConfig, device: &B::Device) -> Self {
        let linear = |from, to| Linear::new(from, to, true, device);
        let norm = || LayerNorm::new(WIDTH, 1e-5, device);
        let block = |_| Block {
            norms: [norm(), norm()],
            qkv: linear(WIDTH, HEADS.width()),
            out: linear(WIDTH, WIDTH),
            up: linear(WIDTH, 4 * WIDTH),
            down: linear(4 * WIDTH, WIDTH),
        };
        let [tokens, positions] = [IDS, POSITIONS].map(|rows| Embedding::new(rows, WIDTH, device));
        let decoder = OwnDecoder { tokens, positions, blocks: (0..2).map(block).collect(), norm: norm() };
        let patches = PatchEmbedding::new(3, WIDTH, SIZE / 3, true, device);
        Self { patches, projector: linear(WIDTH, WIDTH), decoder, config: config.clone() }
    }
    fn model_config(&self) -> &OwnConfig {
        &self.config
    }
}

impl<B: Backend> LanguageModel<B> for OwnModel<B> {
    type Decoder = OwnDecoder<B>;
    fn decoder(&self) -> &OwnDecoder<B> {
        &self.decoder
    }
    fn head(&self) -> Tensor<B, 2> {
        self.decoder.tokens.weight.val() // tied
    }
    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        let seen = ImageFeatures::stacked(&input.image_features, 9, WIDTH)?;
        embed_with_images(&self.decoder, input, self.image_token(), seen.map(|x| self.projector.forward(x)))
    }
}

impl<B: Backend> VisionLanguageModel<B> for OwnModel<B> {
    fn image_token(&self) -> u32 {
        543
    }
    fn tokens(&self, _: &PictureShape) -> usize {
        9
    }
    fn image_size(&self) -> usize {
        SIZE
    }
    fn frozen(&self) -> &'static [&'static str] {
        &["patches"]
    }
    fn vision_features(&self, pictures: &[Picture<B>]) -> Result<Vec<ImageFeatures<B>>> {
        Ok(ImageFeatures::each(self.patches.forward(Picture::squares(pictures, SIZE)?), pictures))
    }
}

fn main() -> std::result::Result<(), Failure> {
    train_and_ask::<Flex, OwnModel<Autodiff<Flex>>>(&OwnConfig { model_type: "own".into() })
}
