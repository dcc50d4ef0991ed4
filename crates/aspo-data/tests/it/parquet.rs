//! Parquet tables, images inside.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aspo_data::image::decode;
use aspo_data::validate::{ValidateOptions, validate};
use aspo_data::write::{write_rlaif_parquet, write_trl_parquet};
use aspo_data::{Error, FileFault, Format, ImageSource, OnFault, Pair, Turn, read_pairs};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use proptest::prelude::*;

fn read_all(path: &Path) -> Vec<Pair> {
    read_pairs(path).unwrap().collect::<Result<_, _>>().unwrap()
}

fn image() -> impl Strategy<Value = ImageSource> {
    prop_oneof![
        "[a-z]{1,6}\\.jpg".prop_map(ImageSource::Path),
        prop::collection::vec(any::<u8>(), 1..50).prop_map(ImageSource::from),
    ]
}

fn pairs(images: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<Pair>> {
    let text = || "[a-z猫][^<]{0,30}";
    let pair = (text(), text(), text(), prop::collection::vec(image(), images));
    prop::collection::vec(pair, 1..40).prop_map(|rows| {
        rows.into_iter()
            .enumerate()
            .map(|(row, (prompt, chosen, rejected, images))| Pair {
                images,
                ..Pair::new(format!("id {row}"), prompt, chosen, rejected)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, rng_seed: proptest::test_runner::RngSeed::Fixed(4), ..Default::default() })]

    #[test]
    fn both_tables_round_trip(trl in pairs(0..=3), rlaif in pairs(1..=1)) {
        let folder = tempfile::tempdir().unwrap();
        // Parquet is known by its content, whatever its name.
        let path = folder.path().join("data.json");
        write_trl_parquet(&path, &trl).unwrap();
        prop_assert_eq!(read_pairs(&path).unwrap().format(), Format::Trl);
        prop_assert_eq!(read_all(&path), trl);
        write_rlaif_parquet(&path, &rlaif).unwrap();
        prop_assert_eq!(read_pairs(&path).unwrap().format(), Format::RlaifV);
        prop_assert_eq!(read_all(&path), rlaif);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name)
}

/// Written by pyarrow 26 (`Table.from_pylist`, images as the struct `{bytes, path}` that Hugging Face's `datasets` has).
#[test]
fn tables_that_pyarrow_wrote_are_read_whatever_their_compression() {
    let mut first: Option<Vec<Pair>> = None;
    for name in ["none", "snappy", "gzip", "zstd", "lz4", "brotli", "pages_v2"] {
        let mut rows = read_pairs(&fixture(&format!("{name}.parquet"))).unwrap();
        let pairs: Vec<Pair> = rows.by_ref().collect::<Result<_, _>>().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((rows.format(), pairs.len()), (Format::Trl, 5), "{name}");
        assert_eq!(rows.unread().collect::<Vec<_>>(), ["score"], "{name}");
        for (index, pair) in pairs.iter().enumerate() {
            assert_eq!(pair.prompt, format!("What is number {index}?"));
            assert_eq!(pair.chosen, format!("A red square, number {index}."));
            let [ImageSource::Bytes(bytes)] = &pair.images[..] else { panic!("{:?}", pair.images) };
            let picture = decode(bytes).unwrap();
            assert_eq!((picture.width, picture.height), (3, 2));
            assert_eq!(picture.pixels[..3], [index as u8, 2, 3]);
        }
        assert_eq!(*first.get_or_insert_with(|| pairs.clone()), pairs, "{name}");
    }
}

#[test]
fn conversational_and_rlaif_v_tables_of_pyarrow_are_read() {
    let mut rows = read_pairs(&fixture("messages.parquet")).unwrap();
    let pairs: Vec<Pair> = rows.by_ref().collect::<Result<_, _>>().unwrap();
    let colour = |pair: &Pair| {
        let [ImageSource::Bytes(bytes)] = &pair.images[..] else { panic!("{:?}", pair.images) };
        decode(bytes).unwrap().pixels[..3].to_vec()
    };
    assert_eq!(
        (&*pairs[0].prompt, &*pairs[0].chosen, &*pairs[0].rejected),
        ("In <image> what?", "A dog.", "A cat.")
    );
    assert_eq!(colour(&pairs[0]), [9, 8, 7], "the part brings its picture");
    assert_eq!(
        (&*pairs[1].prompt, colour(&pairs[1])),
        ("What?", vec![1, 1, 1]),
        "`images` is empty, `image` is not"
    );
    assert_eq!(rows.unread().collect::<Vec<_>>(), ["cost", "day", "half", "map", "when"]);

    let mut rows = read_pairs(&fixture("rlaif_v.parquet")).unwrap();
    let pairs: Vec<Pair> = rows.by_ref().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.format(), Format::RlaifV);
    assert_eq!(
        (pairs.len(), &*pairs[2].id, &*pairs[2].chosen, colour(&pairs[2])),
        (3, "2", "Yes 2", vec![2, 2, 2])
    );
    assert_eq!(rows.unread().collect::<Vec<_>>(), ["ds_name", "origin_dataset", "origin_split"]);
}

#[test]
fn a_number_that_is_none_is_not_taken_for_null() {
    let faults: Vec<String> = read_pairs(&fixture("numbers.parquet"))
        .unwrap()
        .map(|pair| match pair.unwrap_err() {
            Error::Row { fault, .. } => fault.to_string(),
            other => panic!("{other}"),
        })
        .collect();
    assert!(
        faults[0].starts_with("`chosen` should be") && faults[0].ends_with("an object with NaN"),
        "{faults:?}"
    );
    assert!(faults[1].ends_with("found a number"), "{faults:?}");
    assert!(faults[2].contains("`chosen` is null"), "{faults:?}");
}

#[test]
fn a_table_damaged_in_the_middle_tells_how_many_rows_are_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let pairs: Vec<Pair> = (0..2500).map(|i| Pair::new(format!("{i}"), "q", format!("a {i}"), "b")).collect();
    write_trl_parquet(&path, &pairs).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // The second row group begins behind two fifths of the data.
    let middle = bytes.len() / 2;
    bytes[middle..middle + 200].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    let items: Vec<_> = read_pairs(&path).unwrap().collect();
    let (last, sound) = items.split_last().unwrap();
    assert!(sound.iter().all(Result::is_ok), "one error, at the end");
    let error = last.as_ref().unwrap_err();
    assert!(!error.is_one_row(), "{error}");
    match error {
        Error::File { fault: FileFault::Broken { row, lost, .. }, .. } => {
            assert_eq!((*row, *lost), (sound.len() + 1, Some(2500 - sound.len())), "{error}");
            assert!((1000..2500).contains(&sound.len()), "{} rows before", sound.len());
        }
        other => panic!("{other}"),
    }
    let options = ValidateOptions { on_fault: OnFault::Skip, ..Default::default() };
    let report = validate(&path.as_path().into(), &options, |_| ()).unwrap();
    assert_eq!(
        (report.sound, report.lost, report.is_sound()),
        (sound.len(), Some(2500 - sound.len()), false)
    );
}

