//! Recomputation of blocks: the same loss and gradients as the plain pass, in less memory.

use std::collections::BTreeMap;

use aspo_models::lora::{LoraConfig, Names, attach};
use aspo_models::{
    ImageFeatures, LanguageModel, Llama, LlamaConfig, Llava, LoadOptions, ModelConfig, ModelInput,
    PictureShape, Pretrained, VisionLanguageModel, recompute_backward, recompute_backward_at,
};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use crate::memory::peak;
use crate::support::{fixtures, on_backends, scale, values, worst};

on_backends!(every_gradient_of_llava_is_the_same, packed_rows_with_grouped_queries_are_the_same);

struct Collect<'a> {
    grads: &'a GradientsParams,
    path: Vec<String>,
    out: BTreeMap<String, Vec<f64>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Collect<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            self.out.insert(self.path.join("."), values(grad));
        }
    }
}

fn by_path<B: AutodiffBackend, M: Module<B>>(
    model: &M,
    grads: &GradientsParams,
) -> BTreeMap<String, Vec<f64>> {
    let mut collect = Collect { grads, path: Vec::new(), out: BTreeMap::new() };
    model.visit(&mut collect);
    collect.out
}

/// A loss that depends on every place in its own way, through the head.
fn loss<B: AutodiffBackend, M: LanguageModel<B>>(model: &M, hidden: Tensor<B, 3>) -> Tensor<B, 1> {
    let [batch, tokens, width] = hidden.dims();
    let logits = hidden.reshape([batch * tokens, width]).matmul(model.head().transpose());
    let places = Tensor::<B, 1, Int>::arange(0..(batch * tokens) as i64, &logits.device())
        .float()
        .reshape([batch * tokens, 1]);
    (logits * (places + 1.0).sin()).sin().sum()
}

fn compare<B, M>(model: &M, input: &ModelInput<B>) -> BTreeMap<String, Vec<f64>>
where
    B: AutodiffBackend,
    M: LanguageModel<B> + AutodiffModule<B>,
    M::InnerModule: LanguageModel<B::InnerBackend>,
{
    let plain = loss(model, model.hidden(input).unwrap());
    let value = values(plain.clone())[0];
    let want = by_path(model, &GradientsParams::from_grads(plain.backward(), model));
    let out = recompute_backward(model, input, |hidden| Ok((loss(model, hidden), "extra"))).unwrap();
    assert_eq!(out.extra, "extra");
    assert!((values(out.loss)[0] - value).abs() <= 1e-5 * value.abs().max(1.0));
    same(&by_path(model, &out.grads), &want);
    // At some places, out of order and one of them twice.
    let places = &[6, 1, 4, 4];
    let rows = |hidden: Tensor<B, 2>| loss(model, hidden.unsqueeze_dim(0));
    let grads = rows(model.hidden_at(input, places).unwrap()).backward();
    let some = by_path(model, &GradientsParams::from_grads(grads, model));
    let out = recompute_backward_at(model, input, places, |hidden| Ok((rows(hidden), ()))).unwrap();
    same(&by_path(model, &out.grads), &some);
    let refused = recompute_backward_at(model, input, &[99], |hidden| Ok((rows(hidden), ()))).err().unwrap();
    assert!(refused.to_string().contains("99"), "{refused}");
    want
}

fn same(found: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>) {
    assert!(!want.is_empty(), "gradients to compare");
    assert_eq!(found.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (path, want) in want {
        let scale = scale(want).max(1e-3);
        let worst = worst(&found[path], want);
        // The same products summed in another order, in f32.
        assert!(worst <= 2e-5 * scale, "{path}: {:.1e} of {scale:.1e}", worst);
    }
}

fn every_gradient_of_llava_is_the_same<B: Backend>() {
    let device = Default::default();
    let case = fixtures("models/llava");
    let (model, _) = Llava::<Autodiff<B>>::from_pretrained(&case, &LoadOptions::default(), &device).unwrap();
    let rows =
        [[vec![1u32], vec![128; 4], vec![7, 9, 30]].concat(), [vec![1], vec![128; 4], vec![77]].concat()];
    let shape = PictureShape::whole([model.image_size(); 2]);
    let features = Tensor::<Autodiff<B>, 1, Int>::arange(0..2 * 4 * 32, &device).float().sin();
    let features = features.reshape([2, 4, 32]).iter_dim(0);
    let features = features.map(|values| ImageFeatures { values: values.squeeze_dim(0), shape });
    let input = ModelInput::from_rows(&rows, 0, &device).with_images(features.collect());
    let grads = compare(&model, &input);
    for path in [
        "lm_head.weight",
        "model.language_model.embed_tokens.weight",
        "model.multi_modal_projector.linear_1.weight",
    ] {
        assert!(grads.contains_key(path), "{path} is trained");
    }
    assert!(!grads.keys().any(|path| path.contains("vision_tower")), "the tower is not in this graph");
    // Adapters alone: the rest is frozen, the embeddings carry no gradient.
    let config = LoraConfig::new(4, 8.0, Names::Pattern(r".*language_model.*\.(q|v|down)_proj".into()));
    let adapted = attach(model, &config, 3).unwrap();
    let grads = compare(&adapted, &input);
    assert_eq!(grads.len(), 3 * 3 * 2);
    let dropping = LoraConfig { lora_dropout: 0.1, ..config };
    let dropping = attach(adapted, &dropping, 3).unwrap();
    let refused =
        recompute_backward(&dropping, &input, |hidden| Ok((loss(&dropping, hidden), ()))).err().unwrap();
    assert!(refused.to_string().contains("lora_dropout"));
}

fn packed_rows_with_grouped_queries_are_the_same<B: Backend>() {
    let device = Default::default();
    let case = fixtures("models/llama_gqa_tied");
    let (model, _) = Llama::<Autodiff<B>>::from_pretrained(&case, &LoadOptions::default(), &device).unwrap();
    let int = |v: Vec<i64>| {
        Tensor::<Autodiff<B>, 2, Int>::from_data(TensorData::new(v.clone(), [1, v.len()]), &device)
    };
    let input = ModelInput {
        segment_ids: Some(int(vec![0, 0, 0, 1, 1, 2, 2, 2]).into()),
        ..ModelInput::new(int(vec![1, 8, 77, 30, 31, 5, 6, 7]), int(vec![1; 8]))
    };
    compare(&model, &input);
}

#[test]
fn recomputation_holds_a_fraction_of_the_memory() {
    type B = Autodiff<burn_flex::Flex>;
    let config = LlamaConfig::from_json(serde_json::json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 12, "num_attention_heads": 4,
    }))
    .unwrap();
    let model = config.init_seeded::<B>(0, &Default::default());
    let model = attach(model, &LoraConfig::new(4, 8.0, Names::Pattern("all-linear".into())), 0).unwrap();
    let input = ModelInput::from_rows(&[vec![5; 256], vec![7; 256]], 0, &Default::default());
    let plain =
        || GradientsParams::from_grads(loss(&model, model.hidden(&input).unwrap()).backward(), &model);
    let recomputed =
        || recompute_backward(&model, &input, |hidden| Ok((loss(&model, hidden), ()))).unwrap().grads;
    // Once before, so that lazily made parameters and pools do not count.
    drop((plain(), recomputed()));
    let (plain, recomputed) = (peak(plain).1, peak(recomputed).1);
    println!("{plain} bytes plain, {recomputed} bytes recomputed");
    // One block of twelve, its input and those of the others: a quarter leaves room.
    assert!(recomputed * 4 < plain, "{recomputed} of {plain}");
}
