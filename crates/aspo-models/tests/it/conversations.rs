//! Conversations with pictures of many sizes, and one preference pair, against Hugging Face's results: what holds for every
//! vision-language model of the oracle's newer families.

use std::path::Path;

use aspo_models::lora::{load_adapter, without_adapters};
use aspo_models::{
    EachLinear, GenerateConfig, ImageFeatures, LanguageModel, ModelInput, Picture, Pretrained,
    VisionLanguageModel, generate, recompute_backward,
};
use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_sigmoid, log_softmax};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};
use serde_json::Value;

use crate::support::{Expected, relative, scale, values, worst};

/// Float32 against float64 is 4e-6 of the largest magnitude here, an activation taken for its approximation 1.3e-4.
pub const TOLERANCE: f64 = 2e-5;

/// `expected[name]` is met to [`TOLERANCE`] of its largest magnitude, where the mask is 1.
#[track_caller]
pub fn close<B: Backend, const D: usize>(
    found: Tensor<B, D>,
    expected: &Expected,
    name: &str,
    mask: Option<&[i64]>,
) {
    let error = relative(&values(found), &expected.floats(name).0, mask);
    assert!(error <= TOLERANCE, "{name} is off by {error:.1e}");
}

/// Names of the pictures that the oracle shows alone.
pub fn pictures(expected: &Expected) -> Vec<String> {
    let name = |tensor: &String| Some(tensor.strip_prefix("image.")?.strip_suffix(".tokens")?.to_owned());
    expected.names().iter().filter_map(name).collect()
}

fn ints<B: Backend>(values: &[i64]) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
}

/// The batch of conversations, each of them alone, and what the model says next. `picture` makes a picture by its name, as
/// the only one of its conversation or as one of several.
pub fn check_conversations<B: Backend, M: VisionLanguageModel<B>>(
    case: &Path,
    model: &M,
    picture: impl Fn(&str, bool) -> Picture<B>,
) {
    let expected = Expected::open(case.join("expected.safetensors"));
    let note: Value = serde_json::from_str(&expected.metadata("note")).unwrap();
    let conversations = note["conversations"].as_array().unwrap();
    let seen: Vec<Vec<Picture<B>>> = conversations
        .iter()
        .map(|conversation| {
            let names = conversation["images"].as_array().unwrap();
            names.iter().map(|name| picture(name.as_str().unwrap(), names.len() > 1)).collect()
        })
        .collect();
    let features: Vec<Vec<ImageFeatures<B>>> = seen
        .iter()
        .map(
            |pictures| {
                if pictures.is_empty() { Vec::new() } else { model.vision_features(pictures).unwrap() }
            },
        )
        .collect();

    let (ids, shape) = expected.ints("input_ids");
    let mask = expected.ints("attention_mask").0;
    let input = ModelInput::new(expected.int_tensor("input_ids"), expected.int_tensor("attention_mask"))
        .with_images(features.concat());
    if expected.has("position_ids") {
        let found = model.positions(&input).unwrap().axes;
        let want = expected.ints("position_ids").0;
        assert_eq!(found, want.chunks(ids.len()).map(<[i64]>::to_vec).collect::<Vec<_>>());
    }
    close(model.embed(&input).unwrap(), &expected, "inputs_embeds", Some(&mask));
    close(model.hidden(&input).unwrap(), &expected, "hidden_last", Some(&mask));
    let logits = values(model.logits(&input).unwrap());
    let (want, _) = expected.floats("logits");
    assert!(relative(&logits, &want, Some(&mask)) <= TOLERANCE);

    // Each alone: its logits are those of the batch, its answer is Hugging Face's.
    let settings: Value =
        serde_json::from_slice(&std::fs::read(case.join("generation_config.json")).unwrap()).unwrap();
    let ends = match &settings["eos_token_id"] {
        Value::Array(ends) => ends.clone(),
        end => vec![end.clone()],
    };
    let ends = ends.iter().map(|end| end.as_u64().unwrap() as u32).collect();
    let greedy = expected.ints("greedy").0;
    let config = GenerateConfig { max_new_tokens: 8, eos_token_id: Some(ends), ..Default::default() };
    let width = logits.len() / ids.len();
    for (row, features) in features.iter().enumerate() {
        let places = row * shape[1]..(row + 1) * shape[1];
        let real = mask[places.clone()].iter().filter(|&&real| real == 1).count();
        let ids = &ids[places.start..places.start + real];
        let alone = ModelInput::new(ints(ids), ints(&vec![1; real])).with_images(features.clone());
        let found = values(model.logits(&alone).unwrap());
        let batch = &want[places.start * width..(places.start + real) * width];
        assert!(relative(&found, batch, None) <= TOLERANCE, "conversation {row} alone");
        let said = generate(model, &alone, &config, |_, _| ()).unwrap().remove(0);
        let want: Vec<u32> =
            greedy[8 * row..8 * (row + 1)].iter().filter_map(|&token| token.try_into().ok()).collect();
        assert_eq!(said, want, "conversation {row}");
    }
}

