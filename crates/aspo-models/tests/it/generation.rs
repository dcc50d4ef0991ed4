//! Generation: the cache changes nothing, neighbours change nothing, limits and seeds are kept.

use aspo_models::{
    Error, GenerateConfig, LanguageModel, Llama, LoadOptions, ModelInput, Pretrained, generate,
};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_flex::Flex;

use crate::support::{fixtures, on_backends, scale, values, worst};

on_backends!(
    cached_and_uncached_generation_agree,
    rows_of_a_batch_are_the_rows_alone,
    a_padded_row_equals_the_row_alone,
);

fn llama<B: Backend>() -> Llama<B> {
    Llama::from_pretrained(fixtures("models/llama_gqa_tied"), &LoadOptions::default(), &Default::default())
        .unwrap()
        .0
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![1, 5, 9, 30, 7, 44, 12], vec![1, 8], vec![1, 100, 3, 27]]
}

fn input<B: Backend>(rows: &[Vec<u32>]) -> ModelInput<B> {
    ModelInput::from_rows(rows, 0, &Default::default())
}

/// No end token, so that every row runs to its length.
fn endless(max_new_tokens: usize) -> GenerateConfig {
    GenerateConfig { max_new_tokens, eos_token_id: Some(vec![]), ..Default::default() }
}

/// Scores of the next token, without any cache.
fn next_scores<B: Backend>(model: &Llama<B>, row: &[u32]) -> Vec<f64> {
    let all = values(model.logits(&input(&[row.to_vec()])).unwrap());
    all[all.len() - model.config().vocab_size..].to_vec()
}

fn argmax(scores: &[f64]) -> u32 {
    let mut best = 0;
    for (i, s) in scores.iter().enumerate() {
        if *s > scores[best] {
            best = i;
        }
    }
    best as u32
}

fn cached_and_uncached_generation_agree<B: Backend>() {
    let model = llama::<B>();
    // More than one block of the cache.
    let found = generate(&model, &input(&prompts()), &endless(80), |_, _| ()).unwrap();
    for (prompt, found) in prompts().iter().zip(found) {
        let mut row = prompt.clone();
        for token in found {
            assert_eq!(token, argmax(&next_scores(&model, &row)), "after {} tokens", row.len());
            row.push(token);
        }
    }
}

fn rows_of_a_batch_are_the_rows_alone<B: Backend>() {
    let model = llama::<B>();
    // An end token that some rows meet early: finished rows leave, the others go on undisturbed.
    let free = generate(&model, &input(&prompts()), &endless(20), |_, _| ()).unwrap();
    let end = free[1][4];
    let config = GenerateConfig { eos_token_id: Some(vec![end]), ..endless(20) };
    let mut seen = vec![Vec::new(); 3];
    let together = generate(&model, &input(&prompts()), &config, |row, token| seen[row].push(token)).unwrap();
    assert_eq!(seen, together, "the callback sees every token once, in order");
    for (prompt, together) in prompts().into_iter().zip(together) {
        let alone = generate(&model, &input(&[prompt]), &config, |_, _| ()).unwrap();
        assert_eq!(alone[0], together);
        assert!(together.len() == 20 || together.last() == Some(&end));
        assert!(!together[..together.len() - 1].contains(&end));
    }
}

