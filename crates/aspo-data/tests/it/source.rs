//! Sources: files with other names for their columns, several answers with scores, formats told by several rows, pictures by
//! reference.

use std::path::{Path, PathBuf};

use aspo_data::read::Sources;
use aspo_data::write::write_rlaif_parquet;
use aspo_data::{
    Format, ImageLoader, ImageProcessor, ImageSource, Pair, Pairing, Source, read_pairs, read_source,
};
use serde_json::json;

use crate::support::png;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tables").join(name)
}

fn file(folder: &Path, rows: &[serde_json::Value]) -> PathBuf {
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| row.to_string() + "\n").collect::<String>()).unwrap();
    path
}

#[test]
fn a_column_map_gives_columns_the_names_that_a_format_has() {
    let folder = tempfile::tempdir().unwrap();
    let row = json!({"query_text": "What?", "good": "A dog.", "bad": "A cat.", "picture": "a.png"});
    let path = file(folder.path(), &[row]);
    let columns = [("prompt", "query_text"), ("chosen", "good"), ("rejected", "bad"), ("image", "picture")];
    let columns = columns.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned())).into();
    let source = Source { columns, ..path.as_path().into() };
    let mut pairs = read_source(&source).unwrap();
    let pair = pairs.next().unwrap().unwrap();
    assert_eq!((&*pair.prompt, &*pair.chosen, &*pair.rejected), ("What?", "A dog.", "A cat."));
    assert_eq!(pair.images, [ImageSource::from("a.png")]);
    assert_eq!(pairs.unread().count(), 0);
    // A column that is not there is told with those that are.
    let columns = [("prompt".to_owned(), "question".to_owned())].into();
    let told = read_source(&Source { columns, ..path.as_path().into() }).unwrap_err().to_string();
    assert!(told.contains("`prompt` is to be read from `question`") && told.contains("query_text"), "{told}");
    // Nor is one taken for it that has the name by itself; two may change places.
    let columns =
        |pairs: [(&str, &str); 2]| pairs.map(|(ours, theirs)| (ours.to_owned(), theirs.to_owned())).into();
    let trl = file(folder.path(), &[json!({"prompt": "What?", "chosen": "A dog.", "rejected": "A cat."})]);
    let wrong =
        Source { columns: columns([("chosen", "better"), ("rejected", "rejected")]), ..trl.as_path().into() };
    let told = read_source(&wrong).unwrap_err().to_string();
    assert!(told.contains("`chosen` is to be read from `better`"), "{told}");
    let turned =
        Source { columns: columns([("chosen", "rejected"), ("rejected", "chosen")]), ..trl.as_path().into() };
    let pair = read_source(&turned).unwrap().next().unwrap().unwrap();
    assert_eq!((&*pair.chosen, &*pair.rejected), ("A cat.", "A dog."));
    // In a table too, pictures included.
    let table = folder.path().join("table.parquet");
    write_rlaif_parquet(
        &table,
        [Pair::new("1", "What?", "A dog.", "A cat.").with_image(png(2, 2, [1, 2, 3]))],
    )
    .unwrap();
    let columns =
        [("chosen".to_owned(), "rejected".to_owned()), ("rejected".to_owned(), "chosen".to_owned())];
    let turned = Source { columns: columns.into(), ..table.as_path().into() };
    let pair = read_source(&turned).unwrap().next().unwrap().unwrap();
    assert_eq!((&*pair.chosen, &*pair.rejected, pair.images.len()), ("A cat.", "A dog.", 1));
    let source = Source {
        columns: [("chosen".to_owned(), "origin_split".to_owned())].into(),
        ..table.as_path().into()
    };
    let told = read_source(&source).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(told.contains("`chosen` is empty"), "the column's own values, not those of `chosen`: {told}");
}

#[test]
fn one_odd_row_in_front_does_not_tell_the_format_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let odd = json!({"question": "q", "chosen": "a", "rejected": "b", "note": "no prompt"});
    let sound = |index: usize| json!({"prompt": format!("q{index}"), "chosen": "a b", "rejected": "c"});
    let rows: Vec<_> = std::iter::once(odd).chain((0..5).map(sound)).collect();
    let mut pairs = read_pairs(&file(folder.path(), &rows)).unwrap();
    assert_eq!(pairs.format(), Format::Trl);
    assert!(pairs.next().unwrap().is_err());
    assert_eq!(pairs.filter_map(Result::ok).count(), 5);
}

/// The layout of VLFeedback's table on the Hub (`completions` a list of objects), as `datasets` 5.2 and pyarrow 26 wrote it, and
/// as an object of lists, as `datasets` stores a `Sequence` of objects.
#[test]
fn answers_with_ratings_become_pairs() {
    for name in ["vlfeedback.parquet", "vlfeedback_sequence.parquet"] {
        let path = fixture(name);
        let mut pairs = read_pairs(&path).unwrap();
        let best: Vec<Pair> = pairs.by_ref().collect::<Result<_, _>>().unwrap();
        assert_eq!(pairs.format(), Format::Ratings, "{name}");
        // The third row's answers are all rated alike.
        assert_eq!((best.len(), pairs.dropped().tied), (2, 1));
        // Means of 5, 5, 5 and 1, 2, 3; "N/A" does not count.
        assert_eq!((&*best[0].id, &*best[0].chosen, &*best[0].rejected), ("a", "good", "bad"));
        assert_eq!((&*best[1].chosen, &*best[1].rejected), ("fine", "worst"));
        assert!(matches!(best[0].images[..], [ImageSource::Bytes(_)]));
        let all = Source { pairing: Pairing::All, ..path.as_path().into() };
        let all: Vec<Pair> = read_source(&all).unwrap().collect::<Result<_, _>>().unwrap();
        let told: Vec<_> = all.iter().map(|pair| (&*pair.id, &*pair.chosen, &*pair.rejected)).collect();
        let wanted = [
            ("a-1", "good", "middling"),
            ("a-2", "good", "bad"),
            ("a-3", "middling", "bad"),
            ("b-1", "fine", "poor"),
            ("b-2", "fine", "worst"),
            ("b-3", "poor", "worst"),
        ];
        assert_eq!(told, wanted);
        let far = Source { pairing: Pairing::All, min_margin: 2.5, ..path.as_path().into() };
        let far: Vec<Pair> = read_source(&far).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(
            far.iter().map(|pair| (&*pair.chosen, &*pair.rejected)).collect::<Vec<_>>(),
            [("good", "bad"), ("fine", "worst")]
        );
    }
}

