//! Every case of the oracle's models: states, logits and greedy continuations.

use std::path::Path;

use aspo_models::{
    Clip, GenerateConfig, ImageFeatures, InstructBlip, Instruction, LanguageModel, Llama, Llava, LoadOptions,
    ModelInput, Picture, Pretrained, VisionLanguageModel, generate,
};
use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor};

use crate::support::{Expected, assert_close, cases, on_backends, values};

on_backends!(oracle_llama, oracle_clip, oracle_llava, oracle_instructblip);

fn open<B: Backend, M: Pretrained<B>>(case: &Path) -> (M, Expected) {
    let (model, report) = M::from_pretrained(case, &LoadOptions::default(), &Default::default()).unwrap();
    assert!(report.loaded > 0);
    (model, Expected::open(case.join("expected.safetensors")))
}

fn check_greedy<B: Backend, M: LanguageModel<B>>(
    case: &Path,
    model: &M,
    expected: &Expected,
    images: Vec<ImageFeatures<B>>,
) {
    let prompt: Tensor<B, 2, Int> = expected.int_tensor("greedy_prompt");
    let (want, shape) = expected.ints("greedy");
    let [rows, tokens] = prompt.dims();
    // Cases hold the prompt with its continuation.
    let new = shape[1] - tokens;
    let mut input = ModelInput::new(prompt.clone(), prompt.ones_like());
    input.image_features = images;
    let config = GenerateConfig { max_new_tokens: new, ..Default::default() };
    let found = generate(model, &input, &config, |_, _| ()).unwrap();
    for row in 0..rows {
        let want: Vec<u32> =
            want[row * shape[1] + tokens..(row + 1) * shape[1]].iter().map(|&t| t as u32).collect();
        assert_eq!(found[row], want[..found[row].len()], "{}: greedy row {row}", case.display());
        let eos = model.end_tokens();
        assert!(
            found[row].len() == new || eos.contains(found[row].last().unwrap()),
            "{} stopped early",
            case.display()
        );
    }
}

/// Cases without greedy continuations: the first token of each row is the likeliest by the expected logits, and the next
/// ones are the likeliest by the logits of the whole row so far, which the case has shown to be right.
fn check_first_tokens<B: Backend, M: LanguageModel<B>>(
    case: &Path,
    model: &M,
    input: &ModelInput<B>,
    expected: &Expected,
    mask: &[i64],
) {
    let config = GenerateConfig { max_new_tokens: 4, eos_token_id: Some(vec![]), ..Default::default() };
    let found = generate(model, input, &config, |_, _| ()).unwrap();
    let (ids, [_, wide]) = (expected.ints("input_ids").0, input.input_ids.dims());
    let rows: Vec<Vec<i64>> = ids
        .chunks(wide)
        .zip(mask.chunks(wide))
        .map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, real)| **real == 1).map(|(id, _)| *id).collect())
        .collect();
    let (logits, shape) = expected.floats("logits");
    let likeliest =
        |scores: &[f64]| (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as u32;
    for (row, tokens) in found.iter().enumerate() {
        let last = (row * wide + (0..wide).rposition(|t| mask[row * wide + t] == 1).unwrap()) * shape[2];
        assert_eq!(tokens[0], likeliest(&logits[last..last + shape[2]]), "{}: row {row}", case.display());
        assert_eq!(tokens.len(), 4);
    }
    for new in 1..4 {
        // Padded on the left, so that all rows end together.
        let longest = rows.iter().map(Vec::len).max().unwrap() + new;
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for (row, tokens) in rows.iter().zip(&found) {
            let row: Vec<i64> =
                row.iter().copied().chain(tokens[..new].iter().map(|&t| i64::from(t))).collect();
            ids.extend(vec![0; longest - row.len()]);
            mask.extend(vec![0; longest - row.len()]);
            mask.extend(vec![1; row.len()]);
            ids.extend(row);
        }
        let grid = |v: Vec<i64>| {
            Tensor::<B, 2, Int>::from_data(
                burn::tensor::TensorData::new(v, [rows.len(), longest]),
                &Default::default(),
            )
        };
        let whole =
            ModelInput { input_ids: grid(ids).into(), attention_mask: grid(mask).into(), ..input.clone() };
        let scores = model.logits(&whole).unwrap().slice([0..rows.len(), longest - 1..longest]);
        let scores = values(scores);
        for (tokens, scores) in found.iter().zip(scores.chunks(shape[2])) {
            assert_eq!(tokens[new], likeliest(scores), "{}: token {new}", case.display());
        }
    }
}