fn a_padded_row_equals_the_row_alone<B: Backend>() {
    let model = llama::<B>();
    let device = Default::default();
    let row: Vec<i64> = vec![1, 8, 77, 30];
    let alone = values(model.hidden(&input(&[row.iter().map(|&t| t as u32).collect()])).unwrap());
    let scale = scale(&alone);
    for left in [0, 3] {
        // Padding holds ids that would matter if they were seen.
        let (mut ids, mut mask) = (vec![99i64; 7], vec![0i64; 7]);
        ids[left..left + 4].copy_from_slice(&row);
        mask[left..left + 4].fill(1);
        let tensor = |v: Vec<i64>| Tensor::from_data(burn::tensor::TensorData::new(v, [1, 7]), &device);
        let hidden = model.hidden(&ModelInput::new(tensor(ids.clone()), tensor(mask.clone()))).unwrap();
        let found = values(hidden.slice([0..1, left..left + 4]));
        let worst = worst(&found, &alone);
        // Products of other shapes round differently in the last bits.
        assert!(
            worst <= 1e-5 * scale,
            "padded on the {}: {worst:e}",
            if left == 0 { "right" } else { "left" }
        );
        let padded = ModelInput::new(tensor(ids), tensor(mask));
        let alone = input(&[row.iter().map(|&t| t as u32).collect()]);
        assert_eq!(
            generate(&model, &padded, &endless(9), |_, _| ()).unwrap(),
            generate(&model, &alone, &endless(9), |_, _| ()).unwrap()
        );
    }
}

#[test]
fn a_packed_pair_equals_its_two_rows() {
    let model = llama::<Flex>();
    let device = Default::default();
    let (prompt, chosen, rejected) = ([1i64, 8, 77], [30i64, 31], [5i64, 6, 7]);
    let int =
        |v: Vec<i64>| Tensor::from_data(burn::tensor::TensorData::new(v.clone(), [1, v.len()]), &device);
    let ids = [&prompt[..], &chosen, &rejected].concat();
    let packed = ModelInput::<Flex> {
        segment_ids: Some(int(vec![0, 0, 0, 1, 1, 2, 2, 2]).into()),
        ..ModelInput::new(int(ids), int(vec![1; 8]))
    };
    let packed = model.hidden(&packed).unwrap();
    let row = |tail: &[i64]| {
        let row: Vec<u32> = prompt.iter().chain(tail).map(|&t| t as u32).collect();
        model.hidden(&input(&[row])).unwrap()
    };
    let close = |a: Tensor<Flex, 3>, b: Tensor<Flex, 3>| {
        let worst = worst(&values(a), &values(b));
        // Hidden states are of order one; see above for the bound.
        assert!(worst < 1e-5, "{worst:e}");
    };
    close(packed.clone().slice([0..1, 0..5]), row(&chosen));
    close(packed.slice([0..1, 5..8]), row(&rejected).slice([0..1, 3..6]));
}

#[test]
fn drawing_is_seeded_and_its_limits_reduce_to_greedy() {
    let model = llama::<Flex>();
    let greedy = generate(&model, &input(&prompts()), &endless(12), |_, _| ()).unwrap();
    let draw = |config: GenerateConfig| generate(&model, &input(&prompts()), &config, |_, _| ()).unwrap();
    let sampled = |seed| GenerateConfig { do_sample: true, temperature: 1.5, seed, ..endless(12) };
    assert_eq!(draw(sampled(3)), draw(sampled(3)));
    assert_ne!(draw(sampled(3)), draw(sampled(4)));
    assert_eq!(draw(GenerateConfig { top_k: 1, ..sampled(3) }), greedy);
    assert_eq!(draw(GenerateConfig { top_p: 1e-6, ..sampled(3) }), greedy);
    assert_eq!(draw(GenerateConfig { temperature: 1e-4, ..sampled(3) }), greedy);
    let alone = generate(&model, &input(&prompts()[..1]), &sampled(3), |_, _| ()).unwrap();
    assert_eq!(alone[0], draw(sampled(3))[0], "a row's stream is its own");
}