#[test]
fn scores_and_ranks_beside_answers_are_read_and_faults_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let rows = [
        json!({"prompt": "q", "responses": ["x", "y", "z"], "scores": [1, 3.5, "2"]}),
        json!({"prompt": "q", "responses": ["x", "y"], "ranks": [2, 1]}),
        json!({"prompt": "q", "responses": ["x", "y"], "scores": [1]}),
        json!({"prompt": "q", "responses": ["x", "y"], "scores": [1, null]}),
        json!({"instruction": "q", "completions": [{"response": "x", "overall_score": 7.5}, {"response": "y", "overall_score": 9}]}),
        json!({"prompt": "q", "completions": [{"response": "x"}, {"response": "y", "score": 1}]}),
    ];
    let told: Vec<Result<(String, String), String>> = read_pairs(&file(folder.path(), &rows))
        .unwrap()
        .map(|pair| pair.map(|pair| (pair.chosen, pair.rejected)).map_err(|error| error.to_string()))
        .collect();
    let pair = |chosen: &str, rejected: &str| Ok((chosen.to_owned(), rejected.to_owned()));
    assert_eq!([&told[0], &told[1], &told[4]], [&pair("y", "x"), &pair("y", "x"), &pair("y", "x")]);
    for (row, what) in [(2, "2 `responses` and 1 `scores`"), (3, "a list of numbers"), (5, "a score")] {
        let fault = told[row].as_ref().unwrap_err();
        assert!(fault.contains(&format!("row {}", row + 1)) && fault.contains(what), "{fault}");
    }
}

#[test]
fn a_picture_in_a_table_is_read_again_from_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("many.parquet");
    let picture = |index: usize| png(3 + index as u32 % 4, 2, [index as u8, (index / 256) as u8, 7]);
    // Several row groups, with rows whose picture is only a path between them.
    let pairs: Vec<Pair> = (0..2500)
        .map(|index| {
            let pair = Pair::new(index.to_string(), "q", "a", "b");
            if index % 7 == 3 { pair.with_image("there.png") } else { pair.with_image(picture(index)) }
        })
        .collect();
    write_rlaif_parquet(&path, &pairs).unwrap();
    let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(4)).unwrap();
    let read: Vec<Pair> = read_pairs(&path).unwrap().collect::<Result<_, _>>().unwrap();
    for index in [0, 1, 2, 4, 999, 1000, 1001, 2499, 18] {
        let ImageSource::Bytes(bytes) = &read[index].images[0] else { panic!("row {index}") };
        let place = ImageSource::Place(bytes.place().unwrap());
        assert_eq!(*loader.bytes(&place).unwrap(), picture(index), "row {index}");
        assert_eq!(place.key(), read[index].images[0].key());
    }
    // Read side by side from one file, each is itself.
    let places: Vec<(usize, ImageSource)> = read
        .iter()
        .enumerate()
        .filter_map(|(index, pair)| match &pair.images[0] {
            ImageSource::Bytes(bytes) => Some((index, ImageSource::Place(bytes.place()?))),
            _ => None,
        })
        .collect();
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (loader, places) = (&loader, &places);
            scope.spawn(move || {
                for (index, place) in places.iter().skip(part).step_by(40) {
                    assert_eq!(*loader.bytes(place).unwrap(), picture(*index));
                }
            });
        }
    });
    // A file that is another one now is told, not decoded.
    let ImageSource::Bytes(bytes) = &read[4].images[0] else { panic!() };
    let place = ImageSource::Place(bytes.place().unwrap());
    write_rlaif_parquet(&path, &pairs[1..]).unwrap();
    let loader = ImageLoader::new(folder.path(), ImageProcessor::clip(4)).unwrap();
    let told = loader.bytes(&place).unwrap_err().to_string();
    assert!(told.contains("many.parquet") && told.contains("has changed"), "{told}");
}

#[test]
fn sources_are_written_as_they_are_read() {
    let told = |text: &str| serde_json::from_str::<Sources>(text).unwrap();
    for text in [
        r#""a.json""#,
        r#"["a.json","b/*.parquet"]"#,
        r#"["a.json",{"path":"b","columns":{"chosen":"good"},"weight":0.5,"pairing":"all","min_margin":1.0}]"#,
        r#"{"path":"b","format":"trl"}"#,
    ] {
        assert_eq!(serde_json::to_string(&told(text)).unwrap(), text);
    }
    let wrong = serde_json::from_str::<Sources>(r#"{"path":"b","weigth":2}"#);
    assert!(wrong.unwrap_err().to_string().contains("a path, a table with `path`"));
}
