//! Readers and writers of the JSON formats.

use std::io::Write;
use std::path::{Path, PathBuf};

use aspo_data::read::{Conversation, MAX_ROW_BYTES, read_conversations};
use aspo_data::write::{write_conversations, write_llama_factory, write_seva, write_trl_jsonl};
use aspo_data::{Error, FileFault, Format, ImageSource, Pair, RowFault, Turn, read_pairs, read_pairs_as};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

fn file(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

fn read_all(path: &Path) -> Vec<Pair> {
    read_pairs(path).unwrap().collect::<Result<_, _>>().unwrap()
}

fn one(content: &str) -> Pair {
    let (_folder, path) = file(content);
    let mut pairs = read_all(&path);
    assert_eq!(pairs.len(), 1);
    pairs.remove(0)
}

/// The faults of a file's rows, by row; sound rows are left out.
fn faults(content: impl AsRef<[u8]>) -> Vec<(usize, RowFault)> {
    let (_folder, path) = file(content);
    read_pairs_as(&path, Format::Trl)
        .unwrap()
        .filter_map(|pair| match pair {
            Ok(_) => None,
            Err(Error::Row { row, fault, path: found }) => {
                assert_eq!(found, path);
                Some((row, fault))
            }
            Err(other) => panic!("{other}"),
        })
        .collect()
}

/// How many rows of a file are sound, and from which row on it cannot be read.
fn broken(content: impl AsRef<[u8]>) -> (usize, usize, RowFault) {
    let (_folder, path) = file(content);
    let mut items: Vec<_> = read_pairs_as(&path, Format::Trl).unwrap().collect();
    let last = items.pop().unwrap().unwrap_err();
    assert!(!last.is_one_row(), "{last}");
    match last {
        Error::File { fault: FileFault::Broken { row, fault, lost: None }, .. } => (items.len(), row, fault),
        other => panic!("{other}"),
    }
}

#[test]
fn seva_reads_its_own_keys() {
    let pair =
        one(r#"[{"chosen": "waves.There are", "reject": "No", "question": "What?", "image_id": "a/b.jpg"}]"#);
    assert_eq!(pair, Pair::new("1", "What?", "waves.There are", "No").with_image("a/b.jpg"));
    let pair = one(r#"[{"chosen": "Yes", "reject": "No", "question": "What?", "image_id": 2398}]"#);
    assert_eq!(pair.images, ["2398.jpg".into()]);
}

#[test]
fn trl_reads_texts_messages_and_shared_prompts() {
    let plain =
        r#"{"prompt": "<image>\nWhat?", "chosen": "Yes", "rejected": "No", "images": ["a.jpg"], "id": 7}"#;
    let wanted = Pair::new("7", "What?", "Yes", "No").with_image("a.jpg");
    assert_eq!(one(plain), wanted);
    let parts = r#"{"id": "7", "image": "a.jpg",
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}],
        "rejected": [{"role": "assistant", "content": "No"}]}"#
        .replace('\n', " ");
    assert_eq!(one(&parts), wanted);
    let implicit = r#"{"id": "7", "image": {"path": "a.jpg", "bytes": null},
        "chosen": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Yes"}],
        "rejected": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "No"}]}"#
        .replace('\n', " ");
    assert_eq!(one(&implicit), wanted);
    let turns = r#"{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "<image>A"},
        {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}],
        "chosen": "Yes", "rejected": "No", "images": ["a.jpg"]}"#
        .replace('\n', " ");
    let pair = one(&turns);
    assert_eq!(pair.system.as_deref(), Some("S"));
    assert_eq!(pair.history, [Turn { user: "A".into(), assistant: "B".into() }]);
    assert_eq!(pair.prompt, "C");
}