fn oracle_llama<B: Backend>() {
    for case in cases("llama") {
        let (model, expected) = open::<B, Llama<B>>(&case);
        let mask = expected.ints("attention_mask").0;
        let input = ModelInput::new(expected.int_tensor("input_ids"), expected.int_tensor("attention_mask"));
        assert_close(&case, model.hidden(&input).unwrap(), &expected, "hidden_last", Some(&mask));
        assert_close(&case, model.logits(&input).unwrap(), &expected, "logits", Some(&mask));
        check_greedy(&case, &model, &expected, Vec::new());
    }
}

fn oracle_clip<B: Backend>() {
    for case in cases("clip") {
        let (model, expected) = open::<B, Clip<B>>(&case);
        let pixels: Tensor<B, 4> = expected.float_tensor("pixel_values");
        let image = model.image_embeds(pixels.clone()).unwrap();
        let text = model
            .text_embeds(expected.int_tensor("input_ids"), expected.int_tensor("attention_mask"))
            .unwrap();
        // Cases store the embeddings as the model's output has them: of unit length.
        let unit = |x: Tensor<B, 2>| x.clone() / x.square().sum_dim(1).sqrt();
        let scale = |name: &str, x: Tensor<B, 2>| {
            let (want, shape) = expected.floats(name);
            let norm: f64 = want[..shape[1]].iter().map(|v| v * v).sum::<f64>().sqrt();
            if (norm - 1.0).abs() < 1e-4 { unit(x) } else { x }
        };
        assert_close(&case, scale("image_embeds", image.clone()), &expected, "image_embeds", None);
        assert_close(&case, scale("text_embeds", text.clone()), &expected, "text_embeds", None);
        assert_close(&case, model.logits_per_image(image, text), &expected, "logits_per_image", None);
        assert_close(
            &case,
            model.vision_model.forward(pixels.clone()).pooled,
            &expected,
            "vision_pooled",
            None,
        );
        let state = model.vision_model.hidden_state(pixels.clone(), -2).unwrap();
        assert_close(&case, state, &expected, "vision_hidden_minus2", None);
        let all = model.vision_model.hidden_states(pixels);
        assert_close(&case, all[all.len() - 2].clone(), &expected, "vision_hidden_minus2", None);
    }
}

fn oracle_llava<B: Backend>() {
    for case in cases("llava") {
        let (model, expected) = open::<B, Llava<B>>(&case);
        let mask = expected.ints("attention_mask").0;
        let pictures = Picture::each(expected.float_tensor("pixel_values"));
        let images = model.vision_features(&pictures).unwrap();
        let input = ModelInput::new(expected.int_tensor("input_ids"), expected.int_tensor("attention_mask"))
            .with_images(images.clone());
        let logits = model.logits(&input).unwrap();
        assert_close(&case, logits.clone(), &expected, "logits", Some(&mask));
        if expected.has("next_token_logps") {
            let logps = values(burn::tensor::activation::log_softmax(logits, 2));
            let (want, shape) = expected.floats("next_token_logps");
            let (ids, ids_shape) = expected.ints("input_ids");
            let vocabulary = logps.len() / ids.len();
            for row in 0..shape[0] {
                for t in (0..shape[1]).filter(|t| mask[row * ids_shape[1] + t + 1] == 1) {
                    let at = row * ids_shape[1] + t;
                    let found = logps[at * vocabulary + ids[at + 1] as usize];
                    let want = want[row * shape[1] + t];
                    assert!(
                        (found - want).abs() < 1e-4,
                        "{}: row {row} token {t}: {found} {want}",
                        case.display()
                    );
                }
            }
        }
        let first = expected.ints("greedy_prompt").0;
        let pictures = first.iter().filter(|&&id| id == i64::from(model.image_token())).count()
            / model.tokens(&images[0].shape);
        check_greedy(&case, &model, &expected, images[..pictures].to_vec());
    }
}

fn oracle_instructblip<B: Backend>() {
    for case in cases("instructblip") {
        let (model, expected) = open::<B, InstructBlip<B>>(&case);
        let mask = expected.ints("attention_mask").0;
        let pictures = Picture::each(expected.float_tensor("pixel_values"));
        let features = model.vision_features(&pictures).unwrap();
        let seen = Tensor::stack::<3>(features.iter().map(|seen| seen.values.clone()).collect(), 0);
        assert_close(&case, seen, &expected, "vision_output", None);
        let input = ModelInput::new(expected.int_tensor("input_ids"), expected.int_tensor("attention_mask"))
            .with_images(features)
            .with_instruction(Instruction {
                ids: expected.int_tensor("qformer_input_ids").into(),
                attention_mask: expected.int_tensor("qformer_attention_mask").into(),
            });
        assert_close(&case, model.query(&input).unwrap().unwrap(), &expected, "qformer_output", None);
        let logits = model.logits(&input).unwrap();
        assert_close(&case, logits.clone(), &expected, "logits", Some(&mask));
        check_first_tokens(&case, &model, &input, &expected, &mask);
    }
}
