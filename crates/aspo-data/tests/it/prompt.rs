//! Templates, letter by letter.

use aspo_data::prompt::{LLAVA_LLAMA_2_SYSTEM, VICUNA_V1_SYSTEM};
use aspo_data::{Pair, SpecialTokens, Template, Turn};

fn pair() -> Pair {
    Pair::new("1", "What?", "", "").with_image("a.jpg")
}

fn prompt(template: Template, pair: &Pair) -> String {
    template.render(pair, &SpecialTokens::default()).prompt
}

fn full(template: Template, pair: &Pair) -> String {
    let (text, answer) = template.render(pair, &SpecialTokens::default()).with_answer("Yes.", "</s>");
    assert_eq!(&text[answer], "Yes.");
    text
}

#[test]
fn one_question_reads_as_the_sources_write_it() {
    let pair = pair();
    assert_eq!(
        full(Template::VicunaV1, &pair),
        format!("{VICUNA_V1_SYSTEM} USER: <image>\nWhat? ASSISTANT: Yes.</s>")
    );
    assert_eq!(full(Template::LlavaHf, &pair), "USER: <image>\nWhat? ASSISTANT: Yes.</s>");
    assert_eq!(
        full(Template::LlavaLlama2, &pair),
        format!("[INST] <<SYS>>\n{LLAVA_LLAMA_2_SYSTEM}\n<</SYS>>\n\n<image>\nWhat? [/INST] Yes. </s>")
    );
    assert_eq!(full(Template::Plain, &pair), "<image>\nWhat?\nYes.</s>");
    assert_eq!(full(Template::Plain, &Pair { prompt: String::new(), ..pair.clone() }), "<image>\nYes.</s>");
    assert_eq!(full(Template::InstructBlip, &pair), "What? Yes.</s>");
    assert!(Template::InstructBlip.render(&pair, &SpecialTokens::default()).images_before);
}

#[test]
fn earlier_turns_come_first_and_carry_the_images() {
    let mut pair = pair();
    pair.history = vec![Turn { user: "A".into(), assistant: "B".into() }];
    pair.system = Some("S".into());
    assert_eq!(
        prompt(Template::VicunaV1, &pair),
        "S USER: <image>\nA ASSISTANT: B</s>USER: What? ASSISTANT:"
    );
    assert_eq!(prompt(Template::LlavaHf, &pair), "S USER: <image>\nA ASSISTANT: B USER: What? ASSISTANT:");
    assert_eq!(
        prompt(Template::LlavaLlama2, &pair),
        "[INST] <<SYS>>\nS\n<</SYS>>\n\n<image>\nA [/INST] B </s><s>[INST] What? [/INST]"
    );
    pair.system = Some(String::new());
    assert_eq!(prompt(Template::VicunaV1, &pair), "USER: <image>\nA ASSISTANT: B</s>USER: What? ASSISTANT:");
}

#[test]
fn each_image_has_its_tag_and_no_image_none() {
    let two = pair().with_image("b.jpg");
    assert_eq!(prompt(Template::LlavaHf, &two), "USER: <image>\n<image>\nWhat? ASSISTANT:");
    let none = Pair { images: Vec::new(), ..pair() };
    assert_eq!(prompt(Template::LlavaHf, &none), "USER: What? ASSISTANT:");
}

#[test]
fn images_stand_where_their_tags_do_across_turns_too() {
    let mut pair = Pair::new("1", "In <image>, not in <image>?", "", "").with_image("a").with_image("b");
    assert_eq!(prompt(Template::LlavaHf, &pair), "USER: In <image>, not in <image>? ASSISTANT:");
    pair.history = vec![Turn { user: "What?".into(), assistant: "B".into() }];
    assert_eq!(
        prompt(Template::VicunaV1, &Pair { system: Some(String::new()), ..pair.clone() }),
        "USER: What? ASSISTANT: B</s>USER: In <image>, not in <image>? ASSISTANT:"
    );
    let tokens = SpecialTokens {
        bos: "<B>".into(),
        eos: "<E>".into(),
        image: "<|image|>".into(),
        ..SpecialTokens::default()
    };
    pair.system = Some("S".into());
    assert_eq!(
        Template::LlavaLlama2.render(&pair, &tokens).prompt,
        "[INST] <<SYS>>\nS\n<</SYS>>\n\nWhat? [/INST] B <E><B>[INST] In <|image|>, not in <|image|>? [/INST]",
        "the tokens are the tokenizer's"
    );
    pair.prompt = "Why?".into();
    pair.system = None;
    assert_eq!(
        Template::LlavaHf.render(&pair, &tokens).prompt,
        "USER: <|image|>\n<|image|>\nWhat? ASSISTANT: B USER: Why? ASSISTANT:"
    );
}

#[test]
fn names_of_templates_are_those_of_configs() {
    for template in Template::ALL {
        assert_eq!(serde_json::to_value(template).unwrap(), template.name());
        assert_eq!(template.to_string().parse::<Template>().unwrap(), template);
    }
    let error = "vicuna".parse::<Template>().unwrap_err().to_string();
    assert!(error.starts_with("option `template`: \"vicuna\"; use vicuna_v1"), "{error}");
}
