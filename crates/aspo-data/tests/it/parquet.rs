//! Parquet tables, images inside.

use std::path::Path;
use std::sync::Arc;

use aspo_data::write::{write_rlaif_parquet, write_trl_parquet};
use aspo_data::{Error, FileFault, Format, ImageSource, Pair, Turn, read_pairs};
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
