//! Encoding: image tokens, borders, sentences, truncation.

use aspo_data::{
    EncodedAnswer, EncodedPair, Encoder, Error, Pair, PairFault, SpecialTokens, Template, Tokenizer, Turn,
};
use proptest::prelude::*;

use crate::support::{tiny_tokenizer, tiny_tokenizer_json};

fn encoder(max_length: Option<usize>) -> Encoder {
    let mut encoder = Encoder::new(tiny_tokenizer(), Template::VicunaV1, 5);
    encoder.max_length = max_length;
    encoder
}

fn pair() -> Pair {
    Pair::new("p", "What runs?", "The dog runs. There are two.\nOK", "the cat").with_image("a.jpg")
}

/// What holds for every encoded answer.
fn check_answer(answer: &EncodedAnswer, text: &str) {
    assert!(!answer.ids.is_empty());
    assert_eq!(answer.ids.len(), answer.sentences.len());
    assert_eq!(answer.sentences[0], 0);
    assert!(answer.sentences.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 1));
    assert_eq!(*answer.sentences.last().unwrap() as usize + 1, answer.sentence_count());
    assert_eq!(answer.text, text);
    assert_eq!(answer.spans[0].start, 0);
    assert!(answer.spans.windows(2).all(|pair| pair[0].end == pair[1].start));
    if !answer.truncated {
        assert_eq!(answer.spans.last().unwrap().end, text.len());
    }
}

#[test]
fn image_tokens_stand_where_the_tag_was_and_are_counted() {
    let encoded = encoder(None).encode(&pair()).unwrap();
    let image = tiny_tokenizer().image().unwrap();
    assert_eq!(encoded.image_spans.len(), 1);
    let span = encoded.image_spans[0].clone();
    assert_eq!(span.len(), 5);
    assert!(encoded.prompt_ids[span].iter().all(|id| *id == image));
    assert_eq!(encoded.prompt_ids.iter().filter(|id| **id == image).count(), 5);
    assert_eq!(encoded.prompt_ids[0], 1, "the start token comes first");
    let two = encoder(None).encode(&pair().with_image("b.jpg")).unwrap();
    assert_eq!(two.image_spans.len(), 2);
    let none = Pair { images: Vec::new(), ..pair() };
    assert!(encoder(None).encode(&none).unwrap().image_spans.is_empty());
}

#[test]
fn tags_within_a_text_keep_their_places_across_turns() {
    let tokenizer = tiny_tokenizer();
    let image = tokenizer.image().unwrap();
    let mut pair = Pair::new("p", "In <image>the cat runs?", "No.", "Yes.").with_image("a").with_image("b");
    pair.history = vec![Turn { user: "two <image>".into(), assistant: "the dog".into() }];
    let mut encoder = encoder(None);
    encoder.template = Template::LlavaHf;
    let encoded = encoder.encode(&pair).unwrap();
    assert_eq!(encoded.images, ["a".into(), "b".into()]);
    // Each run of image tokens stands between the texts that its tag stood between.
    let texts: Vec<String> = encoded
        .prompt_ids
        .split(|id| *id == image)
        .filter(|ids| !ids.is_empty())
        .map(|ids| tokenizer.decode(ids, true).unwrap())
        .collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].ends_with("two ") && texts[1].contains("the dog"), "{texts:?}");
    assert!(texts[1].ends_with("In ") && texts[2].starts_with("the cat"), "{texts:?}");
    assert_eq!(encoded.image_spans.len(), 2);
    for span in &encoded.image_spans {
        assert!(span.len() == 5 && encoded.prompt_ids[span.clone()].iter().all(|id| *id == image));
    }
}

