//! The tokenizer against Hugging Face's own: LLaVA-1.5's where `ASPO_ORACLE` has it, else a small one of its kind.

use aspo_data::encode::response_start;
use aspo_data::prompt::VICUNA_HUMAN_SYSTEM;
use aspo_data::{Encoder, Pair, Template, Tokenizer};
use serde_json::Value;

use crate::support::oracle;

#[test]
fn oracle_ids_offsets_and_response_start_equal_for_every_line() {
    let Some(folder) = oracle("tokenizer") else { return };
    let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).unwrap();
    let lines: Vec<Value> =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    assert!(!lines.is_empty());
    let image_tokens = 7;
    let mut encoder = Encoder::new(tokenizer.clone(), Template::VicunaV1, image_tokens);
    encoder.max_length = None;
    for line in &lines {
        let numbers = |key: &str| -> Vec<u32> {
            line[key].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
        };
        let text = |key: &str| line[key].as_str().unwrap();
        let (question, answer, prompt) = (text("question"), text("answer"), text("prompt"));
        let (ids, prompt_ids) = (numbers("ids"), numbers("prompt_ids"));
        let expected_start = line["response_start"].as_u64().unwrap() as usize;

        // The bare tokenizer on the whole text: ids, offsets (the file counts characters), first response token.
        let whole = format!("{prompt} {answer}</s>");
        let tokens = tokenizer.encode(&whole, true).unwrap();
        assert_eq!(tokens.ids, ids, "{question}: {answer}");
        let offsets: Vec<(usize, usize)> = line["offsets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_u64().unwrap() as usize))
            .collect();
        let bytes: Vec<usize> = whole.char_indices().map(|(at, _)| at).chain([whole.len()]).collect();
        let offsets: Vec<(usize, usize)> =
            offsets.iter().map(|(start, end)| (bytes[*start], bytes[*end])).collect();
        assert_eq!(tokens.offsets, offsets, "{question}: {answer}");
        assert_eq!(response_start(&tokens, prompt.len()), expected_start);

        // The encoder on the pair: the same ids with the image token repeated.
        let mut pair = Pair::new("1", question, answer, "No.").with_image("a.jpg");
        pair.system = Some(VICUNA_HUMAN_SYSTEM.to_owned());
        let rendered = Template::VicunaV1.render(&pair, tokenizer.names());
        assert_eq!(rendered.prompt, prompt);
        let encoded = encoder.encode(&pair).unwrap();
        let image = tokenizer.image().unwrap();
        let expanded: Vec<u32> = prompt_ids
            .iter()
            .flat_map(|id| std::iter::repeat_n(*id, if *id == image { image_tokens } else { 1 }))
            .collect();
        assert_eq!(encoded.prompt_ids, expanded);
        assert_eq!(encoded.chosen.ids, ids[expected_start..]);
        assert_eq!(encoded.prompt_ids, encoder.encode_prompt(&pair).unwrap());
    }
}
