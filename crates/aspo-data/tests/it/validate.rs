//! The account of a file.

use aspo_data::validate::{ValidateOptions, validate};
use aspo_data::{Encoder, Error, Format, OnFault, Source, Template};

use crate::support::{png, tiny_tokenizer};

const ROWS: &str = r#"{"prompt": "a", "chosen": "One. Two.", "rejected": "c", "image": "ok.png"}
{"prompt": "a", "chosen": "One. Two.", "rejected": "c", "image": "ok.png"}
{"prompt": "a", "chosen": "b", "rejected": "other", "image": "ok.png"}
{"prompt": "a", "chosen": "same", "rejected": "same"}
{"prompt": "a", "chosen": "b", "rejected": "c", "image": "none.png"}
{"prompt": "a", "chosen": "b", "rejected": "c", "image": "../up.png"}
{"prompt": "a", "chosen": "b", "rejected": "c", "image": "bad.png"}
{"prompt": "a", "chosen":
{"prompt": "a", "chosen": "an </s> end", "rejected": "c"}
{"prompt": "no picture", "chosen": "b", "rejected": "c"}
"#;

#[test]
fn faults_are_counted_by_kind_and_the_rest_described() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, ROWS).unwrap();
    std::fs::write(folder.path().join("ok.png"), png(3, 3, [1; 3])).unwrap();
    std::fs::write(folder.path().join("bad.png"), "not a picture").unwrap();
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let mut options = ValidateOptions {
        image_root: Some(folder.path().to_owned()),
        decode_images: true,
        encoder: Some(&encoder),
        on_fault: OnFault::Skip,
        ..Default::default()
    };
    let report = validate(&path.as_path().into(), &options, |_| ()).unwrap();
    assert_eq!((report.rows, report.sound, report.faulty()), (10, 4, 5));
    assert_eq!(report.dropped.equal, 1);
    let count = |kind: &str| report.faults.get(kind).map_or(0, |fault| fault.count);
    assert_eq!(
        ["image", "image-path", "json", "special-token"].map(count),
        [2, 1, 1, 1],
        "{:?}",
        report.faults
    );
    assert_eq!((report.duplicates, report.repeated_questions), (1, 1));
    assert_eq!((report.images, report.without_image), (1, 1));
    assert_eq!((report.chosen_sentences.max, report.chosen_sentences.min), (2, 1));
    assert_eq!((report.chosen_chars.max, report.prompt_chars.median), (9, 1));
    assert!(report.tokens.unwrap().min > 4);
    assert_eq!((report.image_width.unwrap().max, report.image_height.unwrap().min), (3, 3));
    assert_eq!(report.image_tokens.unwrap().max, 4);
    let text = report.to_string();
    assert!(text.contains("row 8") && text.contains("trl, 10 rows"), "{text}");
    // Every fault tells its row, those of images too.
    assert!(text.contains("row 5: image none.png") && text.contains("row 6: image path"), "{text}");
    assert!(text.contains("row 7: image bad.png"), "{text}");
    options.on_fault = OnFault::Stop;
    assert!(matches!(validate(&path.as_path().into(), &options, |_| ()), Err(Error::Row { row: 5, .. })));
    let seva = Source { format: Some(Format::Seva), ..path.as_path().into() };
    assert!(matches!(validate(&seva, &options, |_| ()), Err(Error::Row { row: 1, .. })));
}

#[test]
fn a_fault_found_beside_reading_tells_the_line_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let row = |id: &str| format!(r#"{{"id": "{id}", "prompt": "a", "chosen": "x </s> y", "rejected": "z"}}"#);
    std::fs::write(&path, format!("\n\n{}\n\n{}\n", row("p"), row("q"))).unwrap();
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let options = ValidateOptions { encoder: Some(&encoder), on_fault: OnFault::Skip, ..Default::default() };
    let examples =
        &validate(&path.as_path().into(), &options, |_| ()).unwrap().faults["special-token"].examples;
    assert!(examples[0].contains("row 3") && examples[1].contains("row 5"), "{examples:?}");
}