/// One side of the pair.
struct Side {
    ids: Vec<i64>,
    /// Where the answer begins.
    start: usize,
}

impl Side {
    fn of(expected: &Expected, name: &str) -> Self {
        let ids = expected.ints(&format!("{name}_input_ids")).0;
        let mask = expected.ints(&format!("{name}_response_mask")).0;
        let start = mask.iter().position(|&answer| answer == 1).unwrap();
        assert!(mask[start..].iter().all(|&answer| answer == 1), "an answer at the end");
        Self { ids, start }
    }

    fn input<B: Backend>(&self, features: &[ImageFeatures<B>]) -> ModelInput<B> {
        ModelInput::new(ints(&self.ids), ints(&vec![1; self.ids.len()])).with_images(features.to_vec())
    }

    /// Log-probabilities of the answer, from hidden states `[tokens, width]` where token `at(t)` says what follows token `t`.
    fn log_probs<B: Backend>(
        &self,
        hidden: Tensor<B, 2>,
        head: Tensor<B, 2>,
        at: impl Fn(usize) -> usize,
    ) -> Tensor<B, 1> {
        let places: Vec<i64> = (self.start..self.ids.len()).map(|token| at(token - 1) as i64).collect();
        let count = places.len();
        let vector = |values: Vec<i64>| {
            Tensor::<B, 1, Int>::from_data(TensorData::new(values, [count]), &hidden.device())
        };
        let scores = log_softmax(hidden.clone().select(0, vector(places)).matmul(head.transpose()), 1);
        scores.gather(1, vector(self.ids[self.start..].to_vec()).unsqueeze_dim(1)).flatten(0, 1)
    }
}

struct Collect<'a> {
    grads: &'a GradientsParams,
    path: Vec<String>,
    out: Vec<(String, Vec<f64>)>,
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
            self.out.push((self.path.join("."), values(grad)));
        }
    }
}

