//! Readers and writers of the JSON formats.

use std::path::{Path, PathBuf};

use aspo_data::read::{Conversation, MAX_ROW_BYTES, read_conversations};
use aspo_data::write::{write_conversations, write_llama_factory, write_seva, write_trl_jsonl};
use aspo_data::{Error, FileFault, Format, ImageSource, Pair, RowFault, Turn, read_pairs, read_pairs_as};
use proptest::prelude::*;
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
    for path in ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "C:\\\\a.jpg", "http://x/a.jpg", "", "a\\u0000b"]
    {
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
            let found = faults(&whole.as_bytes()[..cut]);
            assert_eq!(found, [(2, RowFault::Cut)], "list {list}, cut at {cut}");
        }
    }
    // A list that only lacks its bracket is cut too: nobody knows how many rows are missing.
    assert_eq!(faults(format!("[{row},{row}")), [(3, RowFault::Cut)]);
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
    let long = format!(r#"{{"prompt": "{}", "chosen": "b", "rejected": "c"}}"#, "x".repeat(10_000_000));
    for content in [format!("{good}\n{long}\n{good}\n"), format!("[{good},{long},{good}]")] {
        assert_eq!(faults(content), [(2, RowFault::TooLong { limit: MAX_ROW_BYTES })]);
    }
}

#[test]
fn a_missing_comma_and_words_after_the_list_are_errors() {
    let row = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    assert_eq!(faults(format!("[{row} {row}]"))[0].1.kind(), "json");
    assert_eq!(faults(format!("[{row}] x"))[0].1.kind(), "json");
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
        for format in [Format::Trl, Format::Seva, Format::RlaifV, Format::LlamaFactory] {
            if let Ok(pairs) = read_pairs_as(&path, format) {
                prop_assert!(pairs.take(1000).count() < 1000);
            }
        }
    }
}