#[test]
fn equal_answers_are_dropped_and_counted_and_no_fault() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let row =
        |rejected: &str| format!("{{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"{rejected}\"}}\n");
    std::fs::write(&path, [row("b"), row("c"), row(" b\\n")].concat()).unwrap();
    for on_fault in [OnFault::Stop, OnFault::Skip] {
        let report =
            validate(&path.as_path().into(), &ValidateOptions { on_fault, ..Default::default() }, |_| ())
                .unwrap();
        assert_eq!((report.rows, report.sound, report.dropped.equal, report.faulty()), (3, 1, 2, 0));
        assert!(report.is_sound());
    }
    let mut pairs = aspo_data::read_pairs(&path).unwrap();
    assert_eq!((pairs.by_ref().count(), pairs.dropped().equal), (1, 2), "training reads the same");
}

#[test]
fn answers_that_are_equal_once_cut_are_dropped_and_counted_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let row = |rejected: &str| {
        format!("{{\"prompt\": \"a\", \"chosen\": \"the dog runs there\", \"rejected\": \"{rejected}\"}}\n")
    };
    std::fs::write(&path, [row("the dog runs two"), row("two cat")].concat()).unwrap();
    let mut encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let prompt = encoder.encode_prompt(&aspo_data::Pair::new("", "a", "", "")).unwrap().len();
    for (max_length, expected) in [(prompt + 2, (1, 1, 0)), (prompt + 40, (2, 0, 0)), (prompt, (0, 0, 2))] {
        encoder.max_length = Some(max_length);
        let options = ValidateOptions { encoder: Some(&encoder), ..Default::default() };
        let report = validate(&path.as_path().into(), &options, |_| ()).unwrap();
        assert_eq!((report.sound, report.dropped.equal, report.no_room), expected, "max_length {max_length}");
        assert_eq!(report.rows, 2);
    }
}

#[test]
fn a_file_that_cannot_be_read_to_its_end_is_never_one_faulty_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.json");
    let row = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    // A missing comma, a text that does not end, a list that does not, each with 98 rows behind it.
    let rest = format!(", {row}").repeat(98);
    for middle in [format!(" {row}"), r#", {"prompt": "a, "chosen": "b", "rejected": "c"}"#.to_owned()] {
        std::fs::write(&path, format!("[{row}{middle}{rest}]")).unwrap();
        let skip = ValidateOptions { on_fault: OnFault::Skip, ..Default::default() };
        let report = validate(&path.as_path().into(), &skip, |_| ()).unwrap();
        assert_eq!((report.sound, report.faulty(), report.is_sound()), (1, 0, false), "{middle}");
        let broken = report.broken.clone().unwrap();
        assert!(broken.contains("row 2") && broken.contains("nothing from this row on"), "{broken}");
        assert!(report.to_string().contains("NOT READ TO ITS END"), "{report}");
        let error = aspo_data::read_pairs(&path).unwrap().find_map(Result::err).unwrap();
        assert!(!error.is_one_row(), "{error}");
    }
}

#[test]
fn a_million_rows_are_read_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let rows: String = (0..1_000_000)
        .map(|i| format!("{{\"prompt\":\"{i}\",\"chosen\":\"b\",\"rejected\":\"c\"}}\n"))
        .collect();
    std::fs::write(&path, rows).unwrap();
    let pairs = aspo_data::read_pairs(&path).unwrap();
    assert_eq!(pairs.filter(|pair| pair.is_ok()).count(), 1_000_000);
}

#[test]
fn the_first_sound_pairs_are_kept_as_a_model_sees_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    std::fs::write(&path, ROWS).unwrap();
    let encoder = Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4);
    let options = ValidateOptions {
        encoder: Some(&encoder),
        on_fault: OnFault::Skip,
        samples: 2,
        ..Default::default()
    };
    let mut rows = 0;
    let report = validate(&path.as_path().into(), &options, |read| rows = read).unwrap();
    // The row with equal answers is read past.
    assert_eq!(rows, 9);
    let samples: Vec<_> = report.samples.iter().map(|sample| (sample.row, &*sample.pair.rejected)).collect();
    assert_eq!(samples, [(1, "c"), (2, "c")]);
    let encoded = report.samples[0].encoded.as_ref().unwrap();
    assert_eq!(*encoded, encoder.encode(&report.samples[0].pair).unwrap());
}