/// One DPO pair with PEFT's adapter: log-probabilities of policy and reference, loss and gradients, in rows of their own,
/// packed into one, and with blocks computed again.
pub fn check_pair<B, M>(case: &Path, model: M, picture: Picture<B>)
where
    B: Backend,
    M: Pretrained<Autodiff<B>>
        + LanguageModel<Autodiff<B>>
        + AutodiffModule<Autodiff<B>>
        + EachLinear<Autodiff<B>>,
    M::InnerModule: VisionLanguageModel<B>,
{
    let expected = Expected::open(case.join("expected_train.safetensors"));
    let note: Value = serde_json::from_str(&expected.metadata("note")).unwrap();
    assert_eq!(note["loss_type"], "sigmoid");
    let beta = note["beta"].as_f64().unwrap();
    let sides = ["chosen", "rejected"].map(|name| Side::of(&expected, name));
    let (policy, _) = load_adapter(model.no_grad(), case.join("adapter")).unwrap();
    let plain = policy.valid();
    let features = plain.vision_features(&[picture]).unwrap();

    let reference = without_adapters(&plain);
    let logps = |model: &M::InnerModule, side: &Side| {
        let hidden = model.hidden(&side.input(&features)).unwrap().squeeze_dim(0);
        side.log_probs(hidden, model.head(), |token| token)
    };
    for (name, side) in ["chosen", "rejected"].iter().zip(&sides) {
        for (kind, model) in [("policy", &plain), ("reference", &reference)] {
            let what = format!("{kind}_{name}_logps");
            let (want, _) = expected.floats(&what);
            let error = worst(&values(logps(model, side)), &want) / scale(&want);
            assert!(error <= 1e-5, "{what} are off by {error:.1e}");
        }
    }

    let sums = [0, 1].map(|side: usize| logps(&reference, &sides[side]).sum());
    let loss_of = |chosen: Tensor<Autodiff<B>, 1>, rejected: Tensor<Autodiff<B>, 1>| {
        let [c, r] = sums.clone().map(Tensor::from_inner);
        -log_sigmoid(((chosen.sum() - c) - (rejected.sum() - r)).mul_scalar(beta))
    };
    let tracked: Vec<_> = features.into_iter().map(ImageFeatures::from_inner).collect();
    let check = |loss: f64, grads: &GradientsParams, way: &str| {
        let want = expected.floats("loss").0[0];
        assert!((loss - want).abs() <= 1e-5, "{way}: loss {loss}, expected {want}");
        let mut found = Collect { grads, path: Vec::new(), out: Vec::new() };
        policy.visit(&mut found);
        let names: Vec<String> =
            expected.names().into_iter().filter(|name| name.starts_with("grad.")).collect();
        assert_eq!(found.out.len(), names.len(), "{way}: a gradient for each factor");
        for name in names {
            let path = name.strip_prefix("grad.base_model.model.").unwrap();
            let path = path.replace("lora_A.weight", "lora.lora_a").replace("lora_B.weight", "lora.lora_b");
            let (_, own) = found.out.iter().find(|(found, _)| *found == path).expect(&path);
            let (want, _) = expected.floats(&name);
            let error = worst(own, &want) / scale(&want);
            assert!(error <= 1e-4, "{way}: {name} is off by {error:.1e}");
        }
    };

    // Rows of their own.
    let scores = |side: &Side| {
        let hidden = policy.hidden(&side.input(&tracked)).unwrap().squeeze_dim(0);
        side.log_probs(hidden, policy.head(), |token| token)
    };
    let loss = loss_of(scores(&sides[0]), scores(&sides[1]));
    let grads = GradientsParams::from_grads(loss.clone().backward(), &policy);
    check(values(loss)[0], &grads, "apart");

    // Prompt, chosen and rejected answer in one row.
    let [chosen, rejected] = &sides;
    let ids = [&chosen.ids, &rejected.ids[rejected.start..]].map(|ids| ids.to_vec()).concat();
    let answers = [chosen.ids.len() - chosen.start, rejected.ids.len() - rejected.start];
    let segments = [vec![0; chosen.start], vec![1; answers[0]], vec![2; answers[1]]].concat();
    let mut input = ModelInput::new(ints(&ids), ints(&vec![1; ids.len()])).with_images(tracked.clone());
    input.segment_ids = Some(ints(&segments).into());
    // What follows the prompt is said by its last token in both rows.
    let at = |token: usize| if token < rejected.start { token } else { token + answers[0] };
    let packed = |hidden: Tensor<Autodiff<B>, 3>| {
        let hidden: Tensor<Autodiff<B>, 2> = hidden.squeeze_dim(0);
        let chosen = chosen.log_probs(hidden.clone(), policy.head(), |token| token);
        loss_of(chosen, rejected.log_probs(hidden, policy.head(), at))
    };
    let loss = packed(policy.hidden(&input).unwrap());
    let grads = GradientsParams::from_grads(loss.clone().backward(), &policy);
    check(values(loss)[0], &grads, "packed");

    let done = recompute_backward(&policy, &input, |hidden| Ok((packed(hidden), ()))).unwrap();
    check(values(done.loss)[0], &done.grads, "recomputed");
}