#[test]
fn trl_texts_without_a_prompt_share_their_beginning() {
    // TRL's own example of an implicit prompt.
    let pair = one(r#"{"chosen": "The sky is blue.", "rejected": "The sky is green."}"#);
    assert_eq!(pair, Pair::new("1", "The sky is", "blue.", "green."));
    let pair = one(r#"{"chosen": "The dog runs.", "rejected": "The dogs run."}"#);
    assert_eq!((&*pair.prompt, &*pair.chosen), ("The", "dog runs."), "words stay whole");
    let fault = faults(r#"{"chosen": "Blue.", "rejected": "Green.", "image": "a.jpg"}"#).remove(0).1;
    assert!(matches!(fault, RowFault::Missing { key: "prompt", .. }), "{fault}");
    // Beside whole conversations the prompt only repeats what they share.
    let talk = |answer: &str| {
        format!(r#"[{{"role": "user", "content": "What?"}}, {{"role": "assistant", "content": "{answer}"}}]"#)
    };
    let row = |prompt: &str| {
        format!(r#"{{"prompt": "{prompt}", "chosen": {}, "rejected": {}}}"#, talk("Yes"), talk("No"))
    };
    assert_eq!(one(&row("What?")), Pair::new("1", "What?", "Yes", "No"));
    assert_eq!(faults(row("Why?"))[0].1.kind(), "turns");
}

#[test]
fn ms_swift_and_openai_rows_are_read() {
    let user = r#"{"role": "user", "content": "<image>\nWhat?"}"#;
    let says = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
    let (yes, no) = (says("Yes"), says("No"));
    let wanted = Pair::new("1", "What?", "Yes", "No").with_image("a.jpg");
    for row in [
        format!(r#"{{"messages": [{user}, {yes}], "rejected_response": "No", "images": ["a.jpg"]}}"#),
        format!(r#"{{"messages": [{user}, {yes}], "rejected_response": [{no}], "images": ["a.jpg"]}}"#),
        format!(
            r#"{{"messages": [{user}, {yes}], "rejected_messages": [{user}, {no}], "images": ["a.jpg"], "rejected_images": ["a.jpg"]}}"#
        ),
        r#"{"query": "What?", "response": "Yes", "rejected_response": "No", "images": ["a.jpg"], "history": []}"#.into(),
        format!(r#"{{"messages": [{user}], "chosen": {yes}, "rejected": {no}, "images": ["a.jpg"]}}"#),
        // LLaMA-Factory's version 1.
        r#"{"chosen_messages": [{"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "What?"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "Yes"}], "loss_weight": 1.0}],
            "rejected_messages": [{"role": "user", "content": [{"type": "image_url", "value": "a.jpg"}, {"type": "text", "value": "What?"}], "loss_weight": 0.0},
            {"role": "assistant", "content": [{"type": "text", "value": "No"}], "loss_weight": 1.0}]}"#.replace('\n', ""),
        format!(
            r#"{{"input": {{"messages": [{user}]}}, "preferred_output": [{yes}], "non_preferred_output": [{no}], "images": ["a.jpg"]}}"#
        ),
    ] {
        assert_eq!(one(&row), wanted, "{row}");
    }
    let other = format!(
        r#"{{"messages": [{user}, {yes}], "rejected_messages": [{user}, {no}], "images": ["a.jpg"], "rejected_images": ["b.jpg"]}}"#
    );
    let pair = one(&other);
    assert_eq!((&pair.images, &pair.rejected_images), (&vec!["a.jpg".into()], &vec!["b.jpg".into()]));
    // TRL's lines hold them; what cannot is refused.
    let (_folder, path) = file("");
    write_trl_jsonl(&path, [&pair]).unwrap();
    assert_eq!(read_all(&path), std::slice::from_ref(&pair));
    assert!(write_seva(&path, [&pair]).unwrap_err().to_string().contains("rejected images"));
    assert!(write_llama_factory(&path, [&pair]).unwrap_err().to_string().contains("rejected images"));
    let (_folder, path) = file(other.replace(r#"["b.jpg"]"#, r#"["b.jpg", "c.jpg"]"#));
    let error = read_pairs(&path).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("`rejected_images` are not as many"), "{error}");
}

#[test]
fn ha_dpo_descriptions_and_questions_are_read() {
    let (_folder, path) = file(
        r#"{"2300000": {"chosen": ["A dog.", "A red dog."], "rejected": ["A cat.", "Two cats."]},
            "2300001": {"chosen": ["A bus."], "rejected": []},
            "2300002": {"chosen": ["A tree."], "rejected": ["A bush."]}}"#,
    );
    let pairs = read_pairs(&path).unwrap();
    assert_eq!(pairs.format(), Format::HaDpo);
    let (sound, faulty): (Vec<_>, Vec<_>) = pairs.partition(Result::is_ok);
    let sound: Vec<Pair> = sound.into_iter().map(Result::unwrap).collect();
    // Every chosen description with every rejected one.
    let texts: Vec<[&str; 2]> = sound.iter().map(|pair| [&*pair.chosen, &*pair.rejected]).collect();
    assert_eq!(
        texts,
        [
            ["A dog.", "A cat."],
            ["A dog.", "Two cats."],
            ["A red dog.", "A cat."],
            ["A red dog.", "Two cats."],
            ["A tree.", "A bush."]
        ]
    );
    assert_eq!(sound[0].images, ["2300000.jpg".into()]);
    assert!(sound.iter().all(|pair| pair.prompt.contains("describe")
        || pair.prompt.contains("descri")
        || pair.prompt.contains("Describe")));
    assert!(matches!(faulty[..], [Err(Error::Row { row: 2, .. })]));
    let rows = r#"[{"image_id": 5, "question": "Is there a dog?", "chosen": "Yes.", "reject": "No.", "correct": false},
        {"image_id": 5, "question": "Is there a cat?", "chosen": "No.", "reject": "Yes.", "correct": true}]"#;
    let (_folder, path) = file(rows);
    let mut pairs = read_pairs(&path).unwrap();
    let read: Vec<Pair> = pairs.by_ref().collect::<Result<_, _>>().unwrap();
    assert_eq!(read, [Pair::new("1", "Is there a dog?", "Yes.", "No.").with_image("5.jpg")]);
    assert_eq!(pairs.dropped().correct, 1);
    // However long the object: it is no row.
    let long = format!(
        r#"{{"1": {{"chosen": ["{}"], "rejected": ["b"]}}, "2": {{"chosen": ["a"], "rejected": ["b"]}}}}"#,
        "x".repeat(1 << 20)
    );
    let long = format!(
        "{}{}",
        &long[..long.len() - 1],
        r#", "3": {"chosen": ["a"], "rejected": ["b"]}"#.repeat(20).replace("\"3\"", "\"4\"") + "}"
    );
    let (_folder, path) = file(long);
    assert_eq!(read_all(&path).len(), 22);
}

#[test]
fn a_system_column_is_used_in_every_format() {
    for row in [
        r#"{"prompt": "What?", "chosen": "Yes", "rejected": "No", "system": "S"}"#,
        r#"[{"question": "What?", "chosen": "Yes", "reject": "No", "system": "S"}]"#,
        r#"[{"question": "What?", "chosen": "Yes", "rejected": "No", "image": "a.jpg", "system": "S"}]"#,
        r#"[{"instruction": "What?", "chosen": "Yes", "rejected": "No", "system": "S"}]"#,
        r#"{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Yes"}], "rejected_response": "No", "system": "S"}"#,
    ] {
        assert_eq!(one(row).system.as_deref(), Some("S"), "{row}");
    }
    let talk = r#"[{"id": "1", "system": "S", "conversations": [{"from": "human", "value": "A"}, {"from": "gpt", "value": "B"}]}]"#;
    let (_folder, path) = file(talk);
    let read: Vec<Conversation> = read_conversations(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(read[0].system.as_deref(), Some("S"));
    let two = r#"{"prompt": [{"role": "system", "content": "T"}, {"role": "user", "content": "A"}], "chosen": "b", "rejected": "c", "system": "S"}"#;
    assert!(faults(two)[0].1.to_string().contains("differ"));
}

#[test]
fn tags_within_a_text_keep_their_places_and_leading_ones_are_taken_out() {
    let read = |prompt: &str, images: usize| {
        let images: Vec<String> = (0..images).map(|i| format!("{i}.jpg")).collect();
        one(&serde_json::json!({"prompt": prompt, "chosen": "b", "rejected": "c", "images": images})
            .to_string())
        .prompt
    };
    assert_eq!(read("<image>\nWhat?", 1), "What?");
    assert_eq!(read("<image>\n<image> What?", 2), "What?");
    assert_eq!(read("What?", 2), "What?");
    for text in ["What is in <image>?", "What?\n<image>", "<image>\nWhat else than in <image>?"] {
        assert_eq!(read(text, text.matches("<image>").count()), text);
    }
    // Of a later turn: the picture stays there.
    let turns = r#"{"prompt": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "<image>C"}],
        "chosen": "b", "rejected": "c", "images": ["a.jpg"]}"#
        .replace('\n', " ");
    let pair = one(&turns);
    assert_eq!((&*pair.history[0].user, &*pair.prompt), ("A", "<image>C"));
    // A question of LLaVA's has only the pictures that came up to it.
    let talk = r#"[{"id": "1", "images": ["a", "b"], "conversations": [{"from": "human", "value": "<image>A"}, {"from": "gpt", "value": "B"},
        {"from": "human", "value": "<image>C"}, {"from": "gpt", "value": "D"}]}]"#;
    let (_folder, path) = file(talk);
    let read = read_conversations(&path).unwrap().next().unwrap().unwrap();
    assert_eq!(read.question(0).unwrap().images, ["a".into()]);
    assert_eq!(read.question(1).unwrap().images, ["a".into(), "b".into()]);
}

#[test]
fn pictures_are_read_in_every_way_that_rows_give_them() {
    let png = crate::support::png(2, 2, [1, 2, 3]);
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &png);
    let (bytes, path) = (ImageSource::from(png.clone()), ImageSource::from("a.jpg"));
    let numbers: Vec<u8> = png.clone();
    let ways = [
        (serde_json::json!("a.jpg"), &path),
        (serde_json::json!("file://a.jpg"), &path),
        (serde_json::json!(format!("data:image/png;base64,{base64}")), &bytes),
        (serde_json::json!({"path": "a.jpg", "bytes": null}), &path),
        (serde_json::json!({"path": "x.png", "bytes": base64}), &bytes),
        (serde_json::json!({"bytes": numbers}), &bytes),
        (serde_json::json!({"url": "a.jpg"}), &path),
    ];
    for (image, wanted) in &ways {
        let row = |images: serde_json::Value| {
            one(&serde_json::json!({"prompt": "What?", "chosen": "b", "rejected": "c", "image": image, "images": images}).to_string())
        };
        // An empty list beside it, or null, says nothing.
        for images in [serde_json::json!([]), serde_json::json!(null)] {
            assert_eq!(row(images).images, [(*wanted).clone()], "{image}");
        }
        for part in [
            serde_json::json!({"type": "image", "image": image}),
            serde_json::json!({"type": "image_url", "image_url": {"url": image}, "text": null}),
            serde_json::json!({"type": "input_image", "image_url": image}),
        ] {
            let content = serde_json::json!([{"type": "text", "text": "In "}, part, {"type": "text", "text": " what?"}]);
            let row = serde_json::json!({"prompt": [{"role": "user", "content": content}], "chosen": "b", "rejected": "c"});
            let pair = one(&row.to_string());
            assert_eq!(
                (&*pair.prompt, &pair.images[..]),
                ("In <image> what?", &[(*wanted).clone()][..]),
                "{row}"
            );
        }
    }
    // One part brings its picture, the other stands for the row's.
    let row = r#"{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image", "path": "b.jpg"}]}],
        "chosen": "b", "rejected": "c", "images": ["a.jpg"]}"#
        .replace('\n', " ");
    assert_eq!(one(&row).images, ["a.jpg".into(), "b.jpg".into()]);
}

#[test]
fn what_is_not_used_is_refused_or_named_once() {
    let row = |more: &str| format!(r#"{{"prompt": "a", "chosen": "b", "rejected": "c", {more}}}"#);
    let kind = |more: &str| faults(row(more)).remove(0).1.kind();
    assert_eq!(kind(r#""videos": ["a.mp4"]"#), "media");
    assert_eq!(kind(r#""audio": "a.wav""#), "media");
    assert_eq!(kind(r#""images": ["a.jpg"], "image": "b.jpg""#), "images");
    assert_eq!(kind(r#""image": "data:image/png,abc""#), "type");
    assert_eq!(kind(r#""image": {"bytes": "%%%"}"#), "type");
    let content = |part: &str| {
        let prompt = format!(r#"[{{"role": "user", "content": [{{"type": "text", "text": "a"}}, {part}]}}]"#);
        faults(format!(r#"{{"prompt": {prompt}, "chosen": "b", "rejected": "c"}}"#)).remove(0).1.kind()
    };
    assert_eq!(content(r#"{"type": "video", "video": "a.mp4"}"#), "media");
    assert_eq!(content(r#"{"type": "input_audio", "input_audio": {}}"#), "media");
    assert_eq!(content(r#"{"type": "image_url", "image_url": {"url": "https://x/a.jpg"}}"#), "image-path");
    assert_eq!(
        faults(r#"{"prompt": "<video>\nWhat?", "chosen": "b", "rejected": "c"}"#)[0].1.kind(),
        "media"
    );
    assert_eq!(
        faults(r#"{"prompt": "a", "chosen": "an <image>", "rejected": "c"}"#)[0].1.kind(),
        "templated"
    );
    let null = faults(r#"{"prompt": "a", "chosen": null, "rejected": "c"}"#).remove(0).1;
    assert_eq!(null.to_string(), "`chosen` is null; fill it in, or drop the row");
    let missing =
        faults(r#"{"prompt": "a", "rejected": "c", "images": ["a.jpg"], "image": null}"#).remove(0).1;
    assert!(missing.to_string().contains("the row has: image, images, prompt, rejected;"), "{missing}");
    let content =
        [row(r#""origin": "x", "videos": [], "logps": null, "score": 1"#), row(r#""score": 2, "id": 3"#)]
            .join("\n");
    let (_folder, path) = file(content);
    let mut pairs = read_pairs(&path).unwrap();
    assert_eq!(pairs.by_ref().filter(Result::is_ok).count(), 2);
    assert_eq!(pairs.unread().collect::<Vec<_>>(), ["origin", "score"]);
}

#[test]
fn files_of_another_shape_name_the_shape() {
    let error = |content: String| {
        let (_folder, path) = file(content);
        match read_pairs(&path) {
            Err(error) => error.to_string(),
            Ok(pairs) => pairs.filter_map(Result::err).next().unwrap().to_string(),
        }
    };
    let row = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    for object in [
        format!("{{\n  \"data\": [{row}]\n}}"),
        format!("{{\"data\": [{row}]}}"),
        format!("{{\"data\": [{}{row}]}}", format!("{row}, ").repeat(MAX_ROW_BYTES / row.len())),
    ] {
        let error = error(object);
        assert!(error.contains("one JSON object") && error.contains("data"), "{error}");
    }
    let swift = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "rejected_response": "c"}"#;
    let mixed = error(format!("{row}\n{swift}"));
    assert!(mixed.contains("`prompt`") || mixed.contains("`chosen`"), "{mixed}");
    assert!(mixed.contains("these are the keys of ms-swift, the file is read as trl"), "{mixed}");
    let plain = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    assert!(error(plain.to_owned()).contains("rejected_response"));
    // A LLaVA file whose first row is faulty is still one of LLaVA.
    let llava = format!("7\n{}", r#"{"id": 1, "conversations": []}"#);
    let (_folder, path) = file(format!("[{}]", llava.replace('\n', ",")));
    assert!(matches!(read_pairs(&path), Err(Error::File { fault: FileFault::Unsupported(_), .. })));
    let folder = tempfile::tempdir().unwrap();
    assert!(read_pairs(folder.path()).unwrap_err().to_string().contains("it is a folder"));
}

#[test]
fn texts_in_a_template_are_refused() {
    let kind = |prompt: &str, chosen: &str| {
        let row = serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": "c"}).to_string();
        faults(row).first().map(|(_, fault)| fault.kind())
    };
    assert_eq!(kind("USER: What? ASSISTANT:", "b"), Some("templated"));
    assert_eq!(kind("What?", "ASSISTANT: b"), Some("templated"));
    assert_eq!(kind("Is this for the user: yes or no?", "The assistant: a man."), None);
}

#[test]
fn llama_factory_reads_sharegpt_and_alpaca() {
    let pair = one(
        r#"[{"conversations": [{"from": "human", "value": "<image>What?"}], "chosen": {"from": "gpt", "value": "Yes"},
             "rejected": {"from": "gpt", "value": "No"}, "images": ["a.jpg"], "system": "S"}]"#,
    );
    let mut wanted = Pair::new("1", "What?", "Yes", "No").with_image("a.jpg");
    wanted.system = Some("S".into());
    assert_eq!(pair, wanted);
    let pair = one(
        r#"[{"instruction": "What?", "input": "Here", "chosen": "Yes", "rejected": "No", "history": [["a", "b"]]}]"#,
    );
    assert_eq!(pair.prompt, "What?\nHere");
    assert_eq!(pair.history, [Turn { user: "a".into(), assistant: "b".into() }]);
}

#[test]
fn rlaif_v_rows_in_json_are_read_and_rlhf_v_texts_unpacked() {
    let wanted = Pair::new("3", "What?", "Yes", "No").with_image("a.jpg");
    assert_eq!(
        one(r#"{"idx": 3, "question": "What?", "chosen": "Yes", "rejected": "No", "image_path": "a.jpg"}"#),
        wanted
    );
    assert_eq!(
        one(
            r#"{"idx": 3, "text": "{\"question\": \"What?\", \"chosen\": \"Yes\", \"rejected\": \"No\"}", "image_path": "a.jpg"}"#
        ),
        wanted
    );
}

#[test]
fn unknown_and_unfit_files_are_named() {
    let fault = |content: &[u8]| {
        let (_folder, path) = file(content);
        match read_pairs(&path).map(|_| ()).unwrap_err() {
            Error::File { fault, .. } => fault,
            other => panic!("{other}"),
        }
    };
    assert!(matches!(fault(b""), FileFault::Empty));
    assert!(matches!(fault(b" \n "), FileFault::Empty));
    assert!(matches!(fault(b"[]"), FileFault::Empty));
    assert!(matches!(fault(b"hello"), FileFault::Container { .. }));
    assert!(matches!(fault(br#"{"a": 1}"#), FileFault::Format { keys } if keys == "a"));
    assert!(matches!(fault(br#"[{"id": 1, "conversations": []}]"#), FileFault::Unsupported(_)));
    let wide: Vec<u8> = r#"[{"a": 1}]"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(matches!(fault(&wide), FileFault::Encoding { .. }));
    assert!(matches!(fault(&[&[0xFF, 0xFE][..], &wide].concat()), FileFault::Encoding { .. }));
    let missing = read_pairs(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(missing.contains("/nowhere/at/all"), "{missing}");
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_read_over() {
    let content = "\u{feff}{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\r\n\r\n{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"c\"}\r\n";
    let (_folder, path) = file(content);
    let ids: Vec<String> = read_all(&path).into_iter().map(|pair| pair.id).collect();
    assert_eq!(ids, ["1", "3"], "rows are lines, as an editor counts them");
}

#[test]
fn a_faulty_row_is_reported_with_its_number_and_the_next_is_read() {
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let content = format!(
        "{good}\n{{\"prompt\": \n{good}\n{{\"prompt\": \"a\", \"chosen\": 5, \"rejected\": \"c\"}}\n7\n{{\"chosen\": \"b\", \"rejected\": \"c\"}}\n{good}\n"
    );
    let found = faults(&content);
    assert_eq!(
        found.iter().map(|(row, fault)| (*row, fault.kind())).collect::<Vec<_>>(),
        [(2, "json"), (4, "type"), (5, "type"), (6, "missing")]
    );
}

#[test]
fn rows_that_name_their_fault() {
    let kind = |row: &str| faults(row).remove(0).1.kind();
    assert_eq!(kind(r#"{"prompt": "a", "chosen": " ", "rejected": "c"}"#), "empty");
    assert_eq!(kind(r#"{"prompt": "", "chosen": "b", "rejected": "c"}"#), "empty");
    assert_eq!(
        kind(r#"{"prompt": "<image> <image>", "chosen": "b", "rejected": "c", "images": ["a"]}"#),
        "image-count"
    );
    assert_eq!(kind(r#"{"prompt": "<image>", "chosen": "b", "rejected": "c"}"#), "image-count");
    for path in [
        "../a.jpg",
        "file:///../a.jpg",
        "https://x/a.jpg",
        "a/../../b.jpg",
        "C:\\\\a.jpg",
        "http://x/a.jpg",
        "",
        "a\\u0000b",
    ] {
        let row = format!(r#"{{"prompt": "a", "chosen": "b", "rejected": "c", "images": ["{path}"]}}"#);
        assert_eq!(kind(&row), "image-path", "{path}");
    }
    let two = r#"[{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]"#;
    assert_eq!(kind(&format!(r#"{{"prompt": "a", "chosen": {two}, "rejected": "c"}}"#)), "turns");
    assert_eq!(kind(&format!(r#"{{"prompt": {two}, "chosen": "b", "rejected": "c"}}"#)), "turns");
}

#[test]
fn half_a_file_keeps_its_whole_rows_and_names_the_cut_one() {
    let row = r#"{"prompt": "a", "chosen": "bé", "rejected": "c"}"#;
    for list in [false, true] {
        let whole = if list { format!("[{row},\n{row}]") } else { format!("{row}\n{row}") };
        let end = whole.len() - usize::from(list);
        let start = end - row.len();
        for cut in start + 1..end {
            let found = broken(&whole.as_bytes()[..cut]);
            assert_eq!(found, (1, 2, RowFault::Cut), "list {list}, cut at {cut}");
        }
    }
    // A list that only lacks its bracket is cut too: nobody knows how many rows are missing.
    assert_eq!(broken(format!("[{row},{row}")), (2, 3, RowFault::Cut));
}

#[test]
fn a_wrong_encoding_is_named_with_its_row() {
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#.as_bytes();
    let latin = b"{\"prompt\": \"caf\xE9\", \"chosen\": \"b\", \"rejected\": \"c\"}";
    let found = faults([good, latin, good].join(&b'\n'));
    assert_eq!(found, [(2, RowFault::NotUtf8 { at: 15 })]);
}

#[test]
fn a_line_over_the_limit_is_refused_without_the_rest() {
    let good = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    let long = format!(r#"{{"prompt": "{}", "chosen": "b", "rejected": "c"}}"#, "x".repeat(MAX_ROW_BYTES));
    for content in [format!("{good}\n{long}\n{good}\n"), format!("[{good},{long},{good}]")] {
        assert_eq!(faults(content), [(2, RowFault::TooLong { limit: MAX_ROW_BYTES })]);
    }
}

#[test]
fn a_missing_comma_and_words_after_the_list_are_errors() {
    let row = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    assert!(matches!(broken(format!("[{row} {row}, {row}]")), (1, 2, RowFault::Json(_))));
    assert!(matches!(broken(format!("[{row}] x")), (1, 2, RowFault::Json(_))));
    // Deep nesting is refused by the parser before the stack is.
    assert_eq!(faults(format!("[{}{}]", "[".repeat(100_000), "]".repeat(100_000)))[0].1.kind(), "json");
}

#[test]
fn writers_refuse_what_a_format_cannot_hold_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    let mut system = Pair::new("1", "q", "a", "b");
    system.system = Some("S".into());
    let two = Pair::new("1", "q", "a", "b").with_image("x").with_image("y");
    let bytes = Pair::new("1", "q", "a", "b").with_image(vec![1, 2]);
    for pair in [system, two, bytes.clone()] {
        assert!(matches!(write_seva(&path, [&pair]), Err(Error::File { .. })));
    }
    assert!(write_trl_jsonl(&path, [&bytes]).is_err() && write_llama_factory(&path, [&bytes]).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "neither a file nor a temporary one");
}

#[test]
fn conversations_round_trip_and_ask_their_questions() {
    let turn = |user: &str, assistant: &str| Turn { user: user.into(), assistant: assistant.into() };
    let conversation = Conversation {
        id: "9".into(),
        images: vec!["a.jpg".into()],
        system: None,
        turns: vec![turn("What?", "A dog."), turn("Where?", "There.")],
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json");
    write_conversations(&path, [&conversation]).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(r#""value":"<image>\nWhat?""#), "{text}");
    let read: Vec<Conversation> = read_conversations(&path).unwrap().collect::<Result<_, _>>().unwrap();
    assert_eq!(read, std::slice::from_ref(&conversation));
    let second = conversation.question(1).unwrap();
    assert_eq!((second.prompt.as_str(), second.history.len()), ("Where?", 1));
    assert!(conversation.question(2).is_none());
}

fn text() -> impl Strategy<Value = String> {
    // Anything visible at the start, so that the text is not blank; tags would be read as images.
    "[a-zA-Z猫\"{\\[][^<]{0,40}"
}

fn any_pair(conversation: bool) -> impl Strategy<Value = Pair> {
    let turns = prop::collection::vec((text(), text()), if conversation { 0..3 } else { 0..1 });
    let system = prop::option::of(text()).prop_map(move |system| system.filter(|_| conversation));
    (text(), text(), text(), turns, system, prop::option::of("[a-z]{1,8}(/[a-z]{1,8})?\\.jpg")).prop_map(
        |(prompt, chosen, rejected, turns, system, image)| {
            let mut pair = Pair::new("1", prompt.trim(), chosen, rejected);
            pair.history = turns
                .into_iter()
                .map(|(user, assistant)| Turn { user: user.trim().to_owned(), assistant })
                .collect();
            pair.system = system;
            pair.images = image.map(ImageSource::Path).into_iter().collect();
            pair
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, rng_seed: proptest::test_runner::RngSeed::Fixed(2), ..Default::default() })]

    #[test]
    fn every_json_format_round_trips(
        single in prop::collection::vec(any_pair(false), 1..5), turns in prop::collection::vec(any_pair(true), 1..5),
    ) {
        let number = |mut pairs: Vec<Pair>| {
            pairs.iter_mut().enumerate().for_each(|(index, pair)| pair.id = (index + 1).to_string());
            pairs
        };
        let (single, turns) = (number(single), number(turns));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        write_seva(&path, &single).unwrap();
        prop_assert_eq!(read_pairs(&path).unwrap().format(), Format::Seva);
        prop_assert_eq!(read_all(&path), single);
        write_trl_jsonl(&path, &turns).unwrap();
        prop_assert_eq!(read_pairs(&path).unwrap().format(), Format::Trl);
        prop_assert_eq!(read_all(&path), turns.clone());
        write_llama_factory(&path, &turns).unwrap();
        prop_assert_eq!(read_pairs(&path).unwrap().format(), Format::LlamaFactory);
        prop_assert_eq!(read_all(&path), turns);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), list in any::<bool>()) {
        let start: &[u8] = if list { b"[{" } else { b"{" };
        let (_folder, path) = file([start, &bytes].concat());
        for format in Format::ALL.iter().copied().filter(|format| *format != Format::Llava) {
            if let Ok(pairs) = read_pairs_as(&path, format) {
                prop_assert!(pairs.take(1000).count() < 1000);
            }
        }
    }
}

#[test]
fn a_folder_or_a_pattern_is_its_files_in_the_order_of_their_names_packed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let row =
        |id: &str| json!({"id": id, "prompt": "P?", "chosen": "A.", "rejected": "B."}).to_string() + "\n";
    std::fs::write(at("train-00001-of-00003.jsonl"), row("b") + &row("c")).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(row("a").as_bytes()).unwrap();
    // Two members in a row, as `cat a.gz b.gz` makes them.
    let mut packed = gzip.finish().unwrap();
    packed.extend_from_within(..);
    std::fs::write(at("train-00000-of-00003.jsonl.gz"), packed).unwrap();
    let zstd = zstd::encode_all(row("d").as_bytes(), 1).unwrap();
    std::fs::write(at("train-00002-of-00003.jsonl.zst"), zstd).unwrap();
    std::fs::write(at("notes.txt"), "no pairs").unwrap();
    let read = |path: &Path| {
        let mut pairs = read_pairs(path).unwrap();
        let mut found = Vec::new();
        while let Some(pair) = pairs.next() {
            let file = pairs.path().file_name().unwrap().to_string_lossy().into_owned();
            found.push(format!("{} {}:{}", pair.unwrap().id, &file[6..11], pairs.row()));
        }
        found
    };
    let wanted = ["a 00000:1", "a 00000:2", "b 00001:1", "c 00001:2", "d 00002:1"];
    assert_eq!(read(folder.path()), wanted);
    assert_eq!(read(&at("train-*-of-*.json*")), wanted);
    assert_eq!(read(&at("train-0000[12]-*")), wanted[2..]);
    // What is wrong with a later file is told with its name, and what came before was given.
    std::fs::write(at("train-00003-of-00003.jsonl"), row("e") + "{\"prompt\": ").unwrap();
    let mut pairs = read_pairs(folder.path()).unwrap();
    let error = pairs.find_map(Result::err).unwrap();
    assert!(error.to_string().contains("train-00003-of-00003.jsonl"), "{error}");
    let none = read_pairs(&at("other-*.jsonl")).unwrap_err().to_string();
    assert!(none.contains("other-*.jsonl") && none.contains("no file matches"), "{none}");
    std::fs::write(at("cut.jsonl.gz"), &std::fs::read(at("train-00000-of-00003.jsonl.gz")).unwrap()[..20])
        .unwrap();
    assert!(read_pairs(&at("cut.jsonl.gz")).and_then(|mut pairs| pairs.next().unwrap()).is_err());
}
