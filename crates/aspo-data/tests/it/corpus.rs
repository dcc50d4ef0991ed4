//! Encoding a whole file, with its cache.

use std::fs::OpenOptions;
use std::io::Write;

use aspo_data::{Encoder, Error, OnFault, Pair, Result, Store, Template};

use crate::support::tiny_tokenizer;

fn encoder() -> Encoder {
    Encoder { max_length: Some(60), ..Encoder::new(tiny_tokenizer(), Template::LlavaHf, 4) }
}

fn pairs(count: usize) -> Vec<Pair> {
    (0..count)
        .map(|i| Pair::new(format!("{i}"), "What?", format!("The dog {i}. Two."), "No.").with_image("a.jpg"))
        .collect()
}

fn stream(pairs: &[Pair]) -> impl Iterator<Item = Result<Pair>> + '_ {
    pairs.iter().cloned().map(Ok)
}

#[test]
fn pairs_keep_their_order_and_drops_are_counted() {
    let mut all = pairs(1200);
    all[3].prompt = "long ".repeat(40);
    all[5].chosen = "the dog ".repeat(30);
    all[7].rejected = "a </s> b".into();
    let (encoded, report) = encoder().encode_all(stream(&all), OnFault::Skip, None).unwrap();
    assert_eq!((report.rows, report.encoded, report.dropped_no_room, report.faulty), (1200, 1198, 1, 1));
    assert_eq!((report.truncated_chosen, report.truncated_rejected), (1, 0));
    assert!(report.faults[0].contains("\"7\"") && report.faults[0].contains("</s>"), "{:?}", report.faults);
    let ids: Vec<usize> = encoded.iter().map(|pair| pair.id.parse().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[0] < pair[1]) && !ids.contains(&3) && !ids.contains(&7));
    assert!(matches!(encoder().encode_all(stream(&all), OnFault::Stop, None), Err(Error::Pair { .. })));
}

#[test]
fn a_cache_gives_back_the_same_pairs_and_knows_its_encoder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache/pairs");
    let all = pairs(30);
    let mut store = Store::open(&path).unwrap();
    let (first, report) = encoder().encode_all(stream(&all), OnFault::Stop, Some(&mut store)).unwrap();
    assert_eq!((report.cached, store.len()), (0, 30));
    drop(store);
    let mut store = Store::open(&path).unwrap();
    let renamed: Vec<Pair> =
        all.iter().map(|pair| Pair { id: format!("x{}", pair.id), ..pair.clone() }).collect();
    let (second, report) = encoder().encode_all(stream(&renamed), OnFault::Stop, Some(&mut store)).unwrap();
    assert_eq!(report.cached, 30);
    for (a, b) in first.iter().zip(&second) {
        assert_eq!(format!("x{}", a.id), b.id);
        assert_eq!(
            (&a.prompt_ids, &a.chosen, &a.rejected, &a.images),
            (&b.prompt_ids, &b.chosen, &b.rejected, &b.images)
        );
    }
    let other = Encoder { image_tokens: 5, ..encoder() };
    let (_, report) = other.encode_all(stream(&all), OnFault::Stop, Some(&mut store)).unwrap();
    assert_eq!((report.cached, store.len()), (0, 60));
}

#[test]
fn a_store_torn_anywhere_keeps_its_whole_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let key = |i: u8| [i; 32];
    let mut store = Store::open(&path).unwrap();
    for i in 0..3 {
        store.put(&key(i), &vec![i; 10 * usize::from(i)]).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let mut store = Store::open(&path).unwrap();
        let kept = store.len();
        for i in 0..3 {
            let value = store.get(&key(i)).unwrap();
            assert_eq!(value.is_some(), usize::from(i) < kept);
            assert!(value.is_none_or(|value| value == vec![i; 10 * usize::from(i)]));
        }
        // Writing goes on behind the last whole value.
        store.put(&key(9), b"new").unwrap();
        assert_eq!(store.get(&key(9)).unwrap().unwrap(), b"new");
        drop(store);
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.len(), kept + 1);
        assert_eq!(store.get(&key(9)).unwrap().unwrap(), b"new");
    }
}

#[test]
fn a_store_is_refused_to_a_second_user_and_foreign_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let _held = Store::open(&path).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("another process"));
    let foreign = folder.path().join("notes.txt");
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(&foreign)
        .unwrap()
        .write_all(b"my notes, dear to me")
        .unwrap();
    assert!(matches!(Store::open(&foreign), Err(Error::Stored { .. })));
    assert_eq!(std::fs::read(&foreign).unwrap(), b"my notes, dear to me");
}