#[test]
fn many_row_groups_are_read_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let pairs: Vec<Pair> = (0..2500)
        .map(|i| Pair::new(format!("{i}"), "q", format!("a {i}"), "b").with_image(vec![1, 2, 3]))
        .collect();
    write_trl_parquet(&path, &pairs).unwrap();
    assert_eq!(read_all(&path), pairs);
}

#[test]
fn conversations_and_pairs_without_their_image_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let mut pair = Pair::new("1", "q", "a", "b");
    assert!(matches!(write_rlaif_parquet(&path, [&pair]), Err(Error::File { .. })));
    pair.history.push(Turn { user: "a".into(), assistant: "b".into() });
    assert!(matches!(write_trl_parquet(&path, [&pair]), Err(Error::File { .. })));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A table of text columns, and of `{role, content}` lists for names that end in `*`.
fn table(path: &Path, columns: &[(&str, &[&[&str]])]) {
    let mut schema = "message m {".to_owned();
    for (name, _) in columns {
        schema += &match name.strip_suffix('*') {
            None => format!("optional binary {name} (UTF8);"),
            Some(name) => format!(
                "optional group {name} (LIST) {{ repeated group list {{ optional group element {{ \
                 optional binary content (UTF8); optional binary role (UTF8); }} }} }}"
            ),
        };
    }
    schema += "}";
    let schema = Arc::new(parquet::schema::parser::parse_message_type(&schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut put = |values: Vec<&str>, defined: Vec<i16>, repeated: Option<Vec<i16>>| {
        let values: Vec<ByteArray> = values.into_iter().map(ByteArray::from).collect();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&defined), repeated.as_deref()).unwrap();
        column.close().unwrap();
    };
    for (name, rows) in columns {
        if name.ends_with('*') {
            // Each row is role, content, role, content, …
            for offset in [1, 0] {
                let values: Vec<&str> =
                    rows.iter().flat_map(|row| row.iter().skip(offset).step_by(2).copied()).collect();
                let repeated: Vec<i16> = rows
                    .iter()
                    .flat_map(|row| (0..row.len() / 2).map(|index| i16::from(index > 0)))
                    .collect();
                put(values.clone(), vec![4; values.len()], Some(repeated));
            }
        } else {
            put(rows.iter().map(|row| row[0]).collect(), vec![1; rows.len()], None);
        }
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn conversational_columns_and_rlhf_v_texts_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    table(
        &path,
        &[
            ("prompt*", &[&["user", "What?"], &["system", "S", "user", "Why?"]]),
            ("chosen*", &[&["assistant", "Yes"], &["assistant", "So"]]),
            ("rejected*", &[&["assistant", "No"], &["assistant", "Because"]]),
        ],
    );
    let pairs = read_all(&path);
    assert_eq!(pairs[0], Pair::new("1", "What?", "Yes", "No"));
    assert_eq!((pairs[1].system.as_deref(), pairs[1].prompt.as_str()), (Some("S"), "Why?"));
    table(
        &path,
        &[
            ("image", &[&["a.jpg"]]),
            ("text", &[&[r#"{"question": "What?", "chosen": "Yes", "rejected": "No"}"#]]),
        ],
    );
    assert_eq!(read_all(&path), [Pair::new("1", "What?", "Yes", "No").with_image("a.jpg")]);
}

#[test]
fn half_a_table_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    write_trl_parquet(&path, [Pair::new("1", "q", "a", "b")]).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in [4, 8, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        match read_pairs(&path).unwrap_err() {
            Error::File { fault: FileFault::Parquet(_), path: found } => assert_eq!(found, path),
            other => panic!("{other}"),
        }
    }
}
