//! Values on disk: what was stored stays, whatever happens to other values.

use aspo_data::{Error, Store};

fn key(i: u8) -> [u8; 32] {
    [i; 32]
}

fn value(i: u8) -> Vec<u8> {
    vec![i; 10 * usize::from(i)]
}

/// The file of a store with three values.
fn stored(path: &std::path::Path) -> Vec<u8> {
    let mut store = Store::open(path).unwrap();
    for i in 0..3 {
        store.put(&key(i), &value(i)).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    std::fs::read(path).unwrap()
}

#[test]
fn a_store_torn_anywhere_keeps_its_whole_values_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("folder/store");
    let whole = stored(&path);
    for cut in 0..=whole.len() {
        std::fs::write(&path, &whole[..cut]).unwrap();
        // The last line end says nothing that the line before it does not.
        let lines = whole[..(cut + 1).min(whole.len())].split(|byte| *byte == b'\n').count() - 1;
        let kept = lines.saturating_sub(1);
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.len(), kept, "cut at {cut}");
        for i in 0..3 {
            let wanted = (usize::from(i) < kept).then(|| value(i));
            assert_eq!(store.get(&key(i)).map(<[u8]>::to_vec), wanted);
        }
        store.put(&key(9), b"new").unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert_eq!((store.len(), store.get(&key(9))), (kept + 1, Some(&b"new"[..])), "cut at {cut}");
    }
}

#[test]
fn a_value_damaged_in_the_middle_loses_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let whole = stored(&path);
    let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').collect();
    for at in lines[0] + 1..lines[1] {
        let mut damaged = whole.clone();
        damaged[at] = if damaged[at] == b'1' { b'2' } else { b'1' };
        std::fs::write(&path, &damaged).unwrap();
        let store = Store::open(&path).unwrap();
        assert_eq!((store.len(), store.damaged()), (2, 1), "damaged at {at}");
        assert_eq!([1, 2].map(|i| store.get(&key(i)).map(<[u8]>::to_vec)), [1, 2].map(|i| Some(value(i))));
        drop(store);
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "nothing is taken out of the file");
    }
}

#[test]
fn a_store_is_refused_to_a_second_user_and_foreign_files_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let _held = Store::open(&path).unwrap();
    assert!(Store::open(&path).unwrap_err().to_string().contains("another process"));
    let foreign = folder.path().join("notes.txt");
    std::fs::write(&foreign, "my notes, dear to me").unwrap();
    assert!(matches!(Store::open(&foreign), Err(Error::Stored { .. })));
    assert_eq!(std::fs::read(&foreign).unwrap(), b"my notes, dear to me");
}