#[test]
fn tags_that_are_not_as_many_as_the_images_are_refused() {
    let two = Pair::new("p", "<image> and <image>?", "No.", "Yes.").with_image("a");
    let none = Pair { images: Vec::new(), ..two.clone() };
    for pair in [two, none] {
        let error = encoder(None).encode(&pair).unwrap_err();
        assert!(matches!(error, Error::Pair { fault: PairFault::ImageCount { .. }, .. }), "{error}");
    }
    // InstructBLIP reads its picture before any text.
    let mut encoder = encoder(None);
    encoder.template = Template::InstructBlip;
    let within = Pair::new("p", "In <image>?", "No.", "Yes.").with_image("a");
    let error = encoder.encode(&within).unwrap_err().to_string();
    assert!(error.contains("instruct_blip cannot place"), "{error}");
}

#[test]
fn answers_that_are_equal_once_cut_are_refused() {
    let pair = Pair::new("p", "What?", "the dog runs there", "the dog runs two");
    let full = encoder(None).encode(&pair).unwrap();
    let room = full.prompt_ids.len() + 2;
    let error = encoder(Some(room)).encode(&pair).unwrap_err();
    assert!(matches!(error, Error::Pair { fault: PairFault::Equal, .. }), "{error}");
}

#[test]
fn tokens_with_a_name_of_their_own_are_refused_in_texts_whatever_the_file_calls_special() {
    let mut json = tiny_tokenizer_json();
    for token in json["added_tokens"].as_array_mut().unwrap() {
        token["special"] = false.into();
    }
    let tokenizer =
        Tokenizer::from_bytes(json.to_string().as_bytes(), "plain", SpecialTokens::default()).unwrap();
    for text in ["<image>", "a</s>", "<s>", "x <pad>"] {
        assert!(tokenizer.special_in(text).is_some(), "{text}");
    }
    assert_eq!(tokenizer.special_in("a < b > s"), None);
    // A template that writes the start token between turns needs one.
    let names = SpecialTokens { bos: "<start>".into(), ..SpecialTokens::default() };
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), "plain", names).unwrap();
    let encoder = Encoder::new(tokenizer, Template::LlavaLlama2, 5);
    let mut pair = Pair::new("p", "What?", "No.", "Yes.");
    assert!(encoder.encode(&pair).is_ok());
    pair.history = vec![Turn { user: "A".into(), assistant: "B".into() }];
    let error = encoder.encode(&pair).unwrap_err().to_string();
    assert!(error.contains("no token \"<start>\""), "{error}");
}

#[test]
fn instructblip_sets_images_before_the_start_token() {
    let mut encoder = encoder(None);
    encoder.template = Template::InstructBlip;
    encoder.instruction = Some(tiny_tokenizer());
    let encoded = encoder.encode(&pair()).unwrap();
    assert_eq!((encoded.image_spans.len(), encoded.image_spans[0].clone()), (1, 0..5));
    assert_eq!(encoded.prompt_ids[5], 1);
    assert_eq!(tiny_tokenizer().decode(&encoded.prompt_ids, true).unwrap().trim(), "What runs?");
    assert_eq!(encoded.instruction_ids, tiny_tokenizer().encode("What runs?", true).unwrap().ids);
}

#[test]
fn sentences_follow_the_text_and_the_end_token_belongs_to_the_last() {
    let encoded = encoder(None).encode(&pair()).unwrap();
    let texts: Vec<&str> = encoded.chosen.sentence_texts().collect();
    assert_eq!(texts, ["The dog runs. ", "There are two.\n", "OK"]);
    assert_eq!(*encoded.chosen.ids.last().unwrap(), tiny_tokenizer().eos());
    assert_eq!(*encoded.chosen.sentences.last().unwrap(), 2);
    // Each sentence's tokens decode to its text.
    let tokenizer = tiny_tokenizer();
    let tokens = |wanted: u32| -> Vec<u32> {
        let both = encoded.chosen.ids.iter().zip(&encoded.chosen.sentences);
        both.filter(|(_, sentence)| **sentence == wanted).map(|(id, _)| *id).collect()
    };
    assert_eq!(tokenizer.decode(&tokens(0), true).unwrap().trim(), "The dog runs.");
    assert_eq!(tokenizer.decode(&tokens(1), true).unwrap().trim(), "There are two.");
}