#[test]
fn drawn_tokens_follow_the_distribution() {
    let model = llama::<Flex>();
    let scores = next_scores(&model, &[1, 8]);
    let total: f64 = scores.iter().map(|s| s.exp()).sum();
    let rows = vec![vec![1u32, 8]; 4000];
    let config = GenerateConfig { do_sample: true, top_k: 3, seed: 11, ..endless(1) };
    let drawn = generate(&model, &input(&rows), &config, |_, _| ()).unwrap();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let kept: f64 = order[..3].iter().map(|&i| scores[i].exp() / total).sum();
    for &id in &order[..3] {
        let p = scores[id].exp() / total / kept;
        let found = drawn.iter().filter(|row| row[0] == id as u32).count() as f64 / 4000.0;
        // Four standard deviations of a proportion of 4000 draws.
        assert!((found - p).abs() < 4.0 * (p * (1.0 - p) / 4000.0).sqrt(), "{id}: {found} for {p}");
    }
    assert!(drawn.iter().all(|row| order[..3].contains(&(row[0] as usize))));
}

fn log_softmax(scores: &[f64]) -> Vec<f64> {
    let top = scores.iter().copied().fold(f64::MIN, f64::max);
    let total = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
    scores.iter().map(|s| s - total).collect()
}

#[test]
fn beams_as_many_as_tokens_find_the_best_pair_of_tokens() {
    let model = llama::<Flex>();
    let vocabulary = model.config().vocab_size;
    for prompt in prompts() {
        let first = log_softmax(&next_scores(&model, &prompt));
        let mut best = (f64::MIN, vec![]);
        for a in 0..vocabulary as u32 {
            let second = log_softmax(&next_scores(&model, &[prompt.as_slice(), &[a]].concat()));
            let b = argmax(&second);
            let score = first[a as usize] + second[b as usize];
            if score > best.0 {
                best = (score, vec![a, b]);
            }
        }
        let config = GenerateConfig { num_beams: vocabulary, ..endless(2) };
        assert_eq!(generate(&model, &input(&[prompt]), &config, |_, _| ()).unwrap(), [best.1]);
    }
}

#[test]
fn more_beams_never_score_worse_than_greedy_without_an_end() {
    let model = llama::<Flex>();
    let score = |prompt: &[u32], tokens: &[u32]| {
        let mut row = prompt.to_vec();
        tokens.iter().fold(0.0, |sum, &t| {
            let logp = log_softmax(&next_scores(&model, &row))[t as usize];
            row.push(t);
            sum + logp
        })
    };
    let beams = GenerateConfig { num_beams: 5, ..endless(6) };
    let found = generate(&model, &input(&prompts()), &beams, |_, _| ()).unwrap();
    let greedy = generate(&model, &input(&prompts()), &endless(6), |_, _| ()).unwrap();
    for ((prompt, found), greedy) in prompts().iter().zip(&found).zip(&greedy) {
        assert!(score(prompt, found) >= score(prompt, greedy) - 1e-4);
        let alone = generate(&model, &input(std::slice::from_ref(prompt)), &beams, |_, _| ()).unwrap();
        assert_eq!(&alone[0], found);
    }
}

#[test]
fn a_least_length_is_kept() {
    let model = llama::<Flex>();
    let first = generate(&model, &input(&prompts()), &endless(1), |_, _| ()).unwrap();
    for num_beams in [1, 3] {
        let config = GenerateConfig {
            eos_token_id: Some(first.iter().map(|row| row[0]).collect()),
            min_new_tokens: 4,
            num_beams,
            ..endless(9)
        };
        let found = generate(&model, &input(&prompts()), &config, |_, _| ()).unwrap();
        assert!(found.iter().all(|row| row.len() > 4), "{found:?}");
    }
}

#[test]
fn options_without_meaning_are_refused_by_name() {
    let model = llama::<Flex>();
    let of = |config: GenerateConfig| {
        generate(&model, &input(&prompts()), &config, |_, _| ()).unwrap_err().to_string()
    };
    assert!(of(GenerateConfig { do_sample: true, temperature: 0.0, ..endless(2) }).contains("temperature"));
    assert!(of(GenerateConfig { top_p: 0.0, ..endless(2) }).contains("top_p"));
    assert!(of(GenerateConfig { num_beams: 0, ..endless(2) }).contains("num_beams"));
    let empty = ModelInput::<Flex>::from_rows(&[vec![1], vec![]], 0, &Default::default());
    assert!(generate(&model, &empty, &endless(2), |_, _| ()).is_err());
    let outside = generate(&model, &input(&[vec![1, 5000]]), &endless(2), |_, _| ()).unwrap_err();
    assert!(outside.to_string().contains("5000"));
}

