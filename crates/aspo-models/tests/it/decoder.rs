//! A decoder that is not LLaMA's, with nothing but what the trait demands: learned positions on two axes.

use aspo_models::nn::{Embedding, Init, KvCache, initialize};
use aspo_models::{
    Decoder, DecoderShape, GenerateConfig, LanguageModel, Llama, LlamaConfig, ModelConfig, ModelInput,
    Positions, Result, each_linear, generate, recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::support::{on_backends, scale, values, worst};

on_backends!(
    learned_positions_are_trained_under_recomputation,
    generation_goes_on_beyond_the_largest_position,
    states_at_places_are_those_of_the_whole,
);

/// Blocks of LLaMA, a table of positions before them.
#[derive(Module, Debug)]
struct Learned<B: Backend> {
    llama: Llama<B>,
    table: Embedding<B>,
}
each_linear!(Learned: llama);

impl<B: Backend> Decoder<B> for Learned<B> {
    type Context = (<aspo_models::llama::LlamaModel<B> as Decoder<B>>::Context, [Tensor<B, 2, Int>; 2]);

    fn shape(&self) -> DecoderShape {
        self.llama.model.shape()
    }
    fn context(&self, at: &Positions, device: &B::Device) -> Result<Self::Context> {
        assert_eq!(at.axes.len(), 2, "both axes arrive");
        let ids = |axis: usize| {
            Tensor::from_data(TensorData::new(at.axes[axis].clone(), [at.batch, at.tokens]), device)
        };
        Ok((self.llama.model.context(at, device)?, [ids(0), ids(1)]))
    }
    fn embed_tokens(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        Decoder::embed_tokens(&self.llama.model, ids)
    }
    fn start(&self, x: Tensor<B, 3>, (_, [one, two]): &Self::Context) -> Tensor<B, 3> {
        x + self.table.forward(one.clone()) + self.table.forward(two.clone()).mul_scalar(0.5)
    }
    fn block(
        &self,
        index: usize,
        x: Tensor<B, 3>,
        (context, _): &Self::Context,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 3> {
        self.llama.model.block(index, x, context, cache)
    }
    fn finish(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.llama.model.finish(x)
    }
}

impl<B: Backend> LanguageModel<B> for Learned<B> {
    type Decoder = Self;

    fn decoder(&self) -> &Self {
        self
    }
    fn head(&self) -> Tensor<B, 2> {
        self.llama.head()
    }
    fn embed(&self, input: &ModelInput<B>) -> Result<Tensor<B, 3>> {
        self.llama.embed(input)
    }
    /// The first three tokens stand at (0, 0), (1, 4), (2, 8), as if they were a picture; what follows counts from 9.
    fn positions(&self, input: &ModelInput<B>) -> Result<Positions> {
        let mut positions = Positions::of(input)?;
        let count = positions.axes[0].clone();
        let axis = |of: fn(i64) -> i64| count.iter().map(|&i| if i < 3 { of(i) } else { 6 + i }).collect();
        positions.axes = vec![axis(|i| i), axis(|i| 4 * i)];
        Ok(positions)
    }
}

fn model<B: Backend>() -> Learned<B> {
    let config = LlamaConfig::from_json(serde_json::json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": true,
    }))
    .unwrap();
    let device = Default::default();
    let model = Learned { llama: config.init(&device), table: Embedding::new(24, 16, &device) };
    // Positions weigh as much as tokens, so that a wrong one is another answer.
    initialize(
        model,
        5,
        |path, _| if path.contains("norm") { Init::Constant(1.0) } else { Init::Normal(0.4) },
    )
}

fn input<B: Backend>(rows: &[Vec<u32>]) -> ModelInput<B> {
    ModelInput::from_rows(rows, 0, &Default::default())
}

fn learned_positions_are_trained_under_recomputation<B: Backend>() {
    let model = model::<Autodiff<B>>();
    let input = input(&[vec![1, 7, 9, 30, 12], vec![3, 4, 5]]);
    let loss =
        |hidden: Tensor<Autodiff<B>, 3>| hidden.matmul(model.head().transpose().unsqueeze()).sin().sum();
    let plain = GradientsParams::from_grads(loss(model.hidden(&input).unwrap()).backward(), &model);
    let recomputed = recompute_backward(&model, &input, |hidden| Ok((loss(hidden), ()))).unwrap().grads;
    assert_eq!(plain.len(), recomputed.len());
    for id in [model.table.weight.id, model.llama.model.embed_tokens.weight.id] {
        let of = |grads: &GradientsParams| values(grads.get::<B, 2>(id).expect("a gradient"));
        let (found, want) = (of(&recomputed), of(&plain));
        // The same products summed in another order, in f32.
        assert!(worst(&found, &want) <= 2e-5 * scale(&want).max(1e-3));
    }
}

fn generation_goes_on_beyond_the_largest_position<B: Backend>() {
    let model = model::<B>();
    let prompts = [vec![1, 7, 9, 30], vec![3, 4, 5]];
    let config = GenerateConfig { max_new_tokens: 6, ..GenerateConfig::default() };
    let found = generate(&model, &input(&prompts), &config, |_, _| ()).unwrap();
    for (prompt, found) in prompts.iter().zip(&found) {
        let row = [prompt.as_slice(), found].concat();
        let scores = values(model.logits(&input(std::slice::from_ref(&row))).unwrap());
        for (new, token) in found.iter().enumerate() {
            let scores = &scores[(prompt.len() + new - 1) * 40..][..40];
            let best = (0..40).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap();
            assert_eq!(best as u32, *token, "token {new} after {prompt:?}");
        }
    }
}

fn states_at_places_are_those_of_the_whole<B: Backend>() {
    let model = model::<B>();
    let input = input(&[vec![1, 7, 9, 30, 12], vec![3, 4, 5]]);
    let places = [7_i32, 2, 0];
    let whole = model
        .hidden(&input)
        .unwrap()
        .reshape([10, 16])
        .select(0, Tensor::from_data(places, &Default::default()));
    let found = model.hidden_at(&input, &places).unwrap();
    // The norm of fewer rows: the same values but for the order of sums.
    assert!(worst(&values(found), &values(whole)) < 1e-5);
    assert!(model.hidden_at(&input, &[10]).unwrap_err().to_string().contains("10, but the batch has 2 rows"));
}