#[test]
fn a_text_that_spells_a_special_token_is_refused_where_it_stands() {
    for (pair, place) in [
        (Pair { chosen: "Yes.</s> No.".into(), ..pair() }, "chosen answer"),
        (Pair { rejected: "an <image> here".into(), ..pair() }, "rejected answer"),
        (Pair { prompt: "<s>".into(), ..pair() }, "prompt"),
    ] {
        match encoder(None).encode(&pair).unwrap_err() {
            Error::Pair { fault: PairFault::SpecialToken { place: found, .. }, .. } => {
                assert_eq!(found, place)
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn empty_answers_are_refused() {
    for text in ["", " \n"] {
        let error = encoder(None).encode(&Pair { rejected: text.into(), ..pair() }).unwrap_err();
        assert!(error.to_string().contains("rejected answer is empty"), "{error}");
    }
}

#[test]
fn a_token_across_the_border_does_not_change_the_prompt() {
    // In `plain` the answer follows a line break directly; without a question it follows the image tag.
    let mut encoder = encoder(None);
    encoder.template = Template::Plain;
    let prompt = encoder.encode_prompt(&pair()).unwrap();
    for answer in ["the dog", "\n\nA", " x", "。"] {
        let pair = Pair { chosen: answer.into(), ..pair() };
        let encoded = encoder.encode(&pair).unwrap();
        assert_eq!(encoded.prompt_ids, prompt);
        check_answer(&encoded.chosen, answer);
    }
}

fn checked(encoder: &Encoder, pair: &Pair) -> Option<EncodedPair> {
    match encoder.encode(pair) {
        Ok(encoded) => {
            let max = encoder.max_length.unwrap_or(usize::MAX);
            assert!(encoded.length() <= max);
            let image = encoder.tokenizer.image().unwrap();
            let count = encoded.prompt_ids.iter().filter(|id| **id == image).count();
            assert_eq!(count, 5 * pair.images.len(), "image tokens are never cut");
            assert_eq!(encoded.prompt_ids, encoder.encode_prompt(pair).unwrap(), "the prompt is never cut");
            check_answer(&encoded.chosen, &pair.chosen);
            check_answer(&encoded.rejected, &pair.rejected);
            Some(encoded)
        }
        Err(Error::Pair { fault: PairFault::NoRoom { prompt, max_length }, .. }) => {
            assert!(prompt >= max_length);
            None
        }
        Err(Error::Pair { fault: PairFault::Equal, .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..Default::default() })]

    #[test]
    fn whatever_the_lengths_images_and_prompt_stay_and_answers_are_not_empty(
        prompt in "[a-z ?]{0,30}", chosen in "\\PC{0,60}", rejected in "(the dog runs\\. |Two\\.|猫。|\n){1,8}",
        images in 0_usize..3, max_length in 1_usize..300,
    ) {
        prop_assume!(!chosen.trim().is_empty() && !rejected.trim().is_empty());
        prop_assume!(tiny_tokenizer().special_in(&chosen).is_none());
        let mut pair = Pair::new("p", prompt, chosen, rejected);
        for image in 0..images {
            pair = pair.with_image(format!("{image}.jpg").as_str());
        }
        prop_assume!(!pair.has_equal_answers());
        let full = checked(&encoder(None), &pair).unwrap();
        if let Some(cut) = checked(&encoder(Some(max_length)), &pair) {
            for (cut, full) in [(&cut.chosen, &full.chosen), (&cut.rejected, &full.rejected)] {
                prop_assert_eq!(&cut.ids[..], &full.ids[..cut.ids.len()]);
                prop_assert_eq!(&cut.sentences[..], &full.sentences[..cut.ids.len()]);
                prop_assert_eq!(cut.truncated, cut.ids.len() < full.ids.len());
            }
        } else {
            let room = max_length.saturating_sub(full.prompt_ids.len());
            prop_assert!(room == 0 || full.chosen.ids[..room] == full.rejected.ids[..room]);
        }
    }
}