#[test]
fn a_token_is_not_taken_from_scores_that_are_no_numbers() {
    let row_of = |value: f32| {
        let mut model = llama::<Flex>();
        let [rows, width] = model.model.embed_tokens.weight.dims();
        let bad = Tensor::<Flex, 2>::full([1, width], value, &Default::default());
        // The head is the table: only the score of id 7 is spoiled, and what reads id 7.
        let table = model.model.embed_tokens.weight.clone();
        model.model.embed_tokens.weight = table.map(|table| {
            let [before, after] = [table.clone().slice(0..7), table.slice(8..rows)];
            Tensor::cat(vec![before, bad, after], 0)
        });
        model
    };
    for bad in [f32::NAN, f32::INFINITY] {
        let model = row_of(bad);
        for config in [
            endless(4),
            GenerateConfig { do_sample: true, ..endless(4) },
            GenerateConfig { num_beams: 3, ..endless(4) },
            GenerateConfig { min_new_tokens: 2, ..endless(4) },
        ] {
            let mut told = 0;
            let error = generate(&model, &input(&[vec![1, 5, 9]]), &config, |_, _| told += 1).unwrap_err();
            assert!(matches!(error, Error::NotFinite { row: 0, tokens: 0, id: 7, .. }), "{error}");
            assert_eq!(told, 0, "no token was told");
        }
    }
}

#[test]
fn a_very_low_temperature_is_greedy() {
    let model = llama::<Flex>();
    let greedy = generate(&model, &input(&prompts()), &endless(5), |_, _| ()).unwrap();
    let cold = GenerateConfig { do_sample: true, temperature: 1e-308, ..endless(5) };
    assert_eq!(generate(&model, &input(&prompts()), &cold, |_, _| ()).unwrap(), greedy);
}

#[test]
fn inputs_without_a_token_are_errors() {
    let model = llama::<Flex>();
    let none = input(&[]);
    assert!(model.logits(&none).unwrap_err().to_string().contains("no token"));
    assert_eq!(generate(&model, &none, &endless(2), |_, _| ()).unwrap(), Vec::<Vec<u32>>::new());
    assert!(model.logits(&input(&[vec![], vec![]])).unwrap_err().to_string().contains("no token"));
    let beams = GenerateConfig { num_beams: usize::MAX, ..endless(1) };
    assert_eq!(generate(&model, &input(&[vec![1, 8]]), &beams, |_, _| ()).unwrap()[0].len(), 1);
}

#[test]
fn beams_end_as_in_transformers() {
    // Made with transformers 5.23 on the fixture model: beams, end tokens and length penalties.
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/generation/beams.json");
    let cases: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/models/llama_gqa_tied");
    let model =
        Llama::<Flex>::from_pretrained(folder, &LoadOptions::default(), &Default::default()).unwrap().0;
    let ids = |v: &serde_json::Value| serde_json::from_value::<Vec<u32>>(v.clone()).unwrap();
    let mut wrong = Vec::new();
    for case in &cases {
        let config = GenerateConfig {
            num_beams: case["num_beams"].as_u64().unwrap() as usize,
            length_penalty: case["length_penalty"].as_f64().unwrap(),
            eos_token_id: Some(ids(&case["eos_token_id"])),
            max_new_tokens: 10,
            ..Default::default()
        };
        let found = generate(&model, &input(&[ids(&case["prompt"])]), &config, |_, _| ()).unwrap();
        if found[0] != ids(&case["tokens"]) {
            wrong.push(format!("{case} but found {:?}", found[0]));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}
